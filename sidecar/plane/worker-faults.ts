import type { Condition, Conditions } from '../../src/base/conditions.ts';

/** What is wrong in workers, shown once however many of them say so, and until the last one has it no more. */
export class WorkerFaults {
  readonly #conditions: Conditions;
  /** By condition, which workers have it. */
  readonly #slots = new Map<string, Set<number>>();

  constructor(conditions: Conditions) {
    this.#conditions = conditions;
  }

  raise(slot: number, id: string, severity: Condition['severity'], message: string, hint: string): void {
    this.#conditions.raise(id, severity, message, hint);
    const slots = this.#slots.get(id);
    if (slots !== undefined) slots.add(slot);
    else if (this.#slots.size < maxFaults) this.#slots.set(id, new Set([slot]));
  }

  clear(slot: number, id: string): void {
    const slots = this.#slots.get(id);
    if (slots === undefined) return;
    slots.delete(slot);
    if (slots.size > 0) return;
    this.#slots.delete(id);
    this.#conditions.clear(id);
  }

  /** The worker is gone, and what was wrong in it. */
  forget(slot: number): void {
    for (const id of [...this.#slots.keys()]) this.clear(slot, id);
  }

  forgetAll(): void {
    for (const id of this.#slots.keys()) this.#conditions.clear(id);
    this.#slots.clear();
  }
}

/** As many as `Conditions` keeps. */
const maxFaults = 1000;
