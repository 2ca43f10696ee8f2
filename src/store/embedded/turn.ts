import type { Level } from './folder.ts';
import {
  formatHead,
  formatHistory,
  formatLease,
  type Head,
  headKey,
  historyKey,
  type KeyRecord,
  keyKey,
  leaseKey,
  sealKey,
} from './records.ts';
import { reserveAhead, reservedRevisions } from './state.ts';

export type Operation =
  | { readonly type: 'put'; readonly key: Buffer; readonly value: Buffer }
  | { readonly type: 'del'; readonly key: Buffer };

/** A write whose value has been copied from the caller; `record` has room for the header. */
export type PreparedWrite =
  | { readonly kind: 'put'; readonly key: string; readonly record: Buffer; readonly lease: string | undefined }
  | { readonly kind: 'delete'; readonly key: string };

/** What one revision did, for whoever follows. */
export interface Commit {
  readonly revision: number;
  readonly puts: readonly { readonly key: string; readonly record: KeyRecord }[];
  readonly deletes: readonly string[];
  /** What the written keys held before, without those that were absent or damaged. */
  readonly before: ReadonlyMap<string, KeyRecord>;
  /** By how much the number of keys changed. */
  readonly added: number;
}

/**
 * The transactions that will share one synced batch. Each is decided in order, on what is on disk overlaid by the
 * transactions before it, and takes a revision of its own.
 */
export class Turn {
  readonly operations: Operation[] = [];
  readonly commits: Commit[] = [];
  readonly granted: { readonly id: string; readonly ttlMs: number }[] = [];
  readonly ended: string[] = [];
  historyRemoved = 0;
  readonly #known: Map<string, KeyRecord | 'damaged' | undefined>;
  readonly #ranges: readonly (readonly string[] | undefined)[];
  #head: Head;

  /**
   * `known`: the records of every key that the transactions name. `ranges`: the keys of the ranges that a transaction
   * which has the turn for itself names, in its order; undefined for one that holds too much.
   */
  constructor(
    head: Head,
    known: Map<string, KeyRecord | 'damaged' | undefined>,
    ranges: readonly (readonly string[] | undefined)[] = [],
  ) {
    this.#head = head;
    this.#known = known;
    this.#ranges = ranges;
  }

  /** The keys that the range held when the turn began; undefined when they are more than a transaction may touch. */
  keysIn(range: number): readonly string[] | undefined {
    return this.#ranges[range];
  }

  get head(): Head {
    return this.#head;
  }

  /** The key's record as of now; a damaged one counts as absent. */
  current(key: string): KeyRecord | undefined {
    const known = this.#known.get(key);
    return known === 'damaged' ? undefined : known;
  }

  /** Takes the writes up and gives their revision: the present one when nothing changes by them. */
  write(writes: readonly PreparedWrite[]): number {
    const effective = writes.filter((write) => write.kind === 'put' || this.#known.get(write.key) !== undefined);
    if (effective.length === 0) return this.#head.revision;
    const revision = this.#head.revision + 1;
    const puts: { key: string; record: KeyRecord }[] = [];
    const deletes: string[] = [];
    const befores = new Map<string, KeyRecord>();
    let added = 0;
    for (const write of effective) {
      const dbKey = keyKey(write.key);
      const before = this.current(write.key);
      if (before !== undefined) befores.set(write.key, before);
      if (write.kind === 'put') {
        const created = before?.created ?? revision;
        const fields = { revision, created, version: (before?.version ?? 0) + 1, lease: write.lease };
        const record = sealKey(dbKey, write.record, fields);
        this.operations.push({ type: 'put', key: dbKey, value: write.record });
        this.#known.set(write.key, record);
        puts.push({ key: write.key, record });
        if (before === undefined) added += 1;
      } else {
        this.operations.push({ type: 'del', key: dbKey });
        this.#known.set(write.key, undefined);
        deletes.push(write.key);
        if (before !== undefined) added -= 1;
      }
    }
    const dbKey = historyKey(revision);
    const history = formatHistory(dbKey, { keys: effective.map((write) => write.key) });
    this.operations.push({ type: 'put', key: dbKey, value: history });
    this.commits.push({ revision, puts, deletes, before: befores, added });
    this.#advance(revision);
    return revision;
  }

  grant(id: string, ttlMs: number): void {
    const key = leaseKey(id);
    this.operations.push({ type: 'put', key, value: formatLease(key, ttlMs) });
    this.granted.push({ id, ttlMs });
  }

  /** Ends a lease with the keys that hang on it. */
  end(id: string, keys: readonly string[]): void {
    this.operations.push({ type: 'del', key: leaseKey(id) });
    this.ended.push(id);
    this.write(keys.map((key) => ({ kind: 'delete', key })));
  }

  /** Forgets these history records; from now on no watch resumes from before `compacted`. */
  forget(historyKeys: readonly Buffer[], compacted: number): void {
    for (const key of historyKeys) this.operations.push({ type: 'del', key });
    this.historyRemoved += historyKeys.length;
    this.#head = { ...this.#head, compacted: Math.max(this.#head.compacted, compacted) };
  }

  /** Writes everything in one batch and returns when it is on disk. */
  async sync(level: Level): Promise<void> {
    if (this.operations.length === 0) return;
    const head: Operation = { type: 'put', key: headKey, value: formatHead(this.#head) };
    await level.batch([...this.operations, head], { sync: true });
  }

  #advance(revision: number): void {
    const { reserved } = this.#head;
    this.#head = {
      ...this.#head,
      revision,
      reserved: reserved - revision < reserveAhead ? revision + reservedRevisions : reserved,
    };
  }
}
