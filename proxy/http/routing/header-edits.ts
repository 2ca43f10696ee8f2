import type { OutgoingHttpHeaders } from 'node:http2';
import type { HeaderChanges } from '../../../src/model/routes.ts';
import type { Head } from '../head.ts';
import { isNamed } from './head-view.ts';

/** What a rule does to the headers of a message. */
export class HeaderEdits {
  /** Whole lines: what is set. */
  readonly lines: Buffer;
  readonly #set: readonly (readonly [name: string, value: string])[];
  /** What is removed, or replaced. */
  readonly #names: readonly string[];

  private constructor({ set = {}, remove = [] }: HeaderChanges) {
    this.#set = Object.entries(set);
    this.#names = [...new Set([...remove, ...this.#set.map(([name]) => name)])];
    this.lines = Buffer.from(this.#set.map(([name, value]) => `${name}: ${value}\r\n`).join(''), 'latin1');
  }

  /** Undefined where nothing changes. */
  static of(changes: HeaderChanges | undefined): HeaderEdits | undefined {
    if (changes === undefined) return undefined;
    const edits = new HeaderEdits(changes);
    return edits.#names.length === 0 ? undefined : edits;
  }

  /** Whether headers of this name, which is in lower case, are the rule's business. */
  touches(name: string): boolean {
    return this.#names.includes(name);
  }

  /** Whether this field of the head goes no further. */
  takes(head: Head, index: number): boolean {
    for (const name of this.#names) if (isNamed(head, index, name)) return true;
    return false;
  }

  /** The same, of HTTP/2. */
  apply(headers: OutgoingHttpHeaders): void {
    for (const name of this.#names) delete headers[name];
    for (const [name, value] of this.#set) headers[name] = value;
  }
}
