/** Lets a limited number of probes run at a time; the others wait in the order in which they came. */
export class ProbeQueue {
  readonly #limit: number;
  #running = 0;
  readonly #waiting = new Set<() => void>();

  constructor(limit: number) {
    this.#limit = limit;
  }

  get running(): number {
    return this.#running;
  }

  get waiting(): number {
    return this.#waiting.size;
  }

  /**
   * Runs `task` when there is room. The returned function takes it out of the queue if it has not begun. `task` must not
   * reject.
   */
  run(task: () => Promise<void>): () => void {
    const begin = (): void => {
      this.#running += 1;
      const done = (): void => {
        this.#running -= 1;
        this.#next();
      };
      task().then(done, (error: unknown) => {
        done();
        throw error;
      });
    };
    if (this.#running < this.#limit) {
      begin();
      return () => undefined;
    }
    this.#waiting.add(begin);
    return () => this.#waiting.delete(begin);
  }

  #next(): void {
    const [begin] = this.#waiting;
    if (begin === undefined) return;
    this.#waiting.delete(begin);
    begin();
  }
}
