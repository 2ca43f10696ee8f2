import type { Conditions } from '../../src/base/conditions.ts';
import type { CounterCell, Metrics } from '../../src/base/metrics.ts';
import type { CallerCounters } from './caller-rules.ts';

/** Tells what the rules about callers dropped: packets that carried the address of another container. */
export class Spoofing {
  readonly #conditions: Conditions;
  readonly #id: string;
  readonly #table: string;
  readonly #spoofed: CounterCell;
  readonly #unrecorded: CounterCell;
  #last: CallerCounters = { spoofed: 0, unrecorded: 0 };

  constructor({ table, conditions, metrics }: { table: string; conditions: Conditions; metrics: Metrics }) {
    this.#table = table;
    this.#conditions = conditions;
    this.#id = `vip.${table}.spoofed`;
    this.#spoofed = metrics.counter(
      'legate_callers_spoofed_packets_total',
      'Packets to us that were dropped because they carried the address of another container.',
    );
    this.#unrecorded = metrics.counter(
      'legate_callers_unrecorded_packets_total',
      'Packets of containers that were dropped because too many new ones connect at once.',
    );
  }

  /** To be called when the table was built: its counters begin at 0. */
  restart(): void {
    this.#last = { spoofed: 0, unrecorded: 0 };
  }

  /** To be called now and then; a condition ends when nothing was dropped from one call to the next. */
  observe(now: CallerCounters): void {
    const spoofed = now.spoofed - this.#last.spoofed;
    const unrecorded = now.unrecorded - this.#last.unrecorded;
    this.#last = now;
    if (spoofed < 0 || unrecorded < 0) return;
    this.#spoofed.value += spoofed;
    this.#unrecorded.value += unrecorded;
    if (spoofed === 0) {
      this.#conditions.clear(this.#id);
      return;
    }
    this.#conditions.raise(
      this.#id,
      'warning',
      'a container sends packets with the address of another one; they are dropped',
      `\`nft list table bridge ${this.#table}\` counts them and shows who has which address; run what you do not trust with --cap-drop NET_RAW`,
      { 'callers.packets': spoofed },
    );
  }
}
