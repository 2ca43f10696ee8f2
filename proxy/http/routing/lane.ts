import type { Backend } from '../../balance/backend.ts';
import type { Link } from '../../link.ts';
import type { LinkTarget } from '../../link-target.ts';
import type { Asked } from '../../permission.ts';
import type { AttemptFailure, Route, Traffic, TrafficCells } from '../../tcp/route.ts';
import type { RequestEnd } from '../request-metrics.ts';
import type { HttpSettings } from '../settings.ts';
import type { Side, Sides } from './sides.ts';

/** Where some requests of a link go: a service, which need not be the link's own, and perhaps a side of its split. */
export class Lane implements Route {
  readonly traffic: Traffic;
  readonly cells: TrafficCells;
  /** A lane leads on to no other. */
  readonly routing = undefined;
  readonly target: LinkTarget;
  readonly #link: Link;
  readonly #sides: Sides | undefined;
  readonly #side: Side | undefined;

  /** `side` is one of `sides`; undefined while none of them has a usable instance. */
  constructor(link: Link, target: LinkTarget, sides: Sides | undefined, side: Side | undefined) {
    this.#link = link;
    this.target = target;
    this.#sides = sides;
    this.#side = side;
    // Bytes are those of the client's connection.
    this.traffic = link.traffic;
    this.cells = link.cells;
  }

  get service(): string {
    return this.target.name;
  }

  get http(): HttpSettings {
    return this.target.http;
  }

  get size(): number {
    return this.target.backends.size;
  }

  get announcesClient(): boolean {
    return this.target.service?.proxyProtocol === 'v2';
  }

  get problemToPick(): string | undefined {
    return this.target.problem;
  }

  get holdMs(): number {
    return this.target.holdMs;
  }

  hold(resume: () => void): (() => void) | undefined {
    return this.target.hold(resume);
  }

  pick(tried: readonly Backend[]): Backend | undefined {
    return this.#sides === undefined ? this.target.backends.pick(tried) : this.#sides.pick(this.#side, tried);
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

  answered(backend: Backend, isError: boolean): void {
    this.target.backends.answered(backend, isError);
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

  ended(backend: Backend): void {
    this.target.backends.ended(backend);
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
