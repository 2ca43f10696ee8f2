import type { Clock } from '../src/base/clock.ts';
import type { CounterCell } from '../src/base/metrics.ts';
import type { Backend } from './balance/backend.ts';

/**
 * Keeps an instance that cannot be connected to out of the choice for a while (passive health checking). A later failure
 * of one that came back ejects it again at once, a success forgives all. Only links know of it: names and other hosts see
 * what the health checks say.
 */
export class Outlier {
  /** Connect failures in a row that eject. */
  static readonly failuresToEject = 3;
  static readonly ejectionMs = 10_000;
  readonly #clock: Clock;
  readonly #ejections: CounterCell;

  constructor(clock: Clock, ejections: CounterCell) {
    this.#clock = clock;
    this.#ejections = ejections;
  }

  /** Of `count` instances at most half are out at a time: never all, and never a single one. */
  static mayBeEjected(count: number): number {
    return Math.floor(count / 2);
  }

  /** Counts a connect failure. True when it ejected the backend, which is one of `siblings`. */
  failed(backend: Backend, siblings: readonly Backend[]): boolean {
    backend.failures += 1;
    if (backend.failures < Outlier.failuresToEject || backend.ejectedUntilMs !== undefined) return false;
    if (!siblings.includes(backend)) return false;
    const out = siblings.reduce((count, sibling) => count + (sibling.ejectedUntilMs === undefined ? 0 : 1), 0);
    if (out >= Outlier.mayBeEjected(siblings.length)) return false;
    backend.ejectedUntilMs = this.#clock.monotonicMs() + Outlier.ejectionMs;
    this.#ejections.value += 1;
    return true;
  }

  /** Takes back what is over, and, where instances have gone, the oldest ejections beyond half. True when any was. */
  review(siblings: readonly Backend[]): boolean {
    const out = siblings.filter((backend) => backend.ejectedUntilMs !== undefined);
    if (out.length === 0) return false;
    const nowMs = this.#clock.monotonicMs();
    out.sort((a, b) => (a.ejectedUntilMs ?? 0) - (b.ejectedUntilMs ?? 0));
    let surplus = out.length - Outlier.mayBeEjected(siblings.length);
    let changed = false;
    for (const backend of out) {
      if (surplus <= 0 && (backend.ejectedUntilMs ?? 0) > nowMs) break;
      backend.ejectedUntilMs = undefined;
      surplus -= 1;
      changed = true;
    }
    return changed;
  }

  /** What was replaced behind the same id begins without a record. */
  static forgive(backend: Backend): void {
    backend.failures = 0;
    backend.ejectedUntilMs = undefined;
  }
}
