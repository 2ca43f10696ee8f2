import type { Clock } from '../base/clock.ts';

/** So many failures an address may have at once, and one more each so often. */
const burst = 10;
const refillMs = 6000;
/** Addresses remembered; beyond, the longest unheard is forgotten. */
const maxAddresses = 4096;

/** Counts failures by source address: who fails too often is not listened to for a while. */
export class Attempts {
  readonly #clock: Clock;
  readonly #failures = new Map<string, { count: number; atMs: number }>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  isTooMany(address: string): boolean {
    return this.#countOf(address) >= burst;
  }

  failed(address: string): void {
    const count = this.#countOf(address) + 1;
    this.#failures.delete(address);
    this.#failures.set(address, { count, atMs: this.#clock.monotonicMs() });
    if (this.#failures.size <= maxAddresses) return;
    const [oldest] = this.#failures.keys();
    if (oldest !== undefined) this.#failures.delete(oldest);
  }

  #countOf(address: string): number {
    const known = this.#failures.get(address);
    if (known === undefined) return 0;
    return Math.max(0, known.count - Math.floor((this.#clock.monotonicMs() - known.atMs) / refillMs));
  }
}
