import { type ClientHttp2Stream, constants, type IncomingHttpHeaders, type OutgoingHttpHeaders } from 'node:http2';
import { describeError } from '../../src/base/errors.ts';
import type { Backend } from '../balance/backend.ts';
import { noAnswer } from '../http/tries.ts';
import type { UpstreamFailure } from '../http/upstream.ts';
import type { Route } from '../tcp/route.ts';
import type { InstanceSession, SessionUser } from './instance-session.ts';
import { resetStream } from './outside-parser.ts';
import { type Asker, sessionFor } from './session-ways.ts';

const { NGHTTP2_CANCEL } = constants;

/** A stream whose instance has begun to answer, with the place that it has in its connection. */
export interface Answering {
  readonly session: InstanceSession;
  readonly stream: ClientHttp2Stream;
  readonly headers: IncomingHttpHeaders;
  readonly flags: number;
}

/** What whoever hedges hears; exactly one of the two, once, unless it lets go before. */
export interface HedgeEvents {
  hedgeAnswered(hedge: Hedge, answering: Answering): void;
  hedgeFailed(hedge: Hedge, failure: UpstreamFailure): void;
}

export interface HedgeOptions {
  readonly asker: Asker;
  readonly route: Route;
  readonly backend: Backend;
  /** How long connecting may take. */
  readonly limitMs: number;
  /** The whole request, as it leaves. */
  readonly headers: OutgoingHttpHeaders;
  readonly body: readonly Buffer[];
  readonly trailers: OutgoingHttpHeaders | undefined;
  readonly events: HedgeEvents;
}

/** A second instance that is asked the same, because the first one takes long; see `http/hedge.ts`. */
export class Hedge implements SessionUser {
  readonly backend: Backend;
  /** Monotonic; when the request was sent, or connecting began. */
  sentMs: number;
  readonly #options: HedgeOptions;
  #session: InstanceSession | undefined;
  #stream: ClientHttp2Stream | undefined;
  #cancelTimer: (() => void) | undefined;

  constructor(options: HedgeOptions) {
    this.#options = options;
    this.backend = options.backend;
    this.sentMs = this.#nowMs();
  }

  start(): void {
    const { asker, route, limitMs } = this.#options;
    const { backend } = this;
    backend.active += 1;
    const session = sessionFor(asker, route, backend);
    if (typeof session === 'string') {
      this.fail({ problem: session, blame: 'way' });
      return;
    }
    session.reserve();
    this.#session = session;
    if (session.isOpen) {
      this.#send(session);
      return;
    }
    session.wait(this);
    this.#cancelTimer = asker.environment.clock.after(limitMs, () => this.fail(noAnswer(backend, limitMs)));
  }

  /** Nobody wants its answer any more. It has not failed: how long it has taken so far is all that is known of it. */
  letGo(): void {
    if (this.#stream !== undefined) this.backend.latency.atLeast(this.#nowMs() - this.sentMs, this.#nowMs());
    this.#drop();
    this.#options.route.ended(this.backend);
  }

  fail(failure: UpstreamFailure): void {
    this.#drop();
    this.#options.route.ended(this.backend);
    this.#options.events.hedgeFailed(this, failure);
  }

  sessionOpened(session: InstanceSession): void {
    if (this.#session !== session) return;
    this.#stopTimer();
    this.#options.route.connected(this.backend, this.#nowMs() - this.sentMs);
    this.#send(session);
  }

  sessionFailed(session: InstanceSession, failure: UpstreamFailure): void {
    if (this.#session === session) this.fail(failure);
  }

  #nowMs(): number {
    return this.#options.asker.environment.clock.monotonicMs();
  }

  #send(session: InstanceSession): void {
    const { headers, body, trailers, events } = this.#options;
    const endStream = body.length === 0 && trailers === undefined;
    let stream: ClientHttp2Stream;
    try {
      stream = session.request(headers, endStream);
    } catch (error) {
      this.fail({ problem: describeError(error), blame: 'way' });
      return;
    }
    this.#stream = stream;
    this.sentMs = this.#nowMs();
    const isOurs = (): boolean => this.#stream === stream;
    stream.on('error', () => undefined);
    stream.on('wantTrailers', () => {
      if (isOurs()) stream.sendTrailers(trailers ?? {});
    });
    stream.on('close', () => {
      if (isOurs()) this.#closed(stream, session);
    });
    stream.on('response', (answer, flags) => {
      if (!isOurs()) return;
      this.#session = undefined;
      this.#stream = undefined;
      events.hedgeAnswered(this, { session, stream, headers: answer, flags });
    });
    for (const chunk of body) stream.write(chunk);
    if (!endStream) stream.end();
  }

  #closed(stream: ClientHttp2Stream, session: InstanceSession): void {
    const problem = `the instance reset the stream with code ${stream.rstCode ?? NGHTTP2_CANCEL}`;
    if (session.hasIgnored(stream)) this.fail({ problem: 'the instance takes no more streams', blame: 'way' });
    else this.fail(session.loss() ?? { problem, blame: 'way' });
  }

  #stopTimer(): void {
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
  }

  #drop(): void {
    this.#stopTimer();
    const stream = this.#stream;
    const session = this.#session;
    this.#stream = undefined;
    this.#session = undefined;
    if (stream !== undefined && !stream.closed) resetStream(stream, NGHTTP2_CANCEL);
    session?.release(this);
  }
}
