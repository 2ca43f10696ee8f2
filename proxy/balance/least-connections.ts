import type { Backend } from './backend.ts';
import type { Balancer } from './balancer.ts';

/** The fewest connections for its weight; among equals they take turns, so that idle services are spread too. */
export class LeastConnections implements Balancer {
  #turn = 0;

  pick(candidates: readonly Backend[]): Backend | undefined {
    const count = candidates.length;
    let best: Backend | undefined;
    let bestLoad = Number.POSITIVE_INFINITY;
    this.#turn = this.#turn >= count ? 0 : this.#turn;
    let index = this.#turn;
    let bestIndex = 0;
    for (let step = 0; step < count; step += 1) {
      const backend = candidates[index];
      if (backend !== undefined) {
        const load = (backend.active + 1) / (backend.instance.weight || 1);
        if (load < bestLoad) {
          best = backend;
          bestLoad = load;
          bestIndex = index;
        }
      }
      index = index + 1 === count ? 0 : index + 1;
    }
    this.#turn = bestIndex + 1;
    return best;
  }
}
