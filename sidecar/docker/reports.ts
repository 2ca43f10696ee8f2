import { isDeepStrictEqual } from 'node:util';
import type { Conditions } from '../../src/base/conditions.ts';
import { Latest } from '../../src/base/feed.ts';
import type { Refusal } from '../../src/model/instance.ts';
import { shortId } from './container.ts';

/** Tells people what containers asked for and did not get: as a list, and as conditions, which log each once. */
export class Reports {
  readonly #conditions: Conditions;
  /** Containers that have conditions. */
  readonly #reported = new Set<string>();
  readonly refusals = new Latest<readonly Refusal[]>([]);

  constructor(conditions: Conditions) {
    this.#conditions = conditions;
  }

  /**
   * Replaces what was said of one container. `before` is what the last call returned for it; returns the refusals that
   * are in the list now.
   */
  update(
    id: string,
    before: readonly Refusal[],
    after: readonly Refusal[],
    notes: readonly Refusal[],
  ): readonly Refusal[] {
    const unchanged = isDeepStrictEqual(before, after);
    if (unchanged && after.length === 0 && notes.length === 0 && !this.#reported.has(id)) return before;
    const prefix = `docker.container.${shortId(id)}.`;
    const active = new Set([
      ...this.#raise(`${prefix}refused`, 'warning', id, after),
      ...this.#raise(`${prefix}note`, 'note', id, notes),
    ]);
    this.#conditions.clearPrefix(prefix, active);
    if (active.size > 0) this.#reported.add(id);
    else this.#reported.delete(id);
    if (unchanged) return before;
    const gone = new Set(before);
    this.refusals.set([...this.refusals.value.filter((refusal) => !gone.has(refusal)), ...after]);
    return after;
  }

  #raise(prefix: string, severity: 'warning' | 'note', id: string, list: readonly Refusal[]): string[] {
    return list.map(({ source, service, reason, hint }, index) => {
      const condition = `${prefix}.${index}`;
      const subject = service === undefined ? source : `${source} (service ${service})`;
      const fields = { 'docker.container': shortId(id) };
      this.#conditions.raise(condition, severity, `${subject}: ${reason}`, hint, fields);
      return condition;
    });
  }
}
