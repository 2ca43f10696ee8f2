import type { Conditions } from '../../base/conditions.ts';
import type { CounterCell, Metrics } from '../../base/metrics.ts';
import { printable, truncate } from '../../base/text.ts';

const conditionId = 'store.embedded.records';

/**
 * The damaged records that were met. Each is left out of every answer as if it were absent, counted once, and told in
 * one condition, which is over when the last of them was written anew or deleted. Bounded: beyond `maxNames` they are
 * counted at each meeting and no longer told apart.
 */
export class Quarantine {
  static readonly maxNames = 1000;
  readonly #path: string;
  readonly #conditions: Conditions | undefined;
  readonly #damaged: CounterCell;
  readonly #names = new Set<string>();

  constructor(options: { path: string; metrics: Metrics; conditions: Conditions | undefined }) {
    this.#path = options.path;
    this.#conditions = options.conditions;
    this.#damaged = options.metrics.counter(
      'legate_store_damaged_records_total',
      'Records of the embedded store that were found damaged and left out.',
    );
    options.metrics.gauge('legate_store_quarantined_records', 'Records left out because they are damaged.', [], () => [
      [[], this.#names.size],
    ]);
  }

  /** `name`: the key, or for a record that is none, what it is. */
  add(name: string): void {
    if (this.#names.has(name)) return;
    this.#damaged.value += 1;
    if (this.#names.size >= Quarantine.maxNames) return;
    this.#names.add(name);
    this.#tell();
  }

  /** The record was written anew or deleted. */
  remove(name: string): void {
    if (this.#names.size === 0 || !this.#names.delete(name)) return;
    if (this.#names.size === 0) this.#conditions?.clear(conditionId);
    else this.#tell();
  }

  #tell(): void {
    const [first = ''] = this.#names;
    const count = this.#names.size;
    this.#conditions?.raise(
      conditionId,
      'error',
      `${count} ${count === 1 ? 'record' : 'records'} of the store in ${this.#path} ${count === 1 ? 'is' : 'are'} damaged and left out, first ${truncate(printable(first), 100)}`,
      'check the disk; hosts write their own records again, keys under kv/ have to be put again or restored from a backup',
    );
  }
}
