import { Backoff } from '../../base/backoff.ts';
import type { Clock } from '../../base/clock.ts';
import type { Conditions } from '../../base/conditions.ts';
import { isLegateError } from '../../base/errors.ts';
import { type Change, FeedQueue, type Revision } from '../../base/feed.ts';
import type { Log } from '../../base/log.ts';
import type { CounterCell, Metrics } from '../../base/metrics.ts';
import type { Event } from '../etcd-api/gen/etcd_pb.ts';
import { Event_EventType } from '../etcd-api/gen/etcd_pb.ts';
import { formatRevision, revisionNumber } from '../revision.ts';
import type { Entry } from '../store.ts';
import type { Connection } from './connection.ts';
import { EtcdFailure } from './failure.ts';
import { keyText, safeNumber } from './messages.ts';
import type { Reader } from './reader.ts';
import type { Session } from './session.ts';
import { WatchStream } from './watch-stream.ts';

export interface WatchesOptions {
  readonly session: Session;
  readonly reader: Reader;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  readonly random: () => number;
}

interface Watcher {
  readonly prefix: string;
  queue: FeedQueue<Entry>;
  queuedBytes: number;
  /** Where to go on: all up to here was told. */
  from: Revision | undefined;
  /** The session's when `from` was told. */
  epoch: number;
  /** Ends what the member tells; undefined while nothing is told. */
  stop: (() => void) | undefined;
  /** Why the member ended it, when it did. */
  failure: EtcdFailure | undefined;
  /** When the member was last asked to tell, on the monotonic clock. */
  sinceMs: number;
  readonly backoff: Backoff;
}

const firstRetryMs = 250;
const retryCeilingMs = 10_000;
/** A watch that held for so long ends the growing of delays. */
const stableMs = 10_000;
/** A stream says who we are by a token of its beginning; a refusal on an older one may only mean that it has expired. */
const freshTokenMs = 10_000;

/**
 * Those who follow the store. What a watcher has not taken waits merged by key; one that falls further behind than the
 * bounds is told no more, and reads on from etcd's history once it has taken what waits. After every loss of connection
 * the same happens: so there is one way on, however a watcher lost contact. Where history does not reach so far back,
 * or is another one, it begins anew with a reset.
 */
export class Watches {
  static readonly maxQueuedKeys = 10_000;
  static readonly maxQueuedBytes = 16 * 1024 * 1024;
  readonly #options: WatchesOptions;
  readonly #lagged: CounterCell;
  readonly #resets: CounterCell;
  readonly #watchers = new Set<Watcher>();
  readonly #closed = new AbortController();
  #stream: { readonly stream: WatchStream; readonly connection: Connection; readonly sinceMs: number } | undefined;

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

  onConnected(connection: Connection): void {
    const stream = new WatchStream(connection, this.#options.clock);
    this.#stream = { stream, connection, sinceMs: this.#options.clock.monotonicMs() };
    connection.ended.addEventListener(
      'abort',
      () => {
        stream.close();
        // A message that is too large to be read would come again and again; beginning anew goes around it.
        const forget = connection.failure.kind === 'response-too-large';
        for (const watcher of this.#watchers) {
          if (forget) watcher.from = undefined;
          detach(watcher);
        }
      },
      { once: true },
    );
  }

  close(): void {
    this.#closed.abort();
    for (const watcher of this.#watchers) detach(watcher);
  }

  /** Ends when the signal is aborted or the store is closed. */
  async *watch(
    prefix: string,
    options: { readonly signal: AbortSignal; readonly from?: Revision },
  ): AsyncGenerator<Change<Entry>, void, undefined> {
    const signal = AbortSignal.any([options.signal, this.#closed.signal]);
    const backoff = new Backoff(firstRetryMs, retryCeilingMs, this.#options.random);
    const { epoch } = this.#options.session;
    const { from } = options;
    const watcher: Watcher = {
      ...{
        prefix,
        queue: newQueue(),
        queuedBytes: 0,
        from,
        epoch,
        stop: undefined,
        failure: undefined,
        sinceMs: 0,
        backoff,
      },
    };
    const onAbort = (): void => detach(watcher);
    this.#watchers.add(watcher);
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      while (!signal.aborted) {
        if (!(yield* this.#begin(watcher, signal))) continue;
        for await (const next of watcher.queue) {
          if (signal.aborted) return;
          yield next;
        }
        if (watcher.failure !== undefined) await this.#afterCancel(watcher, watcher.failure, signal);
      }
    } finally {
      signal.removeEventListener('abort', onAbort);
      detach(watcher);
      this.#watchers.delete(watcher);
      this.#options.conditions.clear(deniedCondition(watcher));
    }
  }

  /** Has the member tell what happens, after a reset where that is needed; false when it has to be tried again. */
  async *#begin(watcher: Watcher, signal: AbortSignal): AsyncGenerator<Change<Entry>, boolean> {
    try {
      const connection = await this.#options.session.connected(signal);
      const change = await this.#attach(watcher, connection, signal);
      if (change !== undefined) yield change;
      return true;
    } catch (error) {
      detach(watcher);
      if (!signal.aborted) await this.#pause(watcher, error, signal);
      return false;
    }
  }

  async #attach(watcher: Watcher, connection: Connection, signal: AbortSignal): Promise<Change<Entry> | undefined> {
    const { session, reader } = this.#options;
    const { epoch } = session;
    const number = await this.#resumable(watcher, signal);
    if (number !== undefined) {
      this.#listen(watcher, connection, session.clusterId, number);
      return undefined;
    }
    const { entries, clusterId, revision } = await reader.read(watcher.prefix, { signal, serializable: true });
    watcher.from = formatRevision(clusterId, revision);
    watcher.epoch = epoch;
    this.#listen(watcher, connection, clusterId, revision);
    this.#resets.value += 1;
    return { kind: 'reset', items: entries, revision: watcher.from };
  }

  /**
   * The number after which the watcher goes on; undefined when it has to begin anew. Reading at that revision proves
   * that nothing after it was compacted: of a watch that begins at the very revision up to which history was compacted,
   * etcd may swallow a deletion.
   */
  async #resumable(watcher: Watcher, signal: AbortSignal): Promise<number | undefined> {
    const { session, reader } = this.#options;
    if (watcher.from === undefined || watcher.epoch !== session.epoch) return undefined;
    const number = revisionNumber(session.clusterId, watcher.from);
    if (number === undefined || number === 0) return undefined;
    if (number > session.revision) await reader.read(watcher.prefix, { signal, limit: 1 });
    if (number >= session.revision) return number === session.revision ? number : undefined;
    return (await reader.reaches(watcher.prefix, number, signal)) ? number : undefined;
  }

  #listen(watcher: Watcher, connection: Connection, clusterId: string, after: number): void {
    const current = this.#stream;
    watcher.queue = newQueue();
    watcher.queuedBytes = 0;
    watcher.failure = undefined;
    watcher.sinceMs = this.#options.clock.monotonicMs();
    if (current === undefined || current.connection !== connection || connection.ended.aborted) {
      watcher.queue.end();
      return;
    }
    watcher.stop = current.stream.watch(watcher.prefix, after + 1, {
      onConfirmed: () => {
        this.#options.conditions.clear(deniedCondition(watcher));
      },
      onEvents: (events) => this.#onEvents(watcher, clusterId, events),
      onProgress: (revision) => {
        watcher.from = formatRevision(clusterId, revision);
      },
      onCanceled: (failure) => {
        watcher.stop = undefined;
        watcher.failure = failure;
        watcher.queue.end();
      },
    });
  }

  #onEvents(watcher: Watcher, clusterId: string, events: readonly Event[]): void {
    const { reader } = this.#options;
    const merged = new Map<string, Entry | undefined>();
    let last = 0;
    for (const { type, kv } of events) {
      if (kv === undefined) throw new EtcdFailure('not-etcd', 'an event without a key');
      last = Math.max(last, safeNumber(kv.modRevision));
      const key = keyText(kv.key);
      if (key === undefined) reader.quarantine(kv.key);
      else if (key.startsWith(watcher.prefix)) {
        merged.set(key, type === Event_EventType.DELETE ? undefined : reader.entry(kv, clusterId));
      }
    }
    const revision = formatRevision(clusterId, last);
    const puts: Entry[] = [];
    const deletes: string[] = [];
    if (watcher.queue.size === 0) watcher.queuedBytes = 0;
    for (const [key, entry] of merged) {
      if (entry === undefined) deletes.push(key);
      else {
        puts.push(entry);
        watcher.queuedBytes += key.length + entry.value.byteLength;
      }
    }
    watcher.from = revision;
    if (merged.size > 0) watcher.queue.push({ kind: 'delta', puts, deletes, revision });
    if (watcher.queue.size <= Watches.maxQueuedKeys && watcher.queuedBytes <= Watches.maxQueuedBytes) return;
    this.#lagged.value += 1;
    detach(watcher);
  }

  async #afterCancel(watcher: Watcher, failure: EtcdFailure, signal: AbortSignal): Promise<void> {
    if (this.#options.clock.monotonicMs() - watcher.sinceMs > stableMs) watcher.backoff.reset();
    if (failure.kind !== 'compacted') {
      if (!signal.aborted) await this.#pause(watcher, failure, signal);
      return;
    }
    watcher.from = undefined;
    // Once is ordinary; at once again is not.
    const again = watcher.backoff.failures > 0;
    const delayMs = watcher.backoff.nextMs();
    if (again) await this.#options.clock.sleep(delayMs, signal).catch(() => undefined);
  }

  async #pause(watcher: Watcher, error: unknown, signal: AbortSignal): Promise<void> {
    const { clock, log, conditions } = this.#options;
    if (error instanceof EtcdFailure) {
      if (error.kind === 'denied' || error.kind === 'rules' || error.kind === 'token') {
        if (this.#renew()) return;
        const message = `etcd does not let this host read under ${watcher.prefix}: ${error.message}`;
        conditions.raise(deniedCondition(watcher), 'error', message, error.hint);
      } else log.debug('watch of the store is begun again', { 'store.prefix': watcher.prefix, error: error.message });
    } else if (!isLegateError(error)) throw error;
    await clock.sleep(watcher.backoff.nextMs(), signal).catch(() => undefined);
  }

  /** Whether the connection was given up because its token may have expired. */
  #renew(): boolean {
    const current = this.#stream;
    if (current?.connection.token === undefined || current.connection.ended.aborted) return false;
    if (this.#options.clock.monotonicMs() - current.sinceMs < freshTokenMs) return false;
    current.connection.end(new EtcdFailure('token', 'the token may have expired'));
    return true;
  }
}

/** Tells the watcher no more; what waits in its queue is still true and is taken before it reads on. */
function detach(watcher: Watcher): void {
  const { stop } = watcher;
  watcher.stop = undefined;
  stop?.();
  watcher.queue.end();
}

function newQueue(): FeedQueue<Entry> {
  return new FeedQueue((entry) => entry.key);
}

function deniedCondition({ prefix }: Watcher): string {
  return `store.etcd.denied.${prefix}`;
}
