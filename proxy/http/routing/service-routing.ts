import { parseSticky, type RouteRule, type Sticky } from '../../../src/model/routes.ts';
import type { LinkTarget } from '../../link-target.ts';
import type { Permission } from '../../permission.ts';
import { speaksOtherwise } from './route-advice.ts';
import { Rule, Rules } from './rules.ts';
import { Sides } from './sides.ts';

/** A rule, with where it leads. */
export class RouteTo extends Rule {
  readonly target: LinkTarget;
  /** Of the rule; undefined: the split of the service that it leads to. */
  readonly sides: Sides | undefined;
  readonly #sticky: Sticky | undefined;
  readonly #choosesSticky: boolean;
  readonly mirror: MirrorTo | undefined;

  constructor(rule: RouteRule, asked: LinkTarget, resolve: (service: string) => LinkTarget, random: () => number) {
    super(rule);
    this.target = rule.service === undefined ? asked : resolve(rule.service);
    this.sides = rule.split === undefined ? undefined : new Sides(rule.split, this.target.backends, random);
    this.#choosesSticky = rule.sticky !== undefined;
    this.#sticky = rule.sticky === undefined ? undefined : parseSticky(rule.sticky);
    const { mirror } = rule;
    if (mirror === undefined) return;
    const target = mirror.service === undefined ? asked : resolve(mirror.service);
    const { tag, percent = 100 } = mirror;
    this.mirror = {
      target,
      sides: tag === undefined ? undefined : new Sides({ [tag]: 1 }, target.backends, random),
      percent,
      credit: 0,
    };
  }

  get sticky(): Sticky | undefined {
    return this.#choosesSticky ? this.#sticky : this.target.http.sticky;
  }
}

export interface MirrorTo {
  readonly target: LinkTarget;
  /** Of one side: the tag's. */
  readonly sides: Sides | undefined;
  readonly percent: number;
  /** Grows by `percent` with each request; 100 are one copy. */
  credit: number;
}

export interface ServiceRoutingOptions {
  /** The service that is asked. */
  readonly target: LinkTarget;
  readonly rules: readonly RouteRule[];
  readonly resolve: (service: string) => LinkTarget;
  readonly random: () => number;
  readonly permission: Permission;
}

/** Where requests to one service may go; made anew with each change of its routes. */
export class ServiceRouting {
  readonly target: LinkTarget;
  readonly rules: Rules<RouteTo>;
  readonly permission: Permission;
  /** The other services that rules lead to, or copy to. */
  readonly others: ReadonlySet<LinkTarget>;
  readonly #leads: ReadonlySet<LinkTarget>;
  readonly #mirrors: ReadonlySet<LinkTarget>;

  constructor({ target, rules, resolve, random, permission }: ServiceRoutingOptions) {
    const ready = rules.map((rule) => new RouteTo(rule, target, resolve, random));
    const others = (targets: readonly LinkTarget[]): Set<LinkTarget> =>
      new Set(targets.filter((each) => each !== target));
    this.target = target;
    this.rules = new Rules(ready);
    this.permission = permission;
    this.#leads = others(ready.map((rule) => rule.target));
    this.#mirrors = others(ready.flatMap(({ mirror }) => mirror?.target ?? []));
    this.others = new Set([...this.#leads, ...this.#mirrors]);
  }

  /** What is wrong with where its rules lead, for people; undefined: nothing. */
  get fault(): { readonly message: string; readonly hint: string } | undefined {
    const lost = this.#faultsOf(this.#leads, 'leads');
    const uncopied = this.#faultsOf(this.#mirrors, 'copies requests');
    if (lost.length + uncopied.length === 0) return undefined;
    const hint =
      lost.length > 0
        ? 'requests that it is for are refused: let it lead elsewhere'
        : 'nothing is copied there, and requests go where they go: let it copy to another service';
    return { message: [...lost, ...uncopied].join('; '), hint };
  }

  #faultsOf(others: ReadonlySet<LinkTarget>, does: string): string[] {
    const { name, version, service } = this.target;
    const faults: string[] = [];
    for (const other of others) {
      if (other.service === undefined) faults.push(`a route of ${name} ${does} to ${other.name}, which nobody offers`);
      else if (other.version !== version) {
        faults.push(speaksOtherwise(`${name} ${does} to ${other.name}`, other.service.protocol, service?.protocol));
      }
    }
    return faults;
  }
}
