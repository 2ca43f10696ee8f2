import { Backoff } from '../../base/backoff.ts';
import type { Clock } from '../../base/clock.ts';
import type { Conditions } from '../../base/conditions.ts';
import { describeError, isLegateError, LegateError } from '../../base/errors.ts';
import { Latest } from '../../base/feed.ts';
import type { Log } from '../../base/log.ts';
import type { CounterCell, Metrics } from '../../base/metrics.ts';
import type { StoreStatus } from '../store.ts';
import { damagedError, describeDiskError, type Level, openFolder } from './folder.ts';
import type { Quarantine } from './quarantine.ts';
import { type LoadedState, loadState } from './state.ts';

export interface DiskOptions {
  readonly path: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions | undefined;
  readonly quarantine: Quarantine;
  /** LevelDB is open and read; called at the start and after each recovery. */
  readonly onOpened: (level: Level, loaded: LoadedState) => void;
}

const awayCondition = 'store.embedded.away';
const droppedCondition = 'store.embedded.dropped';
const firstRetryMs = 250;
const retryCeilingMs = 10_000;

/**
 * LevelDB and whether it can be used. After a failed write LevelDB may have half a record in its log, and appending to
 * that could lose what is acknowledged later; so every failure closes it, and it is opened again, which repairs the log,
 * until that succeeds.
 */
export class Disk {
  readonly status: Latest<StoreStatus>;
  readonly #options: DiskOptions;
  readonly #failures: CounterCell;
  readonly #closing = new AbortController();
  #level: Level | undefined;
  #storeId: string | undefined;
  #recovery: Promise<void> | undefined;

  constructor(options: DiskOptions) {
    this.#options = options;
    this.status = new Latest<StoreStatus>({
      state: 'connecting',
      sinceMs: options.clock.nowMs(),
      storeId: undefined,
    });
    this.#failures = options.metrics.counter('legate_store_away_total', 'Times the store could not use its disk.');
    options.metrics.gauge('legate_store_connected_count', '1 while the store answers, else 0.', [], () => [
      [[], this.status.value.state === 'connected' ? 1 : 0],
    ]);
  }

  /** LevelDB, to be read. Throws E_STORE_AWAY or E_CLOSED. */
  get level(): Level {
    if (this.#closing.signal.aborted) throw closedError();
    if (this.#level !== undefined) return this.#level;
    const { problem = 'the store is not open', hint } = this.status.value;
    throw new LegateError('E_STORE_AWAY', problem, hint === undefined ? {} : { hint });
  }

  async open(): Promise<void> {
    const { path, log, conditions, quarantine } = this.#options;
    const folder = await openFolder(path);
    let loaded: LoadedState;
    try {
      loaded = await loadState(path, folder, quarantine);
      if (this.#storeId !== undefined && loaded.state.head.storeId !== this.#storeId) {
        throw damagedError(path, 'the folder now holds another store');
      }
      if (this.#closing.signal.aborted) throw closedError();
    } catch (error) {
      await folder.level.close();
      throw error;
    }
    const { head, keyCount } = loaded.state;
    if (folder.droppedBytes > 0) {
      conditions?.raise(
        droppedCondition,
        'error',
        `the store in ${path} has lost ${folder.droppedBytes} unreadable bytes of its log, with the writes in them`,
        "check the disk; hosts write their own records again, the users' kv/ may lack its last changes",
      );
    }
    this.#level = folder.level;
    this.#storeId = head.storeId;
    this.#options.onOpened(folder.level, loaded);
    this.#setState('connected');
    conditions?.clear(awayCondition);
    log.info('store is open', {
      'store.path': path,
      'store.id': head.storeId,
      'store.revision': head.revision,
      'store.keys': keyCount,
      'store.closed_in_order': loaded.inOrder,
    });
  }

  /** A write failed. Tells so, and tries in the background until the disk works again. */
  fail(error: unknown): void {
    if (this.#closing.signal.aborted) return;
    this.#failures.value += 1;
    this.#away(describeDiskError(this.#options.path, error));
    this.#recovery ??= this.#recover().finally(() => {
      this.#recovery = undefined;
    });
  }

  /** The disk does not answer, or does so again. */
  stall(stalled: boolean): void {
    if (this.#closing.signal.aborted) return;
    if (stalled) {
      this.#failures.value += 1;
      const { path } = this.#options;
      this.#away({
        problem: `the disk does not answer for the store in ${path}`,
        hint: `look for a failing or overloaded disk under ${path}`,
      });
    } else {
      this.#setState('connected');
      this.#options.conditions?.clear(awayCondition);
    }
  }

  /** Resolves when the store can be used; rejects with E_CLOSED, or the signal's reason. */
  connected(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const done = (): void => {
        unsubscribe();
        signal.removeEventListener('abort', check);
      };
      const check = (): void => {
        if (signal.aborted) reject(signal.reason);
        else if (this.#closing.signal.aborted) reject(closedError());
        else if (this.status.value.state === 'connected') resolve();
        else return;
        done();
      };
      const unsubscribe = this.status.subscribe(check);
      signal.addEventListener('abort', check);
      check();
    });
  }

  /** `finish` may write a last time, if LevelDB is open. */
  async close(finish: (level: Level) => Promise<void>): Promise<void> {
    this.#closing.abort(closedError());
    this.#setState('closed');
    await this.#recovery;
    const level = this.#level;
    this.#level = undefined;
    this.#options.conditions?.clear(awayCondition);
    if (level === undefined) return;
    try {
      await finish(level);
    } finally {
      await level.close();
    }
  }

  async #recover(): Promise<void> {
    const { clock } = this.#options;
    const { signal } = this.#closing;
    const backoff = new Backoff(firstRetryMs, retryCeilingMs);
    const level = this.#level;
    this.#level = undefined;
    await level?.close().catch((error: unknown) => {
      this.#options.log.warn('LevelDB did not close', { error: describeError(error) });
    });
    while (!signal.aborted) {
      try {
        await clock.sleep(backoff.nextMs(), signal);
        await this.open();
        return;
      } catch (error) {
        if (signal.aborted) return;
        if (isLegateError(error)) this.#away({ problem: error.message, hint: error.hint ?? '' });
        else this.#away(describeDiskError(this.#options.path, error));
      }
    }
  }

  #away({ problem, hint }: { problem: string; hint: string }): void {
    this.#options.conditions?.raise(awayCondition, 'error', problem, hint);
    this.#setState('away', { problem, hint });
  }

  #setState(state: StoreStatus['state'], why: { problem?: string; hint?: string } = {}): void {
    const before = this.status.value;
    const sinceMs = before.state === state ? before.sinceMs : this.#options.clock.nowMs();
    this.status.set({ state, sinceMs, storeId: this.#storeId, ...why });
  }
}

export function closedError(): LegateError {
  return new LegateError('E_CLOSED', 'the store has been closed');
}
