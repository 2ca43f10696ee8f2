import { nearest, printable, truncate } from '../base/text.ts';
import { nameFault } from './names.ts';

/** Weights of a split by tag; none at all for no split. Each is a share of their sum. */
export type Weights = Readonly<Record<string, number>>;

/** Which requests a rule is for: all that it names must hold. */
export interface RouteMatch {
  /** The host asked for, without its port: a name, or `*.example.com` for all below it. Lower case. */
  readonly host?: string;
  /** The path itself, or what is below it: `/api` is for `/api`, `/api/x` and `/api?x`, not for `/apix`. */
  readonly path?: string;
  /** The path itself and nothing else. */
  readonly exact?: string;
  readonly method?: readonly string[];
  /** Headers by lower-case name, with the value that one of them must have; `*` for any. */
  readonly header?: Readonly<Record<string, string>>;
}

/** What is done to the headers of a request or a response: first `remove`, then `set`. Names in lower case. */
export interface HeaderChanges {
  readonly set?: Readonly<Record<string, string>>;
  readonly remove?: readonly string[];
}

/** Where copies of requests go, whose answers nobody sees: another service, or instances with a tag, or both. */
export interface Mirror {
  readonly service?: string;
  readonly tag?: string;
  /** How many of a hundred requests are copied; default 100. */
  readonly percent?: number;
}

export interface Redirect {
  /** Where to: a URL, or a path. Where it ends in `*`, what followed the rule's path, and the query, takes its place. */
  readonly to: string;
  readonly status: number;
}

/** One of a service's routes. */
export interface RouteRule extends HeaderChanges {
  readonly match: RouteMatch;
  /** Another service that such requests go to; default: the one that was asked. */
  readonly service?: string;
  /** Instead of the service's own. */
  readonly split?: Weights;
  readonly sticky?: string;
  /** Taken off the beginning of the path. */
  readonly strip?: string;
  /** Put in front of the path. */
  readonly add?: string;
  readonly response?: HeaderChanges;
  readonly mirror?: Mirror;
  readonly redirect?: Redirect;
}

export const routeLimits = {
  rules: 100,
  /** Tags of a split. */
  tags: 16,
  weight: 1_000_000,
  /** Entries of a list or map of a rule. */
  entries: 32,
  text: 512,
} as const;

export const redirectStatuses = [301, 302, 303, 307, 308] as const;

/** What keeps a client on its side of a split: a cookie that Legate sets, or a header that the client brings. */
export type Sticky = { readonly kind: 'cookie' | 'header'; readonly name: string };

const stickyPattern = /^(cookie|header):([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64})$/;
export const defaultStickyCookie = 'legate-side';

/** Undefined for `off`, and for what has a fault. `cookie` alone is the cookie `legate-side`. */
export function parseSticky(text: string): Sticky | undefined {
  if (text === 'cookie') return { kind: 'cookie', name: defaultStickyCookie };
  const [, kind, name] = stickyPattern.exec(text) ?? [];
  if (kind === undefined || name === undefined) return undefined;
  return kind === 'cookie' ? { kind, name } : { kind: 'header', name: name.toLowerCase() };
}

/** What is wrong with it, as the end of a sentence; undefined when nothing is. */
export function stickyFault(text: string): string | undefined {
  if (text === 'off' || parseSticky(text) !== undefined) return undefined;
  return 'must be "off", "cookie", "cookie:NAME" or "header:NAME"';
}

/** What is wrong with the name of a side, as the end of a sentence; undefined when nothing is. */
export function tagFault(tag: string): string | undefined {
  return tag === '' || tag.length > 128 || printable(tag) !== tag ? 'is not a tag' : undefined;
}

/** Says what is wrong where: `path` from the value that is read, such as `[0].match.host`. */
export type RouteFault = (path: string, message: string) => void;

type Shape = Readonly<Record<string, unknown>>;

/**
 * Reads weights by tag from what was JSON or YAML (whose numbers may be text). Undefined after a fault was told.
 */
export function readWeights(value: unknown, path: string, fault: RouteFault): Weights | undefined {
  const reader = new RouteReader(fault);
  const weights = reader.weights(value, path);
  return reader.failed ? undefined : weights;
}

/** Reads a list of rules, in the same way. */
export function readRoutes(value: unknown, path: string, fault: RouteFault): readonly RouteRule[] | undefined {
  const reader = new RouteReader(fault);
  const rules = reader
    .list(value, path, routeLimits.rules)
    ?.map((item, index) => reader.rule(item, `${path}[${index}]`));
  return reader.failed || rules === undefined ? undefined : Object.freeze(rules.filter((rule) => rule !== undefined));
}

const ruleKeys = [
  'match',
  'service',
  'split',
  'sticky',
  'strip',
  'add',
  'set',
  'remove',
  'response',
  'mirror',
  'redirect',
] as const;
const methodPattern = /^[A-Z][A-Z0-9-]{0,31}$/;
const headerPattern = /^[!#$%&'*+\-.^_`|~0-9a-z]{1,64}$/;
const hostPattern = /^(?:\*\.)?[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?$/;
/** Path characters of RFC 3986, without `?` and `#`. */
const pathPattern = /^\/[A-Za-z0-9\-._~!$&'()*+,;=:@%/]*$/;
const dotSegment = /\/(?:\.|%2e){1,2}(?:\/|$)/i;
const redirectPattern = /^(?:https?:\/\/[A-Za-z0-9\-._~:[\]]+)?\/[A-Za-z0-9\-._~!$&'()*+,;=:@%/?]*$/;
/** Whose change would let two servers read a message in two ways, or that Legate sets itself. */
const untouchable = new Set([
  'host',
  'connection',
  'content-length',
  'transfer-encoding',
  'te',
  'trailer',
  'upgrade',
  'keep-alive',
  'proxy-connection',
  'expect',
]);

class RouteReader {
  failed = false;
  readonly #tell: RouteFault;

  constructor(tell: RouteFault) {
    this.#tell = tell;
  }

  #fault(path: string, message: string): undefined {
    this.failed = true;
    this.#tell(path, message);
  }

  rule(value: unknown, path: string): RouteRule | undefined {
    const shape = this.#shape(value, path, ruleKeys);
    if (shape === undefined) return undefined;
    const redirect = shape.redirect === undefined ? undefined : this.#redirect(shape.redirect, `${path}.redirect`);
    const rule = {
      match: shape.match === undefined ? {} : (this.#match(shape.match, `${path}.match`) ?? {}),
      ...this.#some('service', shape, path, (each, at) => this.#name(each, at)),
      ...this.#some('split', shape, path, (each, at) => this.weights(each, at)),
      ...this.#some('sticky', shape, path, (each, at) => this.#checked(each, at, stickyFault)),
      ...this.#some('strip', shape, path, (each, at) => this.#path(each, at)),
      ...this.#some('add', shape, path, (each, at) => this.#path(each, at)),
      ...this.#changes(shape, path),
      ...this.#some('response', shape, path, (each, at) => {
        const response = this.#shape(each, at, ['set', 'remove']);
        return response && this.#changes(response, at);
      }),
      ...this.#some('mirror', shape, path, (each, at) => this.#mirror(each, at)),
      ...(redirect !== undefined && { redirect }),
    };
    const others = ruleKeys.filter((key) => key !== 'match' && key !== 'redirect' && shape[key] !== undefined);
    if (shape.redirect !== undefined && others.length > 0) {
      this.#fault(path, `a redirect goes nowhere else: ${others.join(', ')} would have no effect beside it`);
    }
    if (rule.strip !== undefined && rule.strip === '/') this.#fault(`${path}.strip`, 'nothing would be left of a path');
    const asked = rule.match.path ?? rule.match.exact;
    if (rule.strip !== undefined && asked !== undefined && !begins(asked, rule.strip)) {
      this.#fault(`${path}.strip`, `no path that matches begins with ${quoted(rule.strip)}`);
    }
    return Object.freeze(rule);
  }

  weights(value: unknown, path: string): Weights | undefined {
    const entries = this.#entries(value, path, routeLimits.tags);
    if (entries === undefined) return undefined;
    const weights: Record<string, number> = {};
    for (const [tag, weight] of entries) {
      if (tagFault(tag) !== undefined) this.#fault(path, `${quoted(tag)} ${tagFault(tag)}`);
      else {
        const read = this.#number(weight, `${path}.${tag}`, 0, routeLimits.weight);
        if (read !== undefined) weights[tag] = read;
      }
    }
    const values = Object.values(weights);
    if (values.length > 0 && values.every((weight) => weight === 0)) {
      this.#fault(path, 'has no weight above 0: requests would go nowhere');
    }
    return Object.freeze(weights);
  }

  list(value: unknown, path: string, max: number): readonly unknown[] | undefined {
    if (!Array.isArray(value)) return this.#fault(path, `${described(value)} is not a list`);
    if (value.length > max) return this.#fault(path, `${value.length} entries are more than the ${max} allowed`);
    return value;
  }

  #match(value: unknown, path: string): RouteMatch | undefined {
    const shape = this.#shape(value, path, ['host', 'path', 'exact', 'method', 'header']);
    if (shape === undefined) return undefined;
    if (shape.path !== undefined && shape.exact !== undefined) this.#fault(path, 'has both path and exact: choose one');
    return Object.freeze({
      ...this.#some('host', shape, path, (each, at) => {
        const host = this.#text(each, at)?.toLowerCase();
        if (host === undefined || hostPattern.test(host)) return host;
        return this.#fault(at, `${quoted(host)} is not a host (a name without port, or *.example.com)`);
      }),
      ...this.#some('path', shape, path, (each, at) => this.#path(each, at)),
      ...this.#some('exact', shape, path, (each, at) => this.#path(each, at)),
      ...this.#some('method', shape, path, (each, at) => this.#methods(each, at)),
      ...this.#some('header', shape, path, (each, at) => this.#headers(each, at, 'match')),
    });
  }

  #methods(value: unknown, path: string): readonly string[] | undefined {
    const list = this.list(typeof value === 'string' ? value.split(',') : value, path, routeLimits.entries);
    const methods = list?.map((item) => {
      const text = this.#text(item, path)?.trim();
      if (text === undefined || methodPattern.test(text)) return text;
      return this.#fault(path, `${quoted(text)} is not a method (GET, POST …, in capitals)`);
    });
    return methods && Object.freeze(methods.filter((method) => method !== undefined));
  }

  #mirror(value: unknown, path: string): Mirror | undefined {
    const shape = this.#shape(value, path, ['service', 'tag', 'percent']);
    if (shape === undefined) return undefined;
    if (shape.service === undefined && shape.tag === undefined) this.#fault(path, 'names neither service nor tag');
    return Object.freeze({
      ...this.#some('service', shape, path, (each, at) => this.#name(each, at)),
      ...this.#some('tag', shape, path, (each, at) => this.#text(each, at)),
      ...this.#some('percent', shape, path, (each, at) => this.#number(each, at, 1, 100)),
    });
  }

  #redirect(value: unknown, path: string): Redirect | undefined {
    const shape = typeof value === 'string' ? { to: value } : this.#shape(value, path, ['to', 'status']);
    if (shape === undefined) return undefined;
    const given: Shape = shape;
    const to = this.#text(given.to, `${path}.to`);
    const status = given.status === undefined ? 308 : this.#number(given.status, `${path}.status`, 300, 399);
    if (to === undefined || status === undefined) return undefined;
    if (to.slice(0, -1).includes('*')) return this.#fault(`${path}.to`, `${quoted(to)} has a * that is not at its end`);
    if (!redirectPattern.test(to))
      return this.#fault(`${path}.to`, `${quoted(to)} is neither a URL with a path nor a path`);
    if (!redirectStatuses.some((each) => each === status)) {
      return this.#fault(`${path}.status`, `${status} is none of ${redirectStatuses.join(', ')}`);
    }
    return Object.freeze({ to, status });
  }

  #changes(shape: Shape, path: string): HeaderChanges {
    return {
      ...this.#some('set', shape, path, (each, at) => this.#headers(each, at, 'set')),
      ...this.#some('remove', shape, path, (each, at) => {
        const names = this.list(typeof each === 'string' ? [each] : each, at, routeLimits.entries);
        return (
          names && Object.freeze(names.map((name) => this.#headerName(name, at)).filter((name) => name !== undefined))
        );
      }),
    };
  }

  #headers(value: unknown, path: string, use: 'set' | 'match'): Readonly<Record<string, string>> | undefined {
    const entries = this.#entries(value, path, routeLimits.entries);
    if (entries === undefined) return undefined;
    const headers: Record<string, string> = {};
    for (const [key, item] of entries) {
      const name = use === 'set' ? this.#headerName(key, path) : this.#tokenName(key, path);
      const text = this.#text(item, `${path}.${key}`);
      if (name !== undefined && text !== undefined) headers[name] = text;
    }
    return Object.freeze(headers);
  }

  #headerName(value: unknown, path: string): string | undefined {
    const name = this.#tokenName(value, path);
    if (name === undefined || !untouchable.has(name)) return name;
    return this.#fault(path, `${name} is not to be changed: it says how the message is carried`);
  }

  #tokenName(value: unknown, path: string): string | undefined {
    const name = this.#text(value, path)?.toLowerCase();
    if (name === undefined || headerPattern.test(name)) return name;
    return this.#fault(path, `${quoted(name)} is not the name of a header`);
  }

  #name(value: unknown, path: string): string | undefined {
    return this.#checked(value, path, nameFault);
  }

  #path(value: unknown, path: string): string | undefined {
    return this.#checked(value, path, (text) => {
      if (!pathPattern.test(text)) return 'is not a path such as /api';
      return dotSegment.test(text) ? 'has a segment . or .., which no request may have' : undefined;
    });
  }

  #checked(value: unknown, path: string, faultOf: (text: string) => string | undefined): string | undefined {
    const text = this.#text(value, path);
    const fault = text === undefined ? undefined : faultOf(text);
    return fault === undefined ? text : this.#fault(path, `${quoted(text ?? '')} ${fault}`);
  }

  /** Visible ASCII and spaces: it may become part of a head. */
  #text(value: unknown, path: string): string | undefined {
    const text = typeof value === 'number' || typeof value === 'boolean' ? String(value) : value;
    if (typeof text !== 'string') return this.#fault(path, `${described(value)} is not text`);
    if (text.length > routeLimits.text) return this.#fault(path, `is longer than ${routeLimits.text} characters`);
    return /^[\x20-\x7e]*$/.test(text) ? text : this.#fault(path, 'has characters other than visible ASCII');
  }

  #number(value: unknown, path: string, min: number, max: number): number | undefined {
    const number = typeof value === 'string' && /^\d{1,9}$/.test(value) ? Number(value) : value;
    if (typeof number === 'number' && Number.isInteger(number) && number >= min && number <= max) return number;
    return this.#fault(path, `${described(value)} is not a whole number from ${min} to ${max}`);
  }

  #some<K extends string, T>(
    key: K,
    shape: Shape,
    path: string,
    read: (value: unknown, path: string) => T | undefined,
  ): { readonly [P in K]?: T } {
    const value = shape[key];
    const result = value === undefined || value === null ? undefined : read(value, `${path}.${key}`);
    return (result === undefined ? {} : { [key]: result }) as { readonly [P in K]?: T };
  }

  #shape(value: unknown, path: string, known: readonly string[]): Shape | undefined {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      return this.#fault(path, `${described(value)} is not a map (of ${known.join(', ')})`);
    }
    for (const key of Object.keys(value)) {
      if (known.includes(key)) continue;
      const near = nearest(key, known);
      const hint = near === undefined ? `known are ${known.join(', ')}` : `did you mean \`${near}\`?`;
      this.#fault(path, `unknown key \`${truncate(printable(key), 40)}\`; ${hint}`);
    }
    return value as Shape;
  }

  #entries(value: unknown, path: string, max: number): [string, unknown][] | undefined {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      return this.#fault(path, `${described(value)} is not a map`);
    }
    const entries = Object.entries(value);
    if (entries.length > max) return this.#fault(path, `${entries.length} entries are more than the ${max} allowed`);
    // Equal maps have equal encodings.
    return entries.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
  }
}

/** Whether a path is `prefix`, or below it. */
function begins(path: string, prefix: string): boolean {
  return path === prefix || path.startsWith(prefix.endsWith('/') ? prefix : `${prefix}/`);
}

function quoted(text: string): string {
  return `"${truncate(printable(text), 60)}"`;
}

function described(value: unknown): string {
  if (value === null || value === undefined) return 'nothing';
  if (Array.isArray(value)) return 'a list';
  return typeof value === 'object' ? 'a map' : quoted(String(value));
}
