/**
 * Work that many ask for at the cost of few: one run goes on at a time, and all who ask meanwhile share the one that
 * follows, because what is being found may be older than their reason for asking.
 */
export class Coalesced<T, A extends readonly unknown[] = []> {
  readonly #work: (...args: A) => Promise<T>;
  #running: Promise<T> | undefined;
  #next: Promise<T> | undefined;

  constructor(work: (...args: A) => Promise<T>) {
    this.#work = work;
  }

  /** The outcome of a run that begins now or later. Of those who share one the first gives the arguments. */
  run(...args: A): Promise<T> {
    if (this.#running === undefined) {
      this.#running = this.#work(...args).finally(() => {
        this.#running = undefined;
      });
      return this.#running;
    }
    this.#next ??= this.#running
      .catch(() => undefined)
      .then(() => {
        this.#next = undefined;
        return this.run(...args);
      });
    return this.#next;
  }
}
