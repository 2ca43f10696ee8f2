import { LegateError } from '../../base/errors.ts';
import type { CounterCell, Metrics } from '../../base/metrics.ts';
import type { Level } from './folder.ts';
import type { Quarantine } from './quarantine.ts';
import { type KeyRecord, keyKey, keyOf, parseKey } from './records.ts';
import { isCorruption, pages, type StoreState } from './state.ts';
import { Turn } from './turn.ts';

export interface CommitRequest<T> {
  /** Every key that `decide` looks at or writes. */
  readonly keys: () => readonly string[];
  /** Ranges of keys that `decide` looks at, by `turn.keysIn`; only with `alone`. */
  readonly ranges?: readonly KeyBounds[];
  /** About how much memory it holds while it waits. */
  readonly bytes: number;
  /** Whether it must see the effects of everything before it, and so begins a turn of its own. */
  readonly alone?: boolean;
  /** Takes up its writes, or throws before it has taken up any. */
  readonly decide: (turn: Turn) => T;
}

/** Keys of LevelDB from `gte` up to and without `lt`. */
export interface KeyBounds {
  readonly gte: Buffer;
  readonly lt: Buffer;
}

interface Waiting {
  readonly request: CommitRequest<unknown>;
  readonly settle: (outcome: { value: unknown } | { error: unknown }) => void;
  abandoned: boolean;
}

export interface CommitterOptions {
  readonly metrics: Metrics;
  readonly quarantine: Quarantine;
  /** Called with each turn once it is on disk, before those who wrote hear of it. */
  readonly onTurn: (turn: Turn) => void;
  /** The disk refused: nothing more is written until `start` is called with a reopened LevelDB. */
  readonly onFailure: (error: unknown) => void;
  /** The disk does not answer within `diskTimeoutMs`, or has answered after all. */
  readonly onStall: (stalled: boolean) => void;
}

/**
 * The one writer of the store. What waits is taken up in turns: all transactions of a turn share one synced batch and
 * are acknowledged when it is on disk, so that the cost of a sync is shared by whoever writes at the same time.
 */
export class Committer {
  static readonly maxWaiting = 16_384;
  static readonly maxWaitingBytes = 64 * 1024 * 1024;
  static readonly maxTurnRequests = 512;
  static readonly maxTurnBytes = 4 * 1024 * 1024;
  /** What one range of a transaction may hold. */
  static readonly maxRangeKeys = 50_000;
  static readonly maxRangeBytes = 64 * 1024 * 1024;
  /** How long the disk may take for one batch. Real time, whatever clock the rest follows: the disk's time is real. */
  static readonly diskTimeoutMs = 10_000;

  readonly #options: CommitterOptions;
  readonly #turns: CounterCell;
  readonly #requests: CounterCell;
  readonly #seconds: { observe(value: number): void };
  #waiting: Waiting[] = [];
  #waitingBytes = 0;
  #running: Promise<void> | undefined;
  #atRest: { run: () => void; refuse: (error: LegateError) => void }[] = [];
  #level: Level | undefined;
  #state: StoreState | undefined;
  #refusal: LegateError | undefined;

  constructor(options: CommitterOptions) {
    const { metrics } = options;
    this.#options = options;
    this.#turns = metrics.counter('legate_store_commits_total', 'Synced batches of the embedded store.');
    this.#requests = metrics.counter('legate_store_transactions_total', 'Transactions of the embedded store.');
    this.#seconds = metrics.histogram(
      'legate_store_commit_duration_seconds',
      'From taking up the transactions of a batch until they are on disk.',
      [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5],
    );
    metrics.gauge('legate_store_waiting_transactions', 'Transactions that wait for the next batch.', [], () => [
      [[], this.#waiting.length],
    ]);
  }

  start(level: Level, state: StoreState): void {
    this.#level = level;
    this.#state = state;
    this.#refusal = undefined;
  }

  /** From now on everything is refused with `error`, also what waits; resolves when no batch is under way. */
  async stop(error: LegateError): Promise<void> {
    this.#refuse(error);
    await this.#running;
  }

  submit<T>(request: CommitRequest<T>, signal?: AbortSignal): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      if (this.#refusal !== undefined) return reject(this.#refusal);
      if (
        this.#waiting.length >= Committer.maxWaiting ||
        (this.#waiting.length > 0 && this.#waitingBytes + request.bytes > Committer.maxWaitingBytes)
      ) {
        const hint = 'try again later; the disk may be too slow for so many writes';
        return reject(
          new LegateError('E_STORE_AWAY', `${this.#waiting.length} transactions wait for the disk already`, { hint }),
        );
      }
      const onAbort = (): void => {
        waiting.abandoned = true;
        reject(signal?.reason);
      };
      const waiting: Waiting = {
        request,
        abandoned: false,
        settle: (outcome) => {
          signal?.removeEventListener('abort', onAbort);
          if ('error' in outcome) reject(outcome.error);
          else resolve(outcome.value as T);
        },
      };
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#waiting.push(waiting);
      this.#waitingBytes += request.bytes;
      this.#running ??= this.#run();
    });
  }

  /** Calls `run` at a moment when no batch is under way: memory and disk then say the same. */
  atRest<T>(run: (level: Level, state: StoreState) => T): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const now = (): void => {
        try {
          if (this.#refusal !== undefined) throw this.#refusal;
          if (this.#level === undefined || this.#state === undefined) throw new Error('committer not started');
          resolve(run(this.#level, this.#state));
        } catch (error) {
          reject(error);
        }
      };
      if (this.#running === undefined) now();
      else this.#atRest.push({ run: now, refuse: reject });
    });
  }

  async #run(): Promise<void> {
    // Whatever else this tick of the event loop submits shares the first batch.
    await Promise.resolve();
    for (;;) {
      for (const { run } of this.#atRest.splice(0)) run();
      const taken = this.#take();
      if (taken.length > 0) await this.#turn(taken);
      else if (this.#waiting.length === 0 && this.#atRest.length === 0) break;
    }
    this.#running = undefined;
  }

  #take(): Waiting[] {
    const taken: Waiting[] = [];
    let bytes = 0;
    for (const waiting of this.#waiting) {
      const { request } = waiting;
      if (taken.length >= Committer.maxTurnRequests) break;
      if (taken.length > 0 && (request.alone || bytes + request.bytes > Committer.maxTurnBytes)) break;
      taken.push(waiting);
      bytes += request.bytes;
      if (request.alone) break;
    }
    this.#waiting = this.#waiting.slice(taken.length);
    this.#waitingBytes -= bytes;
    return taken.filter((waiting) => !waiting.abandoned);
  }

  async #turn(taken: readonly Waiting[]): Promise<void> {
    const level = this.#level;
    const state = this.#state;
    if (level === undefined || state === undefined) throw new Error('committer not started');
    const startedMs = performance.now();
    let stalled = false;
    const timer = setTimeout(() => {
      stalled = true;
      const error = this.#stallError();
      this.#refuse(error);
      for (const { settle } of taken) settle({ error });
      this.#options.onStall(true);
    }, Committer.diskTimeoutMs);
    timer.unref();
    let turn: Turn;
    let outcomes: ({ value: unknown } | { error: unknown })[];
    try {
      const known = await this.#read(level, taken);
      const ranges = await this.#readRanges(level, taken[0]?.request.ranges ?? [], known);
      turn = new Turn(state.head, known, ranges);
      outcomes = taken.map(({ request }) => decide(request, turn));
      await turn.sync(level);
    } catch (error) {
      this.#fail(taken, error);
      return;
    } finally {
      clearTimeout(timer);
      this.#seconds.observe((performance.now() - startedMs) / 1000);
    }
    this.#turns.value += 1;
    this.#requests.value += taken.length;
    this.#apply(state, turn);
    for (const [index, { settle }] of taken.entries()) settle(outcomes[index] ?? { value: undefined });
    if (stalled && this.#refusal?.code === 'E_STORE_AWAY') {
      this.#refusal = undefined;
      this.#options.onStall(false);
    }
  }

  /** The records of all keys that the turn names; a corrupt block of LevelDB costs only the records in it. */
  async #read(level: Level, taken: readonly Waiting[]): Promise<Map<string, KeyRecord | 'damaged' | undefined>> {
    const keys = [...new Set(taken.flatMap(({ request }) => request.keys()))];
    if (keys.length === 0) return new Map();
    const dbKeys = keys.map(keyKey);
    let records: (Buffer | 'damaged' | undefined)[];
    try {
      records = await level.getMany(dbKeys);
    } catch (error) {
      if (!isCorruption(error)) throw error;
      records = await Promise.all(dbKeys.map((dbKey) => readLeniently(level, dbKey)));
    }
    const known = new Map<string, KeyRecord | 'damaged' | undefined>();
    for (const [index, key] of keys.entries()) {
      const bytes = records[index];
      const dbKey = dbKeys[index];
      if (bytes === undefined || dbKey === undefined) continue;
      const record = bytes === 'damaged' ? undefined : parseKey(dbKey, bytes);
      if (record === undefined) this.#options.quarantine.add(key);
      known.set(key, record ?? 'damaged');
    }
    return known;
  }

  /** The keys of each range, whose records become known; undefined for a range that holds too much. */
  async #readRanges(
    level: Level,
    ranges: readonly KeyBounds[],
    known: Map<string, KeyRecord | 'damaged' | undefined>,
  ): Promise<(string[] | undefined)[]> {
    const found: (string[] | undefined)[] = [];
    for (const bounds of ranges) found.push(await this.#readRange(level, bounds, known));
    return found;
  }

  async #readRange(
    level: Level,
    bounds: KeyBounds,
    known: Map<string, KeyRecord | 'damaged' | undefined>,
  ): Promise<string[] | undefined> {
    const keys: string[] = [];
    let bytes = 0;
    for await (const page of pages(level.iterator(bounds))) {
      for (const [dbKey, value] of page) {
        const record = parseKey(dbKey, value);
        const key = keyOf(dbKey);
        bytes += value.length;
        if (record === undefined) this.#options.quarantine.add(key);
        known.set(key, record ?? 'damaged');
        keys.push(key);
      }
      if (keys.length > Committer.maxRangeKeys || bytes > Committer.maxRangeBytes) return undefined;
    }
    return keys;
  }

  #apply(state: StoreState, turn: Turn): void {
    state.head = turn.head;
    state.historyCount += turn.commits.length - turn.historyRemoved;
    for (const { puts, deletes, added } of turn.commits) {
      state.keyCount += added;
      for (const { key } of puts) this.#options.quarantine.remove(key);
      for (const key of deletes) this.#options.quarantine.remove(key);
    }
    this.#options.onTurn(turn);
  }

  #fail(taken: readonly Waiting[], cause: unknown): void {
    const error = new LegateError('E_STORE_AWAY', 'the store could not write to its disk', {
      hint: 'see legate status; it goes on by itself once the disk can be written again',
      cause,
    });
    for (const { settle } of taken) settle({ error });
    this.#refuse(error);
    this.#options.onFailure(cause);
  }

  #refuse(error: LegateError): void {
    this.#refusal = error;
    for (const { settle } of this.#waiting.splice(0)) settle({ error });
    this.#waitingBytes = 0;
    for (const { refuse } of this.#atRest.splice(0)) refuse(error);
  }

  #stallError(): LegateError {
    return new LegateError(
      'E_STORE_AWAY',
      `the store's disk has not answered for ${Committer.diskTimeoutMs / 1000} s`,
      {
        hint: 'look for a failing or overloaded disk; what was written last may or may not have happened',
      },
    );
  }
}

function decide(request: CommitRequest<unknown>, turn: Turn): { value: unknown } | { error: unknown } {
  try {
    return { value: request.decide(turn) };
  } catch (error) {
    return { error };
  }
}

async function readLeniently(level: Level, dbKey: Buffer): Promise<Buffer | 'damaged' | undefined> {
  try {
    return await level.get(dbKey);
  } catch (error) {
    if (isCorruption(error)) return 'damaged';
    throw error;
  }
}
