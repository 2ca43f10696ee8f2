import { type ClientHttp2Stream, constants, type OutgoingHttpHeaders } from 'node:http2';
import type { Backend } from '../balance/backend.ts';
import { endOf } from '../http/request-metrics.ts';
import { type CopyEnd, type CopyOf, type CopySender, copyMark } from '../http/routing/mirrors.ts';
import type { UpstreamFailure } from '../http/upstream.ts';
import type { InstanceSession, SessionUser } from './instance-session.ts';
import { resetStream } from './outside-parser.ts';
import { type Asker, sessionFor } from './session-ways.ts';

const { NGHTTP2_CANCEL, NGHTTP2_NO_ERROR } = constants;

/** What is copied, and as whom. */
export interface Http2CopyOf extends CopyOf {
  /** As they leave. */
  readonly headers: OutgoingHttpHeaders;
  /** Behind the body; known once that is whole. */
  readonly trailers: () => OutgoingHttpHeaders | undefined;
  readonly asker: Asker;
}

/**
 * Sends one copy over HTTP/2. Its environment has connections for copies alone: they take no stream from requests, and a
 * server that has enough of streams that are reset closes nobody else's connection.
 */
export class Http2CopySender implements CopySender, SessionUser {
  readonly #of: Http2CopyOf;
  readonly #environment: Asker['environment'];
  readonly #ended: (end: CopyEnd) => void;
  #body: readonly Buffer[] = [];
  #backend: Backend | undefined;
  #session: InstanceSession | undefined;
  #stream: ClientHttp2Stream | undefined;
  #isSecond = false;
  #status = 0;
  #isAnswered = false;

  constructor(of: Http2CopyOf, environment: Asker['environment'], ended: (end: CopyEnd) => void) {
    this.#of = of;
    this.#environment = environment;
    this.#ended = ended;
  }

  send(backend: Backend, body: readonly Buffer[]): void {
    this.#backend = backend;
    this.#body = body;
    this.#open(backend);
  }

  letGo(): void {
    const stream = this.#stream;
    const session = this.#session;
    this.#stream = undefined;
    this.#session = undefined;
    // A reset of what has come to its end on both sides would only look like an attack.
    const isWhole = this.#isAnswered && stream?.writableFinished === true;
    if (stream !== undefined && !stream.closed && !isWhole) resetStream(stream, NGHTTP2_CANCEL);
    session?.release(this);
  }

  sessionOpened(session: InstanceSession): void {
    if (this.#session === session) this.#write(session);
  }

  sessionFailed(session: InstanceSession, { blame }: UpstreamFailure): void {
    if (this.#session !== session) return;
    if (blame === 'way') this.#again();
    else this.#ended('failed');
  }

  #open(backend: Backend): void {
    const { asker, lane } = this.#of;
    const { account, peer, ownerFor } = asker;
    const session = sessionFor({ account, peer, ownerFor, environment: this.#environment }, lane, backend);
    if (typeof session === 'string') {
      this.#ended(session === 'full' ? 'busy' : 'failed');
      return;
    }
    session.reserve();
    this.#session = session;
    if (session.isOpen) this.#write(session);
    else session.wait(this);
  }

  /** Over another connection, once: this one has taken no more streams, and nobody has looked at it. */
  #again(): void {
    const backend = this.#backend;
    this.letGo();
    if (this.#isSecond || backend === undefined) this.#ended('failed');
    else {
      this.#isSecond = true;
      this.#open(backend);
    }
  }

  #write(session: InstanceSession): void {
    const trailers = this.#of.trailers();
    const isAll = this.#body.length === 0 && trailers === undefined;
    let stream: ClientHttp2Stream;
    try {
      stream = session.request({ ...this.#of.headers, [copyMark.name.toLowerCase()]: copyMark.value }, isAll);
    } catch {
      this.#again();
      return;
    }
    this.#stream = stream;
    this.#listen(stream, session, trailers);
    for (const piece of this.#body) stream.write(piece);
    if (!isAll) stream.end();
    // Its answer goes nowhere.
    stream.resume();
  }

  #listen(stream: ClientHttp2Stream, session: InstanceSession, trailers: OutgoingHttpHeaders | undefined): void {
    const isOurs = (): boolean => this.#stream === stream;
    stream.on('error', () => undefined);
    stream.on('wantTrailers', () => {
      if (isOurs()) stream.sendTrailers(trailers ?? {});
    });
    stream.on('response', (headers) => {
      if (isOurs()) this.#status = Number(headers[':status']);
    });
    stream.on('end', () => {
      // The runtime says this of a stream that was reset as well.
      if (!isOurs() || stream.rstCode !== NGHTTP2_NO_ERROR || this.#status === 0) return;
      this.#isAnswered = true;
      this.#ended(endOf(this.#status));
    });
    stream.on('close', () => {
      if (!isOurs()) return;
      if (this.#status === 0 && session.hasIgnored(stream)) this.#again();
      else this.#ended('failed');
    });
  }
}
