import { isIP, isIPv4 } from 'node:net';
import { isPlain, printable, truncate } from './text.ts';

/** Thrown while a stored document is read and caught where reading begins: its message says which field and why. */
export class FieldFault extends Error {}

/** Most records have neither tags nor metadata: these stand for all that is empty. */
const noTexts: readonly string[] = Object.freeze([]);
const noEntries: Readonly<Record<string, string>> = Object.freeze({});

type Shape = Readonly<Record<string, unknown>>;

/**
 * Reads the fields of a JSON object that a stranger may have written. Every reader names the field in its fault; fields
 * that nobody reads are ignored, so that newer versions may add some.
 */
export class Fields {
  readonly #object: Shape;
  readonly #path: string;

  constructor(value: unknown, path = '') {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw new FieldFault(`${path === '' ? 'it' : path} is not an object`);
    }
    this.#object = value as Shape;
    this.#path = path === '' ? '' : `${path}.`;
  }

  has(name: string): boolean {
    return this.#object[name] !== undefined;
  }

  raw(name: string): unknown {
    return this.#object[name];
  }

  /** Text of `min` to `max` UTF-16 units that no terminal can misread. */
  text(name: string, max: number, min = 0): string {
    return this.#checkText(name, this.#object[name], max, min);
  }

  /** Text for which `faultOf` finds no fault. */
  name(name: string, faultOf: (text: string) => string | undefined): string {
    const text = this.#checkText(name, this.#object[name], 255, 0);
    const fault = faultOf(text);
    if (fault !== undefined) throw this.#fault(name, `"${text}" ${fault}`);
    return text;
  }

  integer(name: string, min: number, max: number): number {
    const value = this.#object[name];
    if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
      throw this.#fault(name, `${shown(value)} is not a whole number from ${min} to ${max}`);
    }
    return value;
  }

  flag(name: string): boolean {
    const value = this.#object[name];
    if (typeof value !== 'boolean') throw this.#fault(name, `${shown(value)} is not true or false`);
    return value;
  }

  oneOf<T extends string>(name: string, words: readonly T[]): T {
    const value = this.#object[name];
    if (!words.includes(value as T)) throw this.#fault(name, `${shown(value)} is none of ${words.join(', ')}`);
    return value as T;
  }

  address(name: string): string {
    const value = this.text(name, 45, 1);
    if (isIP(value) === 0) throw this.#fault(name, `${shown(value)} is not an IP address`);
    return value;
  }

  ipv4(name: string): string {
    const value = this.text(name, 15, 1);
    if (!isIPv4(value)) throw this.#fault(name, `${shown(value)} is not an IPv4 address`);
    return value;
  }

  texts(name: string, maxItems: number, max: number): readonly string[] {
    const value = this.list(name, maxItems);
    if (value.length === 0) return noTexts;
    return Object.freeze(
      value.map((item, index) => (isPlainText(item, max) ? item : this.#checkText(`${name}[${index}]`, item, max, 0))),
    );
  }

  list(name: string, maxItems: number): readonly unknown[] {
    const value = this.#object[name];
    if (!Array.isArray(value)) throw this.#fault(name, 'is not a list');
    if (value.length > maxItems) throw this.#fault(name, `has ${value.length} entries, more than ${maxItems}`);
    return value;
  }

  /** A map of texts, with its keys in order, so that equal maps have equal encodings. */
  textMap(name: string, maxItems: number, maxKey: number, max: number): Readonly<Record<string, string>> {
    const value = this.#object[name];
    if (typeof value !== 'object' || value === null || Array.isArray(value))
      throw this.#fault(name, 'is not an object');
    const keys = Object.keys(value);
    if (keys.length > maxItems) throw this.#fault(name, `has ${keys.length} entries, more than ${maxItems}`);
    if (keys.length === 0) return noEntries;
    if (isPlainMap(value as Shape, keys, maxKey, max)) return Object.freeze({ ...(value as Record<string, string>) });
    const checked = Object.entries(value).map(([key, text]): [string, string] => [
      this.#checkText(`key of ${name}`, key, maxKey, 1),
      this.#checkText(`${name}.${key}`, text, max, 0),
    ]);
    checked.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
    return Object.freeze(Object.fromEntries(checked));
  }

  fields(name: string): Fields {
    return new Fields(this.#object[name], `${this.#path}${name}`);
  }

  #checkText(name: string, value: unknown, max: number, min: number): string {
    if (isPlainText(value, max) && value.length >= min) return value;
    if (typeof value !== 'string') throw this.#fault(name, `${shown(value)} is not text`);
    const text = printable(value);
    if (text.length < min) throw this.#fault(name, 'is empty');
    if (text.length > max) throw this.#fault(name, `is longer than ${max} characters`);
    return text;
  }

  #fault(name: string, what: string): FieldFault {
    return new FieldFault(`${this.#path}${truncate(printable(name), 80)}: ${what}`);
  }
}

/** Whether it is what nearly every text is: short enough, and printable as it is. */
function isPlainText(value: unknown, max: number): value is string {
  return typeof value === 'string' && value.length <= max && isPlain(value);
}

/** Whether the map is what Legate writes: plain texts, with its keys in order. */
function isPlainMap(map: Shape, keys: readonly string[], maxKey: number, max: number): boolean {
  let before = '';
  for (const key of keys) {
    // An own `__proto__` is copied by nothing but the long way.
    if (key <= before || key === '__proto__' || !isPlainText(key, maxKey) || !isPlainText(map[key], max)) return false;
    before = key;
  }
  return true;
}

function shown(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? 'a list' : 'an object';
  return truncate(printable(JSON.stringify(value) ?? typeof value), 60);
}
