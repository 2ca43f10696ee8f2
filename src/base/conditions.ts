import type { Clock } from './clock.ts';
import type { Log, LogFields } from './log.ts';
import type { Metrics } from './metrics.ts';

/** Something that is wrong now: what, since when, and what to do. `status` shows these, most severe first. */
export interface Condition {
  /** Stable, dotted: `dns.listen.172.18.0.1:53`. One condition per id at a time. */
  readonly id: string;
  readonly severity: 'error' | 'warning' | 'note';
  /** What is wrong and where, one line without a final full stop. */
  readonly message: string;
  /** What the reader can do. */
  readonly hint: string;
  readonly sinceMs: number;
  /** How often it was raised since it began. */
  readonly count: number;
}

/**
 * The register of what is wrong. A fault is logged once when it begins and once when it is over; in between it is
 * counted. The first raise decides since when; a later raise may change message and hint. Bounded: beyond
 * `maxConditions`, new ones are only logged.
 */
export class Conditions {
  static readonly maxConditions = 1000;
  readonly #active = new Map<string, Condition>();
  readonly #log: Log;
  readonly #clock: Clock;

  constructor(log: Log, clock: Clock, metrics: Metrics) {
    this.#log = log;
    this.#clock = clock;
    metrics.gauge('legate_agent_conditions_count', 'Things that are wrong now, by severity.', ['severity'], () =>
      (['error', 'warning', 'note'] as const).map((severity) => [
        [severity],
        [...this.#active.values()].filter((condition) => condition.severity === severity).length,
      ]),
    );
  }

  raise(id: string, severity: Condition['severity'], message: string, hint: string, fields: LogFields = {}): void {
    const known = this.#active.get(id);
    if (known !== undefined) {
      this.#active.set(id, { ...known, severity, message, hint, count: known.count + 1 });
      if (known.message !== message) this.#write(severity, message, hint, id, fields);
      return;
    }
    this.#write(severity, message, hint, id, fields);
    if (this.#active.size >= Conditions.maxConditions) return;
    this.#active.set(id, { id, severity, message, hint, sinceMs: this.#clock.nowMs(), count: 1 });
  }

  /** Ends a condition; nothing happens when it is not active. */
  clear(id: string): void {
    const known = this.#active.get(id);
    if (known === undefined) return;
    this.#active.delete(id);
    this.#log.info('fault is over', {
      'condition.id': id,
      'condition.message': known.message,
      'condition.count': known.count,
      'condition.lasted_ms': this.#clock.nowMs() - known.sinceMs,
    });
  }

  /** Ends every condition whose id begins with `prefix`, except those named. */
  clearPrefix(prefix: string, except: ReadonlySet<string> = new Set()): void {
    for (const id of [...this.#active.keys()]) if (id.startsWith(prefix) && !except.has(id)) this.clear(id);
  }

  list(): Condition[] {
    const rank = { error: 0, warning: 1, note: 2 };
    return [...this.#active.values()].sort((a, b) => rank[a.severity] - rank[b.severity] || a.sinceMs - b.sinceMs);
  }

  #write(severity: Condition['severity'], message: string, hint: string, id: string, fields: LogFields): void {
    const line = { 'condition.id': id, hint, ...fields };
    if (severity === 'error') this.#log.error(message, line);
    else if (severity === 'warning') this.#log.warn(message, line);
    else this.#log.info(message, line);
  }
}
