import type { Conditions } from '../../base/conditions.ts';
import { EtcdFailure } from './failure.ts';

const condition = 'store.etcd.alarm';

/** What etcd itself says is wrong with it: no space, or damaged data. Everybody is told once, by the conditions. */
export class Alarms {
  readonly #conditions: Conditions;
  #active = false;

  constructor(conditions: Conditions) {
    this.#conditions = conditions;
  }

  get active(): boolean {
    return this.#active;
  }

  /** What a member says of its cluster now, in etcd's words. */
  told(errors: readonly string[]): void {
    if (errors.some((text) => text.includes('NOSPACE'))) this.raise('no-space');
    else if (errors.some((text) => text.includes('CORRUPT'))) this.raise('corrupt');
    else {
      this.#active = false;
      this.#conditions.clear(condition);
    }
  }

  raise(kind: 'no-space' | 'corrupt'): void {
    this.#active = true;
    const message =
      kind === 'no-space'
        ? 'etcd has the alarm NOSPACE: it takes no writes until its operator has made space'
        : 'etcd has the alarm CORRUPT: a member has damaged data';
    this.#conditions.raise(condition, 'error', message, new EtcdFailure(kind, message).hint);
  }
}
