import type { Clock } from '../src/base/clock.ts';
import type { CounterCell } from '../src/base/metrics.ts';
import type { Backend } from './balance/backend.ts';

/** Failures to connect, server errors in a row, or answers that took much longer than those of others. */
export type EjectionReason = 'failures' | 'errors' | 'slowness';

/**
 * Keeps an instance that cannot be connected to, answers with errors or is much slower than others out of the choice for a
 * while (passive health checking), each time twice as long as before. One that serves again is forgiven step by step: one ejection for each time as long as that ejection
 * without another. Only links know of it: names and other hosts see what the health checks say.
 */
export class Outlier {
  /** Connect failures in a row that eject; one that came back and has not yet served is ejected by a single one. */
  static readonly failuresToEject = 3;
  /** Answers with a server error in a row that eject. */
  static readonly errorsToEject = 5;
  static readonly firstEjectionMs = 10_000;
  static readonly maxEjectionMs = 300_000;
  /** The ejections that are remembered of one instance: so many make the longest, each twice as long as the one before. */
  static readonly maxEjections = 6;
  /** How much of a service may be out at a time. */
  static readonly maxEjectedShare = 0.5;
  readonly #clock: Clock;
  readonly #ejections: Readonly<Record<EjectionReason, CounterCell>>;

  constructor(clock: Clock, ejections: Readonly<Record<EjectionReason, CounterCell>>) {
    this.#clock = clock;
    this.#ejections = ejections;
  }

  /**
   * Of `count` usable instances at most half are out at a time: never all, and never a single one. Those that the brake
   * on mass withdrawal keeps count like any other, so that ejection cannot undo what the brake does.
   */
  static mayBeEjected(count: number): number {
    return Math.floor(count * Outlier.maxEjectedShare);
  }

  /** How long the ejection lasts that is the n-th. */
  static ejectionMs(nth: number): number {
    return Math.min(Outlier.firstEjectionMs * 2 ** (nth - 1), Outlier.maxEjectionMs);
  }

  /** Counts a connect failure. True when it ejected the backend, which is one of `siblings`. */
  failed(backend: Backend, siblings: readonly Backend[]): boolean {
    this.forget(backend);
    backend.failures += 1;
    return backend.failures >= Outlier.failuresToEject && this.#eject(backend, siblings, 'failures');
  }

  /** Takes note of an answer. True when it ejected the backend: too many in a row were the server's own errors. */
  answered(backend: Backend, isError: boolean, siblings: readonly Backend[]): boolean {
    backend.failures = 0;
    if (!isError) {
      backend.errors = 0;
      return false;
    }
    backend.errors += 1;
    if (backend.errors < Outlier.errorsToEject) return false;
    this.forget(backend);
    if (!this.#eject(backend, siblings, 'errors')) return false;
    backend.errors = 0;
    return true;
  }

  /** It was found to be much slower than its siblings. True when it was ejected. */
  slow(backend: Backend, siblings: readonly Backend[]): boolean {
    this.forget(backend);
    return this.#eject(backend, siblings, 'slowness');
  }

  #eject(backend: Backend, siblings: readonly Backend[], reason: EjectionReason): boolean {
    if (backend.ejectedUntilMs !== undefined) return false;
    if (!siblings.includes(backend)) return false;
    const out = siblings.reduce((count, sibling) => count + (sibling.ejectedUntilMs === undefined ? 0 : 1), 0);
    if (out >= Outlier.mayBeEjected(siblings.length)) return false;
    backend.ejections = Math.min(backend.ejections + 1, Outlier.maxEjections);
    backend.ejectedUntilMs = this.#clock.monotonicMs() + Outlier.ejectionMs(backend.ejections);
    backend.ejectedFor = reason;
    this.#ejections[reason].value += 1;
    return true;
  }

  /** Takes back what is over, and, where instances have gone, the oldest ejections beyond half. True when any was. */
  review(siblings: readonly Backend[]): boolean {
    const out: (Backend & { ejectedUntilMs: number })[] = [];
    for (const backend of siblings) if (isEjected(backend)) out.push(backend);
    if (out.length === 0) return false;
    const nowMs = this.#clock.monotonicMs();
    out.sort((a, b) => a.ejectedUntilMs - b.ejectedUntilMs);
    let surplus = out.length - Outlier.mayBeEjected(siblings.length);
    let changed = false;
    for (const backend of out) {
      if (surplus <= 0 && backend.ejectedUntilMs > nowMs) break;
      backend.cleanSinceMs = Math.min(backend.ejectedUntilMs, nowMs);
      (backend as Backend).ejectedUntilMs = undefined;
      surplus -= 1;
      changed = true;
    }
    return changed;
  }

  /** Forgets the ejections of a backend for which it has made up: its last attempt succeeded, and time has passed. */
  forget(backend: Backend): void {
    if (backend.ejections === 0 || backend.failures > 0 || backend.ejectedUntilMs !== undefined) return;
    const nowMs = this.#clock.monotonicMs();
    while (backend.ejections > 0) {
      const stepMs = Outlier.ejectionMs(backend.ejections);
      if (nowMs - backend.cleanSinceMs < stepMs) return;
      backend.cleanSinceMs += stepMs;
      backend.ejections -= 1;
    }
  }

  /** What was replaced behind the same id begins without a record. */
  static forgive(backend: Backend): void {
    backend.failures = 0;
    backend.errors = 0;
    backend.ejections = 0;
    backend.ejectedUntilMs = undefined;
  }
}

function isEjected(backend: Backend): backend is Backend & { ejectedUntilMs: number } {
  return backend.ejectedUntilMs !== undefined;
}
