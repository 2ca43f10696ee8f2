import type { Clock } from '../../base/clock.ts';
import type { Conditions } from '../../base/conditions.ts';
import { describeError, isLegateError, LegateError } from '../../base/errors.ts';
import type { Feed, Observable, Revision } from '../../base/feed.ts';
import type { Log } from '../../base/log.ts';
import type { Metrics } from '../../base/metrics.ts';
import { compareNumberedRevisions, formatRevision, revisionNumber } from '../revision.ts';
import type {
  Entry,
  Guard,
  Lease,
  OperationOptions,
  RangeResult,
  Store,
  StoreLimits,
  StoreStatus,
  TxnResult,
  Write,
} from '../store.ts';
import { checkKey, checkPrefix, checkTxn } from '../validate.ts';
import type { StoreAccess, StoreFollower } from './access.ts';
import { Committer } from './committer.ts';
import { Compactor } from './compactor.ts';
import { closedError, Disk } from './disk.ts';
import { damagedError, type Level } from './folder.ts';
import { Leases, lapsedError } from './leases.ts';
import { Quarantine } from './quarantine.ts';
import { formatHead, headKey, type KeyRecord, keyKey, parseKey, prepareKey } from './records.ts';
import { isCorruption, type LoadedState, type StoreState } from './state.ts';
import type { PreparedWrite, Turn } from './turn.ts';
import { readError, View } from './view.ts';
import { type Start, Watches } from './watches.ts';

export interface EmbeddedStoreOptions {
  /** The store's own folder; made when it is not there. */
  readonly path: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions?: Conditions;
  /** Leases shorter than this are raised to it; default 1,000. */
  readonly minLeaseTtlMs?: number;
  readonly compaction?: {
    /** From how many of the last revisions a watch can resume; default 10,000. */
    readonly keepRevisions: number;
  };
}

export interface EmbeddedStore extends Store {
  /** For a server that offers leases to holders in other processes. */
  readonly leases: Leases;
  /**
   * Forgets history up to and including `revision`: watches from before it begin with a reset. E_INVALID when it is not
   * a revision that this store has reached.
   */
  compact(revision: Revision): Promise<void>;
  /** For a server that offers all of it to other processes. */
  readonly access: StoreAccess;
}

/** As etcd has them, so that a store that fits here fits there. */
const limits: StoreLimits = { valueBytes: 1024 * 1024, txnOperations: 128, txnBytes: 1024 * 1024 + 256 * 1024 };
const defaultKeepRevisions = 10_000;
const defaultMinLeaseTtlMs = 1000;
const pauseAfterReadErrorMs = 1000;

/**
 * Opens the store in a folder, or makes one there. Errors: E_STORE_DAMAGED (cannot be read), E_IN_USE (another process
 * has it), E_PERMISSION, E_STORE_AWAY (disk full or failing).
 */
export async function openEmbeddedStore(options: EmbeddedStoreOptions): Promise<EmbeddedStore> {
  const store = new LevelStore(options);
  await store.open();
  return store;
}

class LevelStore implements EmbeddedStore {
  readonly kind = 'embedded';
  readonly limits = limits;
  readonly leases: Leases;
  readonly #options: EmbeddedStoreOptions;
  readonly #quarantine: Quarantine;
  readonly #disk: Disk;
  readonly #committer: Committer;
  readonly #compactor: Compactor;
  readonly #watches: Watches;
  readonly #followers = new Set<StoreFollower>();
  #state: StoreState | undefined;
  #closed: Promise<void> | undefined;

  constructor(options: EmbeddedStoreOptions) {
    const { path, clock, log, metrics, conditions } = options;
    this.#options = options;
    this.#quarantine = new Quarantine({ path, metrics, conditions });
    this.#disk = new Disk({
      path,
      clock,
      log,
      metrics,
      conditions,
      quarantine: this.#quarantine,
      onOpened: (level, loaded) => this.#onOpened(level, loaded),
    });
    this.#committer = new Committer({
      metrics,
      quarantine: this.#quarantine,
      onTurn: (turn) => this.#onTurn(turn),
      onFailure: (error) => this.#onFailure(error),
      onStall: (stalled) => this.#onStall(stalled),
    });
    this.#compactor = new Compactor(this.#committer, metrics);
    this.leases = new Leases({
      clock,
      metrics,
      minTtlMs: options.minLeaseTtlMs ?? defaultMinLeaseTtlMs,
      persist: (id, ttlMs, signal) => this.#persistLease(id, ttlMs, signal),
      end: (id, still) => this.#endLease(id, still),
    });
    this.#watches = new Watches({
      metrics,
      begin: (register, signal) => this.#beginWatch(register, signal),
      pause: (error, signal) => this.#pauseWatch(error, signal),
    });
    this.#addGauges(metrics);
  }

  get access(): StoreAccess {
    return {
      path: this.#options.path,
      head: () => this.#head,
      keyCount: () => this.#state?.keyCount ?? 0,
      view: () => this.#view(this.#disk.level),
      record: async (key) => await this.#record(key),
      submit: (request, signal) => this.#committer.submit(request, signal),
      compact: (revision) => this.#compactor.removeUpTo(this.#disk.level, revision),
      readError: (error) => this.#readError(error),
      follow: (follower) => {
        this.#followers.add(follower);
        return () => this.#followers.delete(follower);
      },
    };
  }

  get status(): Observable<StoreStatus> {
    return this.#disk.status;
  }

  async open(): Promise<void> {
    await this.#disk.open();
  }

  async get(key: string, options: OperationOptions = {}): Promise<Entry | undefined> {
    checkKey(key);
    options.signal?.throwIfAborted();
    const record = await this.#record(key);
    options.signal?.throwIfAborted();
    if (record === undefined) return undefined;
    return { key, value: record.value, revision: formatRevision(this.#head.storeId, record.revision) };
  }

  async #record(key: string): Promise<KeyRecord | undefined> {
    const dbKey = keyKey(key);
    const { level } = this.#disk;
    try {
      const bytes = await level.get(dbKey);
      if (bytes === undefined) return undefined;
      const record = parseKey(dbKey, bytes);
      if (record !== undefined) return record;
    } catch (error) {
      if (!isCorruption(error)) throw this.#readError(error);
    }
    this.#quarantine.add(key);
    return undefined;
  }

  async range(prefix: string, options: OperationOptions & { readonly limit?: number } = {}): Promise<RangeResult> {
    checkPrefix(prefix);
    options.signal?.throwIfAborted();
    const view = this.#view(this.#disk.level);
    try {
      // The view may hold a batch of which memory has not heard yet, so its revision is in its own head.
      const head = await view.head();
      if (head === undefined) throw damagedError(this.#options.path, 'its head record is damaged');
      const entries = await view.range(prefix, options);
      return { entries, revision: formatRevision(head.storeId, head.revision) };
    } catch (error) {
      throw this.#readError(error);
    } finally {
      await view.close();
    }
  }

  async put(
    key: string,
    value: Uint8Array,
    options: OperationOptions & { readonly lease?: Lease } = {},
  ): Promise<Revision> {
    const { lease, ...rest } = options;
    const result = await this.txn([], [{ kind: 'put', key, value, ...(lease === undefined ? {} : { lease }) }], rest);
    if (!result.ok) throw new Error('a put without guards did not happen');
    return result.revision;
  }

  async delete(key: string, options: OperationOptions = {}): Promise<Revision | undefined> {
    const result = await this.txn([{ kind: 'exists', key }], [{ kind: 'delete', key }], options);
    return result.ok ? result.revision : undefined;
  }

  async txn(guards: readonly Guard[], writes: readonly Write[], options: OperationOptions = {}): Promise<TxnResult> {
    checkTxn(guards, writes, limits);
    const prepared = writes.map(prepare);
    const request = {
      keys: () => [...guards.map(({ key }) => key), ...prepared.map(({ key }) => key)],
      bytes: prepared.reduce((sum, write) => sum + (write.kind === 'put' ? write.record.length : 0), 256),
      decide: (turn: Turn): TxnResult => this.#decide(turn, guards, prepared),
    };
    return await this.#committer.submit(request, options.signal);
  }

  async lease(ttlMs: number, options: OperationOptions & { readonly keepAlive?: boolean } = {}): Promise<Lease> {
    const { id } = await this.leases.grant(ttlMs, options.signal);
    return options.keepAlive === false ? this.leases.handle(id) : this.leases.hold(id);
  }

  watch(prefix: string, options: { readonly signal: AbortSignal; readonly from?: Revision }): Feed<Entry> {
    checkPrefix(prefix);
    return this.#watches.watch(prefix, options);
  }

  compareRevisions(a: Revision, b: Revision): number {
    return compareNumberedRevisions(a, b);
  }

  async compact(revision: Revision): Promise<void> {
    const head = this.#head;
    const number = revisionNumber(head.storeId, revision);
    if (number === undefined || number > head.revision) {
      throw new LegateError('E_INVALID', `${revision} is not a revision that this store has reached`);
    }
    if (number > head.compacted) await this.#compactor.removeUpTo(this.#disk.level, number);
  }

  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    this.#watches.close();
    this.leases.close();
    const stopped = this.#committer.stop(closedError());
    await this.#disk.close(async (level) => {
      await stopped;
      const head = this.#head;
      // Not worth an error: without it the next start takes this for a crash, which it survives.
      await level
        .batch([{ type: 'put', key: headKey, value: formatHead({ ...head, clean: true }) }], { sync: true })
        .catch((error: unknown) =>
          this.#options.log.warn('store could not note its end', { error: describeError(error) }),
        );
    });
  }

  get #head(): StoreState['head'] {
    if (this.#state === undefined) throw new Error('the store is not open');
    return this.#state.head;
  }

  #decide(turn: Turn, guards: readonly Guard[], writes: readonly PreparedWrite[]): TxnResult {
    for (const write of writes) {
      if (write.kind === 'put' && write.lease !== undefined && !this.leases.has(write.lease)) {
        throw lapsedError(write.lease);
      }
    }
    const { storeId } = turn.head;
    for (const guard of guards) if (!holds(guard, turn, storeId)) return { ok: false };
    return { ok: true, revision: formatRevision(storeId, turn.write(writes)) };
  }

  async #persistLease(id: string, ttlMs: number, signal: AbortSignal | undefined): Promise<void> {
    const decide = (turn: Turn): void => {
      if (this.leases.has(id) || turn.granted.some((other) => other.id === id)) {
        throw new LegateError('E_CONFLICT', `there is a lease ${id} already`);
      }
      turn.grant(id, ttlMs);
    };
    await this.#committer.submit({ keys: () => [], bytes: 64, decide }, signal);
  }

  async #endLease(id: string, still: () => boolean): Promise<boolean> {
    return await this.#committer.submit({
      keys: () => this.leases.keysOf(id),
      bytes: 256,
      alone: true,
      decide: (turn) => {
        if (!still()) return false;
        turn.end(id, this.leases.keysOf(id));
        return true;
      },
    });
  }

  async #beginWatch(register: (revision: number, storeId: string) => void, signal: AbortSignal): Promise<Start> {
    for (;;) {
      await this.#disk.connected(signal);
      try {
        return await this.#committer.atRest((level, { head }) => {
          const view = this.#view(level);
          register(head.revision, head.storeId);
          return { view, storeId: head.storeId, revision: head.revision, compacted: head.compacted };
        });
      } catch (error) {
        if (!isLegateError(error, 'E_STORE_AWAY')) throw error;
      }
    }
  }

  async #pauseWatch(error: unknown, signal: AbortSignal): Promise<void> {
    const { log, clock } = this.#options;
    log.warn('watch could not be read, tries again', { error: describeError(this.#readError(error)) });
    await clock.sleep(pauseAfterReadErrorMs, signal).catch(() => undefined);
  }

  #view(level: Level): View {
    return new View({ level, storeId: this.#head.storeId, quarantine: this.#quarantine });
  }

  #readError(error: unknown): unknown {
    return this.#closed === undefined ? readError(this.#options.path, error) : closedError();
  }

  #onOpened(level: Level, { state, leases }: LoadedState): void {
    this.#state = state;
    this.#committer.start(level, state);
    this.leases.restore(leases);
    for (const follower of this.#followers) follower.onOpened(state.head.revision);
  }

  #onTurn(turn: Turn): void {
    this.leases.onTurn(turn);
    for (const commit of turn.commits) this.#watches.publish(turn.head.storeId, commit);
    for (const follower of this.#followers) for (const commit of turn.commits) follower.onCommit(commit);
    this.#compactWhenDue();
  }

  #onFailure(error: unknown): void {
    this.leases.suspend();
    this.#watches.interrupt();
    this.#disk.fail(error);
  }

  #onStall(stalled: boolean): void {
    if (stalled) this.leases.suspend();
    else this.leases.resume();
    this.#disk.stall(stalled);
  }

  #compactWhenDue(): void {
    const keep = this.#options.compaction?.keepRevisions ?? defaultKeepRevisions;
    const count = this.#state?.historyCount ?? 0;
    // A tenth more than is kept may gather, so that this happens now and then and not at every write.
    if (count <= keep + Math.ceil(keep / 10) || this.#compactor.busy) return;
    if (this.#disk.status.value.state !== 'connected') return;
    this.#compactor.removeOldest(this.#disk.level, count - keep).catch((error: unknown) => {
      this.#options.log.debug('history was not compacted, tries again', { error: describeError(error) });
    });
  }

  #addGauges(metrics: Metrics): void {
    const gauges: [name: string, help: string, value: (state: StoreState) => number][] = [
      ['legate_store_keys_count', 'Keys in the embedded store.', (state) => state.keyCount],
      ['legate_store_history_revisions', 'Revisions from which a watch can resume.', (state) => state.historyCount],
      ['legate_store_head_revision', 'The number of the last revision.', (state) => state.head.revision],
    ];
    for (const [name, help, value] of gauges) {
      metrics.gauge(name, help, [], () => (this.#state === undefined ? [] : [[[], value(this.#state)]]));
    }
  }
}

/** Copies what the caller may change while the write waits. */
function prepare(write: Write): PreparedWrite {
  if (write.kind === 'delete') return { kind: 'delete', key: write.key };
  return { kind: 'put', key: write.key, record: prepareKey(write.value), lease: write.lease?.id };
}

function holds(guard: Guard, turn: Turn, storeId: string): boolean {
  const current = turn.current(guard.key);
  if (guard.kind === 'absent') return current === undefined;
  if (guard.kind === 'exists') return current !== undefined;
  return current !== undefined && current.revision === revisionNumber(storeId, guard.revision);
}
