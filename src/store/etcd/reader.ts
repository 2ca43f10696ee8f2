import { create, type MessageInitShape } from '@bufbuild/protobuf';
import type { Conditions } from '../../base/conditions.ts';
import type { CounterCell, Metrics } from '../../base/metrics.ts';
import { printable, truncate } from '../../base/text.ts';
import { type KeyValue, RangeRequestSchema, type RangeResponse } from '../etcd-api/gen/etcd_pb.ts';
import type { Entry } from '../store.ts';
import { EtcdFailure } from './failure.ts';
import { api, entryOf, type Head, rangeOf } from './messages.ts';
import type { Session } from './session.ts';

export interface ReaderOptions {
  readonly session: Session;
  readonly conditions: Conditions;
  readonly metrics: Metrics;
}

export interface ReadOptions {
  readonly signal?: AbortSignal | undefined;
  readonly limit?: number | undefined;
  /** Whether what one member knows is enough, if that is not behind what was seen already. */
  readonly serializable?: boolean;
}

export interface Read {
  readonly entries: Entry[];
  readonly clusterId: string;
  readonly revision: number;
}

/** Entries a page; with large values fewer, so that a page is no larger than a message may be. */
const pageEntries = 1000;
/** So many entries are no mesh; it would be a server that never ends. */
const maxEntries = 1_000_000;
const restarts = 3;
const keysCondition = 'store.etcd.keys';

/** Ranges of any size, in pages of one revision. */
export class Reader {
  readonly #options: ReaderOptions;
  readonly #unusable: CounterCell;

  constructor(options: ReaderOptions) {
    this.#options = options;
    this.#unusable = options.metrics.counter(
      'legate_store_foreign_keys_total',
      'Keys that were read under the prefix and are none that Legate could have written.',
    );
  }

  /** Rejects with EtcdFailure, LegateError, or the signal's reason. */
  async read(prefix: string, options: ReadOptions = {}): Promise<Read> {
    for (let again = restarts; ; again -= 1) {
      try {
        return await this.#pages(prefix, options);
      } catch (error) {
        // Compacted while the pages were read.
        if (!(error instanceof EtcdFailure) || error.kind !== 'compacted' || again === 0) throw error;
      }
    }
  }

  /** An entry of an answer or an event; undefined, and counted, when its key is none of ours. */
  entry(kv: KeyValue, clusterId: string): Entry | undefined {
    const entry = entryOf(kv, clusterId);
    if (entry === undefined) this.quarantine(kv.key);
    return entry;
  }

  quarantine(key: Uint8Array): void {
    this.#unusable.value += 1;
    const shown = truncate(printable(Buffer.from(key.subarray(0, 200)).toString('utf8')), 80);
    this.#options.conditions.raise(
      keysCondition,
      'warning',
      `etcd holds a key under the prefix that is not text of Legate: ${shown}`,
      'find out who writes there, and delete it: only Legate may write under store.prefix',
    );
  }

  /** Whether history still reaches back to a revision: nothing that came after it was compacted. */
  async reaches(prefix: string, revision: number, signal: AbortSignal): Promise<boolean> {
    try {
      // Where no key can be: a store that keeps present versions only answers for the past where nothing has changed.
      const [key, rangeEnd] = [Buffer.from(`${prefix}\u0000`), Buffer.from(`${prefix}\u0001`)];
      const request = { key, rangeEnd, limit: 1n, revision: BigInt(revision), serializable: true, keysOnly: true };
      await this.#options.session.request(api.range, create(RangeRequestSchema, request), { signal });
      return true;
    } catch (error) {
      if (!(error instanceof EtcdFailure)) throw error;
      if (error.kind === 'compacted') return false;
      // This member has not yet heard of it; so it cannot have forgotten it either.
      if (error.kind === 'future') return true;
      throw error;
    }
  }

  async #pages(prefix: string, { signal, limit = maxEntries, serializable = false }: ReadOptions): Promise<Read> {
    const { session } = this.#options;
    const entries: Entry[] = [];
    let { key, rangeEnd } = rangeOf(prefix);
    let size = pageEntries;
    let stale = serializable;
    let pinned: Head | undefined;
    for (;;) {
      const known = session.revision;
      const most = BigInt(Math.max(1, Math.min(size, limit - entries.length)));
      const revision = BigInt(pinned?.revision ?? 0);
      const page = await this.#page({ key, rangeEnd, limit: most, revision, serializable: stale }, size, signal);
      if (page === undefined) {
        size = Math.ceil(size / 8);
        continue;
      }
      const { answer, head } = page;
      if (pinned === undefined && stale && head.revision < known) {
        stale = false;
        continue;
      }
      pinned ??= head;
      if (pinned.clusterId !== head.clusterId) throw new EtcdFailure('compacted', 'another cluster answers meanwhile');
      for (const kv of answer.kvs) {
        if (Buffer.compare(kv.key, key) < 0)
          throw new EtcdFailure('not-etcd', 'the keys of an answer are not in order');
        key = Buffer.concat([kv.key, Buffer.of(0)]);
        const entry = this.entry(kv, head.clusterId);
        if (entry !== undefined && entries.length < limit) entries.push(entry);
      }
      if (!answer.more || answer.kvs.length === 0 || entries.length >= limit) {
        if (entries.length >= maxEntries)
          throw new EtcdFailure('response-too-large', `more than ${maxEntries} entries`);
        return { entries, ...pinned };
      }
    }
  }

  /** Undefined when the answer is larger than a message may be, and a smaller page may not be. */
  async #page(
    request: MessageInitShape<typeof RangeRequestSchema>,
    size: number,
    signal: AbortSignal | undefined,
  ): Promise<{ readonly answer: RangeResponse; readonly head: Head } | undefined> {
    try {
      return await this.#options.session.request(api.range, create(RangeRequestSchema, request), { signal });
    } catch (error) {
      if (error instanceof EtcdFailure && error.kind === 'response-too-large' && size > 1) return undefined;
      throw error;
    }
  }
}
