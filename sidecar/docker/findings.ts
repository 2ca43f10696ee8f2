import { isLegateError } from '../../src/base/errors.ts';
import type { Refusal } from '../../src/model/instance.ts';

/** What was found wrong in one container: what could not be registered, and what is merely worth knowing. Bounded. */
export class Findings {
  static readonly maxEach = 16;
  readonly #source: string;
  readonly refusals: Refusal[] = [];
  readonly notes: Refusal[] = [];

  constructor(source: string) {
    this.#source = source;
  }

  refuse(reason: string, hint: string, service?: string): void {
    this.#add(this.refusals, reason, hint, service);
  }

  note(reason: string, hint: string, service?: string): void {
    this.#add(this.notes, reason, hint, service);
  }

  /** Runs `parse`; a fault in what was declared becomes a refusal, anything else is thrown on. */
  attempt<T>(service: string | undefined, parse: () => T): T | undefined {
    try {
      return parse();
    } catch (error) {
      if (!isLegateError(error, 'E_INVALID')) throw error;
      this.refuse(error.message, error.hint ?? '', service);
      return undefined;
    }
  }

  #add(list: Refusal[], reason: string, hint: string, service: string | undefined): void {
    if (list.length >= Findings.maxEach) return;
    list.push(
      service === undefined ? { source: this.#source, reason, hint } : { source: this.#source, service, reason, hint },
    );
  }
}
