import type { Backend } from '../../balance/backend.ts';
import type { Link } from '../../link.ts';
import type { LinkTarget } from '../../link-target.ts';
import type { Asked, Permission } from '../../permission.ts';
import { TargetRoute } from '../../target-route.ts';
import type { Account } from '../../tcp/carried.ts';
import type { AttemptFailure, Route, Traffic, TrafficCells } from '../../tcp/route.ts';
import type { RequestEnd } from '../request-metrics.ts';
import type { Side, Sides } from './sides.ts';

export interface LaneOptions {
  readonly link: Link;
  readonly target: LinkTarget;
  readonly permission: Permission;
  readonly sides: Sides | undefined;
  /** One of them; undefined while none of them has a usable instance. */
  readonly side: Side | undefined;
}

/** Where some requests of a link go: a service, which need not be the link's own, and perhaps a side of its split. */
export class Lane extends TargetRoute implements Route {
  readonly traffic: Traffic;
  readonly cells: TrafficCells;
  /** A lane leads on to no other. */
  readonly routing = undefined;
  readonly #link: Link;
  readonly #permission: Permission;
  readonly #sides: Sides | undefined;
  readonly #side: Side | undefined;

  constructor({ link, target, permission, sides, side }: LaneOptions) {
    super(target);
    this.#link = link;
    this.#permission = permission;
    this.#sides = sides;
    this.#side = side;
    // Bytes are those of the client's connection.
    this.traffic = link.traffic;
    this.cells = link.cells;
  }

  get size(): number {
    return this.target.backends.size;
  }

  pick(tried: readonly Backend[], key?: number): Backend | undefined {
    return this.#sides === undefined ? this.target.backends.pick(tried, key) : this.#sides.pick(this.#side, tried, key);
  }

  hasOther(tried: readonly Backend[]): boolean {
    return (this.#sides ?? this.target.backends).hasOther(tried);
  }

  connected({ instance }: Backend, elapsedMs: number): void {
    this.target.suspects.forgive(instance.hostId);
    this.target.connectSeconds.observe(elapsedMs / 1000);
  }

  attemptFailed(backend: Backend, failure: AttemptFailure): void {
    this.#link.attemptFailed(backend, failure, this.target);
  }

  refused(problem: string | undefined): void {
    this.#link.refused(problem, this.target);
  }

  refusedByHost(backend: Backend, asked: Asked, problem: string): void {
    this.#link.refusedByHost(backend, asked, problem, this.target);
  }

  exhausted(error: unknown): void {
    this.#link.exhausted(error);
  }

  /**
   * Why the consumer may not come here, which is then counted and logged; undefined where it may. A route gives nobody a
   * right: where it leads to another service, policy is asked about that one too.
   */
  denial(account: Account): string | undefined {
    if (this.target === this.#link.target) return undefined;
    const asked = this.#asked(account);
    const decision = this.#permission.permits(asked);
    if (decision.allowed) return undefined;
    const denial = this.#permission.denied(asked, decision);
    this.#link.denied(denial);
    return denial.message;
  }

  /** Whether it may, without a word about it. */
  admits(account: Account): boolean {
    return this.target === this.#link.target || this.#permission.permits(this.#asked(account)).allowed;
  }

  #asked(account: Account): Asked {
    const { service } = this;
    return { consumer: account.consumer, service, declared: account.declares(service) };
  }

  /** What a client is told to say from now on that was answered by this instance; undefined: nothing. */
  cookieFor(backend: Backend | undefined): string | undefined {
    return this.#sides?.answeredBy(backend, this.#side)?.cookie;
  }

  /** A request that went here has ended: counts for the side that has answered. `isError`: that was not what one wants. */
  finished(backend: Backend | undefined, end: RequestEnd, isError: boolean, seconds: number): void {
    const side = this.#sides?.answeredBy(backend, this.#side);
    if (side !== undefined) this.target.splitCounts.add(side.tag, end, isError, seconds);
  }
}
