import { connect, type Socket } from 'node:net';
import type { Clock } from '../../src/base/clock.ts';
import { describeError, systemCode } from '../../src/base/errors.ts';
import type { Endpoint } from '../../src/model/address.ts';
import type { AccessEntry, ConnectionEnd } from '../access-log.ts';
import type { Backend } from '../balance/backend.ts';
import { HashKey } from '../http/hash-key.ts';
import { type StreamListener, StreamUpstream } from '../tunnel/stream-upstream.ts';
import type { ResetReason, Tunnels } from '../tunnel/tunnels.ts';
import type { AcceptGate } from './accept-gate.ts';
import { Attempts } from './attempts.ts';
import type { Account, CarriedConnection } from './carried.ts';
import { proxyHeader } from './proxy-header.ts';
import type { ReadBuffers } from './read-buffers.ts';
import { keepAliveMs, lingerMs, maxReplayBytes, ownLimits, silences, writeHighWaterMark } from './relay-bounds.ts';
import type { Blame, Route } from './route.ts';
import { abort, peerOf, resetError, wasReset } from './socket-ends.ts';
import { streamFaults } from './stream-faults.ts';
import type { Upstream } from './upstream.ts';

export interface RelayEnvironment {
  readonly clock: Clock;
  readonly gate: AcceptGate;
  readonly buffers: ReadBuffers;
  readonly tunnels: Tunnels | undefined;
  /** For the access logs of both sides. */
  readonly traceId: () => string;
  /** Called once, when both ends are closed. */
  readonly ended: (connection: RelayConnection) => void;
}

/**
 * One client connection and its upstream. The client's socket arrives paused, with `allowHalfOpen` and a
 * `writeHighWaterMark`. What it sends stays in the kernel until an instance is connected; on the way through a tunnel its
 * first bytes go with the opening of the stream, and are kept until it is open. Then bytes, the end of each direction, and
 * resets are passed on as they come. At most one read of each direction is held in memory: while the kernel has not taken
 * it, that side is not read; a tunnel's stream may hand over as much as its credit.
 */
export class RelayConnection implements CarriedConnection, StreamListener {
  readonly #client: Socket;
  readonly #route: Route;
  readonly #account: Account;
  readonly #environment: RelayEnvironment;
  readonly #attempts: Attempts;
  readonly #entry: AccessEntry | undefined;
  #upstream: Upstream | undefined;
  #backend: Backend | undefined;
  #attemptMs = 0;
  #cancelTimer: (() => void) | undefined;
  #leaveLobby: (() => void) | undefined;
  /** The instance is connected. */
  #open = false;
  /** The upstream takes bytes: a stream before it is open. */
  #flows = false;
  #listening = false;
  #over = false;
  #clientClosed = false;
  #clientEnded = false;
  #upstreamEnded = false;
  /** Whether a byte has gone in either direction: from then on no other instance can take over. */
  #moved = false;
  #answered = false;
  /** What the client said before an instance was connected. */
  #replay: Buffer[] = [];
  #replayBytes = 0;
  /** A direction has ended, and its end is passed on when what was written before it has left. */
  #endClient = false;
  #endUpstream = false;
  #keptAlive = false;
  #buffer: Buffer | undefined;

  constructor(
    client: Socket,
    route: Route,
    account: Account,
    environment: RelayEnvironment,
    entry: AccessEntry | undefined,
  ) {
    this.#client = client;
    this.#entry = entry;
    this.#route = route;
    this.#account = account;
    this.#environment = environment;
    const key = route.hashKey === undefined ? undefined : HashKey.ofSource(peerOf(client));
    this.#attempts = new Attempts(route, environment.clock, key);
    client.on('end', () => this.#onClientEnd());
    client.on('drain', () => this.#onClientDrain());
    client.on('error', () => this.#onClientError());
    client.on('close', () => this.#onClientClose());
  }

  start(): void {
    if (!this.#over) this.#attempt();
  }

  get backendId(): string | undefined {
    return this.#backend?.id;
  }

  keepAlive(): void {
    if (this.#keptAlive || !this.#open) return;
    this.#keptAlive = true;
    this.#client.setKeepAlive(true, keepAliveMs);
    this.#upstream?.setKeepAlive(true, keepAliveMs);
  }

  cut(denied?: string): void {
    this.#entry?.broke(denied === undefined ? 'cut' : 'denied', denied ?? 'this sidecar stops');
    this.#over = true;
    this.#stopWaiting();
    if (this.#upstream !== undefined) abort(this.#upstream, this.#open);
    abort(this.#client, true);
  }

  // Connecting

  #attempt(): void {
    const next = this.#attempts.next();
    if (next === undefined) {
      this.#afterFailure('pick', this.#route.problemToPick);
      return;
    }
    const { backend, limitMs } = next;
    this.#backend = backend;
    this.#entry?.goesTo(backend.id, backend.instance.hostId, backend.dial.via);
    this.#attemptMs = this.#environment.clock.monotonicMs();
    backend.active += 1;
    const upstream = this.#reach(backend);
    if (typeof upstream === 'string') {
      this.#failed(backend, upstream, 'way');
      return;
    }
    this.#upstream = upstream;
    this.#cancelTimer = this.#environment.clock.after(limitMs, () => {
      this.#failAttempt(upstream, `no answer within ${Math.round(limitMs)} ms`, this.#silent(backend));
    });
    if (upstream instanceof StreamUpstream) this.#flow(upstream);
  }

  #reach(backend: Backend): Upstream | string {
    const { dial } = backend;
    if (dial.via === 'direct') return this.#connect(dial.endpoint);
    const { tunnels, traceId } = this.#environment;
    const client = peerOf(this.#client);
    if (tunnels === undefined || client === undefined) return 'there is no tunnel';
    const { hostId, service, name } = backend.instance;
    const { consumer, declared } = this.#account;
    const head = { consumer, declared, service, instance: name, client, traceId: this.#entry?.traceId ?? traceId() };
    return StreamUpstream.open(tunnels, hostId, head, this);
  }

  /** Whose fault it is that nothing came back: a tunnel that lives tells that the host does. */
  #silent({ dial, instance }: Backend): Blame {
    if (dial.via === 'direct') return 'host';
    return this.#environment.tunnels?.state(instance.hostId).state === 'ready' ? 'instance' : 'way';
  }

  #connect({ address, port }: Endpoint): Socket {
    const options = {
      host: address,
      port,
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
    upstream.on('end', () => {
      if (wasReset(upstream)) upstream.destroy(resetError());
      else this.#onUpstreamEnd();
    });
    upstream.on('drain', () => this.#onUpstreamDrain());
    upstream.on('error', (error) => this.#onUpstreamError(upstream, error));
    upstream.on('close', () => this.#onUpstreamClose(upstream));
    return upstream;
  }

  #onConnected(upstream: Upstream): void {
    const backend = this.#backend;
    if (this.#over || upstream !== this.#upstream || backend === undefined) return;
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    this.#open = true;
    backend.total += 1;
    this.#entry?.connected();
    this.#route.connected(backend, this.#environment.clock.monotonicMs() - this.#attemptMs);
    if (!this.#flows) {
      if (this.#route.announcesClient) this.#announce(upstream, backend);
      this.#flow(upstream);
    }
    this.#moved = this.#replayBytes > 0;
    this.#replay = [];
    this.#replayBytes = 0;
    if (!this.#clientEnded && upstream.writableLength === 0) this.#client.resume();
  }

  /** The instance is told who the client is before it hears anything of it. */
  #announce(upstream: Upstream, { dial }: Backend): void {
    if (dial.via === 'direct') upstream.write(proxyHeader(peerOf(this.#client), dial.endpoint));
  }

  /** The upstream takes bytes from now on. */
  #flow(upstream: Upstream): void {
    this.#flows = true;
    for (const chunk of this.#replay) upstream.write(chunk);
    if (!this.#listening) this.#client.on('data', (chunk) => this.#onClientBytes(chunk));
    this.#listening = true;
    if (this.#clientEnded) this.#passEnd(upstream);
    else if (upstream.writableLength === 0) this.#resumeClient();
  }

  #resumeClient(): void {
    if (this.#open || this.#replayBytes < maxReplayBytes) this.#client.resume();
  }

  #failAttempt(upstream: Upstream, problem: string, blame: Blame): void {
    const backend = this.#backend;
    if (this.#over || upstream !== this.#upstream || backend === undefined) return;
    this.#upstream = undefined;
    this.#endUpstream = false;
    this.#open = false;
    this.#flows = false;
    this.#keptAlive = false;
    this.#client.pause();
    upstream.destroy();
    this.#failed(backend, problem, blame);
  }

  #failed(backend: Backend, problem: string, blame: Blame): void {
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    this.#backend = undefined;
    this.#route.ended(backend);
    this.#afterFailure('attempt', problem, { backend, blame });
  }

  /** Tries again, at once or later, waits for something to connect to, or gives up. */
  #afterFailure(
    what: 'attempt' | 'pick',
    problem: string | undefined,
    failed?: { readonly backend: Backend; readonly blame: Blame },
  ): void {
    const next = this.#attempts.after(what);
    const wait = next.kind === 'hold' ? this.#route.hold(() => this.#again()) : undefined;
    const retried = next.kind === 'again' || wait !== undefined;
    if (failed !== undefined && problem !== undefined) {
      this.#route.attemptFailed(failed.backend, { problem, blame: failed.blame, retried });
      this.#entry?.failed(problem, retried);
    }
    if (!retried) this.#giveUp(what === 'pick' ? problem : undefined);
    else if (next.kind === 'again' && next.afterMs === 0) this.#attempt();
    else if (next.kind !== 'over') {
      this.#leaveLobby = wait;
      const afterMs = next.kind === 'again' ? next.afterMs : next.limitMs;
      this.#cancelTimer = this.#environment.clock.after(afterMs, () => this.#again());
    }
  }

  #again(): void {
    this.#stopWaiting();
    if (!this.#over) this.#attempt();
  }

  #stopWaiting(): void {
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    this.#leaveLobby?.();
    this.#leaveLobby = undefined;
  }

  #giveUp(problem: string | undefined): void {
    this.#over = true;
    this.#entry?.broke('refused', problem);
    this.#route.refused(problem);
    abort(this.#client, true);
  }

  // Bytes

  #onClientBytes(chunk: Buffer): void {
    const bytes = chunk.length;
    this.#route.traffic.received += bytes;
    this.#route.cells.received.value += bytes;
    if (this.#entry !== undefined) this.#entry.received += bytes;
    const upstream = this.#upstream;
    if (this.#open) this.#moved = true;
    else this.#keep(chunk);
    if (upstream === undefined || this.#over) return;
    upstream.write(chunk);
    if (upstream.writableLength > 0) this.#client.pause();
    else if (this.#environment.gate.holding) this.#hold(upstream);
  }

  #keep(chunk: Buffer): void {
    this.#replay.push(chunk);
    this.#replayBytes += chunk.length;
    if (this.#replayBytes >= maxReplayBytes) this.#client.pause();
  }

  /** False stops reading until the client has taken what was written. */
  #onUpstreamBytes(bytes: number, buffer: Buffer): boolean {
    this.#pass(bytes === buffer.length ? buffer : buffer.subarray(0, bytes));
    if (this.#client.writableLength > 0) return false;
    this.#buffer = this.#environment.buffers.next(buffer, bytes);
    if (!this.#environment.gate.holding) return true;
    if (this.#upstream !== undefined) this.#hold(this.#upstream);
    return false;
  }

  streamBytes(upstream: StreamUpstream, chunk: Buffer): void {
    if (upstream !== this.#upstream || this.#over) return;
    this.#pass(chunk);
    if (this.#client.writableLength > 0) return;
    if (this.#environment.gate.holding) this.#hold(upstream);
    else upstream.resume();
  }

  #pass(chunk: Buffer): void {
    const bytes = chunk.length;
    this.#route.traffic.sent += bytes;
    this.#route.cells.sent.value += bytes;
    if (this.#entry !== undefined) this.#entry.sent += bytes;
    if (!this.#answered) {
      this.#answered = true;
      this.#moved = true;
      if (this.#backend !== undefined) this.#backend.failures = 0;
    }
    this.#client.write(chunk);
  }

  /** Reads neither side until a burst of new connections is in. */
  #hold(upstream: Upstream): void {
    const client = this.#client;
    client.pause();
    upstream.pause();
    this.#environment.gate.hold(() => {
      if (upstream !== this.#upstream) return;
      if (client.writableLength === 0) upstream.resume();
      if (upstream.writableLength === 0) this.#resumeClient();
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
    } else if (this.#flows) this.#resumeClient();
  }

  // What a stream tells

  streamOpened(upstream: StreamUpstream): void {
    this.#onConnected(upstream);
  }

  streamEnded(upstream: StreamUpstream): void {
    if (upstream === this.#upstream) this.#onUpstreamEnd();
  }

  streamDrained(upstream: StreamUpstream): void {
    if (upstream === this.#upstream) this.#onUpstreamDrain();
  }

  streamClosed(upstream: StreamUpstream): void {
    if (!this.#open && !this.#over) this.#failAttempt(upstream, 'the stream was closed before it was open', 'instance');
    this.#onUpstreamClose(upstream);
  }

  streamFailed(upstream: StreamUpstream, reason: ResetReason, detail: string): void {
    if (this.#over || upstream !== this.#upstream || this.#backend === undefined) return;
    const problem = detail === '' ? streamFaults[reason].problem : detail;
    if (reason === 'denied') this.#denied(this.#backend, problem);
    else if (this.#open) this.#onBroken(upstream, problem, reason === 'lost' ? 'tunnel lost' : 'instance reset');
    else this.#failAttempt(upstream, problem, streamFaults[reason].blame);
  }

  /** Its host does not let the consumer in, or not any more: another one would say the same. */
  #denied(backend: Backend, problem: string): void {
    this.#cancelTimer?.();
    this.#entry?.broke('denied', problem);
    this.#route.refusedByHost(backend, this.#account, problem);
    if (this.#open) this.#resetClient();
    else this.#giveUp(undefined);
  }

  // Ends

  #onClientEnd(): void {
    if (wasReset(this.#client)) {
      this.#client.destroy(resetError());
      return;
    }
    this.#clientEnded = true;
    this.#entry?.ended('client closed');
    if (this.#upstream === undefined || !this.#flows) return;
    if (this.#upstream.writableLength > 0) this.#endUpstream = true;
    else this.#passEnd(this.#upstream);
  }

  #onUpstreamEnd(): void {
    this.#upstreamEnded = true;
    this.#entry?.ended('instance closed');
    if (this.#client.writableLength > 0) this.#endClient = true;
    else this.#passEnd(this.#client);
  }

  /** Both ended: closing is cheaper than a shutdown before it, and means the same on the wire. */
  #passEnd(end: Upstream): void {
    if (this.#clientEnded && this.#upstreamEnded && !this.#endClient && !this.#endUpstream) {
      this.#over = true;
      this.#upstream?.destroy();
      this.#client.destroy();
    } else if (!end.destroyed) end.end();
  }

  #onClientError(): void {
    this.#over = true;
    this.#entry?.broke('client reset');
    this.#stopWaiting();
    if (this.#upstream !== undefined) abort(this.#upstream, this.#open);
  }

  #onUpstreamError(upstream: Socket, error: Error): void {
    if (this.#over || upstream !== this.#upstream) return;
    const code = systemCode(error);
    if (this.#open) this.#onBroken(upstream, describeError(error), 'instance reset');
    else if (code !== undefined && ownLimits.has(code)) {
      this.#route.exhausted(error);
      this.#entry?.failed(describeError(error), false);
      this.#giveUp(undefined);
    } else
      this.#failAttempt(upstream, describeError(error), code !== undefined && silences.has(code) ? 'host' : 'instance');
  }

  /** The upstream was reset or lost after it had been connected. */
  #onBroken(upstream: Upstream, problem: string, how: ConnectionEnd): void {
    if (!this.#moved && !this.#clientEnded && !this.#upstreamEnded && !this.#client.destroyed) {
      this.#failAttempt(upstream, `reset before the first byte (${problem})`, 'instance');
    } else if (this.#upstreamEnded) this.#linger();
    else {
      this.#entry?.broke(how, problem);
      this.#resetClient();
    }
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

  #onUpstreamClose(upstream: Upstream): void {
    if (upstream !== this.#upstream) return;
    this.#upstream = undefined;
    if (this.#backend !== undefined) this.#route.ended(this.#backend);
    this.#backend = undefined;
    if (this.#clientClosed) this.#finish();
  }

  #finish(): void {
    this.#stopWaiting();
    this.#replay = [];
    if (this.#buffer !== undefined) this.#environment.buffers.release(this.#buffer);
    this.#buffer = undefined;
    this.#entry?.write();
    this.#environment.ended(this);
  }
}
