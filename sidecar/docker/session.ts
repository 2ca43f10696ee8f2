import type { Clock } from '../../src/base/clock.ts';
import type { Inspections } from './inspections.ts';

const compareEveryMs = 60_000;
/** However often a comparison is asked for. */
const minPauseMs = 1000;

/** One connection to the engine, while it lasts. */
export class Session {
  /** Aborted when the connection ends, with what ended it. */
  readonly signal: AbortSignal;
  readonly inspections: Inspections;
  readonly #clock: Clock;
  /** Aborted when a comparison was asked for; made anew by each pause. */
  #early = new AbortController();

  constructor(signal: AbortSignal, inspections: Inspections, clock: Clock) {
    this.signal = signal;
    this.inspections = inspections;
    this.#clock = clock;
  }

  /** Asks for a comparison before its time: something may have been missed. */
  compareSoon(): void {
    this.#early.abort();
  }

  /** Something happened to a container: it has to be looked at. */
  look(id: string): void {
    if (!this.inspections.request(id)) this.compareSoon();
  }

  /** Waits for the next comparison: a minute, or a second when one is asked for. Throws when the connection ends. */
  async pause(): Promise<void> {
    await this.#clock.sleep(minPauseMs, this.signal);
    const early = this.#early;
    const end = (): void => early.abort();
    this.signal.addEventListener('abort', end, { once: true });
    await this.#clock.sleep(compareEveryMs - minPauseMs, early.signal).catch(() => undefined);
    this.signal.removeEventListener('abort', end);
    this.signal.throwIfAborted();
    this.#early = new AbortController();
  }
}
