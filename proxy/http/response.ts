import type { SocketWriter } from '../tcp/socket-writer.ts';
import { BodyReader, bodyUntilClose, chunkedBody, type Framing, noBody } from './body.ts';
import { maxInformational, maxJoinedBytes } from './bounds.ts';
import type { HttpEnvironment } from './environment.ts';
import { HttpFault } from './fault.ts';
import { type Head, type Method, methods } from './head.ts';
import type { HeaderEdits } from './routing/header-edits.ts';

/** What the request was, as far as its answer depends on it. */
export interface Asked {
  readonly method: Method;
  readonly minor: 0 | 1;
  /** It asked to change to another protocol. */
  readonly upgrade: boolean;
}

export interface ResponseEvents {
  /** The final head was read; whether the client's connection may go on behind it, should the answer allow that. */
  answered(status: number): boolean;
  toClient(bytes: Buffer): void;
  /** What follows is another protocol's. */
  upgraded(): void;
  /** The answer is complete. `connections`: which ones may carry another request. */
  whole(connections: { readonly client: boolean; readonly instance: boolean }): void;
}

/**
 * What an instance answers on its way to the client: heads are read and written anew, bodies go on as they come. Throws an
 * HttpFault when it cannot be read in one way only.
 */
export class Response {
  readonly #client: Pick<SocketWriter, 'cork' | 'uncork'>;
  readonly #environment: Pick<HttpEnvironment, 'responseHead' | 'composer'>;
  readonly #events: ResponseEvents;
  readonly #body = new BodyReader();
  /** What a route does to the final head, and a cookie of our own; to be set in `answered`. */
  edits: HeaderEdits | undefined;
  cookie: string | undefined;
  #asked: Asked = { method: methods.get, minor: 1, upgrade: false };
  /** The part of the head that has come. */
  #partial: Buffer | undefined;
  /** Of a body that leaves together with its head. */
  #joined: Buffer | undefined;
  #informational = 0;
  #answered = false;
  #keepsClient = false;
  #keepsInstance = false;

  constructor(
    client: Pick<SocketWriter, 'cork' | 'uncork'>,
    environment: Pick<HttpEnvironment, 'responseHead' | 'composer'>,
    events: ResponseEvents,
  ) {
    this.#client = client;
    this.#environment = environment;
    this.#events = events;
  }

  /** For the answer to another request, or to the same one by another instance. */
  begin(asked: Asked): void {
    this.#asked = asked;
    this.edits = undefined;
    this.cookie = undefined;
    this.#answered = false;
    this.forget();
  }

  forget(): void {
    this.#partial = undefined;
    this.#informational = 0;
  }

  /** Whether the connection may become another protocol's. */
  get upgrades(): boolean {
    return this.#asked.upgrade;
  }

  /** Whether anything of it has come. */
  get begun(): boolean {
    return this.#answered || this.#partial !== undefined || this.#informational > 0;
  }

  /** Whether the end of the connection is the end of the answer. */
  get endsByClose(): boolean {
    return this.#answered && this.#body.endsByClose;
  }

  bytes(chunk: Buffer): void {
    if (this.#answered) this.#readBody(chunk, 0);
    else this.#readHead(chunk);
  }

  #readHead(piece: Buffer): void {
    const { responseHead: head, composer } = this.#environment;
    let chunk = this.#partial === undefined ? piece : Buffer.concat([this.#partial, piece]);
    this.#partial = undefined;
    for (;;) {
      const end = head.readResponse(chunk, 0);
      if (end < 0) {
        this.#partial = Buffer.from(chunk);
        return;
      }
      if (head.status >= 200 || head.status === 101) {
        this.#readFinal(head, chunk, end);
        return;
      }
      this.#informational += 1;
      if (this.#informational > maxInformational)
        throw new HttpFault('status-line', 'too many informational responses');
      if (this.#asked.minor === 1) this.#events.toClient(composer.response(head, undefined, false, undefined));
      if (end === chunk.length) return;
      chunk = chunk.subarray(end);
    }
  }

  #readFinal(head: Head, chunk: Buffer, end: number): void {
    if (head.status === 101) {
      this.#upgrade(head, chunk, end);
      return;
    }
    if (this.#asked.method === methods.connect && head.status < 300) {
      this.#becomeTunnel(head, chunk, end, 'tunnel');
      return;
    }
    const framing = this.#framingOf(head);
    const { minor } = this.#asked;
    const dropsChunking = framing.kind === 'chunked' && minor === 0;
    this.#body.begin(framing, dropsChunking);
    this.#answered = true;
    this.#keepsInstance = framing.kind !== 'close' && (head.minor === 1 ? !head.closes : head.keepsAlive);
    this.#keepsClient = this.#events.answered(head.status) && framing.kind !== 'close' && !dropsChunking;
    const connection = this.#keepsClient ? (minor === 0 ? 'keep-alive' : undefined) : 'close';
    const { composer } = this.#environment;
    if (chunk.length - end <= maxJoinedBytes) {
      this.#joined = undefined;
      const used = this.#body.read(chunk, end, this.#onPiece);
      const body = this.#joined;
      this.#joined = undefined;
      this.#events.toClient(composer.response(head, connection, dropsChunking, body, this.edits, this.cookie));
      this.#afterBody(used, chunk.length);
      return;
    }
    this.#client.cork();
    this.#events.toClient(composer.response(head, connection, dropsChunking, undefined, this.edits, this.cookie));
    const used = this.#body.read(chunk, end, this.#onBody);
    this.#client.uncork();
    this.#afterBody(used, chunk.length);
  }

  #upgrade(head: Head, chunk: Buffer, end: number): void {
    if (!this.#asked.upgrade) throw new HttpFault('status-line', 'an upgrade that nobody asked for');
    this.#becomeTunnel(head, chunk, end, 'upgrade');
  }

  /** A 2xx to CONNECT has no body, whatever it says (RFC 9110 section 9.3.6): as with an upgrade all that follows are bytes. */
  #becomeTunnel(head: Head, chunk: Buffer, end: number, kind: 'upgrade' | 'tunnel'): void {
    this.#answered = true;
    this.#events.answered(head.status);
    const { composer } = this.#environment;
    const said = composer.response(head, kind, kind === 'tunnel', undefined, this.edits, this.cookie);
    this.#events.toClient(said);
    if (end < chunk.length) this.#events.toClient(Buffer.from(chunk.subarray(end)));
    this.#events.upgraded();
  }

  /** RFC 9112 section 6.3. */
  #framingOf(head: Head): Framing {
    if (this.#asked.method === methods.head || head.status === 204 || head.status === 304) return noBody;
    if (head.chunked) return chunkedBody;
    if (head.contentLength !== undefined) return { kind: 'length', bytes: head.contentLength };
    return bodyUntilClose;
  }

  #readBody(chunk: Buffer, at: number): void {
    const used = this.#body.read(chunk, at, this.#onBody);
    this.#afterBody(used, chunk.length);
  }

  readonly #onBody = (buffer: Buffer, start: number, end: number): void => {
    this.#events.toClient(start === 0 && end === buffer.length ? buffer : buffer.subarray(start, end));
  };

  readonly #onPiece = (buffer: Buffer, start: number, end: number): void => {
    const piece = buffer.subarray(start, end);
    this.#joined = this.#joined === undefined ? piece : Buffer.concat([this.#joined, piece]);
  };

  /** Whoever says more than its answer is not asked again. */
  #afterBody(used: number, size: number): void {
    if (!this.#body.done) return;
    this.#events.whole({ client: this.#keepsClient, instance: this.#keepsInstance && used === size });
  }
}
