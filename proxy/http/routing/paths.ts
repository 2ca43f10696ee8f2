import { HttpFault } from '../fault.ts';

/** What makes a path more than one could read off it. */
const special = /[%\\;]|\/\/|\/\.\.?(?:\/|$)/;
const dotSegment = /\/\.\.?(?:\/|$)/;

/**
 * How servers may understand a path. `plain` is the same resource by RFC 3986 section 6.2.2, with runs of slashes as one.
 * `loose` is what some servers make of it beyond that: encoded slashes and backslashes divide, and parameters behind `;`
 * do not count.
 */
export interface Readings {
  readonly plain: string;
  readonly loose: string;
}

/**
 * Gives a path itself when there is nothing to it, else how it may be read. Throws an HttpFault for one with the segments
 * `.` or `..`, also encoded ones, or with a NUL: where it leads depends on who resolves them, so that no rule could be relied on.
 */
export function readPath(path: string): string | Readings {
  if (!special.test(path)) return path;
  if (path.includes('%00')) throw new HttpFault('target', 'a path with a NUL, where some servers end it');
  const plain = plainPath(path);
  const loose = plain
    .replaceAll(/%2F|%5C|\\/g, '/')
    .replaceAll(/;[^/]*/g, '')
    .replaceAll(/\/{2,}/g, '/');
  if (dotSegment.test(loose)) throw new HttpFault('target', 'a path with dot segments, which its routes do not allow');
  return plain === loose ? plain : { plain, loose };
}

/** A rule's path is read in the same way. */
export function plainPath(path: string): string {
  return path.replaceAll(/%([0-9A-Fa-f]{2})/g, decoded).replaceAll(/\/{2,}/g, '/');
}

/** Visible ASCII; what divides paths or begins something else stays encoded, with capitals. */
function decoded(whole: string, digits: string): string {
  const text = String.fromCharCode(Number.parseInt(digits, 16));
  return /[!-~]/.test(text) && !/[%/\\?#]/.test(text) ? text : whole.toUpperCase();
}

/** Whether `path` is `prefix` or below it: `/api` has `/api` and `/api/x`; `/api/` has only what is below. */
export function isBelow(path: string, prefix: string): boolean {
  if (!path.startsWith(prefix)) return false;
  return path.length === prefix.length || prefix.endsWith('/') || path.charCodeAt(prefix.length) === 0x2f;
}

/** What follows the segments of `prefix` in a path below it, however they are written: empty, or it begins with a slash. */
function restBehind(path: string, prefix: string): string {
  let segments = 0;
  for (const segment of prefix.split('/')) if (segment !== '') segments += 1;
  let at = 0;
  for (; segments > 0; segments -= 1) {
    while (path.charCodeAt(at) === 0x2f) at += 1;
    while (at < path.length && path.charCodeAt(at) !== 0x2f) at += 1;
  }
  return path.slice(at);
}

/** One slash, or none where nothing follows: two would begin a host. */
function withOneSlash(rest: string): string {
  const text = rest.replace(/^[/\\]+/, '');
  return text === '' && rest === '' ? '' : `/${text}`;
}

/** A path with its beginning changed; itself where `strip` is not its beginning and nothing is added. */
export function rewritten(path: string, strip: string | undefined, add: string | undefined): string {
  // It is about the server as a whole.
  if (path === '*') return path;
  let rest = path;
  if (strip !== undefined) {
    const read = readPath(path);
    if (isBelow(typeof read === 'string' ? read : read.plain, strip)) rest = withOneSlash(restBehind(path, strip));
  }
  if (add === undefined) return rest === '' ? '/' : rest;
  return add.endsWith('/') ? `${add.slice(0, -1)}${withOneSlash(rest) || '/'}` : `${add}${withOneSlash(rest)}`;
}

/**
 * Where a redirect leads. What follows `prefix` in the path is only ever appended as a path: it begins no host, and ends
 * none.
 */
export function locationOf(to: string, path: string, query: string, prefix: string | undefined): string {
  if (!to.endsWith('*')) return to;
  const base = to.slice(0, -1);
  const rest = path === '*' ? '' : withOneSlash(prefix === undefined ? path : restBehind(path, prefix));
  const whole = base.endsWith('/') ? `${base}${rest.slice(1)}` : `${base}${rest}`;
  return base.includes('?') ? `${whole}${query.replace('?', '&')}` : `${whole}${query}`;
}
