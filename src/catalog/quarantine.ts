import type { Conditions } from '../base/conditions.ts';
import type { CounterCell, Metrics } from '../base/metrics.ts';
import { printable, truncate } from '../base/text.ts';

/** How many bad entries are known by key; more are only counted. */
const maxTracked = 1000;
/** How many of these have a condition of their own; the rest share one. */
const maxNamed = 20;

const idPrefix = 'catalog.entry.';
const summaryId = 'catalog.entries';

/**
 * The stored entries that cannot be read. They count as absent and harm nothing else; each has a condition that names
 * its key and the reason, which ends when the entry is healed or gone.
 */
export class Quarantine {
  readonly #conditions: Conditions;
  readonly #refused: CounterCell;
  readonly #bad = new Map<string, string>();
  readonly #named = new Set<string>();

  constructor({ conditions, metrics }: { conditions: Conditions; metrics: Metrics }) {
    this.#conditions = conditions;
    this.#refused = metrics.counter('legate_catalog_refused_total', 'Stored entries that could not be read.');
    metrics.gauge('legate_catalog_quarantined_count', 'Stored entries that cannot be read now.', [], () => [
      [[], this.#bad.size],
    ]);
  }

  get size(): number {
    return this.#bad.size;
  }

  bad(key: string, reason: string): void {
    this.#refused.value += 1;
    if (!this.#bad.has(key) && this.#bad.size >= maxTracked) return;
    this.#bad.set(key, reason);
    if (this.#named.has(key) || this.#named.size < maxNamed) this.#raise(key, reason);
    this.#summarise();
  }

  /** The entry can be read again, or is gone. */
  good(key: string): void {
    if (!this.#bad.delete(key)) return;
    if (this.#named.delete(key)) {
      this.#conditions.clear(conditionId(key));
      for (const [other, reason] of this.#bad) {
        if (this.#named.has(other)) continue;
        this.#raise(other, reason);
        break;
      }
    }
    this.#summarise();
  }

  /** Forgets the entries under `prefix` that are not in `stillBad`. */
  retain(prefix: string, stillBad: ReadonlySet<string>): void {
    for (const key of [...this.#bad.keys()]) if (key.startsWith(prefix) && !stillBad.has(key)) this.good(key);
  }

  #raise(key: string, reason: string): void {
    this.#named.add(key);
    this.#conditions.raise(
      conditionId(key),
      'warning',
      `the stored entry ${shownKey(key)} cannot be read: ${reason}`,
      'it is left out; whoever wrote it will write it again, or delete it in the store',
    );
  }

  #summarise(): void {
    const unnamed = this.#bad.size - this.#named.size;
    if (unnamed <= 0) this.#conditions.clear(summaryId);
    else {
      const most = this.#bad.size >= maxTracked ? 'at least ' : '';
      const message = `${most}${unnamed} further stored entries cannot be read`;
      this.#conditions.raise(summaryId, 'warning', message, 'see legate_catalog_quarantined_count');
    }
  }
}

function shownKey(key: string): string {
  return truncate(printable(key), 200);
}

function conditionId(key: string): string {
  return `${idPrefix}${shownKey(key)}`;
}
