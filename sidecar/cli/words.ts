import { span } from '../../src/base/duration.ts';
import { printable } from '../../src/base/text.ts';

export { span };

/** How people read numbers, times and text from strangers. */

/** The time since an RFC 3339 moment; `?` when that is not one. */
export function since(moment: string, nowMs: number): string {
  return span(nowMs - Date.parse(moment));
}

export function plural(count: number, one: string, many = `${one}s`): string {
  return `${grouped(String(count))} ${count === 1 ? one : many}`;
}

/** Digits in groups of three: `81 204`; other text as it is. */
export function grouped(text: string): string {
  return /^\d{5,}$/.test(text) ? text.replace(/\B(?=(\d{3})+$)/g, ' ') : text;
}

/** `512 B`, `1.4 KB`, `96 MB`: decimal units. */
export function bytes(count: number): string {
  const units = ['B', 'KB', 'MB', 'GB', 'TB', 'PB'];
  let value = count;
  let index = 0;
  while (value >= 999.5 && index < units.length - 1) {
    value /= 1000;
    index += 1;
  }
  return `${index === 0 || value >= 9.95 ? Math.round(value) : value.toFixed(1)} ${units[index]}`;
}

const maxDepth = 32;

/**
 * The same document with every string, keys included, safe for a terminal: everything that came over the admin API
 * passes here before it is shown.
 */
export function clean<T>(value: T): T {
  return cleanPart(value, 0) as T;
}

function cleanPart(value: unknown, depth: number): unknown {
  if (typeof value === 'string') return printable(value);
  if (typeof value !== 'object' || value === null || depth > maxDepth) return value;
  if (Array.isArray(value)) return value.map((item) => cleanPart(item, depth + 1));
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [printable(key), cleanPart(item, depth + 1)]));
}

/** JSON for programs that also does no harm on a terminal: what `printable` would escape is escaped in JSON's way. */
export function safeJson(value: unknown, indent: number): string {
  return JSON.stringify(value, null, indent)
    .split('\n')
    .map((line) => printable(line))
    .join('\n');
}
