import { printable, truncate } from '../base/text.ts';

/** Where a value was written. `order` sorts faults: first the file from top to bottom, then variables, then flags. */
export interface Place {
  /** `legate.yaml:12:11`, `LEGATE_DNS_TTL`, `--dns-ttl`; empty for a default. */
  readonly text: string;
  readonly order: number;
}

/** One thing that is wrong with the configuration. */
export interface Fault {
  readonly place: string;
  /** Dotted: `services.db.port`, `instances[0].address`; empty when the whole is meant. */
  readonly path: string;
  /** The value and what was expected, or what is unknown, one line. */
  readonly message: string;
  /** All of it as one line for people. */
  readonly text: string;
}

/** Faults kept; further ones are only counted. */
export const maxFaultsKept = 200;

/** Collects all faults of one reading, so that they are reported together. */
export class Faults {
  readonly #kept: { order: number; fault: Fault }[] = [];
  #count = 0;

  get count(): number {
    return this.#count;
  }

  /** The value at `path` is wrong: `legate.yaml:12:11: services.db.port: "x" is not a port`. */
  add(at: Place, path: string, message: string): void {
    this.#keep(at, path, message, [at.text, path, message].filter((part) => part !== '').join(': '));
  }

  /** A key that nobody knows: the message names it, so its path comes last. */
  addKey(at: Place, parent: string, key: string, message: string): void {
    const where = parent === '' ? '' : ` (in ${parent})`;
    this.#keep(at, joinPath(parent, key), message, `${at.text === '' ? '' : `${at.text}: `}${message}${where}`);
  }

  /** Those kept, in the order in which they were written. */
  list(): Fault[] {
    return this.#kept.sort((a, b) => a.order - b.order).map(({ fault }) => fault);
  }

  #keep(at: Place, path: string, message: string, text: string): void {
    this.#count += 1;
    if (this.#kept.length >= maxFaultsKept) return;
    this.#kept.push({ order: at.order, fault: { place: at.text, path, message, text } });
  }
}

/** A value as faults show it: quoted, safe for a terminal, and short. */
export function quoted(text: string): string {
  return /^-?\d+(\.\d+)?$/.test(text) && text.length <= 20 ? text : `"${truncate(printable(text), 60)}"`;
}

/** A key as faults show it. */
export function keyText(key: string): string {
  return truncate(printable(key), 40);
}

export function joinPath(parent: string, key: string): string {
  return parent === '' ? keyText(key) : `${parent}.${keyText(key)}`;
}
