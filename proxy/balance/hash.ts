import type { Backend } from './backend.ts';
import type { Balancer } from './balancer.ts';
import { mixed } from './hashing.ts';
import { RoundRobin } from './round-robin.ts';

/** So many times its fair share, by weight, of what runs now is the most that an instance is given more of. */
export const maxShareFactor = 1.25;
/** With fewer than so many an instance always has room: where little runs, shares are less than one. */
export const alwaysRoom = 4;

/**
 * The same instance for the same key, on every host of the mesh that has the same candidates. Each key has an order of its
 * own over all instances (rendezvous hashing, weighted as by Schindelhauer and Schomaker): the first of the candidates in it
 * is taken, so that only the keys of an instance that comes or goes move. One that has its share of what runs now, and a
 * quarter more, is passed over (Mirrokni, Thorup and Zadimoghaddam: "Consistent Hashing with Bounded Loads"). Connections
 * and requests without a key take turns.
 *
 * A pass over all candidates costs little more than the one that round-robin makes, and needs no table that a change of the
 * candidates would make anew.
 */
export class Hash implements Balancer {
  readonly #keyless = new RoundRobin();

  pick(candidates: readonly Backend[], key?: number): Backend | undefined {
    if (key === undefined) return this.#keyless.pick(candidates);
    let best: Backend | undefined;
    let bestHash = 0;
    let bestWeight = 0;
    let weights = 0;
    let running = 1;
    for (const backend of candidates) {
      const weight = backend.instance.weight || 1;
      const hash = mixed(key ^ backend.seed);
      weights += weight;
      running += backend.active;
      if (best !== undefined && !outranks(hash, weight, bestHash, bestWeight)) continue;
      best = backend;
      bestHash = hash;
      bestWeight = weight;
    }
    const share = (maxShareFactor * running) / weights;
    return best === undefined || best.active < Math.max(alwaysRoom, share * bestWeight)
      ? best
      : firstWithRoom(candidates, key, share);
  }
}

/** There always is one: all bounds together are more than what runs. */
function firstWithRoom(candidates: readonly Backend[], key: number, share: number): Backend | undefined {
  let best: Backend | undefined;
  let bestHash = 0;
  let bestWeight = 0;
  for (const backend of candidates) {
    const weight = backend.instance.weight || 1;
    if (backend.active >= Math.max(alwaysRoom, share * weight)) continue;
    const hash = mixed(key ^ backend.seed);
    if (best !== undefined && !outranks(hash, weight, bestHash, bestWeight)) continue;
    best = backend;
    bestHash = hash;
    bestWeight = weight;
  }
  return best;
}

/**
 * Whether the first comes earlier in the key's order: by ln(u) / weight, where u in (0, 1) is the hash. That is seldom
 * computed: with equal weights, and where one has more of both, it says what the hashes say.
 */
function outranks(hash: number, weight: number, otherHash: number, otherWeight: number): boolean {
  if (weight === otherWeight) return hash > otherHash;
  if (hash <= otherHash && weight < otherWeight) return false;
  if (hash >= otherHash && weight > otherWeight) return true;
  return logOf(hash) * otherWeight > logOf(otherHash) * weight;
}

/** The logarithm of a signed 32-bit number, moved to (0, 1). */
function logOf(hash: number): number {
  return Math.log((hash + 0x8000_0000 + 0.5) / 0x1_0000_0000);
}
