import type { Learned } from '../../proxy/local-plane.ts';
import type { Clock } from '../../src/base/clock.ts';

/** Collects what a worker learned and tells it together: each pair once in a while is enough. */
export class LearnedReports {
  static readonly everyMs = 1000;
  /** Pairs between two reports; of more, the rest comes with the next connection. */
  static readonly maxPairs = 1024;
  readonly #clock: Clock;
  readonly #tell: (pairs: readonly Learned[]) => void;
  readonly #pairs = new Map<string, Learned>();

  constructor({ clock, tell }: { readonly clock: Clock; readonly tell: (pairs: readonly Learned[]) => void }) {
    this.#clock = clock;
    this.#tell = tell;
  }

  add(pair: Learned): void {
    if (this.#pairs.size === 0) this.#clock.after(LearnedReports.everyMs, () => this.#flush());
    if (this.#pairs.size < LearnedReports.maxPairs) this.#pairs.set(`${pair.consumer} ${pair.service}`, pair);
  }

  #flush(): void {
    this.#tell([...this.#pairs.values()]);
    this.#pairs.clear();
  }
}
