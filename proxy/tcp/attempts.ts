import type { Clock } from '../../src/base/clock.ts';
import type { Backend } from '../balance/backend.ts';
import { connectAttemptMs, connectTotalMs, heldRetryMs, roundAgainMs } from './relay-bounds.ts';
import type { Route } from './route.ts';

/** What follows a failed attempt: another one after so long, or waiting so long at most for news, or nothing. */
export type Next =
  | { readonly kind: 'again'; readonly afterMs: number }
  | { readonly kind: 'hold'; readonly limitMs: number }
  | { readonly kind: 'over' };

const over: Next = { kind: 'over' };

/** One connection's search for an instance: which were tried, and how long it may go on. */
export class Attempts {
  readonly #route: Route;
  readonly #clock: Clock;
  #startedMs: number;
  readonly #key: number | undefined;
  #tried: Backend[] = [];
  /** How often every instance was tried in vain. */
  #rounds = 0;
  #holds = false;

  /** `key`: see `Route.pick`; `nowMs`: monotonic, when it begins. */
  constructor(route: Route, clock: Clock, key: number | undefined, nowMs = clock.monotonicMs()) {
    this.#route = route;
    this.#clock = clock;
    this.#key = key;
    this.#startedMs = nowMs;
  }

  get elapsedMs(): number {
    return this.#clock.monotonicMs() - this.#startedMs;
  }

  /** An instance was connected to, and has not answered: the time for connecting begins anew. */
  anew(): void {
    this.#startedMs = this.#clock.monotonicMs();
    this.#rounds = 0;
  }

  /** Whether there is an instance that was not tried. */
  get hasOther(): boolean {
    return this.#route.hasOther(this.#tried);
  }

  /** Another instance to ask beside the one that is being asked; undefined when there is none that is well. */
  beside(): { readonly backend: Backend; readonly limitMs: number } | undefined {
    this.anew();
    const next = this.next();
    return next?.backend.ejectedUntilMs === undefined ? next : undefined;
  }

  /** The next instance to try, and how long it has; undefined when there is none, or no time. */
  next(nowMs = this.#clock.monotonicMs()): { readonly backend: Backend; readonly limitMs: number } | undefined {
    const totalMs = this.#holds ? Math.max(connectTotalMs, this.#route.holdMs) : connectTotalMs;
    const leftMs = totalMs - (nowMs - this.#startedMs);
    const backend = leftMs > 0 ? this.#route.pick(this.#tried, this.#key) : undefined;
    if (backend === undefined) return undefined;
    this.#tried.push(backend);
    const limitMs = this.#route.hasOther(this.#tried) ? Math.min(connectAttemptMs, leftMs) : leftMs;
    return { backend, limitMs };
  }

  /** What to do when an attempt has failed, or there was none to make. */
  after(failed: 'attempt' | 'pick'): Next {
    const { elapsedMs } = this;
    if (failed === 'attempt' && elapsedMs < connectTotalMs && !this.#holds) {
      if (this.#route.hasOther(this.#tried)) return { kind: 'again', afterMs: 0 };
      const afterMs = roundAgainMs[this.#rounds];
      this.#rounds += 1;
      if (afterMs !== undefined) {
        this.#tried = [];
        return { kind: 'again', afterMs };
      }
    } else if (failed === 'attempt' && this.#route.hasOther(this.#tried)) return { kind: 'again', afterMs: 0 };
    this.#tried = [];
    const leftMs = this.#route.holdMs - elapsedMs;
    if (leftMs <= 0) return over;
    this.#holds = true;
    // Where there are instances they may be back without anybody saying so.
    return { kind: 'hold', limitMs: this.#route.size > 0 ? Math.min(heldRetryMs, leftMs) : leftMs };
  }
}
