import type { Conditions } from '../../src/base/conditions.ts';
import { quoted } from './label-values.ts';

/** Reports names of services that were written differently and became equal, over all containers. */
export class ServiceNames {
  readonly #conditions: Conditions;
  /** Service -> name as written -> the containers that wrote it so. */
  readonly #writers = new Map<string, Map<string, Set<string>>>();

  constructor(conditions: Conditions) {
    this.#conditions = conditions;
  }

  update(
    container: string,
    before: readonly (readonly [service: string, written: string])[],
    after: readonly (readonly [service: string, written: string])[],
  ): void {
    for (const [service, written] of before) {
      const names = this.#writers.get(service);
      const writers = names?.get(written);
      writers?.delete(container);
      if (writers?.size === 0) names?.delete(written);
      if (names?.size === 0) this.#writers.delete(service);
    }
    for (const [service, written] of after) {
      const names = this.#writers.get(service) ?? new Map<string, Set<string>>();
      this.#writers.set(service, names.set(written, (names.get(written) ?? new Set()).add(container)));
    }
    for (const service of new Set([...before, ...after].map(([name]) => name))) this.#report(service);
  }

  #report(service: string): void {
    const id = `docker.names.${service}`;
    const written = [...(this.#writers.get(service)?.keys() ?? [])].sort();
    if (written.length < 2) {
      this.#conditions.clear(id);
      return;
    }
    const list = written.slice(0, 4).map(quoted).join(' and ');
    const hint = 'Write them alike if they are the same service, otherwise rename one.';
    this.#conditions.raise(id, 'note', `service names ${list} all become ${service}`, hint);
  }
}
