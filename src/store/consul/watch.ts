import { Backoff } from '../../base/backoff.ts';
import type { Clock } from '../../base/clock.ts';
import type { Conditions } from '../../base/conditions.ts';
import { describeError } from '../../base/errors.ts';
import type { Change } from '../../base/feed.ts';
import type { Log } from '../../base/log.ts';
import type { CounterCell, Metrics } from '../../base/metrics.ts';
import { formatRevision } from '../revision.ts';
import type { Entry } from '../store.ts';
import { type Listing, maxBlockingSockets } from './client.ts';
import { blockingMarginMs, type Connection, type Link, operationLimitMs } from './connection.ts';
import { ConsulFault } from './faults.ts';
import { listablePrefix } from './names.ts';

/** How long a blocking query waits. With more watches than connections they take turns, so that nobody starves. */
const waitMs = 300_000;
const crowdedWaitMs = 2000;
/** Between two listings, so that what changes in a burst is told at once; it grows with what a listing weighs. */
const minPauseMs = 10;
const maxPauseMs = 1000;
const listedBytesPerMs = 8192;
const firstRetryMs = 100;
const retryCeilingMs = 5000;

export interface WatchesOptions {
  readonly connection: Connection;
  /** The entries of a listing that are the seam's. */
  readonly entries: (listing: Listing, storeId: string) => readonly ListedEntry[];
  readonly toConsul: (prefix: string) => string;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  readonly random: () => number;
}

export interface ListedEntry extends Entry {
  readonly index: number;
}

/** What a watch remembers: of each key only the index of its last write. */
interface Picture {
  readonly link: Link;
  readonly indexes: ReadonlyMap<string, number>;
  /** Of the last listing; also the number of the last revision that was told. */
  readonly index: number;
  /** Whether the next listing waits for a change. */
  readonly blocking: boolean;
}

/**
 * Watches by blocking queries. Consul answers with everything below the prefix whenever anything there changes, so each
 * answer is compared with the one before, by the indexes alone; a burst of changes costs one listing.
 */
export class Watches {
  readonly #options: WatchesOptions;
  readonly #resets: CounterCell;
  readonly #listed: CounterCell;
  #running = 0;

  constructor(options: WatchesOptions) {
    this.#options = options;
    const { metrics } = options;
    this.#resets = metrics.counter(
      'legate_store_watch_resets_total',
      'Watches that began with, or went back to, a reset.',
    );
    this.#listed = metrics.counter('legate_store_listed_bytes_total', 'Bytes of the listings that watches were sent.');
    metrics.gauge('legate_store_watches_count', 'Watches that run.', [], () => [[[], this.#running]]);
  }

  /** Ends when the signal is aborted or the store is closed. */
  async *watch(prefix: string, outer: AbortSignal): AsyncGenerator<Change<Entry>, void, undefined> {
    const { clock, random, connection } = this.#options;
    const ended = new AbortController();
    const end = (): void => ended.abort();
    for (const signal of [outer, connection.closed]) {
      if (signal.aborted) return;
      signal.addEventListener('abort', end, { once: true });
    }
    this.#running += 1;
    const backoff = new Backoff(firstRetryMs, retryCeilingMs, random);
    let picture: Picture | undefined;
    try {
      while (!ended.signal.aborted) {
        const next = await this.#next(prefix, picture, ended.signal);
        if (ended.signal.aborted) return;
        if (next === undefined) {
          if (picture !== undefined) picture = { ...picture, blocking: false };
          await clock.sleep(backoff.nextMs(), ended.signal).catch(() => undefined);
          continue;
        }
        backoff.reset();
        picture = next.picture;
        if (next.change !== undefined) yield next.change;
        await clock.sleep(next.pauseMs, ended.signal).catch(() => undefined);
      }
    } finally {
      this.#running -= 1;
      for (const signal of [outer, connection.closed]) signal.removeEventListener('abort', end);
      ended.abort();
    }
  }

  /** One listing and what it changes; undefined when it failed and the index must not be trusted any more. */
  async #next(
    prefix: string,
    before: Picture | undefined,
    signal: AbortSignal,
  ): Promise<{ picture: Picture; change: Change<Entry> | undefined; pauseMs: number } | undefined> {
    const { connection, log } = this.#options;
    let link: Link | undefined;
    try {
      link = await connection.linkWhenBack(signal);
      const listing = await this.#list(prefix, link, before, signal);
      const entries = this.#options.entries(listing, link.storeId).filter(({ key }) => key.startsWith(prefix));
      if (isSuspicious(before, link, listing, entries)) await connection.confirm(link, signal);
      this.#listed.value += listing.bytes;
      const pauseMs = Math.min(maxPauseMs, Math.max(minPauseMs, listing.bytes / listedBytesPerMs));
      return { ...this.#compare(before, link, listing, entries), pauseMs };
    } catch (error) {
      if (signal.aborted) return undefined;
      const moved = link?.signal.aborted === true;
      if (link !== undefined && !moved && (!(error instanceof ConsulFault) || error.kind !== 'invalid')) {
        connection.doubt(link);
      }
      if (!moved) log.debug('a watch could not be read, tries again', { 'store.reason': describeError(error) });
      return undefined;
    }
  }

  async #list(prefix: string, link: Link, before: Picture | undefined, outer: AbortSignal): Promise<Listing> {
    const listed = listablePrefix(this.#options.toConsul(prefix));
    const ended = new AbortController();
    const end = (): void => ended.abort();
    for (const signal of [outer, link.signal]) {
      signal.addEventListener('abort', end, { once: true });
      if (signal.aborted) end();
    }
    try {
      if (before === undefined || before.link !== link || !before.blocking) {
        return await link.client.list(listed, { signal: ended.signal, timeoutMs: operationLimitMs * 3 });
      }
      const plainMs = this.#running > maxBlockingSockets - 4 ? crowdedWaitMs : waitMs;
      const jitteredMs = plainMs * (0.8 + 0.4 * this.#options.random());
      const timeoutMs = jitteredMs * 1.1 + blockingMarginMs * (1 + this.#running / maxBlockingSockets);
      return await link.client.list(listed, {
        signal: ended.signal,
        timeoutMs,
        index: before.index,
        waitMs: jitteredMs,
      });
    } finally {
      for (const signal of [outer, link.signal]) signal.removeEventListener('abort', end);
    }
  }

  #compare(
    before: Picture | undefined,
    link: Link,
    listing: Listing,
    entries: readonly ListedEntry[],
  ): { picture: Picture; change: Change<Entry> | undefined } {
    const indexes = new Map(entries.map(({ key, index }) => [key, index]));
    const backwards = before !== undefined && listing.index < before.index;
    const revision = formatRevision(link.storeId, listing.index);
    const picture = { link, indexes, index: listing.index, blocking: !backwards };
    if (before === undefined || before.link.storeId !== link.storeId) {
      this.#resets.value += 1;
      return { picture, change: { kind: 'reset', items: entries.map(plain), revision } };
    }
    const puts = entries.filter(({ key, index }) => before.indexes.get(key) !== index).map(plain);
    const deletes = [...before.indexes.keys()].filter((key) => !indexes.has(key));
    if (puts.length + deletes.length === 0) return { picture, change: undefined };
    if (listing.index > before.index) return { picture, change: { kind: 'delta', puts, deletes, revision } };
    // Consul went back, as after a restored snapshot: no order is left between what was told and this.
    this.#resets.value += 1;
    return { picture, change: { kind: 'reset', items: entries.map(plain), revision } };
  }
}

/**
 * Whether a listing may come from another store than the link says, one that was emptied for instance: the first of a
 * link, one whose index went back, and one in which half of what was there is missing.
 */
function isSuspicious(
  before: Picture | undefined,
  link: Link,
  listing: Listing,
  entries: readonly ListedEntry[],
): boolean {
  if (before === undefined || before.link !== link || !before.blocking) return true;
  const shrunk = before.indexes.size > 0 && entries.length * 2 <= before.indexes.size;
  return listing.index < before.index || shrunk;
}

function plain({ key, value, revision }: ListedEntry): Entry {
  return { key, value, revision };
}
