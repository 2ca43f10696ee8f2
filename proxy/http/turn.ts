import type { Clock } from '../../src/base/clock.ts';
import { formatDuration } from '../../src/base/duration.ts';
import type { Route } from '../tcp/route.ts';
import type { Admission, Waiting } from './admission.ts';
import type { RequestMetrics } from './request-metrics.ts';
import { RequestTimes, type TimeLimit, type TimesUser } from './request-times.ts';
import type { HttpSettings } from './settings.ts';

/** Whose turn it is, and what becomes of it. */
export interface TurnUser {
  /** Where it goes. */
  readonly route: Route;
  /** What held for the service when it came. */
  readonly settings: HttpSettings;
  /** It runs from now on; monotonic. */
  itsTurn(nowMs: number): void;
  /** It never had its turn. */
  rejected(reason: string): void;
  /** Whoever is asked takes so long that another one may be asked as well. */
  beginHedge(): void;
  requestTimedOut(nowMs: number): void;
  tryTimedOut(nowMs: number): void;
}

export interface TurnOptions {
  readonly user: TurnUser;
  readonly clock: Clock;
  readonly metrics: RequestMetrics;
}

/** A request's turn among those of its service, and the time that it has; for one request, or for one after another. */
export class Turn implements Waiting, TimesUser {
  readonly times: RequestTimes;
  readonly #user: TurnUser;
  readonly #clock: Clock;
  readonly #metrics: RequestMetrics;
  /** Where it is counted as running, or waits. */
  #admission: Admission | undefined;
  #queues = false;

  constructor({ user, clock, metrics }: TurnOptions) {
    this.#user = user;
    this.#clock = clock;
    this.#metrics = metrics;
    this.times = new RequestTimes(clock, this);
  }

  /** Whether it waits for its turn. */
  get queues(): boolean {
    return this.#queues;
  }

  /** Asks an instance at once, or when it is its turn. */
  enter(nowMs: number): void {
    const { route, settings } = this.#user;
    const { admission } = route;
    const entry = admission.enter(this);
    if (entry === 'full') {
      this.#reject('too many requests run, and too many wait for their turn');
      return;
    }
    this.#admission = admission;
    if (entry === 'runs') this.#user.itsTurn(nowMs);
    else {
      this.#queues = true;
      this.times.queued(settings.queueTimeoutMs, nowMs);
    }
  }

  admitted(): void {
    this.#queues = false;
    this.times.admitted();
    this.#user.itsTurn(this.#clock.monotonicMs());
  }

  /** It is over: lets others have its turn. */
  leave(): void {
    this.times.end();
    const admission = this.#admission;
    if (admission === undefined) return;
    this.#admission = undefined;
    if (this.#queues) admission.giveUp(this);
    else admission.leave();
    this.#queues = false;
  }

  timeIsUp(limit: TimeLimit, nowMs: number): void {
    const user = this.#user;
    if (limit === 'queue') {
      const { queueTimeoutMs } = user.settings;
      this.#reject(`too many requests run: it was not its turn within ${formatDuration(queueTimeoutMs)}`);
    } else if (limit === 'hedge') user.beginHedge();
    else {
      this.#metrics.happened('timeouts', user.route.service);
      if (limit === 'request') user.requestTimedOut(nowMs);
      else user.tryTimedOut(nowMs);
    }
  }

  #reject(reason: string): void {
    this.#metrics.happened('rejected', this.#user.route.service);
    this.#user.rejected(reason);
  }
}
