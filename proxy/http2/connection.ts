import {
  constants,
  type IncomingHttpHeaders,
  performServerHandshake,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from 'node:http2';
import type { Socket } from 'node:net';
import { systemCode } from '../../src/base/errors.ts';
import type { Endpoint } from '../../src/model/address.ts';
import { headMs, idleClientMs, lingerMs } from '../http/bounds.ts';
import type { RetryBudget } from '../http/retry-budget.ts';
import type { Account, CarriedConnection } from '../tcp/carried.ts';
import { keepAliveMs } from '../tcp/relay-bounds.ts';
import type { Route } from '../tcp/route.ts';
import { abort, peerOf } from '../tcp/socket-ends.ts';
import {
  connectionWindowBytes,
  cutMs,
  maxClientStreams,
  maxInvalidFrames,
  maxReadFields,
  maxReadHeadBytes,
  maxRejectedStreams,
  sessionMemoryMib,
  streamWindowBytes,
} from './bounds.ts';
import type { Http2Environment } from './environment.ts';
import { Exchange, type ExchangeOptions } from './exchange.ts';
import type { Failure } from './failures.ts';
import { type Flood, FloodGuard } from './flood-guard.ts';
import { resetStream } from './outside-parser.ts';

const { NGHTTP2_ENHANCE_YOUR_CALM, NGHTTP2_REFUSED_STREAM } = constants;

export interface Http2ConnectionOptions {
  /** A paused socket, or one that TLS with ALPN `h2` was spoken over. */
  readonly socket: Socket;
  readonly scheme: 'http' | 'https';
  readonly route: Route;
  readonly account: Account;
  readonly budget: RetryBudget;
  readonly environment: Http2Environment;
  /** Those who share connections to instances that are reached directly, or are told for whom they are. */
  readonly ownerFor: (route: Route) => string;
  /** Called once, when the client's socket is closed. */
  readonly ended: (connection: Http2Connection) => void;
}

/** A client's connection; each of its streams goes its own way. */
export class Http2Connection implements CarriedConnection {
  readonly #options: Http2ConnectionOptions;
  readonly #socket: Socket;
  readonly #peer: Endpoint | undefined;
  readonly #exchanges = new Set<Exchange>();
  readonly #exchangeOptions: ExchangeOptions;
  readonly #guard: FloodGuard;
  #session: ServerHttp2Session | undefined;
  /** Monotonic; since when there is no stream. */
  #idleSinceMs: number;
  #leaving = false;
  /** Monotonic; since when it is `#leaving`. */
  #leavingSinceMs = Number.POSITIVE_INFINITY;
  /** Its first frame has come, without which it does not speak HTTP/2. */
  #greeted = false;
  /** What the runtime calls closing: it makes the session refuse streams in a way that is dangerous; see `leave`. */
  #close: (() => void) | undefined;
  /** Too much came over it, and it is about to be destroyed. */
  #flooded = false;
  #cutMs = Number.POSITIVE_INFINITY;
  #bytesRead = 0;
  #bytesWritten = 0;

  constructor(options: Http2ConnectionOptions) {
    const { socket, environment } = options;
    this.#options = options;
    this.#socket = socket;
    this.#peer = peerOf(socket);
    this.#idleSinceMs = environment.clock.monotonicMs();
    this.#guard = new FloodGuard(this.#idleSinceMs);
    this.#exchangeOptions = {
      ...options,
      peer: this.#peer,
      marks: { address: this.#peer?.address ?? 'unknown', scheme: options.scheme },
      carried: () => this.#guard.earn('ping'),
      over: (exchange, reset) => this.#over(exchange, reset),
    };
    socket.on('error', () => undefined);
    // Who ends its side of an HTTP/2 connection is gone: there is no half of one.
    socket.on('end', () => this.#session?.destroy());
    socket.on('close', () => this.#onClose());
  }

  start(): void {
    const socket = this.#socket;
    if (socket.destroyed) return;
    const session = performServerHandshake(socket, {
      maxSessionMemory: sessionMemoryMib,
      maxHeaderListPairs: maxReadFields,
      maxSessionInvalidFrames: maxInvalidFrames,
      maxSessionRejectedStreams: maxRejectedStreams,
      settings: {
        maxConcurrentStreams: maxClientStreams,
        initialWindowSize: streamWindowBytes,
        maxHeaderListSize: maxReadHeadBytes,
        // Who may use it is decided request by request.
        enableConnectProtocol: true,
      },
    });
    this.#session = session;
    session.setLocalWindowSize(connectionWindowBytes);
    // The types of Node 20 leave out the last argument.
    session.on('stream', (stream: ServerHttp2Stream, headers: IncomingHttpHeaders, _flags: number, raw: string[]) =>
      this.#onStream(stream, headers, raw),
    );
    session.on('remoteSettings', () => {
      this.#greeted = true;
      this.#allow('settings');
    });
    session.on('ping', () => this.#allow('ping'));
    session.on('error', (error) => this.#onError(error));
    this.#close = session.close.bind(session);
    // The runtime closes a session whose client says goodbye, while it may have open streams and begin others.
    session.close = () => this.leave();
    socket.resume();
    if (this.#leaving) this.#sayGoodbye(session);
  }

  get backendId(): string | undefined {
    for (const { backendId } of this.#exchanges) if (backendId !== undefined) return backendId;
    return undefined;
  }

  carries(instance: string): boolean {
    for (const { backendId } of this.#exchanges) if (backendId === instance) return true;
    return false;
  }

  keepAlive(): void {
    this.#socket.setKeepAlive(true, keepAliveMs);
  }

  review(): void {
    for (const exchange of [...this.#exchanges]) exchange.review();
  }

  /** Tells each of its requests why, closes it to further ones, and resets it when the client has had time to read that. */
  cut(denied?: string): void {
    if (this.#session === undefined || this.#session.destroyed || this.#exchanges.size === 0) {
      abort(this.#socket, true);
      return;
    }
    if (this.#cutMs !== Number.POSITIVE_INFINITY) return;
    this.#cutMs = this.#nowMs();
    const failure: Failure =
      denied === undefined ? { kind: 'unavailable', reason: 'this sidecar stops' } : { kind: 'denied', reason: denied };
    for (const exchange of [...this.#exchanges]) exchange.end(failure);
    this.leave();
  }

  /** No further requests: what runs comes to its end (RFC 9113 section 6.8). */
  leave(): void {
    if (this.#leaving) return;
    this.#leaving = true;
    this.#leavingSinceMs = this.#nowMs();
    if (this.#session !== undefined) this.#sayGoodbye(this.#session);
  }

  /**
   * A session that is closed refuses streams while it reads, as `resetStream` must not. Once its goodbye is out none
   * come any more: it is closed then and not before.
   */
  #sayGoodbye(session: ServerHttp2Session): void {
    if (session.destroyed) return;
    session.goaway();
    setImmediate(() => this.#closeSession());
  }

  #closeSession(): void {
    const session = this.#session;
    if (session === undefined || session.destroyed || session.closed) return;
    if (session.state.outboundQueueSize === 0) this.#close?.();
  }

  /** To be called every `sweepMs`: ends what takes too long. */
  tick(nowMs: number): void {
    this.#count();
    if (this.#isStuck(nowMs)) this.#session?.destroy();
    else if (nowMs - this.#cutMs >= cutMs) {
      this.#session?.destroy();
      abort(this.#socket, true);
      return;
    }
    if (this.#leaving) this.#closeSession();
    for (const exchange of this.#exchanges) exchange.tick(nowMs);
    if (this.#exchanges.size === 0 && nowMs - this.#idleSinceMs >= idleClientMs) this.leave();
  }

  /** It never began to speak HTTP/2, or holds on to half a frame after all was said: the runtime would wait for ever. */
  #isStuck(nowMs: number): boolean {
    if (this.#exchanges.size > 0) return false;
    const leavingMs = nowMs - Math.max(this.#leavingSinceMs, this.#idleSinceMs);
    return leavingMs >= lingerMs || (!this.#greeted && nowMs - this.#idleSinceMs >= headMs);
  }

  #nowMs(): number {
    return this.#options.environment.clock.monotonicMs();
  }

  #onStream(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, raw: readonly string[]): void {
    const isBack = stream.closed || stream.destroyed;
    if (isBack || this.#leaving || this.#flooded) {
      stream.on('error', () => undefined);
      // It was taken back before anybody could look at it, or came while the goodbye was on its way.
      if (isBack) this.#allow('reset');
      else resetStream(stream, NGHTTP2_REFUSED_STREAM);
      return;
    }
    const exchange = new Exchange(stream, this.#exchangeOptions);
    this.#exchanges.add(exchange);
    exchange.begin(headers, raw);
  }

  #over(exchange: Exchange, reset: boolean): void {
    this.#exchanges.delete(exchange);
    if (this.#exchanges.size === 0) this.#idleSinceMs = this.#nowMs();
    if (!reset) this.#guard.earn('reset');
    else if (this.#session?.destroyed === false) this.#allow('reset');
  }

  #allow(what: Flood): void {
    const session = this.#session;
    if (this.#flooded || this.#guard.take(what, this.#nowMs()) || session === undefined || session.destroyed) return;
    this.#flooded = true;
    this.#options.environment.floods[what].value += 1;
    // It is reading; see `resetStream`.
    setImmediate(() => session.destroy(new Error(`too many frames: ${what}`), NGHTTP2_ENHANCE_YOUR_CALM));
  }

  #onError(error: Error): void {
    const { floods, metrics } = this.#options.environment;
    const code = systemCode(error);
    if (code === 'ERR_HTTP2_TOO_MANY_INVALID_FRAMES') floods.frames.value += 1;
    else if (code === 'ERR_HTTP2_ERROR') metrics.refused('connection');
  }

  /** All bytes of the connection, and not of its bodies alone. */
  #count(): void {
    const { traffic, cells } = this.#options.route;
    const { bytesRead, bytesWritten } = this.#socket;
    traffic.received += bytesRead - this.#bytesRead;
    cells.received.value += bytesRead - this.#bytesRead;
    traffic.sent += bytesWritten - this.#bytesWritten;
    cells.sent.value += bytesWritten - this.#bytesWritten;
    this.#bytesRead = bytesRead;
    this.#bytesWritten = bytesWritten;
  }

  #onClose(): void {
    this.#count();
    this.#session?.destroy();
    this.#options.ended(this);
  }
}
