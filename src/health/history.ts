import { truncate } from '../base/text.ts';
import type { StoredStatus } from '../model/instance.ts';

export interface HealthChange {
  /** Wall clock, milliseconds. */
  readonly atMs: number;
  readonly status: StoredStatus;
  readonly output: string;
}

const maxChanges = 10;
/** Of each output; with ten thousand instances that all flap it is these that count. */
const maxOutputLength = 160;

/** The last changes of one instance's status. */
export class History {
  readonly #changes: HealthChange[] = [];

  constructor(first: Readonly<{ status: StoredStatus; output: string; changedAtMs: number }>) {
    this.add(first);
  }

  add({ status, output, changedAtMs }: Readonly<{ status: StoredStatus; output: string; changedAtMs: number }>): void {
    this.#changes.push({ atMs: changedAtMs, status, output: truncate(output, maxOutputLength) });
    if (this.#changes.length > maxChanges) this.#changes.shift();
  }

  newestFirst(): readonly HealthChange[] {
    return this.#changes.toReversed();
  }
}
