/**
 * Keys of the seam and keys of Consul. Consul's tools expect no slash in front, so a prefix `/legate` becomes `legate`:
 * one leading slash is left out. What then would be taken for another key gets one: `x` is `/x` there, while keys with
 * two slashes in front, and `/` itself, stay. With a prefix that has no leading slash keys are the same on both sides.
 */
export class KeyNames {
  readonly #bare: boolean;
  /** Our own keys, which the seam does not show; ends in a slash. */
  readonly hidden: string;

  constructor(prefix: string) {
    this.#bare = prefix.startsWith('/');
    this.hidden = `${this.toConsul(prefix)}/.consul/`;
  }

  toConsul(key: string): string {
    if (!this.#bare || key.startsWith('//') || key === '/') return key;
    return key.startsWith('/') ? key.slice(1) : `/${key}`;
  }

  fromConsul(key: string): string {
    if (!this.#bare || key.startsWith('//') || key === '/') return key;
    return key.startsWith('/') ? key.slice(1) : `/${key}`;
  }

  /** What to list in Consul to have every key of the seam that begins so, and perhaps more. */
  prefixToConsul(prefix: string): string {
    return prefix === '' || prefix === '/' ? '' : this.toConsul(prefix);
  }
}

/**
 * The longest part of a prefix that can stand in an address: Consul's server takes `//`, `.` and `..` in a path for
 * detours and answers with a redirection to another key.
 */
export function listablePrefix(prefix: string): string {
  const parts = prefix.split('/');
  const last = parts.length - 1;
  const bad = parts.findIndex((part, at) => part === '.' || part === '..' || (part === '' && at < last));
  return bad < 0
    ? prefix
    : parts
        .slice(0, bad)
        .map((part) => `${part}/`)
        .join('');
}
