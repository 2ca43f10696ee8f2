import type { Learned } from '../../proxy/local-plane.ts';
import type { Clock } from '../../src/base/clock.ts';

/** Collects what a worker learned and tells it together: each pair once in a while, with how often it was seen. */
export class LearnedReports {
  static readonly everyMs = 1000;
  /** Pairs between two reports, more than control remembers; of further ones nothing is told until the next report. */
  static readonly maxPairs = 1024;
  readonly #clock: Clock;
  readonly #tell: (pairs: readonly Learned[]) => void;
  readonly #pairs = new Map<string, { readonly pair: Learned; count: number }>();

  constructor({ clock, tell }: { readonly clock: Clock; readonly tell: (pairs: readonly Learned[]) => void }) {
    this.#clock = clock;
    this.#tell = tell;
  }

  /** For each connection. */
  add(pair: Learned): void {
    if (this.#pairs.size === 0) this.#clock.after(LearnedReports.everyMs, () => this.#flush());
    const key = `${pair.consumer} ${pair.service}`;
    const known = this.#pairs.get(key);
    if (known !== undefined) known.count += 1;
    else if (this.#pairs.size < LearnedReports.maxPairs) this.#pairs.set(key, { pair, count: 1 });
  }

  #flush(): void {
    this.#tell([...this.#pairs.values()].map(({ pair, count }) => ({ ...pair, count })));
    this.#pairs.clear();
  }
}
