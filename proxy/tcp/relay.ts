import { connect, type Socket } from 'node:net';
import type { Clock } from '../../src/base/clock.ts';
import { describeError, systemCode } from '../../src/base/errors.ts';
import type { Backend } from '../balance/backend.ts';
import type { AcceptGate } from './accept-gate.ts';
import type { ReadBuffers } from './read-buffers.ts';
import {
  connectAttemptMs,
  connectTotalMs,
  keepAliveMs,
  lingerMs,
  ownLimits,
  roundAgainMs,
  silences,
  writeHighWaterMark,
} from './relay-bounds.ts';
import type { Route } from './route.ts';
import { abort, resetError, wasReset } from './socket-ends.ts';

export interface RelayEnvironment {
  readonly clock: Clock;
  readonly gate: AcceptGate;
  readonly buffers: ReadBuffers;
  /** Called once, when both sockets are closed. */
  readonly ended: (connection: RelayConnection) => void;
}

/**
 * One client connection and its upstream. The client's socket arrives paused, with `allowHalfOpen` and a
 * `writeHighWaterMark`; what it sends stays in the kernel until an upstream is connected. Then bytes, the end of each
 * direction, and resets are passed on as they come. At most one read of each direction is held in memory: while the
 * kernel has not taken it, that side is not read.
 */
export class RelayConnection {
  readonly #client: Socket;
  readonly #route: Route;
  readonly #environment: RelayEnvironment;
  #upstream: Socket | undefined;
  #backend: Backend | undefined;
  #tried: Backend[] = [];
  /** How often every instance was tried in vain. */
  #rounds = 0;
  readonly #startedMs: number;
  #attemptMs = 0;
  #cancelTimer: (() => void) | undefined;
  #open = false;
  #listening = false;
  #over = false;
  #clientClosed = false;
  #clientEnded = false;
  #upstreamEnded = false;
  /** Whether a byte has gone in either direction: from then on no other instance can take over. */
  #moved = false;
  #answered = false;
  /** A direction has ended, and its end is passed on when what was written before it has left. */
  #endClient = false;
  #endUpstream = false;
  #keptAlive = false;
  #buffer: Buffer | undefined;

  constructor(client: Socket, route: Route, environment: RelayEnvironment) {
    this.#client = client;
    this.#route = route;
    this.#environment = environment;
    this.#startedMs = environment.clock.monotonicMs();
    client.on('end', () => this.#onClientEnd());
    client.on('drain', () => this.#onClientDrain());
    client.on('error', () => this.#onClientError());
    client.on('close', () => this.#onClientClose());
  }

  /** Begins to connect. */
  start(): void {
    if (!this.#over) this.#attempt();
  }

  /** The id of the instance that it goes to now. */
  get backendId(): string | undefined {
    return this.#backend?.id;
  }

  /** Lets the kernel look now and then whether both ends still exist. */
  keepAlive(): void {
    if (this.#keptAlive || !this.#open) return;
    this.#keptAlive = true;
    this.#client.setKeepAlive(true, keepAliveMs);
    this.#upstream?.setKeepAlive(true, keepAliveMs);
  }

  /** Resets both sides. */
  cut(): void {
    this.#over = true;
    this.#cancelTimer?.();
    if (this.#upstream !== undefined) abort(this.#upstream, this.#open);
    abort(this.#client, true);
  }

  // Connecting

  #attempt(): void {
    const { clock } = this.#environment;
    const nowMs = clock.monotonicMs();
    const leftMs = this.#startedMs + connectTotalMs - nowMs;
    const backend = leftMs > 0 ? this.#route.pick(this.#tried) : undefined;
    if (backend === undefined) {
      this.#giveUp(undefined);
      return;
    }
    this.#tried.push(backend);
    this.#backend = backend;
    this.#attemptMs = nowMs;
    backend.active += 1;
    const upstream = this.#connect(backend);
    this.#upstream = upstream;
    const limitMs = this.#route.hasOther(this.#tried) ? Math.min(connectAttemptMs, leftMs) : leftMs;
    this.#cancelTimer = clock.after(limitMs, () => {
      this.#failAttempt(upstream, `no answer within ${Math.round(limitMs)} ms`, true);
    });
  }

  #connect(backend: Backend): Socket {
    const options = {
      host: backend.endpoint.address,
      port: backend.endpoint.port,
      allowHalfOpen: true,
      noDelay: true,
      highWaterMark: writeHighWaterMark,
      onread: {
        buffer: (): Buffer => {
          this.#buffer ??= this.#environment.buffers.smallest();
          return this.#buffer;
        },
        callback: (bytes: number, buffer: Uint8Array): boolean => this.#onUpstreamBytes(bytes, buffer as Buffer),
      },
    };
    const upstream = connect(options);
    upstream.once('connect', () => this.#onConnected(upstream));
    upstream.on('end', () => this.#onUpstreamEnd(upstream));
    upstream.on('drain', () => this.#onUpstreamDrain());
    upstream.on('error', (error) => this.#onUpstreamError(upstream, error));
    upstream.on('close', () => this.#onUpstreamClose(upstream));
    return upstream;
  }

  #onConnected(upstream: Socket): void {
    if (this.#over || upstream !== this.#upstream || this.#backend === undefined) return;
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    this.#open = true;
    this.#backend.total += 1;
    this.#route.connected(this.#backend, this.#environment.clock.monotonicMs() - this.#attemptMs);
    if (!this.#listening) this.#client.on('data', (chunk) => this.#onClientBytes(chunk));
    this.#listening = true;
    if (this.#clientEnded) this.#passEnd(upstream);
    else this.#client.resume();
  }

  #failAttempt(upstream: Socket, problem: string, silent: boolean): void {
    const backend = this.#backend;
    if (this.#over || upstream !== this.#upstream || backend === undefined) return;
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    this.#upstream = undefined;
    this.#backend = undefined;
    this.#open = false;
    this.#keptAlive = false;
    upstream.destroy();
    this.#route.ended(backend);
    const again = this.#againMs();
    this.#route.attemptFailed(backend, { problem, silent, retried: again !== undefined });
    if (again === undefined) this.#giveUp(problem);
    else if (again === 0) this.#attempt();
    else {
      this.#tried = [];
      this.#cancelTimer = this.#environment.clock.after(again, () => this.#attempt());
    }
  }

  /** How long to wait before the next attempt, or undefined when there is none. */
  #againMs(): number | undefined {
    const elapsedMs = this.#environment.clock.monotonicMs() - this.#startedMs;
    if (elapsedMs >= connectTotalMs) return undefined;
    if (this.#route.hasOther(this.#tried)) return 0;
    const waitMs = roundAgainMs[this.#rounds];
    this.#rounds += 1;
    return waitMs;
  }

  #giveUp(problem: string | undefined): void {
    this.#over = true;
    this.#route.refused(problem);
    abort(this.#client, true);
  }

  // Bytes

  #onClientBytes(chunk: Buffer): void {
    const bytes = chunk.length;
    this.#route.traffic.received += bytes;
    this.#route.cells.received.value += bytes;
    this.#moved = true;
    const upstream = this.#upstream;
    if (upstream === undefined || this.#over) return;
    upstream.write(chunk);
    if (upstream.writableLength > 0) this.#client.pause();
    else if (this.#environment.gate.holding) this.#hold(upstream);
  }

  /** False stops reading until the client has taken what was written. */
  #onUpstreamBytes(bytes: number, buffer: Buffer): boolean {
    const client = this.#client;
    this.#route.traffic.sent += bytes;
    this.#route.cells.sent.value += bytes;
    if (!this.#answered) {
      this.#answered = true;
      this.#moved = true;
      if (this.#backend !== undefined) this.#backend.failures = 0;
    }
    client.write(bytes === buffer.length ? buffer : buffer.subarray(0, bytes));
    if (client.writableLength > 0) return false;
    this.#buffer = this.#environment.buffers.next(buffer, bytes);
    if (!this.#environment.gate.holding) return true;
    if (this.#upstream !== undefined) this.#hold(this.#upstream);
    return false;
  }

  /** Reads neither side until a burst of new connections is in. */
  #hold(upstream: Socket): void {
    const client = this.#client;
    client.pause();
    upstream.pause();
    this.#environment.gate.hold(() => {
      if (upstream !== this.#upstream) return;
      if (client.writableLength === 0) upstream.resume();
      if (upstream.writableLength === 0) client.resume();
    });
  }

  #onClientDrain(): void {
    if (this.#endClient) {
      this.#endClient = false;
      this.#passEnd(this.#client);
    } else if (!this.#upstreamEnded) this.#upstream?.resume();
  }

  #onUpstreamDrain(): void {
    if (this.#upstream !== undefined && this.#endUpstream) {
      this.#endUpstream = false;
      this.#passEnd(this.#upstream);
    } else if (this.#open) this.#client.resume();
  }

  // Ends

  #onClientEnd(): void {
    if (wasReset(this.#client)) {
      this.#client.destroy(resetError());
      return;
    }
    this.#clientEnded = true;
    if (this.#upstream === undefined || !this.#open) return;
    if (this.#upstream.writableLength > 0) this.#endUpstream = true;
    else this.#passEnd(this.#upstream);
  }

  #onUpstreamEnd(upstream: Socket): void {
    if (wasReset(upstream)) {
      upstream.destroy(resetError());
      return;
    }
    this.#upstreamEnded = true;
    if (this.#client.writableLength > 0) this.#endClient = true;
    else this.#passEnd(this.#client);
  }

  /** Both ended: closing is cheaper than a shutdown before it, and means the same on the wire. */
  #passEnd(socket: Socket): void {
    if (this.#clientEnded && this.#upstreamEnded && !this.#endClient && !this.#endUpstream) {
      this.#over = true;
      this.#upstream?.destroy();
      this.#client.destroy();
    } else if (!socket.destroyed) socket.end();
  }

  #onClientError(): void {
    this.#over = true;
    this.#cancelTimer?.();
    if (this.#upstream !== undefined) abort(this.#upstream, this.#open);
  }

  #onUpstreamError(upstream: Socket, error: Error): void {
    if (this.#over || upstream !== this.#upstream) return;
    const code = systemCode(error);
    if (!this.#open) {
      if (code !== undefined && ownLimits.has(code)) {
        this.#route.exhausted(error);
        this.#tried = [];
        this.#giveUp(describeError(error));
      } else this.#failAttempt(upstream, describeError(error), code !== undefined && silences.has(code));
    } else if (!this.#moved && !this.#clientEnded && !this.#upstreamEnded && !this.#client.destroyed) {
      this.#client.pause();
      this.#failAttempt(upstream, `reset before the first byte (${describeError(error)})`, false);
    } else if (this.#upstreamEnded) this.#linger();
    else this.#resetClient();
  }

  /** What the upstream said before it reset the connection is still handed to the client, if it takes it soon. */
  #resetClient(): void {
    this.#over = true;
    const client = this.#client;
    const reset = (): void => abort(client, true);
    if (client.writableLength === 0) reset();
    else {
      client.once('drain', reset);
      this.#cancelTimer = this.#environment.clock.after(lingerMs, reset);
    }
  }

  /**
   * The upstream has said all it had to say and then reset us. A reset of ours now would throw away what the client has
   * not read yet (RFC 9112 section 9.6 describes the same for HTTP), so its further bytes are swallowed for a while.
   */
  #linger(): void {
    this.#over = true;
    const client = this.#client;
    const wait = (): void => {
      if (client.destroyed) return;
      this.#cancelTimer = this.#environment.clock.after(lingerMs, () => abort(client, true));
    };
    if (client.writableFinished) wait();
    else client.once('finish', wait);
    client.resume();
  }

  // Closing

  #onClientClose(): void {
    this.#clientClosed = true;
    this.#over = true;
    if (this.#upstream === undefined) this.#finish();
    else if (!(this.#clientEnded && this.#upstreamEnded)) abort(this.#upstream, this.#open);
  }

  #onUpstreamClose(upstream: Socket): void {
    if (upstream !== this.#upstream) return;
    this.#upstream = undefined;
    if (this.#backend !== undefined) this.#route.ended(this.#backend);
    this.#backend = undefined;
    if (this.#clientClosed) this.#finish();
  }

  #finish(): void {
    this.#cancelTimer?.();
    if (this.#buffer !== undefined) this.#environment.buffers.release(this.#buffer);
    this.#buffer = undefined;
    this.#environment.ended(this);
  }
}
