import type { Protocol } from '../../../src/model/instance.ts';
import type { RouteMatch, RouteRule } from '../../../src/model/routes.ts';
import { HttpFault } from '../fault.ts';
import { isBelow, plainPath } from './paths.ts';
import type { RequestView } from './request-view.ts';
import { Rule, Rules } from './rules.ts';

/** What will not work as whoever wrote it is likely to think. `path` begins behind the list of routes: `[1].redirect`. */
export interface RouteAdvice {
  readonly path: string;
  readonly message: string;
}

/** For each route at most one. */
export function routesAdvice(rules: readonly RouteRule[]): readonly RouteAdvice[] {
  const ready = rules.map((rule) => new Rule(rule));
  const table = new Rules(ready);
  return rules.flatMap((rule, index) => {
    const path = `[${index}]`;
    const before = rules.findIndex((other, at) => at < index && covers(other.match, rule.match));
    if (before >= 0) return [{ path, message: `no request gets to it: routes[${before}] is for all that it is for` }];
    if (isIdle(rule, rules.slice(index + 1))) {
      return [{ path, message: 'it does nothing: its requests go where they would go without it' }];
    }
    if (rule.redirect === undefined || !leadsBack(rule, ready[index], table, rules.length)) return [];
    return [
      {
        path: `${path}.redirect`,
        message: `it leads back to itself: a request for ${rule.redirect.to} is redirected again and again`,
      },
    ];
  });
}

/** `what`: `web leads to api`. */
export function speaksOtherwise(what: string, itsProtocol: Protocol, protocol: Protocol | undefined): string {
  return `a route of ${what}, which speaks ${itsProtocol}, and not ${protocol}`;
}

/** A route without an action still keeps its requests from those behind it. */
function isIdle(rule: RouteRule, behind: readonly RouteRule[]): boolean {
  return !acts(rule) && !behind.some((other) => acts(other) && overlap(rule.match, other.match));
}

function acts(rule: RouteRule): boolean {
  return Object.keys(rule).some((key) => key !== 'match');
}

/** Whether `a` matches whatever `b` does. */
function covers(a: RouteMatch, b: RouteMatch): boolean {
  if (a.host !== undefined && (b.host === undefined || !isHostOf(b.host, a.host))) return false;
  if (a.exact !== undefined && (b.exact === undefined || plainPath(a.exact) !== plainPath(b.exact))) return false;
  if (a.path !== undefined && plainPath(a.path) !== '/') {
    const path = b.exact ?? b.path;
    if (path === undefined || !isBelow(plainPath(path), plainPath(a.path))) return false;
  }
  if (a.method !== undefined && b.method?.every((method) => a.method?.includes(method)) !== true) return false;
  return Object.entries(a.header ?? {}).every(([name, value]) => {
    const given = b.header?.[name];
    return given !== undefined && (value === '*' || value === given);
  });
}

/** Whether there may be a request that both are for; whatever headers it has. */
function overlap(a: RouteMatch, b: RouteMatch): boolean {
  if (a.host !== undefined && b.host !== undefined && !isHostOf(a.host, b.host) && !isHostOf(b.host, a.host))
    return false;
  if (a.method !== undefined && b.method?.some((method) => a.method?.includes(method)) === false) return false;
  const [one, other] = [a.exact ?? a.path, b.exact ?? b.path];
  if (one === undefined || other === undefined) return true;
  const [mine, its] = [plainPath(one), plainPath(other)];
  return mine === its || (b.exact === undefined && isBelow(mine, its)) || (a.exact === undefined && isBelow(its, mine));
}

/** Whether a host, or all that `*.` before it stands for, is one of `pattern`. */
function isHostOf(host: string, pattern: string): boolean {
  if (!pattern.startsWith('*.')) return host === pattern;
  return host.length >= pattern.length && host.endsWith(pattern.slice(1));
}

/** Follows a redirect, as a client would that asks for the route's own path. */
function leadsBack(rule: RouteRule, own: Rule | undefined, table: Rules<Rule>, steps: number): boolean {
  let view = new Sample(rule.match, rule.match.exact ?? rule.match.path ?? '/');
  let found = find(table, view);
  if (found !== own) return false;
  for (let step = 0; step < steps; step += 1) {
    const redirect = found?.redirect;
    // Who is asked at another address cannot be told from here.
    if (found === undefined || redirect === undefined || !/^\/(?!\/)/.test(redirect.to)) return false;
    view = new Sample(rule.match, found.locationOf(view, redirect));
    found = find(table, view);
    if (found === own) return true;
  }
  return false;
}

function find(table: Rules<Rule>, view: RequestView): Rule | undefined {
  try {
    return table.find(view);
  } catch (error) {
    if (error instanceof HttpFault) return undefined;
    throw error;
  }
}

/** A request that has all that a route asks for, and no more. */
class Sample implements RequestView {
  readonly method: string;
  readonly host: string;
  readonly path: string;
  readonly query: string;
  readonly cookies = '';
  readonly #headers: Readonly<Record<string, string>>;

  constructor({ method, host, header = {} }: RouteMatch, target: string) {
    const at = target.indexOf('?');
    this.method = method?.[0] ?? 'GET';
    this.host = host?.replace('*', 'www') ?? '';
    this.path = at < 0 ? target : target.slice(0, at);
    this.query = at < 0 ? '' : target.slice(at);
    this.#headers = header;
  }

  first(name: string): string | undefined {
    return this.#headers[name];
  }

  has(name: string, value: string | undefined): boolean {
    const given = this.#headers[name];
    return given !== undefined && (value === undefined || value === given);
  }
}
