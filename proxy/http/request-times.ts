import type { Clock } from '../../src/base/clock.ts';
import type { HttpSettings } from './settings.ts';

/** What a request may have had enough time for: all of it, its turn, one instance's answer, or the only instance's. */
export type TimeLimit = 'request' | 'queue' | 'try' | 'hedge';

/** Times below that are kept by a timer of the request's own, longer ones by the sweep that looks at all requests. */
export const preciseBelowMs = 2000;

export interface TimesUser {
  /** Told of each limit once, by the timer or during `check`. */
  timeIsUp(limit: TimeLimit, nowMs: number): void;
}

const never = Number.POSITIVE_INFINITY;

/**
 * Until when what of a request has to have happened. All moments are monotonic milliseconds. One for a request, or for one
 * request after another; where no time below `preciseBelowMs` is set it costs some assignments and no timer.
 */
export class RequestTimes {
  readonly #clock: Clock;
  readonly #user: TimesUser;
  #requestAtMs = never;
  #queueAtMs = never;
  #tryAtMs = never;
  #hedgeAtMs = never;
  #tryMs = 0;
  #hedgeMs = 0;
  #isPrecise = false;
  #cancel: (() => void) | undefined;

  constructor(clock: Clock, user: TimesUser) {
    this.#clock = clock;
    this.#user = user;
  }

  /** A request has come. Zero: no limit. */
  begin(nowMs: number, requestMs: number, tryMs: number, hedgeMs: number): void {
    this.#tryMs = tryMs;
    this.#hedgeMs = hedgeMs;
    this.#isPrecise = isShort(requestMs) || isShort(tryMs) || isShort(hedgeMs);
    this.#requestAtMs = requestMs === 0 ? never : nowMs + requestMs;
    if (this.#isPrecise) this.#arm(nowMs);
  }

  /** It waits for its turn. */
  queued(limitMs: number, nowMs: number): void {
    this.#queueAtMs = nowMs + limitMs;
    this.#isPrecise ||= isShort(limitMs);
    if (this.#isPrecise) this.#arm(nowMs);
  }

  /** It has its turn. */
  admitted(): void {
    this.#queueAtMs = never;
  }

  /** An instance has all of the request since `sinceMs`, and is to answer. */
  asked(sinceMs: number, nowMs: number): void {
    if (this.#tryMs > 0) this.#tryAtMs = sinceMs + this.#tryMs;
    if (this.#hedgeMs > 0) this.#hedgeAtMs = nowMs + this.#hedgeMs;
    if (this.#isPrecise) this.#arm(nowMs);
  }

  /** Nobody is being asked any more, or somebody has answered. */
  notAsked(): void {
    this.#tryAtMs = never;
    this.#hedgeAtMs = never;
  }

  /** There is to be no other hedge. */
  hedged(): void {
    this.#hedgeMs = 0;
    this.#hedgeAtMs = never;
  }

  /** Nothing is limited any more. */
  end(): void {
    this.#requestAtMs = never;
    this.#queueAtMs = never;
    this.notAsked();
    this.#cancel?.();
    this.#cancel = undefined;
  }

  /** To be called now and then: tells of the first limit that is reached. */
  check(nowMs: number): void {
    if (nowMs >= this.#requestAtMs) {
      this.#requestAtMs = never;
      this.#user.timeIsUp('request', nowMs);
    } else if (nowMs >= this.#queueAtMs) {
      this.#queueAtMs = never;
      this.#user.timeIsUp('queue', nowMs);
    } else if (nowMs >= this.#tryAtMs) {
      this.notAsked();
      this.#user.timeIsUp('try', nowMs);
    } else if (nowMs >= this.#hedgeAtMs) {
      this.hedged();
      this.#user.timeIsUp('hedge', nowMs);
    }
  }

  #arm(nowMs: number): void {
    this.#cancel?.();
    this.#cancel = undefined;
    const atMs = Math.min(this.#requestAtMs, this.#queueAtMs, this.#tryAtMs, this.#hedgeAtMs);
    if (atMs - nowMs < preciseBelowMs) this.#cancel = this.#clock.after(Math.max(1, atMs - nowMs), this.#ring);
  }

  readonly #ring = (): void => {
    this.#cancel = undefined;
    this.check(this.#clock.monotonicMs());
    if (this.#cancel === undefined) this.#arm(this.#clock.monotonicMs());
  };
}

function isShort(ms: number): boolean {
  return ms > 0 && ms < preciseBelowMs;
}

/** Whose fault it is that the whole time is over without an answer: the instance's, where it had half of the time at least. */
export function blameForTimeout({ timeoutMs }: HttpSettings, askedForMs: number | undefined): 'instance' | 'way' {
  return askedForMs !== undefined && askedForMs >= timeoutMs / 2 ? 'instance' : 'way';
}
