import type { Conditions } from '../../base/conditions.ts';
import type { CounterCell, Metrics } from '../../base/metrics.ts';
import { printable, truncate } from '../../base/text.ts';
import { maxKeyBytes } from '../store.ts';
import type { StoredPair } from './client.ts';

/** Consul takes 512 KiB unless it was configured otherwise; what is larger than this nobody of ours wrote. */
const maxValueBytes = 1024 * 1024;
const condition = 'store.foreign';

/** Leaves out what cannot be a key of the seam, and says so: others may write below our prefix. */
export class ForeignKeys {
  readonly #options: { readonly conditions: Conditions; readonly prefix: string };
  readonly #refused: CounterCell;

  constructor(options: { readonly conditions: Conditions; readonly metrics: Metrics; readonly prefix: string }) {
    this.#options = options;
    this.#refused = options.metrics.counter(
      'legate_store_foreign_keys_total',
      'Keys left out that nobody of ours wrote.',
    );
  }

  accepts({ key, value }: StoredPair): boolean {
    const fault = faultOf(key, value);
    if (fault === undefined) return true;
    this.#refused.value += 1;
    const shown = truncate(printable(key), 80);
    const message = `the key ${shown} in Consul ${fault}: it is left out`;
    const hint = `delete it (consul kv delete), and see who writes below ${this.#options.prefix}; this is shown until the next start`;
    this.#options.conditions.raise(condition, 'warning', message, hint);
    return false;
  }

  close(): void {
    this.#options.conditions.clear(condition);
  }
}

function faultOf(key: string, value: Uint8Array): string | undefined {
  if (Buffer.byteLength(key) > maxKeyBytes) return `is longer than ${maxKeyBytes} bytes`;
  if (key === '' || key.includes('\u0000')) return 'is not text';
  if (value.byteLength > maxValueBytes) return `has a value of ${value.byteLength} bytes`;
  return undefined;
}
