import { create } from '@bufbuild/protobuf';
import type { MethodDefinition } from '@grpc/grpc-js';
import { Backoff } from '../../base/backoff.ts';
import { isLegateError, LegateError } from '../../base/errors.ts';
import { Latest } from '../../base/feed.ts';
import type { CounterCell } from '../../base/metrics.ts';
import type { EtcdStoreConfig, StoreUrl } from '../../config/config.ts';
import { type ResponseHeader, StatusRequestSchema } from '../etcd-api/gen/etcd_pb.ts';
import type { RemoteStoreOptions } from '../remote.ts';
import type { StoreStatus } from '../store.ts';
import { isStoreOfMesh } from '../trust.ts';
import { Alarms } from './alarms.ts';
import { type Attempted, attempt, authenticate } from './attempt.ts';
import type { Connection } from './connection.ts';
import { EtcdFailure, type FailureKind, leaves } from './failure.ts';
import { keepIdentity } from './mesh-identity.ts';
import { api, type Head, headOf } from './messages.ts';
import { ended, Waiters } from './waiters.ts';

export interface SessionOptions extends RemoteStoreOptions {
  readonly config: EtcdStoreConfig;
  /** A member is in use now; called again with another connection after each loss. */
  readonly onConnected: (connection: Connection) => void;
}

export interface RequestOptions {
  readonly signal?: AbortSignal | undefined;
}

/** An operation takes no longer, the wait for a connection included. */
const operationLimitMs = 5000;
/** Without a member for so long the store counts as away; a change of member is shorter. */
const graceMs = 2000;
const firstRetryMs = 250;
const retryCeilingMs = 5000;
/** A connection that held for so long ends the growing of delays. */
const stableMs = 10_000;
/** When a member is lost, its clients come to the next one spread over this time. */
const spreadMs = 100;
const checkEveryMs = 60_000;
const alarmCheckEveryMs = 5000;
const checkLimitMs = 5000;

const awayCondition = 'store.etcd.away';
const foreignConditions = 'store.etcd.foreign.';

/**
 * The member in use, and the way to the next one. There is one connection at a time; whoever notices that it is of no
 * use ends it, and the endpoints are tried in turn until a member answers that has a leader and is of the same cluster.
 */
export class Session {
  readonly status: Latest<StoreStatus>;
  readonly #options: SessionOptions;
  readonly #random: () => number;
  readonly #backoff: Backoff;
  readonly #closing = new AbortController();
  readonly #waiters = new Waiters();
  readonly #alarms: Alarms;
  readonly #away: CounterCell;
  readonly #connects: CounterCell;
  readonly #requests: CounterCell;
  #current: Connection | undefined;
  #clusterId: string | undefined;
  #revision = 0;
  #epoch = 0;
  #next = 0;
  #renewal: Promise<void> | undefined;
  #lastFailure: EtcdFailure | undefined;
  /** Wall clock. */
  #heardAtMs: number | undefined;

  constructor(options: SessionOptions) {
    const { clock, metrics } = options;
    this.#options = options;
    this.#alarms = new Alarms(options.conditions);
    this.#random = options.random ?? Math.random;
    this.#backoff = new Backoff(firstRetryMs, retryCeilingMs, this.#random);
    this.status = new Latest<StoreStatus>({ state: 'connecting', sinceMs: clock.nowMs(), storeId: undefined });
    this.#away = metrics.counter('legate_store_away_total', 'Times the store could not be used.');
    this.#connects = metrics.counter('legate_store_connects_total', 'Times a member of the store was connected.');
    this.#requests = metrics.counter('legate_store_requests_total', 'Requests sent to the store.');
    metrics.gauge('legate_store_connected_count', '1 while the store answers, else 0.', [], () => [
      [[], this.status.value.state === 'connected' ? 1 : 0],
    ]);
  }

  /** The highest revision that the cluster was seen to have. */
  get revision(): number {
    return this.#revision;
  }

  /** Grows when the cluster's revisions went back, or it was replaced: what was read before is of another history. */
  get epoch(): number {
    return this.#epoch;
  }

  get clusterId(): string {
    return this.#clusterId ?? '';
  }

  get closed(): boolean {
    return this.#closing.signal.aborted;
  }

  start(): void {
    void this.#run();
  }

  close(): void {
    if (this.closed) return;
    this.#closing.abort(closedError());
    this.#current?.end(new EtcdFailure('unreachable', 'the store has been closed'));
    this.#current = undefined;
    this.#setState('closed');
    this.#options.conditions.clearPrefix('store.etcd.');
  }

  /** The connection in use, waiting for one as long as that is not away. Rejects with E_STORE_AWAY or E_CLOSED. */
  async ready(signal?: AbortSignal): Promise<Connection> {
    if (this.closed) throw closedError();
    if (this.#usable !== undefined) return this.#usable;
    const limit = AbortSignal.timeout(operationLimitMs);
    const check = (): Connection | undefined => {
      if (this.closed) throw closedError();
      signal?.throwIfAborted();
      if (this.status.value.state === 'away' || limit.aborted) throw this.#awayError();
      return this.#usable;
    };
    return await this.#waiters.until(check, signal === undefined ? limit : AbortSignal.any([limit, signal]));
  }

  /** The connection in use, as soon as there is one. Rejects with the signal's reason or E_CLOSED. */
  async connected(signal: AbortSignal): Promise<Connection> {
    const check = (): Connection | undefined => {
      if (this.closed) throw closedError();
      signal.throwIfAborted();
      return this.#usable;
    };
    return await this.#waiters.until(check, signal);
  }

  /**
   * Sends a request that may be sent once only: it is not repeated, unless etcd refused it for its token before it was
   * looked at. Rejects with EtcdFailure, LegateError (away, closed), or the signal's reason.
   */
  async request<I, O extends { readonly header?: ResponseHeader | undefined }>(
    method: MethodDefinition<I, O>,
    request: I,
    { signal }: RequestOptions = {},
  ): Promise<{ readonly answer: O; readonly head: Head }> {
    const untilMs = this.#options.clock.monotonicMs() + operationLimitMs;
    for (let first = true; ; first = false) {
      const connection = await this.ready(signal);
      const timeoutMs = Math.max(1, untilMs - this.#options.clock.monotonicMs());
      const { token, heard } = connection;
      try {
        this.#requests.value += 1;
        const answer = await connection.call(method, request, { timeoutMs, signal });
        return { answer, head: this.#observe(connection, answer.header) };
      } catch (error) {
        if (this.closed) throw closedError();
        if (!(error instanceof EtcdFailure)) throw error;
        // A write that was on its way to a leader that died is never answered, by a member that is none the worse.
        if (error.kind !== 'silent' || connection.heard === heard) this.suspect(connection, error);
        if (error.kind !== 'token' || !first) throw this.#located(error, connection);
        if (connection.token === token) await this.#renewToken(connection);
      }
    }
  }

  /** For what is sent over streams. */
  countRequest(): void {
    this.#requests.value += 1;
  }

  /** A request or stream of this connection failed: when that speaks against the member, another one is looked for. */
  suspect(connection: Connection, failure: EtcdFailure): void {
    if (failure.kind === 'no-space') this.#alarms.raise('no-space');
    if (leaves(failure.kind)) connection.end(failure);
  }

  get #usable(): Connection | undefined {
    return this.#current?.ended.aborted === false ? this.#current : undefined;
  }

  /** Fetches a new token, once for all requests that were refused meanwhile. */
  async #renewToken(connection: Connection): Promise<void> {
    const options = { timeoutMs: operationLimitMs, signal: this.#closing.signal };
    this.#renewal ??= authenticate(connection, this.#options.config, options).finally(() => {
      this.#renewal = undefined;
    });
    try {
      await this.#renewal;
    } catch (error) {
      const failure = error instanceof EtcdFailure ? error : fileFailure(error);
      connection.end(failure);
      throw this.#located(failure, connection);
    }
  }

  #located(failure: EtcdFailure, { endpoint }: Connection): EtcdFailure {
    if (failure.kind === 'rules') return failure;
    return new EtcdFailure(failure.kind, `${endpoint.text}: ${failure.message}`, failure.hint);
  }

  #observe(connection: Connection, header: ResponseHeader | undefined): Head {
    try {
      const head = headOf(header);
      if (head.clusterId !== this.#clusterId) {
        throw new EtcdFailure('foreign', `another cluster (${head.clusterId}) answers there now`);
      }
      if (head.revision > this.#revision) this.#revision = head.revision;
      return head;
    } catch (error) {
      if (error instanceof EtcdFailure) connection.end(error);
      throw error;
    }
  }

  async #run(): Promise<void> {
    const { clock } = this.#options;
    let delayMs = 0;
    while (!this.closed) {
      const connection = await this.#connect(delayMs);
      if (connection === undefined) return;
      const sinceMs = clock.monotonicMs();
      await ended(connection.ended);
      if (this.#current === connection) this.#current = undefined;
      if (this.closed) return;
      this.#heardAtMs = Math.floor(clock.nowMs() - (performance.now() - connection.heardAtMs));
      const { text } = connection.endpoint;
      this.#options.log.info('store connection is lost', { 'store.endpoint': text, error: connection.failure.message });
      this.#next += 1;
      if (clock.monotonicMs() - sinceMs >= stableMs) this.#backoff.reset();
      const again = this.#backoff.failures > 0;
      const nextMs = this.#backoff.nextMs();
      delayMs = again ? nextMs : this.#random() * spreadMs;
      this.#lastFailure = this.#located(connection.failure, connection);
    }
  }

  /** Tries the endpoints round after round, until one can be used; undefined when closed. */
  async #connect(delayMs: number): Promise<Connection | undefined> {
    const { clock } = this.#options;
    const { signal } = this.#closing;
    const cancel = clock.after(graceMs, () => this.#setAway([]));
    try {
      for (let waitMs = delayMs; ; waitMs = this.#backoff.nextMs()) {
        await clock.sleep(waitMs, signal);
        const connection = await this.#round();
        if (connection !== undefined) return connection;
      }
    } catch (error) {
      if (signal.aborted) return undefined;
      throw error;
    } finally {
      cancel();
    }
  }

  async #round(): Promise<Connection | undefined> {
    const { endpoints } = this.#options.config;
    const failures: EtcdFailure[] = [];
    const strangers: string[] = [];
    const first = this.#next;
    for (let step = 0; step < endpoints.length && !this.closed; step += 1) {
      this.#next = (first + step) % endpoints.length;
      const endpoint = endpoints[this.#next];
      if (endpoint === undefined) continue;
      const found = await this.#try(endpoint);
      if (found instanceof EtcdFailure) {
        this.#lastFailure = found;
        failures.push(found);
      } else if (this.#isOurs(endpoint, found)) return this.#use(found);
      else {
        strangers.push(found.head.clusterId);
        failures.push(new EtcdFailure('foreign', `${endpoint.text}: is of another cluster (${found.head.clusterId})`));
        found.connection.end(new EtcdFailure('foreign', 'of another cluster'));
      }
    }
    if (this.closed) return undefined;
    this.#setAway(failures);
    this.#followMajority(strangers);
    return undefined;
  }

  async #try(endpoint: StoreUrl): Promise<Attempted | EtcdFailure> {
    const { config } = this.#options;
    try {
      return await attempt(endpoint, config, this.#closing.signal, this.#options.trust);
    } catch (error) {
      this.#closing.signal.throwIfAborted();
      if (error instanceof EtcdFailure)
        return new EtcdFailure(error.kind, `${endpoint.text}: ${error.message}`, error.hint);
      return fileFailure(error);
    }
  }

  /** Whether it is of the cluster in use; the first one met is. */
  #isOurs({ text }: StoreUrl, { head }: Attempted): boolean {
    const id = `${foreignConditions}${text}`;
    if (this.#clusterId === undefined || head.clusterId === this.#clusterId) {
      this.#options.conditions.clear(id);
      return true;
    }
    const message = `${text} is a member of another etcd cluster (${head.clusterId}) than the one in use (${this.#clusterId})`;
    const { hint } = new EtcdFailure('foreign', message);
    this.#options.conditions.raise(id, 'error', message, hint);
    return false;
  }

  /**
   * No member of the cluster in use answers, and more than half of the endpoints are of one other cluster: it was
   * replaced. With fewer it may as well be a wrong address while the others are down, which is no reason to leave.
   */
  #followMajority(strangers: readonly string[]): void {
    const [candidate] = strangers;
    const votes = strangers.filter((id) => id === candidate).length;
    if (candidate === undefined || votes * 2 <= this.#options.config.endpoints.length) return;
    this.#options.log.warn('store was replaced by another cluster', {
      'store.id': candidate,
      'store.id_before': this.#clusterId,
    });
    this.#clusterId = candidate;
    this.#revision = 0;
    this.#epoch += 1;
    this.#options.conditions.clearPrefix(foreignConditions);
  }

  #use({ connection, head, alarms }: Attempted): Connection {
    const { log, conditions, onConnected, trust, clock } = this.#options;
    if (this.#clusterId === undefined) this.#clusterId = head.clusterId;
    if (head.fresh && head.revision < this.#revision) {
      log.warn('store went back to an earlier revision, everything is read again', {
        'store.revision': head.revision,
        'store.revision_before': this.#revision,
      });
      this.#revision = head.revision;
      this.#epoch += 1;
    }
    this.#revision = Math.max(this.#revision, head.revision);
    this.#current = connection;
    this.#connects.value += 1;
    this.#alarms.told(alarms);
    onConnected(connection);
    if (trust !== undefined) keepIdentity({ connection, trust, clock, random: this.#random });
    this.#setState('connected');
    conditions.clear(awayCondition);
    log.info('store is connected', {
      'store.endpoint': connection.endpoint.text,
      'store.id': head.clusterId,
      'store.revision': head.revision,
    });
    void this.#check(connection);
    return connection;
  }

  /** Looks now and then for what no request tells: alarms, and whether the member still has a leader. */
  async #check(connection: Connection): Promise<void> {
    const { clock } = this.#options;
    const signal = AbortSignal.any([connection.ended, this.#closing.signal]);
    let dueMs = clock.monotonicMs() + checkEveryMs;
    while (!signal.aborted) {
      try {
        await clock.sleep(alarmCheckEveryMs * (0.8 + 0.4 * this.#random()), signal);
        if (!this.#alarms.active && clock.monotonicMs() < dueMs) continue;
        dueMs = clock.monotonicMs() + checkEveryMs;
        const options = { timeoutMs: checkLimitMs, signal };
        this.#requests.value += 1;
        const answer = await connection.call(api.status, create(StatusRequestSchema), options);
        this.#observe(connection, answer.header);
        if (answer.leader === 0n) connection.end(new EtcdFailure('no-leader', 'the member has no leader'));
        this.#alarms.told(answer.errors);
      } catch (error) {
        if (signal.aborted) return;
        if (!(error instanceof EtcdFailure)) throw error;
        this.suspect(connection, error);
      }
    }
  }

  #setAway(failures: readonly EtcdFailure[]): void {
    if (this.closed || this.#current !== undefined) return;
    const [first = this.#lastFailure] = failures;
    const { config, trust } = this.#options;
    const { endpoints } = config;
    const ofMesh = isStoreOfMesh(config, trust);
    const names = endpoints.map(({ text }) => text).join(', ');
    const reasons = failures.length > 0 ? failures : [first ?? { message: `${names} has not answered yet` }];
    const etcd = endpoints.length === 1 ? 'etcd cannot be used' : 'no member of etcd can be used';
    const subject = ofMesh ? 'the store of the mesh cannot be used' : etcd;
    const problem = `${subject}: ${[...new Set(reasons.map(({ message }) => message))].join('; ')}`;
    const kind = first?.kind ?? 'unreachable';
    const isSilent = kind === 'unreachable' || kind === 'silent';
    const hint = ofMesh && isSilent && first?.hint === hintOf(kind) ? storeHostHint : (first?.hint ?? hintOf(kind));
    this.#options.conditions.raise(awayCondition, 'error', problem, hint);
    if (this.status.value.state !== 'away') this.#away.value += 1;
    this.#setState('away', { problem, hint });
  }

  #awayError(): LegateError {
    const { problem = this.#lastFailure?.message ?? 'etcd has not answered yet', hint } = this.status.value;
    return new LegateError('E_STORE_AWAY', problem, hint === undefined ? {} : { hint });
  }

  #setState(state: StoreStatus['state'], why: { problem?: string; hint?: string } = {}): void {
    const before = this.status.value;
    const same = before.state === state && before.problem === why.problem && before.storeId === this.#clusterId;
    const sinceMs = before.state === state ? before.sinceMs : this.#options.clock.nowMs();
    if (!same) {
      const heard = state === 'away' && this.#heardAtMs !== undefined ? { heardAtMs: this.#heardAtMs } : {};
      this.status.set({ state, sinceMs, storeId: this.#clusterId, ...heard, ...why });
    }
    this.#waiters.wake();
  }
}

/** What helps where the store is another sidecar's. */
const storeHostHint =
  'on the host that has the store: is its sidecar running (legate status there), and does a firewall let its port in?';

function hintOf(kind: FailureKind): string {
  return new EtcdFailure(kind, '').hint;
}

/** A file of the configuration cannot be used: what was wrong with it, and what to do. */
function fileFailure(error: unknown): EtcdFailure {
  if (isLegateError(error)) return new EtcdFailure('credentials', error.message, error.hint);
  throw error;
}

export function closedError(): LegateError {
  return new LegateError('E_CLOSED', 'the store has been closed');
}
