import type { Clock } from '../src/base/clock.ts';
import type { CounterCell } from '../src/base/metrics.ts';
import type { Service } from '../src/catalog/snapshot.ts';
import type { Dial } from '../src/model/dial.ts';
import { defaultHashOn, parseHashOn } from '../src/model/hash-on.ts';
import { type Instance, transportOf } from '../src/model/instance.ts';
import type { RouteRule } from '../src/model/routes.ts';
import { sameSetting } from '../src/model/service-settings.ts';
import { Backends, type TunnelStates } from './backends.ts';
import { type Distance, distances } from './balance/backend.ts';
import { Admission } from './http/admission.ts';
import { HashKey } from './http/hash-key.ts';
import type { HttpVersion } from './http/routing/link-routing.ts';
import { ServiceRouting } from './http/routing/service-routing.ts';
import { Sides } from './http/routing/sides.ts';
import { SplitCounts } from './http/routing/split-counts.ts';
import { type HttpSettings, httpSettingsOf } from './http/settings.ts';
import type { SplitSide } from './http/split-side.ts';
import type { Link } from './link.ts';
import type { LinkBackendDocument } from './link-document.ts';
import type { LinkCells, LinkMetrics } from './link-metrics.ts';
import type { Lobby } from './lobby.ts';
import type { Permission } from './permission.ts';
import type { Suspects } from './suspects.ts';
import { tunnelWaitMs } from './tcp/relay-bounds.ts';

export interface LinkTargetOptions {
  readonly name: string;
  readonly clock: Clock;
  readonly random: () => number;
  readonly metrics: LinkMetrics;
  readonly suspects: Suspects;
  readonly lobby: Lobby;
  readonly dial: (instance: Instance) => Dial | undefined;
  readonly distance: (hostId: string) => Distance;
  readonly tunnels: TunnelStates | undefined;
  /** How many processes of this host carry its links; default 1. */
  readonly workers: number | undefined;
}

const noRules: readonly RouteRule[] = [];

/** A service that this host has links to: its instances with their state, shared by all of its links. */
export class LinkTarget {
  readonly name: string;
  readonly backends: Backends;
  readonly cells: LinkCells;
  readonly connectSeconds: { observe(value: number): void };
  /** The metric of one consumer's connections. */
  readonly consumerCell: (consumer: string) => CounterCell;
  readonly links = new Set<Link>();
  readonly splitCounts: SplitCounts;
  /** Services with links here whose routes lead to this one. */
  readonly referrers = new Set<LinkTarget>();
  /** Its own split; undefined where requests are not divided. */
  split: Sides | undefined;
  /** Where requests that come over its links go; undefined: to its instances, without regard to their tags. */
  routing: ServiceRouting | undefined;
  /** Whose turn it is, of the requests of all its links. */
  readonly admission: Admission;
  /** Connections that run, also those of links that are gone. */
  active = 0;
  #service: Service | undefined;
  #http = httpSettingsOf({});
  /** Set while the service's balance is `hash`, and the setting that it was made of. */
  #hashKey: HashKey | undefined;
  #hashOn: string | undefined;
  #rules = noRules;
  readonly suspects: Suspects;
  readonly #random: () => number;
  readonly #clock: Clock;
  readonly #lobby: Lobby;
  readonly #tunnels: TunnelStates | undefined;

  constructor({ name, clock, random, metrics, suspects, lobby, dial, distance, tunnels, workers }: LinkTargetOptions) {
    this.name = name;
    this.admission = new Admission(workers);
    this.cells = metrics.cells(name);
    this.connectSeconds = metrics.connectSeconds;
    this.consumerCell = (consumer) => metrics.consumer(name, consumer);
    this.backends = new Backends({ clock, random, ejections: this.cells.ejections, suspects, dial, distance, tunnels });
    this.suspects = suspects;
    this.#lobby = lobby;
    this.splitCounts = new SplitCounts((tag, end) => metrics.split(name, tag, end));
    this.#random = random;
    this.#tunnels = tunnels;
    this.#clock = clock;
  }

  /** Undefined while the catalog does not know it. */
  get service(): Service | undefined {
    return this.#service;
  }

  /** How requests to it are treated. */
  get http(): HttpSettings {
    return this.#http;
  }

  update(service: Service | undefined): void {
    if (service !== this.#service) {
      const { split } = this.#http;
      this.#http = httpSettingsOf(service ?? {});
      this.admission.update(this.#http);
      if (!sameSetting(split, this.#http.split)) {
        this.split = this.#http.split && new Sides(this.#http.split, this.backends, this.#random);
      }
    }
    this.#service = service;
    this.#setHashKey(service?.balance === 'hash' ? (service.hashOn ?? 'source') : undefined);
    this.backends.update(service !== undefined && transportOf(service.protocol) === 'tcp' ? service : undefined);
    if (this.backends.size > 0) this.#lobby.wake(this.name);
  }

  #setHashKey(hashOn: string | undefined): void {
    if (hashOn === this.#hashOn) return;
    this.#hashOn = hashOn;
    // A newer version may know what this one does not.
    this.#hashKey = hashOn === undefined ? undefined : new HashKey(parseHashOn(hashOn) ?? defaultHashOn);
  }

  get hashKey(): HashKey | undefined {
    return this.#hashKey;
  }

  /** What the sides of its splits have carried, by tag. */
  get sides(): ReadonlyMap<string, SplitSide> {
    return this.splitCounts.sides;
  }

  /** In which HTTP its instances are spoken to; undefined where it is something else. */
  get version(): HttpVersion | undefined {
    const protocol = this.#service?.protocol;
    if (protocol === 'http') return 'http/1.1';
    return protocol === 'http2' || protocol === 'grpc' ? 'h2' : undefined;
  }

  /**
   * Takes over where requests of its links go. `resolve` gives what another service is reached through; without it there
   * are no links that requests could come over.
   */
  route(resolve: ((service: string) => LinkTarget) | undefined, permission: Permission): void {
    const rules = this.#service?.routes ?? noRules;
    if (resolve === undefined || (rules.length === 0 && this.split === undefined)) this.routing = undefined;
    else if (this.routing === undefined || !sameSetting(rules, this.#rules)) {
      this.routing = new ServiceRouting({ target: this, rules, resolve, random: this.#random, permission });
    }
    this.#rules = rules;
  }

  /** What is dialled, or how far away hosts are, may have changed for every instance. */
  review(): void {
    this.backends.reviewAll();
    if (this.backends.size > 0) this.#lobby.wake(this.name);
  }

  /** How long from its start a connection waits for something to connect to. */
  get holdMs(): number {
    return Math.max(this.#service?.parkMs ?? 0, this.backends.waiting === undefined ? 0 : tunnelWaitMs);
  }

  /** Holds a connection until something may be behind it; see `Lobby`. */
  hold(resume: () => void): (() => void) | undefined {
    return this.#lobby.enter(this.name, resume);
  }

  /** Connections that wait now. */
  get held(): number {
    return this.#lobby.countOf(this.name);
  }

  /** Whether those who find nobody are held for a while. */
  get parks(): boolean {
    return (this.#service?.parkMs ?? 0) > 0;
  }

  /** Why none of the instances that there are can be tried, where that is for want of a tunnel. */
  get problem(): string | undefined {
    const waiting = this.backends.waiting;
    if (waiting === undefined) return undefined;
    const problem = this.#tunnels?.state(waiting.instance.hostId).problem ?? 'it is being made';
    return `${waiting.id}: no tunnel to ${waiting.instance.host}: ${problem}`;
  }

  #tunnelOf(hostId: string): LinkBackendDocument['tunnel'] {
    const { state = 'idle', problem = null } = this.#tunnels?.state(hostId) ?? {};
    return { state, problem };
  }

  backendDocuments(): LinkBackendDocument[] {
    const wallMs = this.#clock.nowMs() - this.#clock.monotonicMs();
    return this.backends.list().map((backend) => ({
      id: backend.id,
      address: backend.place,
      host: backend.instance.host,
      via: backend.dial.via,
      near: distances[backend.distance],
      status: backend.instance.status,
      tunnel: backend.dial.via === 'tunnel' ? this.#tunnelOf(backend.instance.hostId) : null,
      active: backend.active,
      total: backend.total,
      ejectedUntil:
        backend.ejectedUntilMs === undefined ? null : new Date(wallMs + backend.ejectedUntilMs).toISOString(),
      ejectedFor: backend.ejectedUntilMs === undefined ? null : backend.ejectedFor,
      ejections: backend.ejections,
      suspect: this.suspects.untilMs(backend.instance.hostId) !== undefined,
    }));
  }
}
