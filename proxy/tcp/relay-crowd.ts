import type { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import type { Clock } from '../../src/base/clock.ts';
import type { Conditions } from '../../src/base/conditions.ts';
import { describeError } from '../../src/base/errors.ts';
import type { CounterCell, Metrics } from '../../src/base/metrics.ts';
import type { Identity } from '../../src/model/caller.ts';
import type { AccessEntry, AccessLog } from '../access-log.ts';
import type { Door } from '../door/door.ts';
import { Handshakes } from '../door/handshakes.ts';
import { HttpPlane } from '../http/http-plane.ts';
import { Http2Plane } from '../http2/http2-plane.ts';
import type { Link } from '../link.ts';
import type { Asked, Permission } from '../permission.ts';
import { TraceIds } from '../trace-ids.ts';
import type { Tunnels } from '../tunnel/tunnels.ts';
import { AcceptGate } from './accept-gate.ts';
import type { CallerGate } from './caller-gate.ts';
import type { Account, CarriedConnection } from './carried.ts';
import { ReadBuffers } from './read-buffers.ts';
import { RelayConnection } from './relay.ts';
import { keepAliveSweepMs } from './relay-bounds.ts';
import { abort, peerOf } from './socket-ends.ts';

export interface RelayCrowdOptions {
  readonly clock: Clock;
  readonly conditions: Conditions;
  readonly maxConnections: number;
  /** Counts connections beyond `maxConnections`. */
  readonly overLimit: CounterCell;
  /** Tells who calls. */
  readonly gate: CallerGate;
  /** Tells who may call whom. */
  readonly permission: Permission;
  readonly tunnels: Tunnels | undefined;
  readonly metrics: Metrics;
  /** Undefined where connections are not logged. */
  readonly accessLog?: AccessLog | undefined;
  /** A connection has ended. */
  readonly ended: (account: Account) => void;
}

/** What connections of every kind are given. */
export interface CarriedEnvironment {
  readonly clock: Clock;
  readonly gate: AcceptGate;
  readonly exhausted: (error: unknown) => void;
  readonly ended: (connection: CarriedConnection) => void;
}

/** What the access log will say; undefined where there is none. */
type Entry = AccessEntry | undefined;

/** All connections of this process: their number is bounded, and they can be counted, waited for and cut. */
export class RelayCrowd {
  static readonly limitCondition = 'link.limit';
  static readonly descriptorsCondition = 'link.descriptors';
  /** How long after the last connection that failed for lack of descriptors that condition ends. */
  static readonly descriptorsQuietMs = 10_000;
  readonly #options: RelayCrowdOptions;
  /** How much of all connections those of other hosts may be. */
  static readonly peersShare = 0.75;
  /** Those of clients from outside; each may become a connection. */
  readonly handshakes: Handshakes;
  readonly #gate: AcceptGate;
  readonly #buffers = new ReadBuffers();
  readonly #traceIds = new TraceIds();
  /** Each with what it is counted under. */
  readonly #connections = new Map<CarriedConnection, Account>();
  readonly #waiters = new Set<() => void>();
  readonly #environment;
  readonly #http: HttpPlane;
  readonly #http2: Http2Plane;
  readonly #endReviews: () => void;
  #atLimit = false;
  #cancelQuiet: (() => void) | undefined;
  #sweeping = false;

  constructor(options: RelayCrowdOptions) {
    this.#options = options;
    const { clock, metrics } = options;
    this.handshakes = new Handshakes({ clock, metrics, onIdle: () => this.#settled() });
    this.#gate = new AcceptGate(() => clock.monotonicMs());
    this.#endReviews = options.permission.onChange(() => this.#review());
    this.#http = new HttpPlane({
      ...options,
      accessLog: options.accessLog,
      accepts: this.#gate,
      buffers: this.#buffers,
    });
    const { requestMetrics } = this.#http;
    this.#http2 = new Http2Plane({ ...options, accessLog: options.accessLog, requestMetrics });
    this.#environment = {
      clock,
      gate: this.#gate,
      buffers: this.#buffers,
      tunnels: options.tunnels,
      traceId: () => this.#traceIds.next(),
      exhausted: (error: unknown) => this.exhausted(error),
      ended: (connection: CarriedConnection) => this.#ended(connection),
    };
  }

  /** Takes over a paused socket. */
  accept(client: Socket, link: Link): void {
    const { target, traffic } = link;
    traffic.total += 1;
    target.cells.connections.value += 1;
    const entry = this.#options.accessLog?.begin({ client: peerOf(client), service: target.name });
    if (this.#connections.size + this.handshakes.size >= this.#options.maxConnections) {
      this.#refuseBeyond(client, link, entry);
      return;
    }
    if (link.consumer === undefined) {
      this.#options.gate.identify(client, (identity) => this.#identified(client, link, identity, entry));
    } else this.#permit(client, link, { consumer: link.consumer, service: target.name, declared: false }, entry);
  }

  #identified(client: Socket, link: Link, identity: Identity | undefined, entry: Entry): void {
    if (client.destroyed) {
      link.refused();
      entry?.refuse('client reset', 'before it was known who calls');
    } else if (identity === undefined || !link.admits(identity)) {
      const why = identity === undefined ? 'it is not known who calls' : 'the port is for those who declare it';
      this.#refuse(client, link);
      entry?.refuse('refused', why);
    } else this.#permit(client, link, link.asks(identity), entry);
  }

  #permit(client: Socket, link: Link, asked: Asked, entry: Entry): void {
    if (entry !== undefined) entry.consumer = asked.consumer;
    const decision = this.#options.permission.permits(asked);
    if (decision.allowed) {
      if (link.door === undefined || client instanceof TLSSocket) {
        this.#carry(client, link, link.consumers.account(asked), entry);
      } else this.#greet(client, link, link.door, asked, entry);
    } else {
      const denial = this.#options.permission.denied(asked, decision);
      link.denied(denial);
      entry?.refuse('denied', denial.message);
      reset(client);
    }
  }

  /** What was allowed before the handshake may not be after it. */
  #greet(client: Socket, link: Link, door: Door, asked: Asked, entry: Entry): void {
    door.take(
      client,
      (secured) => this.#permit(secured, link, asked, entry),
      (why) => entry?.refuse('refused', `the TLS handshake came to nothing: ${why}`),
    );
  }

  /** Cuts what a new policy forbids. */
  #review(): void {
    const { permission } = this.#options;
    for (const [connection, account] of [...this.#connections]) {
      const { peer } = account;
      const decision = peer === undefined ? permission.permits(account) : permission.permitsFrom(peer, account);
      if (decision.allowed) continue;
      const denial = permission.denied(account, decision, peer);
      account.denied(denial);
      connection.cut(denial.message);
    }
  }

  #carry(client: Socket, link: Link, account: Account, entry: Entry): void {
    const connection = this.#connectionFor(client, link, account, entry);
    this.#add(connection, account);
    this.#gate.accepted(() => connection.start());
  }

  #connectionFor(client: Socket, link: Link, account: Account, entry: Entry): CarriedConnection {
    const ended = (which: CarriedConnection): void => this.#ended(which);
    if (client instanceof TLSSocket) {
      if (client.alpnProtocol === 'h2') return this.#http2.accept(client, link, account, ended, 'https');
      return this.#http.accept(client, link, account, ended, 'https');
    }
    if (link.speaksHttp2) return this.#http2.accept(client, link, account, ended);
    if (link.speaksHttp) return this.#http.accept(client, link, account, ended);
    return new RelayConnection(client, link, account, this.#environment, entry);
  }

  /** Whether connections of other hosts are refused, so that some room is left to this host's own consumers. */
  get isFullForPeers(): boolean {
    return this.#connections.size >= this.#options.maxConnections * RelayCrowd.peersShare;
  }

  /** Takes a connection of another host over. */
  take<T extends CarriedConnection>(create: (environment: CarriedEnvironment) => T, account: Account): T {
    const connection = create(this.#environment);
    this.#add(connection, account);
    connection.start();
    return connection;
  }

  #add(connection: CarriedConnection, account: Account): void {
    account.begin();
    this.#connections.set(connection, account);
    if (!this.#sweeping) this.#sweepLater();
  }

  /** Bytes of all large read buffers. */
  get bufferBytes(): number {
    return this.#buffers.largeBytes;
  }

  count({ service, instance }: { readonly service?: string; readonly instance?: string }): number {
    if (service === undefined && instance === undefined) return this.#connections.size;
    let count = 0;
    for (const [connection, account] of this.#connections) {
      if (service !== undefined && account.service !== service) continue;
      const carries = instance === undefined || (connection.carries?.(instance) ?? connection.backendId === instance);
      if (carries) count += 1;
    }
    return count;
  }

  /** No further requests: connections that wait for one are closed. */
  leave(): void {
    this.#http.leave();
    this.#http2.leave();
  }

  /** Resolves when no connection and no handshake is left, after `timeoutMs`, or when the signal aborts. */
  empty(timeoutMs: number, signal?: AbortSignal): Promise<void> {
    if (this.#isEmpty || signal?.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const done = (): void => {
        cancel();
        signal?.removeEventListener('abort', done);
        this.#waiters.delete(done);
        resolve();
      };
      const cancel = this.#options.clock.after(timeoutMs, done);
      signal?.addEventListener('abort', done, { once: true });
      this.#waiters.add(done);
    });
  }

  /** Resets all; resolves with their number when they are closed. */
  async cutAll(): Promise<number> {
    this.#options.gate.close();
    this.#endReviews();
    this.handshakes.close();
    const count = this.#connections.size;
    for (const connection of [...this.#connections.keys()]) connection.cut();
    if (!this.#isEmpty) await new Promise<void>((resolve) => this.#waiters.add(resolve));
    this.#http.close();
    this.#http2.close();
    this.#cancelQuiet?.();
    return count;
  }

  /** This machine is at its limit of descriptors, ports or memory. */
  exhausted(error: unknown): void {
    const { conditions, clock } = this.#options;
    conditions.raise(
      RelayCrowd.descriptorsCondition,
      'error',
      `connections fail for want of the machine's resources: ${describeError(error)}`,
      'raise the limit of open files (LimitNOFILE, ulimit -n), or look for what holds so many connections',
    );
    this.#cancelQuiet?.();
    this.#cancelQuiet = clock.after(RelayCrowd.descriptorsQuietMs, () =>
      conditions.clear(RelayCrowd.descriptorsCondition),
    );
  }

  #sweepLater(): void {
    this.#sweeping = true;
    this.#options.clock.after(keepAliveSweepMs, () => {
      this.#sweeping = false;
      for (const connection of this.#connections.keys()) connection.keepAlive();
      if (this.#connections.size > 0) this.#sweepLater();
    });
  }

  #refuse(client: Socket, link: Link): void {
    link.refused();
    reset(client);
  }

  #refuseBeyond(client: Socket, link: Link, entry: Entry): void {
    const { conditions, maxConnections, overLimit } = this.#options;
    this.#refuse(client, link);
    entry?.refuse('refused', `all ${maxConnections} connections of this sidecar are taken`);
    overLimit.value += 1;
    if (this.#atLimit) return;
    this.#atLimit = true;
    conditions.raise(
      RelayCrowd.limitCondition,
      'error',
      `all ${maxConnections} connections of this sidecar are taken; further ones are reset`,
      'look in `legate links` for who holds so many; more open files (LimitNOFILE, ulimit -n) allow more',
    );
  }

  #ended(connection: CarriedConnection): void {
    const account = this.#connections.get(connection);
    if (account === undefined) return;
    this.#connections.delete(connection);
    account.end();
    this.#options.ended(account);
    if (this.#atLimit && this.#connections.size < this.#options.maxConnections * 0.9) {
      this.#atLimit = false;
      this.#options.conditions.clear(RelayCrowd.limitCondition);
    }
    this.#settled();
  }

  get #isEmpty(): boolean {
    return this.#connections.size === 0 && this.handshakes.size === 0;
  }

  #settled(): void {
    if (!this.#isEmpty) return;
    for (const waiter of [...this.#waiters]) waiter();
    this.#waiters.clear();
  }
}

function reset(client: Socket): void {
  client.on('error', () => undefined);
  abort(client, true);
}
