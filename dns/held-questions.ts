import type { Clock } from '../src/base/clock.ts';
import type { Observable } from '../src/base/feed.ts';
import type { CounterCell, Metrics } from '../src/base/metrics.ts';
import { type CallerTable, callerWaitMs } from '../src/model/caller.ts';

/** Questions that wait at a time; what is beyond is answered at once, without aliases. */
export const maxHeldQuestions = 512;
/** Of these, so many of one address: nobody can take the room of all others. */
export const maxHeldOfAddress = 16;
/** An address that was waited for in vain is not waited for again so soon. */
const vainMs = 30_000;
/** Addresses that are remembered for that. */
const maxVain = 1024;

interface Waiting {
  readonly release: (() => void)[];
  readonly cancel: () => void;
}

export interface HeldQuestionsOptions {
  readonly callers: Observable<CallerTable>;
  readonly clock: Clock;
  readonly metrics: Metrics;
}

/**
 * Questions of addresses that nobody is known to have yet: a container asks within milliseconds of its start, before it
 * has been inspected, and its first question is to be answered as all others.
 */
export class HeldQuestions {
  readonly #options: HeldQuestionsOptions;
  readonly #waiting = new Map<string, Waiting>();
  /** Until when, monotonic. */
  readonly #vain = new Map<string, number>();
  readonly #unsubscribe: () => void;
  readonly #refused: CounterCell;
  readonly #inVain: CounterCell;
  #count = 0;

  constructor(options: HeldQuestionsOptions) {
    this.#options = options;
    const { metrics, callers } = options;
    metrics.gauge('legate_dns_held_questions_count', 'Questions that wait until their asker is known.', [], () => [
      [[], this.#count],
    ]);
    this.#refused = metrics.counter(
      'legate_dns_unheld_questions_total',
      'Questions of unknown askers that were answered at once, because too many waited.',
    );
    this.#inVain = metrics.counter(
      'legate_dns_vain_waits_total',
      'Addresses that stayed unknown for as long as waited.',
    );
    this.#unsubscribe = callers.subscribe((table) => this.#look(table));
  }

  /** Resolves when the address is known, or the wait is over; undefined when it is not to be waited for. */
  hold(address: string): Promise<void> | undefined {
    if (this.#isVain(address)) return undefined;
    const waiting = this.#waiting.get(address);
    if (this.#count >= maxHeldQuestions || (waiting?.release.length ?? 0) >= maxHeldOfAddress) {
      this.#refused.value += 1;
      return undefined;
    }
    this.#count += 1;
    return new Promise((resolve) => {
      if (waiting !== undefined) {
        waiting.release.push(resolve);
        return;
      }
      const cancel = this.#options.clock.after(callerWaitMs, () => this.#giveUp(address));
      this.#waiting.set(address, { release: [resolve], cancel });
    });
  }

  /** Lets all go. */
  close(): void {
    this.#unsubscribe();
    for (const address of [...this.#waiting.keys()]) this.#release(address);
  }

  #look(table: CallerTable): void {
    for (const address of [...this.#waiting.keys()]) {
      if (table.off !== undefined || table.bound.has(address)) this.#release(address);
    }
    for (const address of this.#vain.keys()) if (table.bound.has(address)) this.#vain.delete(address);
  }

  #giveUp(address: string): void {
    this.#inVain.value += 1;
    if (this.#vain.size >= maxVain) this.#vain.clear();
    this.#vain.set(address, this.#options.clock.monotonicMs() + vainMs);
    this.#release(address);
  }

  #isVain(address: string): boolean {
    const untilMs = this.#vain.get(address);
    if (untilMs === undefined) return false;
    if (untilMs > this.#options.clock.monotonicMs()) return true;
    this.#vain.delete(address);
    return false;
  }

  #release(address: string): void {
    const waiting = this.#waiting.get(address);
    if (waiting === undefined) return;
    this.#waiting.delete(address);
    waiting.cancel();
    this.#count -= waiting.release.length;
    for (const release of waiting.release) release();
  }
}
