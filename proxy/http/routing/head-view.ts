import { fields } from '../fields.ts';
import type { Head } from '../head.ts';
import { hostOf, isOrLists, type RequestView } from './request-view.ts';

/**
 * The head of a request of HTTP/1. What no rule asks for is not made into text. One for a process: it looks at one head
 * after another.
 */
export class HeadView implements RequestView {
  readonly #head: Head;
  #method: string | undefined;
  #host: string | undefined;
  #path: string | undefined;
  #queryAt = 0;

  constructor(head: Head) {
    this.#head = head;
  }

  /** Forgets the head before. */
  reset(): this {
    this.#method = undefined;
    this.#host = undefined;
    this.#path = undefined;
    return this;
  }

  get method(): string {
    const head = this.#head;
    this.#method ??= head.text(head.start, head.methodEnd);
    return this.#method;
  }

  get host(): string {
    this.#host ??= this.#readHost();
    return this.#host;
  }

  #readHost(): string {
    const head = this.#head;
    if (head.authorityEnd > head.authorityStart) return hostOf(head.text(head.authorityStart, head.authorityEnd));
    return head.hostAt < 0 ? '' : hostOf(head.value(head.hostAt));
  }

  get path(): string {
    this.#path ??= this.#readPath();
    return this.#path;
  }

  #readPath(): string {
    const { buffer, pathStart, targetEnd } = this.#head;
    let end = pathStart;
    while (end < targetEnd && buffer[end] !== 0x3f) end += 1;
    this.#queryAt = end;
    // A whole URI may have none.
    return end === pathStart ? '/' : this.#head.text(pathStart, end);
  }

  get query(): string {
    this.#path ??= this.#readPath();
    return this.#head.text(this.#queryAt, this.#head.targetEnd);
  }

  get cookies(): string {
    const head = this.#head;
    let cookies = '';
    for (let index = 0; index < head.count; index += 1) {
      if (head.known[index] !== fields.cookie) continue;
      cookies = cookies === '' ? head.value(index) : `${cookies}; ${head.value(index)}`;
    }
    return cookies;
  }

  first(name: string): string | undefined {
    const head = this.#head;
    for (let index = 0; index < head.count; index += 1) if (isNamed(head, index, name)) return head.value(index);
    return undefined;
  }

  has(name: string, value: string | undefined): boolean {
    const head = this.#head;
    for (let index = 0; index < head.count; index += 1) {
      if (isNamed(head, index, name) && (value === undefined || isOrLists(head.value(index), value))) return true;
    }
    return false;
  }
}

/** Whether the field has this name, which is in lower case. */
export function isNamed({ buffer, spans }: Head, index: number, name: string): boolean {
  const start = spans[4 * index] as number;
  if ((spans[4 * index + 1] as number) - start !== name.length) return false;
  for (let at = 0; at < name.length; at += 1) {
    const byte = buffer[start + at] as number;
    const small = byte >= 0x41 && byte <= 0x5a ? byte | 0x20 : byte;
    if (small !== name.charCodeAt(at)) return false;
  }
  return true;
}
