import type { Sticky } from '../../../src/model/routes.ts';
import type { Link } from '../../link.ts';
import type { LinkTarget } from '../../link-target.ts';
import type { Account } from '../../tcp/carried.ts';
import { sideCookie } from './cookies.ts';
import { Lane } from './lane.ts';
import type { RequestView } from './request-view.ts';
import type { MirrorTo, RouteTo, ServiceRouting } from './service-routing.ts';
import type { Side, Sides } from './sides.ts';

/** The versions of HTTP between which nothing is translated. */
export type HttpVersion = 'http/1.1' | 'h2';

/** Why a request goes nowhere. */
export interface Refusal {
  readonly kind: 'denied' | 'unavailable' | 'lost';
  readonly reason: string;
}

/** What became of one request. Used again for the next one of the same client. */
export class Choice {
  /** Undefined where it goes nowhere. */
  lane: Lane | undefined;
  rule: RouteTo | undefined;
  /** What the request's target becomes; undefined: it stays. */
  target: string | undefined;
  redirect: { readonly status: number; readonly location: string } | undefined;
  refusal: Refusal | undefined;
  /** Where a copy goes. */
  mirror: Lane | undefined;
  /** The cookie that the client has not, or of which it has a value that does not count any more. */
  #cookie: string | undefined;

  reset(): void {
    this.lane = undefined;
    this.rule = undefined;
    this.target = undefined;
    this.redirect = undefined;
    this.refusal = undefined;
    this.mirror = undefined;
    this.#cookie = undefined;
  }

  asksForCookie(name: string): void {
    this.#cookie = name;
  }

  /** The value of the `Set-Cookie` behind an answer of this instance; undefined: there is none. */
  setCookie(backend: Parameters<Lane['cookieFor']>[0], isSecure: boolean): string | undefined {
    if (this.#cookie === undefined) return undefined;
    const side = this.lane?.cookieFor(backend);
    return side === undefined ? undefined : sideCookie(this.#cookie, side, isSecure);
  }
}

/** Where the requests of one link go, as its service's routes and split say. */
export class LinkRouting {
  readonly of: ServiceRouting;
  readonly #link: Link;
  /** By side, or by target where no side is chosen. */
  readonly #lanes = new WeakMap<Side | Sides | LinkTarget, Lane>();

  constructor(link: Link, of: ServiceRouting) {
    this.#link = link;
    this.of = of;
  }

  /** Chooses for one request; throws an HttpFault where it cannot be known which rule it is for. */
  choose(view: RequestView, account: Account, version: HttpVersion, choice: Choice): void {
    choice.reset();
    const rule = this.of.rules.find(view);
    choice.rule = rule;
    if (rule?.redirect !== undefined) {
      const location = rule.locationOf(view, rule.redirect);
      choice.redirect = { status: rule.redirect.status, location };
      return;
    }
    const target = rule?.target ?? this.of.target;
    const sides = rule?.sides ?? target.split;
    const sticky = rule === undefined ? target.http.sticky : rule.sticky;
    const lane = this.#lane(target, sides, sides && sideOf(sides, sticky, view, choice));
    if (target !== this.of.target) {
      choice.refusal = refusalOf(lane, account, version);
      if (choice.refusal !== undefined) return;
    }
    choice.lane = lane;
    choice.target = rule?.targetOf(view);
    if (rule?.mirror !== undefined) choice.mirror = this.#mirror(rule.mirror, account, version);
  }

  #mirror(mirror: MirrorTo, account: Account, version: HttpVersion): Lane | undefined {
    mirror.credit += mirror.percent;
    if (mirror.credit < 100) return undefined;
    mirror.credit -= 100;
    const { target, sides } = mirror;
    const side = sides?.next();
    // Copies go to no other than who is to have them.
    if (target.version !== version || (sides !== undefined && side === undefined)) return undefined;
    const lane = this.#lane(target, sides, side);
    return lane.admits(account) ? lane : undefined;
  }

  #lane(target: LinkTarget, sides: Sides | undefined, side: Side | undefined): Lane {
    const key = side ?? sides ?? target;
    let lane = this.#lanes.get(key);
    if (lane === undefined) {
      lane = new Lane({ link: this.#link, target, permission: this.of.permission, sides, side });
      this.#lanes.set(key, lane);
    }
    return lane;
  }
}

function refusalOf(lane: Lane, account: Account, version: HttpVersion): Refusal | undefined {
  const denial = lane.denial(account);
  if (denial !== undefined) return { kind: 'denied', reason: denial };
  const { name, service } = lane.target;
  if (service === undefined) return { kind: 'unavailable', reason: `a route leads to ${name}, which nobody offers` };
  if (lane.target.version === version) return undefined;
  return { kind: 'lost', reason: `a route leads to ${name}, which speaks ${service.protocol} and not ${version}` };
}

function sideOf(sides: Sides, sticky: Sticky | undefined, view: RequestView, choice: Choice): Side | undefined {
  if (sticky === undefined) return sides.next();
  if (sticky.kind === 'header') {
    const value = view.first(sticky.name);
    return value === undefined ? sides.next() : sides.of(value);
  }
  const known = sides.ofCookie(view.cookies, sticky.name);
  if (known !== undefined) return known;
  choice.asksForCookie(sticky.name);
  return sides.next();
}
