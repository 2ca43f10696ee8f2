import { Backoff } from '../../src/base/backoff.ts';
import type { Clock } from '../../src/base/clock.ts';

export interface InspectionsOptions {
  /** Fetches what is to be known of `id`, and returns what takes it over. */
  readonly fetch: (id: string, signal: AbortSignal) => Promise<() => void>;
  /** All tries for `id` failed; the next comparison will ask again. */
  readonly onFailed: (id: string, error: unknown) => void;
  /** Ends everything: nothing is taken over afterwards. */
  readonly signal: AbortSignal;
  readonly clock: Clock;
}

interface Running {
  /** It was asked for again meanwhile: what is being fetched may be older than that. */
  again: boolean;
}

/**
 * Asks about containers: each at most once at a time, at most `maxRunning` at once, those that an event named before
 * those of a comparison. What was fetched is dropped and fetched anew when something happened meanwhile, so that an
 * answer from before an event never overrides it.
 */
export class Inspections {
  static readonly maxRunning = 6;
  static readonly maxWaiting = 20_000;
  static readonly maxTries = 3;
  readonly #options: InspectionsOptions;
  readonly #urgent = new Set<string>();
  readonly #ordinary = new Set<string>();
  readonly #running = new Map<string, Running>();
  readonly #failures = new Map<string, Backoff>();
  readonly #listeners = new Map<string, ((ok: boolean) => void)[]>();

  constructor(options: InspectionsOptions) {
    this.#options = options;
    options.signal.addEventListener('abort', () => this.#abandon(), { once: true });
  }

  get waiting(): number {
    return this.#urgent.size + this.#ordinary.size;
  }

  has(id: string): boolean {
    return this.#running.has(id) || this.#urgent.has(id) || this.#ordinary.has(id);
  }

  /** Asks about `id` because an event named it. False when the queue is full and a comparison has to make up for it. */
  request(id: string): boolean {
    const running = this.#running.get(id);
    if (running !== undefined) running.again = true;
    else if (this.waiting >= Inspections.maxWaiting && !this.has(id)) return false;
    else {
      this.#ordinary.delete(id);
      this.#urgent.add(id);
    }
    this.#pump();
    return true;
  }

  /** Asks about `id` when nothing urgent waits, and resolves after the first try: whether it succeeded. */
  async check(id: string): Promise<boolean> {
    if (this.#options.signal.aborted || this.waiting >= Inspections.maxWaiting) return false;
    return new Promise((resolve) => {
      this.#listeners.set(id, [...(this.#listeners.get(id) ?? []), resolve]);
      if (!this.#running.has(id) && !this.#urgent.has(id)) this.#ordinary.add(id);
      this.#pump();
    });
  }

  /** What is being fetched about `id` is out of date. */
  invalidate(id: string): void {
    const running = this.#running.get(id);
    if (running !== undefined) running.again = true;
  }

  #pump(): void {
    while (this.#running.size < Inspections.maxRunning && !this.#options.signal.aborted) {
      const [id] = this.#urgent.size > 0 ? this.#urgent : this.#ordinary;
      if (id === undefined) return;
      this.#urgent.delete(id);
      this.#ordinary.delete(id);
      const running: Running = { again: false };
      this.#running.set(id, running);
      this.#options.fetch(id, this.#options.signal).then(
        (take) => this.#fetched(id, running, take),
        (error: unknown) => this.#failed(id, error),
      );
    }
  }

  #fetched(id: string, running: Running, take: () => void): void {
    if (this.#options.signal.aborted) return;
    this.#running.delete(id);
    if (running.again) this.#urgent.add(id);
    else {
      this.#failures.delete(id);
      take();
      this.#tell(id, true);
    }
    this.#pump();
  }

  #failed(id: string, error: unknown): void {
    if (this.#options.signal.aborted) return;
    this.#running.delete(id);
    const backoff = this.#failures.get(id) ?? new Backoff(200, 2000);
    this.#failures.set(id, backoff);
    if (backoff.failures + 1 < Inspections.maxTries) {
      this.#options.clock.after(backoff.nextMs(), () => {
        if (!this.#options.signal.aborted) this.request(id);
      });
    } else {
      this.#failures.delete(id);
      this.#options.onFailed(id, error);
    }
    this.#tell(id, false);
    this.#pump();
  }

  #tell(id: string, ok: boolean): void {
    const listeners = this.#listeners.get(id) ?? [];
    this.#listeners.delete(id);
    for (const listener of listeners) listener(ok);
  }

  #abandon(): void {
    this.#urgent.clear();
    this.#ordinary.clear();
    for (const id of [...this.#listeners.keys()]) this.#tell(id, false);
  }
}
