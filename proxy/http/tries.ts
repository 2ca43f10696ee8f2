import type { Clock } from '../../src/base/clock.ts';
import type { Backend } from '../balance/backend.ts';
import { Attempts } from '../tcp/attempts.ts';
import type { Account } from '../tcp/carried.ts';
import { connectAttemptMs } from '../tcp/relay-bounds.ts';
import type { Route } from '../tcp/route.ts';
import type { RequestMetrics } from './request-metrics.ts';
import type { RetryBudget } from './retry-budget.ts';
import type { HttpSettings } from './settings.ts';
import type { UpstreamFailure } from './upstream.ts';

/** Whose request instances are asked. */
export interface TriesUser {
  /** Where it goes. */
  readonly route: Route;
  /** What held for the service when it came. */
  readonly settings: HttpSettings;
  /** Whether its client still waits for an answer. */
  readonly isOpen: boolean;
  /** Whether an instance may be asked what another one has perhaps heard (RFC 9110 section 9.2.2), and all of it is there. */
  readonly isRepeatable: boolean;
  /** Asks this one; connecting may take so long. */
  ask(backend: Backend, limitMs: number): void;
  /** The one that is asked was not connected to in time. */
  connectTimedOut(failure: UpstreamFailure): void;
  /** There is nobody to ask. */
  nobody(reason: string): void;
}

export interface TriesOptions {
  readonly user: TriesUser;
  readonly clock: Clock;
  readonly metrics: RequestMetrics;
  readonly budget: RetryBudget;
}

/** The instances that are asked a request, one after another until one answers; for one request, or for one after another. */
export class Tries {
  /** What decides where it goes, where that is so; see `Route.pick`. */
  key: number | undefined;
  /** Who is being asked. */
  backend: Backend | undefined;
  /** Monotonic; when it was asked, connecting included, and when all that was there of the request had been sent. */
  attemptMs = 0;
  sentMs = 0;
  /** How often it was asked again. */
  retries = 0;
  readonly #user: TriesUser;
  readonly #clock: Clock;
  readonly #metrics: RequestMetrics;
  readonly #budget: RetryBudget;
  #attempts: Attempts | undefined;
  #cancelTimer: (() => void) | undefined;
  #leaveLobby: (() => void) | undefined;

  constructor({ user, clock, metrics, budget }: TriesOptions) {
    this.#user = user;
    this.#clock = clock;
    this.#metrics = metrics;
    this.#budget = budget;
  }

  /** A request has come. */
  begin(): void {
    this.#budget.add();
    this.key = undefined;
    this.retries = 0;
    this.#attempts = undefined;
  }

  /** Asks the next one, at once or as soon as there is one. */
  attempt(nowMs = this.#clock.monotonicMs()): void {
    const { route } = this.#user;
    this.#attempts ??= this.#search(nowMs);
    const next = this.#attempts.next(nowMs);
    if (next !== undefined) {
      this.to(next.backend, next.limitMs, nowMs);
      return;
    }
    const problem = route.problemToPick;
    if (!this.#goOn('pick', problem)) this.#user.nobody(problem ?? 'no instance is usable');
  }

  to(backend: Backend, limitMs: number, nowMs = this.#clock.monotonicMs()): void {
    backend.active += 1;
    this.backend = backend;
    this.attemptMs = nowMs;
    this.#user.ask(backend, limitMs);
  }

  /** A connection has to be made, and may take so long. */
  connecting(backend: Backend, limitMs: number): void {
    this.#cancelTimer = this.#clock.after(limitMs, () => this.#user.connectTimedOut(noAnswer(backend, limitMs)));
  }

  connected(backend: Backend): void {
    this.stopWaiting();
    this.#user.route.connected(backend, this.#clock.monotonicMs() - this.attemptMs);
  }

  /** Whoever is asked takes that long at least. */
  tookAtLeast(nowMs: number): void {
    this.backend?.latency.atLeast(nowMs - this.sentMs, nowMs);
  }

  /** Nobody is asked any more. `failure`: what the one who was has failed with, and whether the client does not notice. */
  drop(failure?: UpstreamFailure, retried = false): void {
    const { backend } = this;
    if (backend === undefined) return;
    this.backend = undefined;
    const { route } = this.#user;
    route.ended(backend);
    if (failure !== undefined) route.attemptFailed(backend, { ...failure, retried });
  }

  /** Whoever was asked has answered all. */
  done(): void {
    if (this.backend !== undefined) this.backend.total += 1;
    this.drop();
  }

  /** Whoever was asked has failed: asks another one, now or later. False: nobody will be asked. */
  failed(failure: UpstreamFailure): boolean {
    const { backend } = this;
    this.stopWaiting();
    this.drop();
    return this.#goOn('attempt', undefined, backend, failure);
  }

  /** As `failed`, of one that was asked beside another one. `isAlone`: that one has failed before. */
  besideFailed(backend: Backend, failure: UpstreamFailure, isAlone: boolean): boolean {
    const { route } = this.#user;
    if (failure.exhausted !== undefined) route.exhausted(failure.exhausted);
    if (isAlone && this.mayRepeat(failure)) return this.#goOn('attempt', undefined, backend, failure);
    route.attemptFailed(backend, { ...failure, retried: !isAlone });
    return !isAlone;
  }

  /** Tries again, at once or later, waits for something to connect to, or gives up: then it is false. */
  #goOn(what: 'attempt' | 'pick', problem: string | undefined, failed?: Backend, failure?: UpstreamFailure): boolean {
    const { route } = this.#user;
    const next = this.#attempts?.after(what) ?? { kind: 'over' };
    const leave = next.kind === 'hold' ? route.hold(() => this.#again()) : undefined;
    const retried = next.kind === 'again' || leave !== undefined;
    if (failed !== undefined && failure !== undefined) route.attemptFailed(failed, { ...failure, retried });
    if (!retried) route.refused(problem);
    else if (next.kind === 'again' && next.afterMs === 0) this.attempt();
    else if (next.kind !== 'over') {
      this.#leaveLobby = leave;
      const afterMs = next.kind === 'again' ? next.afterMs : next.limitMs;
      this.#cancelTimer = this.#clock.after(afterMs, () => this.#again());
    }
    return retried;
  }

  #again(): void {
    this.stopWaiting();
    if (this.#user.isOpen) this.attempt();
  }

  /** Neither for a connection, nor for somebody to connect to. */
  stopWaiting(): void {
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    this.#leaveLobby?.();
    this.#leaveLobby = undefined;
  }

  /** Whoever was asked has failed, and no other one would do better. */
  giveUp(failure: UpstreamFailure, account: Account): void {
    const { route } = this.#user;
    const { backend } = this;
    this.stopWaiting();
    this.drop();
    if (failure.exhausted !== undefined) route.exhausted(failure.exhausted);
    if (failure.denied === true && backend !== undefined) route.refusedByHost(backend, account, failure.problem);
    else route.refused(failure.problem);
  }

  // A second time

  /** Whether another one may be asked what this one has perhaps heard already; then that is counted as a repeat. */
  mayRepeat({ timedOut }: UpstreamFailure): boolean {
    // Who has not answered in its time is not asked a second time.
    if (timedOut === true && this.#attempts?.hasOther !== true) return false;
    const { settings, isRepeatable } = this.#user;
    if (!isRepeatable || this.retries >= settings.retries || !this.#budget.take()) return false;
    this.#countRetry();
    this.#attempts?.anew();
    return true;
  }

  /** The one that was asked has not looked at it: it may always be asked elsewhere, and has all the time for that. */
  unheard(): void {
    if (this.#attempts !== undefined && this.#attempts.elapsedMs > connectAttemptMs) this.#attempts = this.#search();
    this.#countRetry();
  }

  /** Another one to ask beside the one that is being asked, which is then counted; undefined where that may not be. */
  beside(): { readonly backend: Backend; readonly limitMs: number } | undefined {
    const { route, isRepeatable } = this.#user;
    if (!isRepeatable || this.#attempts?.hasOther !== true || !this.#budget.take()) return undefined;
    const next = this.#attempts.beside();
    if (next !== undefined) this.#metrics.happened('hedges', route.service);
    return next;
  }

  #search(nowMs?: number): Attempts {
    return new Attempts(this.#user.route, this.#clock, this.key, nowMs);
  }

  #countRetry(): void {
    this.retries += 1;
    this.#metrics.happened('retries', this.#user.route.service);
  }
}

/** A connection was not made in its time. */
export function noAnswer({ dial }: Backend, withinMs: number): UpstreamFailure {
  const blame = dial.via === 'direct' ? 'host' : 'way';
  return { problem: `no answer within ${Math.round(withinMs)} ms`, blame };
}
