import type { Balance } from '../../src/model/service.ts';
import type { Backend } from './backend.ts';
import { Hash } from './hash.ts';
import { LeastConnections } from './least-connections.ts';
import { P2cLatency } from './p2c-latency.ts';
import { WeightedRandom } from './random.ts';
import { RoundRobin } from './round-robin.ts';

/**
 * Chooses where the next connection goes. The caller passes those that may be chosen, either all with a weight above 0
 * or, when there is no such, all with weight 0, which then count alike. Undefined only for no candidates.
 *
 * `key` is a hash of what is to lead to the same candidate again, where there is such a thing; a signed 32-bit number.
 */
export interface Balancer {
  pick(candidates: readonly Backend[], key?: number): Backend | undefined;
}

/** The balancer of a service's setting. */
export function createBalancer(balance: Balance, random: () => number, nowMs: () => number): Balancer {
  switch (balance) {
    case 'least-connections':
      return new LeastConnections();
    case 'p2c-latency':
      return new P2cLatency(random, nowMs);
    case 'random':
      return new WeightedRandom(random);
    case 'hash':
      return new Hash();
    case 'round-robin':
      return new RoundRobin();
  }
}
