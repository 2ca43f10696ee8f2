import type { Backend } from './backend.ts';
import type { Balancer } from './balancer.ts';

/** Each candidate with a probability in proportion to its weight. */
export class WeightedRandom implements Balancer {
  readonly #random: () => number;

  constructor(random: () => number) {
    this.#random = random;
  }

  pick(candidates: readonly Backend[]): Backend | undefined {
    let sum = 0;
    for (const backend of candidates) sum += backend.instance.weight || 1;
    let point = this.#random() * sum;
    for (const backend of candidates) {
      point -= backend.instance.weight || 1;
      if (point < 0) return backend;
    }
    return candidates.at(-1);
  }
}
