import type { Learned } from '../proxy/local-plane.ts';
import type { Clock } from '../src/base/clock.ts';
import { isLegateError } from '../src/base/errors.ts';
import { FieldFault, Fields } from '../src/base/fields.ts';
import type { Log } from '../src/base/log.ts';
import type { Metrics } from '../src/base/metrics.ts';
import { Bell } from '../src/catalog/bell.ts';
import { nameFault } from '../src/model/names.ts';
import { consumerFault } from '../src/model/policy-document.ts';
import type { Keys } from '../src/store/keys.ts';
import type { Guard, Store } from '../src/store/store.ts';

/** Pairs that one host remembers, and that are read of all hosts together. */
const maxPairs = 500;
const maxPairsOfAll = 5000;
const maxHosts = 1000;
const maxRecordBytes = 128 * 1024;
/** After a write the next one waits this long; one for new counts alone waits longer. */
const writeEveryMs = 5000;
const recountEveryMs = 60_000;
/** What was not seen for so long is forgotten. */
const forgottenAfterMs = 30 * 24 * 3_600_000;
const maxTimeMs = 8.64e15;

/** A call that was carried only because the mode is `learn`. Wall clock, milliseconds. */
export interface LearnedPair {
  readonly consumer: string;
  readonly service: string;
  readonly count: number;
  readonly firstMs: number;
  readonly lastMs: number;
}

/** A pair with the ids of the hosts that saw it. */
export interface MergedPair extends LearnedPair {
  readonly hostIds: readonly string[];
}

type Counted = { -readonly [K in keyof LearnedPair]: LearnedPair[K] };

export interface LearnedPairsOptions {
  readonly hostId: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
}

/** What this host has learned: pairs that the policy would refuse. Kept in the store in a record of its own. */
export class LearnedPairs {
  readonly #options: LearnedPairsOptions;
  readonly #pairs = new Map<string, Counted>();
  readonly #bell = new Bell();
  readonly #learned;
  readonly #lost;
  #isNew = false;
  #wroteMs = Number.NEGATIVE_INFINITY;

  constructor(options: LearnedPairsOptions) {
    this.#options = options;
    const { metrics } = options;
    this.#learned = metrics.counter(
      'legate_policy_learned_total',
      'Connections that were carried only because the mode is learn.',
    );
    this.#lost = metrics.counter(
      'legate_policy_learned_lost_total',
      'Connections of pairs beyond those that a host in mode learn remembers.',
    );
  }

  /** For each such connection, or for several of one pair. */
  note({ consumer, service, count = 1 }: Learned): void {
    const nowMs = Math.trunc(this.#options.clock.nowMs());
    this.#learned.value += count;
    const key = `${consumer} ${service}`;
    const known = this.#pairs.get(key);
    if (known !== undefined) {
      known.count += count;
      known.lastMs = nowMs;
      if (this.#options.clock.monotonicMs() - this.#wroteMs > recountEveryMs) this.#bell.ring();
    } else if (this.#pairs.size >= maxPairs) this.#lost.value += count;
    else {
      this.#pairs.set(key, { consumer, service, count, firstMs: nowMs, lastMs: nowMs });
      this.#isNew = true;
      this.#bell.ring();
    }
  }

  /** Keeps this host's record in the store, until aborted or the store is closed. */
  async keep(store: Store, keys: Keys, signal: AbortSignal): Promise<void> {
    const { hostId, clock, log } = this.#options;
    const key = keys.learned + hostId;
    let isRead = false;
    if (this.#pairs.size > 0) this.#bell.ring();
    for (;;) {
      await this.#bell.wait(signal);
      if (signal.aborted) return;
      try {
        if (!isRead) this.#remember((await store.get(key, { signal }))?.value);
        isRead = true;
        // A store that is new or came back empty gets what is in it back first.
        const guards: Guard[] = [
          { kind: 'exists', key: keys.meta },
          { kind: 'absent', key: keys.moved },
        ];
        this.#forgetOld();
        this.#isNew = false;
        const { ok } = await store.txn(guards, [{ kind: 'put', key, value: this.#encoded() }], { signal });
        if (ok) this.#wroteMs = clock.monotonicMs();
        else this.#bell.ring();
      } catch (error) {
        if (signal.aborted || isLegateError(error, 'E_CLOSED')) return;
        if (!isLegateError(error)) throw error;
        log.debug('what was learned is not in the store yet', { error: error.message });
        this.#bell.ring();
      }
      await clock.sleep(writeEveryMs, signal).catch(() => undefined);
      if (this.#isNew) this.#bell.ring();
    }
  }

  /** What all hosts have learned, the most frequent first. Errors are the store's. */
  async all(store: Store | undefined, keys: Keys): Promise<readonly MergedPair[]> {
    const merged = new Map<string, Counted & { hostIds: string[] }>();
    const add = (hostId: string, pairs: Iterable<LearnedPair>): void => {
      for (const pair of pairs) {
        const pairKey = `${pair.consumer} ${pair.service}`;
        const known = merged.get(pairKey);
        if (known === undefined) {
          if (merged.size < maxPairsOfAll) merged.set(pairKey, { ...pair, hostIds: [hostId] });
          continue;
        }
        known.count += pair.count;
        known.firstMs = Math.min(known.firstMs, pair.firstMs);
        known.lastMs = Math.max(known.lastMs, pair.lastMs);
        if (!known.hostIds.includes(hostId)) known.hostIds.push(hostId);
      }
    };
    add(this.#options.hostId, this.#pairs.values());
    const { entries } = store === undefined ? { entries: [] } : await store.range(keys.learned, { limit: maxHosts });
    for (const { key, value } of entries) {
      const hostId = key.slice(keys.learned.length);
      // What this host knows itself is newer.
      if (hostId === this.#options.hostId && this.#pairs.size > 0) continue;
      if (/^[0-9a-f]{16}$/.test(hostId)) add(hostId, decodeLearned(value));
    }
    return [...merged.values()].sort((a, b) => b.count - a.count || (a.consumer < b.consumer ? -1 : 1));
  }

  #remember(value: Uint8Array | undefined): void {
    if (value === undefined) return;
    for (const pair of decodeLearned(value)) {
      const key = `${pair.consumer} ${pair.service}`;
      const known = this.#pairs.get(key);
      if (known !== undefined) {
        known.count += pair.count;
        known.firstMs = Math.min(known.firstMs, pair.firstMs);
      } else if (this.#pairs.size < maxPairs) this.#pairs.set(key, { ...pair });
    }
  }

  #forgetOld(): void {
    const oldestMs = this.#options.clock.nowMs() - forgottenAfterMs;
    for (const [key, { lastMs }] of this.#pairs) if (lastMs < oldestMs) this.#pairs.delete(key);
  }

  #encoded(): Uint8Array {
    const pairs = [...this.#pairs.values()].map((pair) => [
      pair.consumer,
      pair.service,
      pair.count,
      pair.firstMs,
      pair.lastMs,
    ]);
    return Buffer.from(JSON.stringify({ v: 1, pairs }));
  }
}

/** The pairs of a record that any host may have written; what cannot be read is left out. */
function decodeLearned(value: Uint8Array): LearnedPair[] {
  if (value.byteLength > maxRecordBytes) return [];
  const pairs: LearnedPair[] = [];
  try {
    const fields = new Fields(JSON.parse(Buffer.from(value).toString('utf8')));
    if (fields.integer('v', 1, Number.MAX_SAFE_INTEGER) !== 1) return [];
    for (const row of fields.list('pairs', maxPairs)) {
      if (!Array.isArray(row)) continue;
      const pair = new Fields({ ...row }, 'pair');
      pairs.push({
        consumer: pair.name('0', consumerFault),
        service: pair.name('1', nameFault),
        count: pair.integer('2', 1, Number.MAX_SAFE_INTEGER),
        firstMs: pair.integer('3', 0, maxTimeMs),
        lastMs: pair.integer('4', 0, maxTimeMs),
      });
    }
  } catch (error) {
    if (!(error instanceof FieldFault) && !(error instanceof SyntaxError)) throw error;
  }
  return pairs;
}
