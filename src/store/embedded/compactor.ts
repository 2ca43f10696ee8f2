import { LegateError } from '../../base/errors.ts';
import type { CounterCell, Metrics } from '../../base/metrics.ts';
import type { Committer } from './committer.ts';
import type { Level } from './folder.ts';
import { historyKey, revisionOf, tables } from './records.ts';
import { pages } from './state.ts';

/** Removes old history, a part at a time, so that writers hardly notice. */
export class Compactor {
  static readonly partSize = 1000;
  readonly #committer: Committer;
  readonly #removed: CounterCell;
  #last: Promise<unknown> = Promise.resolve();
  #pending = 0;

  constructor(committer: Committer, metrics: Metrics) {
    this.#committer = committer;
    this.#removed = metrics.counter(
      'legate_store_compacted_revisions_total',
      'Revisions whose history was forgotten, so that no watch resumes from before them.',
    );
  }

  get busy(): boolean {
    return this.#pending > 0;
  }

  /** Forgets the oldest `count` history records. */
  removeOldest(level: Level, count: number): Promise<void> {
    return this.#inTurn(() => this.#remove(level, { ...tables.history, limit: count }, 0));
  }

  /** Forgets what led to `revision` and everything before. */
  removeUpTo(level: Level, revision: number): Promise<void> {
    return this.#inTurn(() => this.#remove(level, { gte: tables.history.gte, lte: historyKey(revision) }, revision));
  }

  async #inTurn(run: () => Promise<void>): Promise<void> {
    this.#pending += 1;
    const mine = this.#last.then(run);
    this.#last = mine.catch(() => undefined);
    try {
      await mine;
    } finally {
      this.#pending -= 1;
    }
  }

  async #remove(
    level: Level,
    range: { gte: Buffer; lt?: Buffer; lte?: Buffer; limit?: number },
    floor: number,
  ): Promise<void> {
    for await (const keys of pages(level.keys(range), Compactor.partSize)) await this.#forget(keys, 0);
    if (floor > 0) await this.#forget([], floor);
  }

  async #forget(keys: readonly Buffer[], floor: number): Promise<void> {
    const last = keys.at(-1);
    const compacted = last === undefined ? floor : revisionOf(last);
    if (compacted === undefined) throw new LegateError('E_STORE_DAMAGED', 'a history record has a key of a wrong form');
    const decide = (turn: { forget(keys: readonly Buffer[], compacted: number): void }): void =>
      turn.forget(keys, compacted);
    await this.#committer.submit({ keys: () => [], bytes: keys.length * 16, alone: true, decide });
    this.#removed.value += keys.length;
  }
}
