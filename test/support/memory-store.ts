import { LegateError } from '../../src/base/errors.ts';
import { type Feed, FeedQueue, Latest, type Revision } from '../../src/base/feed.ts';
import {
  type Entry,
  type Guard,
  type Lease,
  maxKeyBytes,
  type RangeResult,
  type Store,
  type StoreLimits,
  type StoreStatus,
  type TxnResult,
  type Write,
} from '../../src/store/store.ts';

const limits: StoreLimits = { valueBytes: 1024 * 1024, txnOperations: 128, txnBytes: 2 * 1024 * 1024 };

interface Stored extends Entry {
  readonly lease: MemoryLease | undefined;
}

interface Watcher {
  readonly prefix: string;
  readonly queue: FeedQueue<Entry>;
}

/**
 * A store in memory with the seam's semantics, for tests of what uses one, and the faults that tests need: `away`,
 * `replace` (the data is gone, another store id), `resetWatches` (as after compaction), `lapse` of leases, `failNext`.
 * Revisions are counted numbers in text. Time is the caller's: a lease lapses when told.
 */
export class MemoryStore implements Store {
  readonly kind = 'memory';
  readonly limits = limits;
  readonly status = new Latest<StoreStatus>({ state: 'connected', sinceMs: 0, storeId: 'memory-1' });
  /** Every write that was applied, in order: `put KEY` or `delete KEY`. */
  readonly writes: string[] = [];
  /** Operations in the transactions so far. */
  readonly txnSizes: number[] = [];
  /** Requests so far, watches not counted: `get KEY`, `range PREFIX`, `put KEY`, `delete KEY`, `txn`, `lease`. */
  readonly requests: string[] = [];
  /** Wall clock of its status. */
  nowMs = (): number => Date.now();
  /** Watches tell nothing of what happens while this is set. */
  silent = false;
  /** Runs before each transaction is looked at: for races. */
  beforeTxn: ((guards: readonly Guard[], writes: readonly Write[]) => Promise<void> | void) | undefined;
  #entries = new Map<string, Stored>();
  #revision = 0;
  #generation = 1;
  #leases = new Set<MemoryLease>();
  readonly #watchers = new Set<Watcher>();
  #failures: unknown[] = [];

  /** What is stored, as text. */
  dump(prefix = ''): Record<string, string> {
    const entries = [...this.#entries].filter(([key]) => key.startsWith(prefix)).sort();
    return Object.fromEntries(entries.map(([key, { value }]) => [key, new TextDecoder().decode(value)]));
  }

  keys(prefix = ''): string[] {
    return Object.keys(this.dump(prefix));
  }

  get leases(): number {
    return this.#leases.size;
  }

  setAway(away: boolean): void {
    const state = away ? 'away' : 'connected';
    this.status.set({ ...this.status.value, state, sinceMs: this.nowMs() });
    if (!away) this.resetWatches();
  }

  /** The next operations fail with these. */
  failNext(...failures: unknown[]): void {
    this.#failures.push(...failures);
  }

  resetWatches(): void {
    for (const { prefix, queue } of this.#watchers) {
      queue.push({ kind: 'reset', items: this.#under(prefix), revision: this.#text() });
    }
  }

  /** All data is gone and it is another store now, or one with the same id. */
  replace({ keepId = false } = {}): void {
    if (!keepId) this.#generation += 1;
    this.#revision = 0;
    this.#entries = new Map();
    for (const lease of this.#leases) lease.end('the store was replaced');
    this.#leases.clear();
    this.status.set({ state: 'connected', sinceMs: this.nowMs(), storeId: `memory-${this.#generation}` });
    this.resetWatches();
  }

  /** Every lease lapses: its keys are deleted and its holder hears of it. */
  lapse(): void {
    for (const lease of [...this.#leases]) this.endLease(lease, 'it lapsed');
  }

  /** The lease that holds a key lapses, as when its holder lost power. */
  lapseOf(key: string): void {
    const lease = this.#entries.get(key)?.lease;
    if (lease !== undefined) this.endLease(lease, 'it lapsed');
  }

  endLease(lease: MemoryLease, reason: string): void {
    this.#leases.delete(lease);
    for (const [key, entry] of [...this.#entries]) if (entry.lease === lease) this.#apply([{ kind: 'delete', key }]);
    lease.end(reason);
  }

  async get(key: string): Promise<Entry | undefined> {
    this.requests.push(`get ${key}`);
    await this.#operate();
    return this.#entries.get(key);
  }

  async range(prefix: string, options: { limit?: number } = {}): Promise<RangeResult> {
    this.requests.push(`range ${prefix}`);
    await this.#operate();
    return { entries: this.#under(prefix).slice(0, options.limit), revision: this.#text() };
  }

  async put(key: string, value: Uint8Array, options: { lease?: Lease } = {}): Promise<Revision> {
    checkWrite(key, value);
    this.requests.push(`put ${key}`);
    await this.#operate();
    return this.#apply([{ kind: 'put', key, value, ...(options.lease && { lease: options.lease }) }]);
  }

  async delete(key: string): Promise<Revision | undefined> {
    this.requests.push(`delete ${key}`);
    await this.#operate();
    return this.#entries.has(key) ? this.#apply([{ kind: 'delete', key }]) : undefined;
  }

  async txn(guards: readonly Guard[], writes: readonly Write[]): Promise<TxnResult> {
    if (guards.length + writes.length > limits.txnOperations)
      throw new LegateError('E_TOO_LARGE', 'too many operations');
    for (const write of writes) checkWrite(write.key, write.kind === 'put' ? write.value : new Uint8Array());
    this.requests.push('txn');
    await this.#operate();
    await this.beforeTxn?.(guards, writes);
    this.txnSizes.push(guards.length + writes.length);
    const holds = guards.every((guard) => {
      const entry = this.#entries.get(guard.key);
      if (guard.kind === 'absent') return entry === undefined;
      return guard.kind === 'exists' ? entry !== undefined : entry?.revision === guard.revision;
    });
    return holds ? { ok: true, revision: this.#apply(writes) } : { ok: false };
  }

  async lease(ttlMs: number): Promise<Lease> {
    this.requests.push('lease');
    await this.#operate();
    const lease = new MemoryLease(this, ttlMs);
    this.#leases.add(lease);
    return lease;
  }

  watch(prefix: string, { signal }: { signal: AbortSignal }): Feed<Entry> {
    const queue = new FeedQueue<Entry>((entry) => entry.key);
    const watcher = { prefix, queue };
    this.#watchers.add(watcher);
    if (this.status.value.state === 'connected') {
      queue.push({ kind: 'reset', items: this.#under(prefix), revision: this.#text() });
    }
    const end = (): void => {
      this.#watchers.delete(watcher);
      queue.end();
    };
    if (signal.aborted) end();
    else signal.addEventListener('abort', end, { once: true });
    return queue as unknown as Feed<Entry>;
  }

  compareRevisions(a: Revision, b: Revision): number {
    return Number(a) - Number(b);
  }

  async close(): Promise<void> {
    this.status.set({ ...this.status.value, state: 'closed' });
    for (const { queue } of this.#watchers) queue.end(new LegateError('E_CLOSED', 'the store is closed'));
    this.#watchers.clear();
  }

  async #operate(): Promise<void> {
    await Promise.resolve();
    if (this.#failures.length > 0) throw this.#failures.shift();
    const { state } = this.status.value;
    if (state === 'closed') throw new LegateError('E_CLOSED', 'the store is closed');
    if (state !== 'connected') throw new LegateError('E_STORE_AWAY', 'the store cannot be reached');
  }

  #apply(writes: readonly Write[]): Revision {
    this.#revision += 1;
    const revision = this.#text();
    for (const write of writes) {
      this.writes.push(`${write.kind} ${write.key}`);
      if (write.kind === 'delete') this.#entries.delete(write.key);
      else {
        const lease = write.lease instanceof MemoryLease ? write.lease : undefined;
        this.#entries.set(write.key, { key: write.key, value: write.value, revision, lease });
      }
    }
    if (this.silent || this.status.value.state !== 'connected') return revision;
    for (const { prefix, queue } of this.#watchers) {
      const mine = writes.filter(({ key }) => key.startsWith(prefix));
      if (mine.length === 0) continue;
      const puts = mine.flatMap(({ key }) => this.#entries.get(key) ?? []);
      queue.push({
        kind: 'delta',
        puts,
        deletes: mine.filter(({ kind }) => kind === 'delete').map(({ key }) => key),
        revision,
      });
    }
    return revision;
  }

  #under(prefix: string): Entry[] {
    return [...this.#entries.values()]
      .filter(({ key }) => key.startsWith(prefix))
      .sort((a, b) => (a.key < b.key ? -1 : 1));
  }

  #text(): string {
    return String(this.#revision);
  }
}

class MemoryLease implements Lease {
  readonly id = 'memory';
  readonly ttlMs: number;
  readonly #store: MemoryStore;
  readonly #ended = new AbortController();

  constructor(store: MemoryStore, ttlMs: number) {
    this.#store = store;
    this.ttlMs = ttlMs;
  }

  get lost(): AbortSignal {
    return this.#ended.signal;
  }

  end(reason: string): void {
    this.#ended.abort(new Error(reason));
  }

  async revoke(): Promise<void> {
    this.#store.endLease(this, 'it was revoked');
  }
}

function checkWrite(key: string, value: Uint8Array): void {
  if (key === '' || key.includes('\u0000')) throw new LegateError('E_INVALID', 'not a key');
  if (Buffer.byteLength(key) > maxKeyBytes || value.byteLength > limits.valueBytes) {
    throw new LegateError('E_TOO_LARGE', 'too large');
  }
}
