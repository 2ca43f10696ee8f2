import type { Balance } from '../../src/model/service.ts';
import type { Backend } from './backend.ts';
import { LeastConnections } from './least-connections.ts';
import { P2cLatency } from './p2c-latency.ts';
import { WeightedRandom } from './random.ts';
import { RoundRobin } from './round-robin.ts';

/**
 * Chooses where the next connection goes. The caller passes those that may be chosen, either all with a weight above 0
 * or, when there is no such, all with weight 0, which then count alike. Undefined only for no candidates.
 */
export interface Balancer {
  pick(candidates: readonly Backend[]): Backend | undefined;
}

/** The balancer of a service's setting; one that this version does not know is served round-robin. */
export function createBalancer(balance: Balance, random: () => number, nowMs: () => number): Balancer {
  switch (balance) {
    case 'least-connections':
      return new LeastConnections();
    case 'p2c-latency':
      return new P2cLatency(random, nowMs);
    case 'random':
      return new WeightedRandom(random);
    default:
      return new RoundRobin();
  }
}
