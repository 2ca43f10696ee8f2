import { type Change, FeedQueue } from '../../base/feed.ts';
import type { CounterCell, Metrics } from '../../base/metrics.ts';
import { formatRevision, revisionNumber } from '../revision.ts';
import type { Entry } from '../store.ts';
import type { Commit } from './turn.ts';
import type { View } from './view.ts';

/** The store at a moment from which on the watcher is told every commit. */
export interface Start {
  readonly view: View;
  readonly storeId: string;
  readonly revision: number;
  /** Resuming from before this revision is impossible. */
  readonly compacted: number;
}

export interface WatchesOptions {
  readonly metrics: Metrics;
  /**
   * Waits until the store can be read, then calls `register` and takes a view at the same moment, while nothing is being
   * written. Rejects when the signal is aborted or the store was closed.
   */
  readonly begin: (register: (revision: number, storeId: string) => void, signal: AbortSignal) => Promise<Start>;
  /** Reading failed: waits a while, or rejects when the signal is aborted. */
  readonly pause: (error: unknown, signal: AbortSignal) => Promise<void>;
}

export interface WatchOptions {
  readonly signal: AbortSignal;
  readonly from?: string;
}

interface Watcher {
  readonly prefix: string;
  queue: FeedQueue<Entry>;
  /** Whether it hears of commits; otherwise it reads history before it goes on. */
  live: boolean;
  /** The last revision that it was told of, or that did not concern it. */
  seen: number;
  storeId: string;
  queuedBytes: number;
}

/**
 * Those who follow the store. What a watcher has not taken waits merged by key; one that falls further behind than the
 * bounds is told no more, and reads on from history, or from a reset, once it has taken what waits. After an
 * interruption the same happens: so there is one way on, however a watcher lost contact.
 */
export class Watches {
  static readonly maxQueuedKeys = 10_000;
  static readonly maxQueuedBytes = 16 * 1024 * 1024;
  readonly #options: WatchesOptions;
  readonly #lagged: CounterCell;
  readonly #resets: CounterCell;
  readonly #watchers = new Set<Watcher>();
  readonly #closed = new AbortController();

  constructor(options: WatchesOptions) {
    this.#options = options;
    const { metrics } = options;
    this.#lagged = metrics.counter('legate_store_watch_lags_total', 'Times a watcher fell behind the bounds.');
    this.#resets = metrics.counter('legate_store_watch_resets_total', 'Times a watcher began with everything.');
    metrics.gauge('legate_store_watchers_count', 'Watchers of the store.', [], () => [[[], this.#watchers.size]]);
    metrics.gauge('legate_store_watch_queued_keys', 'Changed keys that watchers have not yet taken.', [], () => [
      [[], [...this.#watchers].reduce((sum, { queue }) => sum + queue.size, 0)],
    ]);
  }

  publish(storeId: string, commit: Commit): void {
    const revision = formatRevision(storeId, commit.revision);
    const entries = commit.puts.map(({ key, record }) => ({ key, value: record.value, revision }));
    for (const watcher of this.#watchers) {
      if (!watcher.live) continue;
      const puts = entries.filter(({ key }) => key.startsWith(watcher.prefix));
      const deletes = commit.deletes.filter((key) => key.startsWith(watcher.prefix));
      watcher.seen = commit.revision;
      if (puts.length + deletes.length > 0) this.#push(watcher, { kind: 'delta', puts, deletes, revision });
    }
  }

  /** The store went away: every watcher reads on from history when it is back. */
  interrupt(): void {
    for (const watcher of this.#watchers) detach(watcher);
  }

  close(): void {
    this.#closed.abort();
    this.interrupt();
  }

  /** Ends when the signal is aborted or the store is closed. */
  async *watch(prefix: string, options: WatchOptions): AsyncGenerator<Change<Entry>, void, undefined> {
    const signal = AbortSignal.any([options.signal, this.#closed.signal]);
    const watcher: Watcher = { prefix, queue: newQueue(), live: false, storeId: '', seen: 0, queuedBytes: 0 };
    const onAbort = (): void => detach(watcher);
    this.#watchers.add(watcher);
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      let from = options.from;
      while (!signal.aborted) {
        if (!(yield* this.#begin(watcher, from, signal))) continue;
        for await (const next of watcher.queue) {
          if (signal.aborted) return;
          yield next;
        }
        from = formatRevision(watcher.storeId, watcher.seen);
      }
    } finally {
      signal.removeEventListener('abort', onAbort);
      detach(watcher);
      this.#watchers.delete(watcher);
    }
  }

  /**
   * Makes the watcher live and tells what happened since `from`; false when that has to be tried again. Apart, so that
   * what it told is not held for as long as the watch goes on.
   */
  async *#begin(
    watcher: Watcher,
    from: string | undefined,
    signal: AbortSignal,
  ): AsyncGenerator<Change<Entry>, boolean> {
    const change = await this.#load(watcher, from, signal);
    if (change === undefined) return false;
    if (change.kind === 'reset' || change.puts.length + change.deletes.length > 0) yield change;
    return true;
  }

  /** Makes the watcher live and gives what happened since `from`; undefined when that has to be tried again. */
  async #load(watcher: Watcher, from: string | undefined, signal: AbortSignal): Promise<Change<Entry> | undefined> {
    let start: Start | undefined;
    try {
      start = await this.#options.begin((revision, storeId) => {
        watcher.queue = newQueue();
        watcher.queuedBytes = 0;
        watcher.seen = revision;
        watcher.storeId = storeId;
        watcher.live = true;
      }, signal);
      const change = (await this.#resume(start, watcher.prefix, from, signal)) ?? (await reset(start, watcher, signal));
      if (change.kind === 'reset') this.#resets.value += 1;
      return signal.aborted ? undefined : change;
    } catch (error) {
      detach(watcher);
      if (!signal.aborted) await this.#options.pause(error, signal);
      return undefined;
    } finally {
      await start?.view.close();
    }
  }

  async #resume(
    { view, storeId, revision, compacted }: Start,
    prefix: string,
    from: string | undefined,
    signal: AbortSignal,
  ): Promise<Change<Entry> | undefined> {
    const number = from === undefined ? undefined : revisionNumber(storeId, from);
    if (number === undefined || number < compacted || number > revision) return undefined;
    const concerns = (key: string): boolean => key.startsWith(prefix);
    const keys = number === revision ? new Map() : await view.changedSince(number, concerns, signal);
    if (keys === undefined) return undefined;
    const { entries, absent } = await view.entries([...keys.keys()]);
    return { kind: 'delta', puts: entries, deletes: absent, revision: formatRevision(storeId, revision) };
  }

  #push(watcher: Watcher, change: Change<Entry> & { kind: 'delta' }): void {
    if (watcher.queue.size === 0) watcher.queuedBytes = 0;
    watcher.queue.push(change);
    for (const { key, value } of change.puts) watcher.queuedBytes += key.length + value.byteLength;
    if (watcher.queue.size <= Watches.maxQueuedKeys && watcher.queuedBytes <= Watches.maxQueuedBytes) return;
    this.#lagged.value += 1;
    detach(watcher);
  }
}

async function reset(
  { view, storeId, revision }: Start,
  { prefix }: Watcher,
  signal: AbortSignal,
): Promise<Change<Entry>> {
  const items = await view.range(prefix, { signal });
  return { kind: 'reset', items, revision: formatRevision(storeId, revision) };
}

/** Tells the watcher no more; what waits in its queue is still true and is taken before it reads on. */
function detach(watcher: Watcher): void {
  watcher.live = false;
  watcher.queue.end();
}

function newQueue(): FeedQueue<Entry> {
  return new FeedQueue((entry) => entry.key);
}
