import type { Redirect, RouteMatch, RouteRule } from '../../../src/model/routes.ts';
import { HttpFault } from '../fault.ts';
import { HeaderEdits } from './header-edits.ts';
import { isBelow, locationOf, plainPath, readPath, rewritten } from './paths.ts';
import type { RequestView } from './request-view.ts';

/** One rule, made ready to be asked often. */
export class Rule {
  readonly redirect: Redirect | undefined;
  readonly request: HeaderEdits | undefined;
  readonly response: HeaderEdits | undefined;
  /** Whether paths decide about it or are changed by it. */
  readonly usesPaths: boolean;
  readonly #host: string | undefined;
  /** What a host has to end in, with its dot. */
  readonly #domain: string | undefined;
  readonly #path: string | undefined;
  readonly #exact: string | undefined;
  readonly #methods: readonly string[] | undefined;
  readonly #headers: readonly (readonly [name: string, value: string | undefined])[];
  readonly #strip: string | undefined;
  readonly #add: string | undefined;

  constructor(rule: RouteRule) {
    const { host, path, exact, method, header = {} }: RouteMatch = rule.match;
    const isWild = host?.startsWith('*.') === true;
    this.#host = isWild ? undefined : host;
    this.#domain = isWild ? host.slice(1) : undefined;
    this.#path = path === undefined ? undefined : plainPath(path);
    this.#exact = exact === undefined ? undefined : plainPath(exact);
    this.#methods = method;
    this.#headers = Object.entries(header).map(([name, value]) => [name, value === '*' ? undefined : value]);
    this.#strip = rule.strip === undefined ? undefined : plainPath(rule.strip);
    this.#add = rule.add;
    this.redirect = rule.redirect;
    this.request = HeaderEdits.of(rule);
    this.response = HeaderEdits.of(rule.response);
    this.usesPaths = [path, exact, rule.strip, rule.add].some((each) => each !== undefined);
  }

  /** `path`: how the view's is read. */
  matches(view: RequestView, path: string): boolean {
    if (this.#path !== undefined && !isBelow(path, this.#path)) return false;
    if (this.#exact !== undefined && path !== this.#exact) return false;
    if (this.#host !== undefined && view.host !== this.#host) return false;
    if (this.#domain !== undefined && !isInside(view.host, this.#domain)) return false;
    if (this.#methods?.includes(view.method) === false) return false;
    for (const [name, value] of this.#headers) if (!view.has(name, value)) return false;
    return true;
  }

  /** The target that a request leaves with; undefined where it stays as it is. */
  targetOf(view: RequestView): string | undefined {
    if (this.#strip === undefined && this.#add === undefined) return undefined;
    return `${rewritten(view.path, this.#strip, this.#add)}${view.query}`;
  }

  locationOf({ path, query }: RequestView, { to }: Redirect): string {
    return locationOf(to, path, query, this.#path ?? this.#exact);
  }
}

/** The rules of one service, in their order: the first that matches decides. */
export class Rules<T extends Rule> {
  readonly #rules: readonly T[];
  readonly #usesPaths: boolean;

  constructor(rules: readonly T[]) {
    this.#rules = rules;
    this.#usesPaths = rules.some((rule) => rule.usesPaths);
  }

  /**
   * The one for this request; undefined for none. Throws an HttpFault for a path that cannot be told to belong to one of
   * them: rules may keep requests from a service, and nobody is to get past one by how a path is written.
   */
  find(view: RequestView): T | undefined {
    if (!this.#usesPaths) return this.#first(view, '');
    const path = readPath(view.path);
    if (typeof path === 'string') return this.#first(view, path);
    const rule = this.#first(view, path.plain);
    if (rule === this.#first(view, path.loose)) return rule;
    throw new HttpFault('target', 'a path that can be read in two ways, which different routes are for');
  }

  #first(view: RequestView, path: string): T | undefined {
    const rules = this.#rules;
    for (let index = 0; index < rules.length; index += 1) {
      const rule = rules[index];
      if (rule?.matches(view, path)) return rule;
    }
    return undefined;
  }
}

/** `domain` begins with its dot, and has nothing in front of it in its own name. */
function isInside(host: string, domain: string): boolean {
  return host.length > domain.length && host.endsWith(domain);
}
