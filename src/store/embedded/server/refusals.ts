import type { Clock } from '../../../base/clock.ts';
import type { Conditions } from '../../../base/conditions.ts';
import type { Metrics } from '../../../base/metrics.ts';
import { printable, truncate } from '../../../base/text.ts';

export interface RefusalsOptions {
  readonly clock: Clock;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
}

interface Shown {
  toldMs: number;
  cancel: () => void;
}

/** At most so many clients and hosts are shown at a time; the others are only counted. */
const maxShown = 20;
/** What is said of one of them changes at most this often, and is taken back after a while without a further refusal. */
const tellEveryMs = 10_000;
const quietMs = 10 * 60_000;
const prefix = 'store.refused.';

/**
 * Shows who was refused by the offered store: one condition a client or host, which says what it tried last and ends when
 * it has kept quiet for a while. Everything is counted; what is said and logged is bounded.
 */
export class Refusals {
  readonly #options: RefusalsOptions;
  readonly #shown = new Map<string, Shown>();

  constructor(options: RefusalsOptions) {
    this.#options = options;
  }

  /** A client that was not let in. `why`: the end of a sentence about it. */
  connection(address: string, why: string): void {
    const message = `the store refuses a client from ${printable(truncate(address, 60))}: ${why}`;
    const hint = 'a host comes back with legate join; if it is none of yours, keep it away from this port';
    this.#show(`client.${address}`, message, hint);
  }

  /** A host that may not do what it asked for; `kind` in a word. */
  request(hostId: string, kind: string, text: string): void {
    const help = 'Requests that the offered store refused because the host may not do that, by what they concerned.';
    this.#options.metrics.counter('legate_store_refused_writes_total', help, { kind }).value += 1;
    const hint =
      'if that host is not to be trusted any more: legate host revoke; else it may run another version, or have an old policy';
    this.#show(`host.${hostId}`, text, hint);
  }

  close(): void {
    for (const { cancel } of this.#shown.values()) cancel();
    this.#shown.clear();
    this.#options.conditions.clearPrefix(prefix);
  }

  #show(name: string, message: string, hint: string): void {
    const { clock, conditions } = this.#options;
    const id = prefix + name;
    const nowMs = clock.monotonicMs();
    const known = this.#shown.get(name);
    if (known === undefined && this.#shown.size >= maxShown) return;
    known?.cancel();
    const cancel = clock.after(quietMs, () => {
      this.#shown.delete(name);
      conditions.clear(id);
    });
    const isNew = known === undefined || nowMs - known.toldMs >= tellEveryMs;
    this.#shown.set(name, { toldMs: isNew ? nowMs : known.toldMs, cancel });
    if (isNew) conditions.raise(id, 'warning', message, hint);
  }
}
