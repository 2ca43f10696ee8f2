import type { HttpSettings } from './settings.ts';

/** A request that waits for its turn. */
export interface Waiting {
  /** It runs from now on. Called once, unless it gave up before. */
  admitted(): void;
}

/** What became of one that came: it runs, it waits, or there is no room to wait. */
export type Entry = 'runs' | 'waits' | 'full';

/**
 * Keeps the requests of this process that a service is asked at a time within its limit: further ones wait in their order,
 * in a queue that is bounded. One for a service, for all of its links and both versions of the protocol. Whoever runs says
 * `leave` when it is over, once; requests are counted without a limit as well, for there may be one at any time.
 */
export class Admission {
  /** How many processes of this host share the limit. */
  readonly #shares: number;
  readonly #queue = new Set<Waiting>();
  #limit = Number.POSITIVE_INFINITY;
  #room = 0;
  #running = 0;
  #isWaking = false;

  constructor(shares = 1) {
    this.#shares = shares;
  }

  /** Requests that run. */
  get running(): number {
    return this.#running;
  }

  /** Requests that wait. */
  get queued(): number {
    return this.#queue.size;
  }

  /** Takes the service's limits over. Each process has its part of them, rounded up. */
  update({ maxRequests, maxQueue }: Pick<HttpSettings, 'maxRequests' | 'maxQueue'>): void {
    this.#limit = maxRequests === 0 ? Number.POSITIVE_INFINITY : Math.ceil(maxRequests / this.#shares);
    this.#room = Math.ceil(maxQueue / this.#shares);
    this.#wake();
  }

  enter(request: Waiting): Entry {
    if (this.#running < this.#limit && this.#queue.size === 0) {
      this.#running += 1;
      return 'runs';
    }
    if (this.#queue.size >= this.#room) return 'full';
    this.#queue.add(request);
    return 'waits';
  }

  /** One that ran is over. */
  leave(): void {
    this.#running -= 1;
    if (this.#queue.size > 0) this.#wake();
  }

  /** One that waits does not want to any more. */
  giveUp(request: Waiting): void {
    this.#queue.delete(request);
  }

  /** Those who are let in may be over at once, and let in the next: a loop, so that a long queue is no deep stack. */
  #wake(): void {
    if (this.#isWaking) return;
    this.#isWaking = true;
    for (const request of this.#queue) {
      if (this.#running >= this.#limit) break;
      this.#queue.delete(request);
      this.#running += 1;
      request.admitted();
    }
    this.#isWaking = false;
  }
}
