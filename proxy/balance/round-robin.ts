import type { Backend } from './backend.ts';
import type { Balancer } from './balancer.ts';

/**
 * Smooth weighted round-robin: each pick credits every candidate with its weight, takes the one with the most credit and
 * charges it the sum. With weights 5, 1, 1 the turns are a a b a c a a and not five times a in a row. The credit lives in
 * the backend, so that a change of the candidates does not begin the round anew.
 */
export class RoundRobin implements Balancer {
  pick(candidates: readonly Backend[]): Backend | undefined {
    let best: Backend | undefined;
    let sum = 0;
    for (const backend of candidates) {
      const weight = backend.instance.weight || 1;
      sum += weight;
      backend.credit += weight;
      if (best === undefined || backend.credit > best.credit) best = backend;
    }
    if (best !== undefined) best.credit -= sum;
    return best;
  }
}
