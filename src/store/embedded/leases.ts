import { randomBytes } from 'node:crypto';
import type { Clock } from '../../base/clock.ts';
import { LegateError } from '../../base/errors.ts';
import type { CounterCell, Metrics } from '../../base/metrics.ts';
import type { Lease } from '../store.ts';
import type { StoredLease } from './state.ts';
import type { Turn } from './turn.ts';

export interface LeasesOptions {
  readonly clock: Clock;
  readonly metrics: Metrics;
  /** Shorter wishes are raised to this, in milliseconds. */
  readonly minTtlMs: number;
  /** Writes the lease to disk. */
  readonly persist: (id: string, ttlMs: number, signal?: AbortSignal) => Promise<void>;
  /** Deletes the lease and its keys, if `still` says so when its turn has come; tells whether it did. */
  readonly end: (id: string, still: () => boolean) => Promise<boolean>;
}

export interface LeaseDescription {
  readonly id: string;
  readonly ttlMs: number;
  readonly remainingMs: number;
  readonly keys: readonly string[];
}

interface Entry {
  readonly id: string;
  readonly ttlMs: number;
  readonly keys: Set<string>;
  /** Monotonic time at which it lapses; Infinity while this process itself holds it. */
  deadlineMs: number;
  readonly lost: AbortController;
  /** Whether its deletion is under way. */
  ending: boolean;
}

/**
 * The leases of the embedded store. Which exist, and their TTLs, is on disk; when they lapse is known here only, so after
 * a restart each begins anew with its full TTL. Those held by this process live as long as it does; others are kept
 * alive by `keepAlive`, which is what a server for remote holders calls.
 */
export class Leases {
  static readonly maxLeases = 10_000;
  static readonly maxTtlMs = 7 * 24 * 3_600_000;
  /** A tick that comes this late means that this process was stopped, not that the holders were. */
  static readonly lateTickMs = 1000;
  /** After this long the deletion of a lapsed lease is tried again. */
  static readonly retryMs = 1000;

  readonly #options: LeasesOptions;
  readonly #clock: Clock;
  readonly #entries = new Map<string, Entry>();
  readonly #keyToLease = new Map<string, string>();
  readonly #lapsed: CounterCell;
  #cancelTick: (() => void) | undefined;
  #tickDueMs = Number.POSITIVE_INFINITY;
  #suspended = false;

  constructor(options: LeasesOptions) {
    this.#options = options;
    this.#clock = options.clock;
    this.#lapsed = options.metrics.counter('legate_store_leases_lapsed_total', 'Leases that lapsed unrenewed.');
    options.metrics.gauge('legate_store_leases_count', 'Leases that live.', [], () => [[[], this.#entries.size]]);
  }

  /** Takes over what the disk says: every lease gets its full TTL; one that is gone there is lost. */
  restore(stored: ReadonlyMap<string, StoredLease>): void {
    for (const id of [...this.#entries.keys()]) if (!stored.has(id)) this.#remove(id, lapsedError(id));
    this.#keyToLease.clear();
    for (const [id, { ttlMs, keys }] of stored) {
      const entry = this.#entries.get(id) ?? this.#add(id, ttlMs);
      entry.ending = false;
      entry.keys.clear();
      for (const key of keys) {
        entry.keys.add(key);
        this.#keyToLease.set(key, id);
      }
    }
    this.resume();
  }

  /** While the disk cannot be written nothing lapses; `restore` ends this. */
  suspend(): void {
    this.#suspended = true;
    this.#cancelTick?.();
    this.#cancelTick = undefined;
    this.#tickDueMs = Number.POSITIVE_INFINITY;
  }

  /** Lets leases lapse again; each gets its full TTL first. */
  resume(): void {
    const nowMs = this.#clock.monotonicMs();
    for (const entry of this.#entries.values()) {
      if (entry.deadlineMs !== Number.POSITIVE_INFINITY) entry.deadlineMs = nowMs + entry.ttlMs;
    }
    this.#suspended = false;
    this.#schedule();
  }

  /**
   * Begins a lease, which lapses unless it is kept alive. Returns its id and its real TTL. `wantedId` is 16 hexadecimal
   * digits; E_CONFLICT when there is such a lease already.
   */
  async grant(
    ttlMs: number,
    signal?: AbortSignal,
    wantedId?: string,
  ): Promise<{ readonly id: string; readonly ttlMs: number }> {
    const realTtlMs = this.#checkTtl(ttlMs);
    if (this.#entries.size >= Leases.maxLeases) {
      throw new LegateError('E_TOO_LARGE', `the store has ${Leases.maxLeases} leases already`);
    }
    const id = wantedId ?? newLeaseId();
    await this.#options.persist(id, realTtlMs, signal);
    return { id, ttlMs: realTtlMs };
  }

  /** Gives the lease its full TTL again and returns that; undefined when there is no such lease (any more). */
  keepAlive(id: string): number | undefined {
    const entry = this.#entries.get(id);
    if (entry === undefined) return undefined;
    if (entry.deadlineMs !== Number.POSITIVE_INFINITY) entry.deadlineMs = this.#clock.monotonicMs() + entry.ttlMs;
    return entry.ttlMs;
  }

  /** Ends a lease and deletes its keys; false when there was no such lease. */
  async revoke(id: string): Promise<boolean> {
    const entry = this.#entries.get(id);
    if (entry === undefined) return false;
    // Should the deletion fail, it lapses by itself.
    if (entry.deadlineMs === Number.POSITIVE_INFINITY) entry.deadlineMs = this.#clock.monotonicMs() + entry.ttlMs;
    this.#schedule();
    return await this.#options.end(id, () => this.#entries.has(id));
  }

  describe(id: string): LeaseDescription | undefined {
    const entry = this.#entries.get(id);
    if (entry === undefined) return undefined;
    const remainingMs = Math.min(entry.ttlMs, Math.max(0, entry.deadlineMs - this.#clock.monotonicMs()));
    return { id, ttlMs: entry.ttlMs, remainingMs, keys: [...entry.keys] };
  }

  ids(): string[] {
    return [...this.#entries.keys()];
  }

  has(id: string): boolean {
    return this.#entries.has(id);
  }

  /** The keys that hang on a lease now. */
  keysOf(id: string): readonly string[] {
    return [...(this.#entries.get(id)?.keys ?? [])];
  }

  /** The lease as its holder in this process has it: it lives until it is revoked or the process ends. */
  hold(id: string): Lease {
    const lease = this.handle(id);
    const entry = this.#entries.get(id);
    if (entry !== undefined) entry.deadlineMs = Number.POSITIVE_INFINITY;
    return lease;
  }

  /** The lease as somebody has it who does not keep it alive. */
  handle(id: string): Lease {
    const entry = this.#entries.get(id);
    if (entry === undefined) throw lapsedError(id);
    return {
      id,
      ttlMs: entry.ttlMs,
      lost: entry.lost.signal,
      revoke: async () => {
        await this.revoke(id);
      },
    };
  }

  /** Follows what was written: which leases there are, and which keys hang on them. */
  onTurn({ granted, ended, commits }: Turn): void {
    for (const { id, ttlMs } of granted) this.#add(id, ttlMs);
    for (const { deletes, puts } of commits) {
      for (const key of deletes) this.#attach(key, undefined);
      for (const { key, record } of puts) this.#attach(key, record.lease);
    }
    for (const id of ended) this.#remove(id, lapsedError(id));
    if (granted.length > 0) this.#schedule();
  }

  /** Whoever holds one here hears that nobody keeps it alive any more. */
  close(): void {
    this.suspend();
    const reason = new LegateError('E_CLOSED', 'the store was closed, so its leases lapse');
    for (const { lost } of this.#entries.values()) lost.abort(reason);
    this.#entries.clear();
  }

  #checkTtl(ttlMs: number): number {
    if (!Number.isFinite(ttlMs) || ttlMs <= 0 || ttlMs > Leases.maxTtlMs) {
      throw new LegateError('E_INVALID', `a lease of ${ttlMs} ms: it must be above 0 and at most ${Leases.maxTtlMs}`);
    }
    return Math.ceil(Math.max(ttlMs, this.#options.minTtlMs));
  }

  #add(id: string, ttlMs: number): Entry {
    const deadlineMs = this.#clock.monotonicMs() + ttlMs;
    const entry: Entry = { id, ttlMs, keys: new Set(), deadlineMs, lost: new AbortController(), ending: false };
    this.#entries.set(id, entry);
    return entry;
  }

  #remove(id: string, reason: LegateError): void {
    const entry = this.#entries.get(id);
    if (entry === undefined) return;
    this.#entries.delete(id);
    entry.lost.abort(reason);
  }

  #attach(key: string, lease: string | undefined): void {
    const before = this.#keyToLease.get(key);
    if (before === lease) return;
    if (before !== undefined) this.#entries.get(before)?.keys.delete(key);
    if (lease === undefined) this.#keyToLease.delete(key);
    else {
      this.#keyToLease.set(key, lease);
      this.#entries.get(lease)?.keys.add(key);
    }
  }

  /** Sees to it that a tick comes at the earliest deadline. Renewals only move deadlines back, so need no new tick. */
  #schedule(): void {
    if (this.#suspended) return;
    let earliestMs = Number.POSITIVE_INFINITY;
    for (const { deadlineMs, ending } of this.#entries.values()) {
      if (!ending && deadlineMs < earliestMs) earliestMs = deadlineMs;
    }
    if (earliestMs >= this.#tickDueMs || earliestMs === Number.POSITIVE_INFINITY) return;
    this.#cancelTick?.();
    this.#tickDueMs = earliestMs;
    this.#cancelTick = this.#clock.after(earliestMs - this.#clock.monotonicMs(), () => this.#tick());
  }

  #tick(): void {
    const nowMs = this.#clock.monotonicMs();
    const late = nowMs - this.#tickDueMs > Leases.lateTickMs;
    this.#cancelTick = undefined;
    this.#tickDueMs = Number.POSITIVE_INFINITY;
    for (const entry of this.#entries.values()) {
      if (late && entry.deadlineMs !== Number.POSITIVE_INFINITY) entry.deadlineMs = nowMs + entry.ttlMs;
      else if (entry.deadlineMs <= nowMs && !entry.ending) void this.#lapse(entry);
    }
    this.#schedule();
  }

  async #lapse(entry: Entry): Promise<void> {
    entry.ending = true;
    try {
      // A keep-alive that arrived before its turn came saves it.
      const ended = await this.#options.end(entry.id, () => entry.deadlineMs <= this.#clock.monotonicMs());
      if (ended) this.#lapsed.value += 1;
    } catch {
      // The disk is away, or more waits for it than may.
      entry.deadlineMs = this.#clock.monotonicMs() + Leases.retryMs;
    } finally {
      entry.ending = false;
      this.#schedule();
    }
  }
}

export function lapsedError(id: string): LegateError {
  return new LegateError('E_NOT_FOUND', `there is no lease ${id}: it has lapsed or was revoked`, {
    hint: 'begin a new lease and write its keys again',
  });
}

/** Not zero, and positive as a signed number of 64 bits, which is what the etcd API calls a lease id. */
function newLeaseId(): string {
  const bytes = randomBytes(8);
  bytes.writeUInt8(((bytes[0] ?? 0) & 0x3f) | 0x40, 0);
  return bytes.toString('hex');
}
