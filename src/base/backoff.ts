/** Delays that grow by doubling up to a ceiling, each spread by ±20 % so that many hosts do not return in step. */
export class Backoff {
  readonly #firstMs: number;
  readonly #ceilingMs: number;
  readonly #random: () => number;
  #failures = 0;

  constructor(firstMs: number, ceilingMs: number, random: () => number = Math.random) {
    this.#firstMs = firstMs;
    this.#ceilingMs = ceilingMs;
    this.#random = random;
  }

  /** How many delays were taken since the last reset. */
  get failures(): number {
    return this.#failures;
  }

  /** The delay before the next try, in milliseconds. */
  nextMs(): number {
    const plain = Math.min(this.#ceilingMs, this.#firstMs * 2 ** Math.min(this.#failures, 30));
    this.#failures += 1;
    return plain * (0.8 + 0.4 * this.#random());
  }

  /** To be called when a try succeeded. */
  reset(): void {
    this.#failures = 0;
  }
}
