import type { Snapshot } from 'classic-level';
import { LegateError, systemCode } from '../../base/errors.ts';
import { formatRevision } from '../revision.ts';
import type { Entry } from '../store.ts';
import type { KeyBounds } from './committer.ts';
import type { Level } from './folder.ts';
import type { Quarantine } from './quarantine.ts';
import {
  type Head,
  headKey,
  historyKey,
  type KeyRecord,
  keyKey,
  keyOf,
  keyRange,
  parseHead,
  parseHistory,
  parseKey,
  revisionOf,
  tables,
} from './records.ts';
import { isCorruption, pages } from './state.ts';

export interface ViewOptions {
  readonly level: Level;
  readonly storeId: string;
  readonly quarantine: Quarantine;
}

/** The store as it was at one moment. It must be closed. */
export class View {
  /** Resuming over more keys than this costs more than beginning anew. */
  static readonly maxResumedKeys = 10_000;
  readonly #options: ViewOptions;
  readonly #snapshot: Snapshot;

  /** Taken now; what is written later is not seen. */
  constructor(options: ViewOptions) {
    this.#options = options;
    this.#snapshot = options.level.snapshot();
  }

  async close(): Promise<void> {
    await this.#snapshot.close();
  }

  /** The raw record of a key of LevelDB. */
  async raw(dbKey: Buffer): Promise<Buffer | undefined> {
    return await this.#options.level.get(dbKey, { snapshot: this.#snapshot });
  }

  /** The head that belongs to this moment; undefined when it is damaged. */
  async head(): Promise<Head | undefined> {
    const record = await this.raw(headKey);
    return record === undefined ? undefined : parseHead(record);
  }

  /** The records between two keys of LevelDB in key order, a page at a time, without the damaged ones. */
  async *records(bounds: KeyBounds, pageSize: number): AsyncGenerator<(readonly [Buffer, KeyRecord])[]> {
    const iterator = this.#options.level.iterator({ ...bounds, snapshot: this.#snapshot, ...readAhead });
    for await (const page of pages(iterator, pageSize)) {
      const intact: (readonly [Buffer, KeyRecord])[] = [];
      for (const [dbKey, bytes] of page) {
        const record = parseKey(dbKey, bytes);
        if (record === undefined) this.#options.quarantine.add(keyOf(dbKey));
        else intact.push([dbKey, record]);
      }
      yield intact;
    }
  }

  /** The records of these keys, in their order; undefined for those that are absent or damaged. */
  async recordsOf(keys: readonly string[]): Promise<(KeyRecord | undefined)[]> {
    const dbKeys = keys.map(keyKey);
    const records = await this.#options.level.getMany(dbKeys, { snapshot: this.#snapshot });
    return dbKeys.map((dbKey, index) => {
      const bytes = records[index];
      const record = bytes === undefined ? undefined : parseKey(dbKey, bytes);
      if (bytes !== undefined && record === undefined) this.#options.quarantine.add(keyOf(dbKey));
      return record;
    });
  }

  /** How many keys lie between two keys of LevelDB, damaged ones included. */
  async count(bounds: KeyBounds): Promise<number> {
    let count = 0;
    for await (const page of pages(this.#options.level.keys({ ...bounds, snapshot: this.#snapshot }), 4096)) {
      count += page.length;
    }
    return count;
  }

  /** The entries under a prefix in key order, without the damaged ones. */
  async range(prefix: string, options: { limit?: number; signal?: AbortSignal | undefined } = {}): Promise<Entry[]> {
    const limit = options.limit ?? Number.POSITIVE_INFINITY;
    const entries: Entry[] = [];
    if (limit <= 0) return entries;
    const iterator = this.#options.level.iterator({ ...keyRange(prefix), snapshot: this.#snapshot, ...readAhead });
    for await (const page of pages(iterator, Math.min(limit, 1024))) {
      options.signal?.throwIfAborted();
      for (const [dbKey, record] of page) {
        const entry = this.#entry(keyOf(dbKey), dbKey, record);
        if (entry !== undefined) entries.push(entry);
        if (entries.length >= limit) return entries;
      }
    }
    return entries;
  }

  /** What these keys hold now; those that are absent or damaged are in `absent`. */
  async entries(keys: readonly string[]): Promise<{ entries: Entry[]; absent: string[] }> {
    const entries: Entry[] = [];
    const absent: string[] = [];
    for (let from = 0; from < keys.length; from += 256) {
      const some = keys.slice(from, from + 256);
      const dbKeys = some.map(keyKey);
      const records = await this.#options.level.getMany(dbKeys, { snapshot: this.#snapshot });
      for (const [index, key] of some.entries()) {
        const record = records[index];
        const entry = record === undefined ? undefined : this.#entry(key, keyKey(key), record);
        if (entry === undefined) absent.push(key);
        else entries.push(entry);
      }
    }
    return { entries, absent };
  }

  /** The keys of interest that were written after `revision`, each with the last such revision; undefined when history does not say. */
  async changedSince(
    revision: number,
    concerns: (key: string) => boolean,
    signal: AbortSignal,
  ): Promise<Map<string, number> | undefined> {
    const keys = new Map<string, number>();
    const bounds = { gt: historyKey(revision), lt: tables.history.lt };
    const iterator = this.#options.level.iterator({ ...bounds, snapshot: this.#snapshot, ...readAhead });
    for await (const page of pages(iterator, 1024)) {
      signal.throwIfAborted();
      for (const [dbKey, record] of page) {
        const history = parseHistory(dbKey, record);
        if (history === undefined) return undefined;
        if ('gapAfter' in history) {
          // The wanted revision is one that this store, as it is now, never had.
          if (revision > history.gapAfter) return undefined;
        } else {
          for (const key of history.keys) if (concerns(key)) keys.set(key, revisionOf(dbKey) ?? 0);
          if (keys.size > View.maxResumedKeys) return undefined;
        }
      }
    }
    return keys;
  }

  #entry(key: string, dbKey: Buffer, bytes: Buffer): Entry | undefined {
    const record = parseKey(dbKey, bytes);
    if (record === undefined) {
      this.#options.quarantine.add(key);
      return undefined;
    }
    return { key, value: record.value, revision: formatRevision(this.#options.storeId, record.revision) };
  }
}

const readAhead = { highWaterMarkBytes: 1024 * 1024 };

/** Errors of reading, for the caller: closed or away when LevelDB is not open, damaged when a block cannot be read. */
export function readError(path: string, error: unknown): unknown {
  if (isCorruption(error)) {
    return new LegateError('E_STORE_DAMAGED', `a part of the store in ${path} cannot be read`, {
      hint: `check the disk, then restore a backup of ${path} or move the folder away`,
      cause: error,
    });
  }
  if (systemCode(error)?.startsWith('LEVEL_')) {
    return new LegateError('E_STORE_AWAY', `the store in ${path} cannot be read now`, {
      hint: 'see legate status; it goes on by itself once the disk can be read again',
      cause: error,
    });
  }
  return error;
}
