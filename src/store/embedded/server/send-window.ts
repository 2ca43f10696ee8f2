import { times } from './limits.ts';

/**
 * When changes are sent: at once when it was quiet, else together at the end of a short window, which grows with what
 * sending costs, so that it never takes more than about a fifth of the process's time.
 */
export class SendWindow {
  /** Sends what waits and gives the milliseconds of work that it took. */
  readonly #send: () => Promise<number>;
  #afterwards: (() => void)[] = [];
  #scheduled = false;
  #closed = false;
  #lastMs = 0;
  #windowMs: number = times.windowMs;

  constructor(send: () => Promise<number>) {
    this.#send = send;
  }

  close(): void {
    this.#closed = true;
  }

  /** Something waits to be sent. */
  open(): void {
    if (this.#scheduled || this.#closed) return;
    this.#scheduled = true;
    const dueMs = this.#lastMs + this.#windowMs - performance.now();
    const run = (): void => void this.#run();
    if (dueMs <= 0) setImmediate(run);
    else setTimeout(run, dueMs);
  }

  /** Calls `run` when what waits now was sent. */
  afterwards(run: () => void): void {
    if (this.#scheduled) this.#afterwards.push(run);
    else run();
  }

  async #run(): Promise<void> {
    const busyMs = await this.#send();
    this.#windowMs = Math.min(times.maxWindowMs, Math.max(times.windowMs, 4 * busyMs));
    this.#lastMs = performance.now();
    this.#scheduled = false;
    for (const run of this.#afterwards.splice(0)) run();
  }
}
