import type { Clock } from '../src/base/clock.ts';
import type { CounterCell } from '../src/base/metrics.ts';
import { compareInstances } from '../src/catalog/members.ts';
import type { Service } from '../src/catalog/snapshot.ts';
import type { Endpoint } from '../src/model/address.ts';
import type { Instance } from '../src/model/instance.ts';
import type { Balance } from '../src/model/service.ts';
import { Backend } from './balance/backend.ts';
import { type Balancer, createBalancer } from './balance/balancer.ts';
import { Outlier } from './outlier.ts';
import type { Suspects } from './suspects.ts';

export interface BackendsOptions {
  readonly clock: Clock;
  readonly random: () => number;
  /** Counts ejections. */
  readonly ejections: CounterCell;
  /** Hosts whose instances are tried last. */
  readonly suspects: Suspects;
  /** What this host dials for an instance; undefined when it cannot or should not. */
  readonly dial: (instance: Instance) => Endpoint | undefined;
}

const noInstances: readonly Instance[] = [];

/** The instances of one service as this host's links see them: who may get the next connection, and who had how many. */
export class Backends {
  readonly #options: BackendsOptions;
  readonly #outlier: Outlier;
  #balance: Balance | undefined;
  #balancer: Balancer;
  /** The service's usable instances as last taken over, and the backend of each; undefined where it cannot be dialled. */
  #instances: readonly Instance[] = [];
  #slots: readonly (Backend | undefined)[] = [];
  /** How many of them can be dialled and have weight 0. */
  #weightless = 0;
  /** Usable ones that are, or were until a moment ago, ejected. */
  readonly #ejected = new Set<Backend>();
  /** Usable and dialable. */
  #usable: readonly Backend[] = [];
  readonly #byId = new Map<string, Backend>();
  /** No longer usable, with connections that still run. */
  readonly #leaving = new Map<string, Backend>();
  /** Those to choose from: neither ejected nor of a suspect host, of weight above 0 if there is any. */
  #preferred: readonly Backend[] = [];
  /** Monotonic; when the first ejection or suspicion ends. */
  #reviewAtMs = Number.POSITIVE_INFINITY;
  /** The version of the suspects that `#preferred` knows. */
  #suspectsVersion = 0;

  constructor(options: BackendsOptions) {
    this.#options = options;
    this.#outlier = new Outlier(options.clock, options.ejections);
    this.#balancer = createBalancer('round-robin', options.random);
  }

  /** How many instances could be dialled now. */
  get size(): number {
    return this.#usable.length;
  }

  /** Takes a new version of the service over; undefined when the service is gone. */
  update(service: Service | undefined): void {
    if (service !== undefined && service.balance !== this.#balance) {
      this.#balance = service.balance;
      this.#balancer = createBalancer(service.balance, this.#options.random);
    }
    const instances = service?.usable ?? noInstances;
    if (instances === this.#instances) return;
    this.#takeOver(instances);
    this.#arrange();
  }

  /** Both lists are in order, so that what did not change is passed over by comparing references. */
  #takeOver(instances: readonly Instance[]): void {
    const before = this.#instances;
    const slots: (Backend | undefined)[] = [];
    const gone: Backend[] = [];
    const taken = new Set<Backend>();
    let next = 0;
    const skip = (): void => {
      const backend = this.#slots[next];
      if (backend !== undefined) {
        gone.push(backend);
        if (before[next]?.weight === 0) this.#weightless -= 1;
      }
      next += 1;
    };
    let complete = true;
    for (const instance of instances) {
      for (let old = before[next]; old !== undefined && old !== instance; old = before[next]) {
        if (compareInstances(old, instance) > 0) break;
        skip();
      }
      if (before[next] === instance) {
        const backend = this.#slots[next];
        slots.push(backend);
        if (backend === undefined) complete = false;
        next += 1;
        continue;
      }
      const backend = this.#take(instance);
      slots.push(backend);
      if (backend === undefined) complete = false;
      else {
        taken.add(backend);
        if (instance.weight === 0) this.#weightless += 1;
        if (backend.ejectedUntilMs !== undefined) this.#ejected.add(backend);
      }
    }
    while (next < before.length) skip();
    for (const backend of gone) {
      if (taken.has(backend)) continue;
      this.#byId.delete(backend.id);
      this.#ejected.delete(backend);
      if (backend.active > 0) this.#leaving.set(backend.id, backend);
    }
    this.#instances = instances;
    this.#slots = slots;
    this.#usable = complete ? (slots as Backend[]) : slots.filter((backend) => backend !== undefined);
  }

  #take(instance: Instance): Backend | undefined {
    const endpoint = this.#options.dial(instance);
    if (endpoint === undefined) return undefined;
    const left = this.#leaving.get(instance.id);
    // Connections to a host that lost power seem to run for a while: what they remember of it is from before.
    if (left !== undefined && this.#options.suspects.isOther(instance.hostId)) Outlier.forgive(left);
    const backend = adopt(this.#byId.get(instance.id) ?? left, instance, endpoint);
    this.#leaving.delete(instance.id);
    this.#byId.set(instance.id, backend);
    return backend;
  }

  /**
   * The next one to try, or undefined when each has been tried. Ejected ones come after all others, and those of suspect
   * hosts last: they cost more than a refusal.
   */
  pick(tried: readonly Backend[]): Backend | undefined {
    this.#refresh();
    if (tried.length === 0) return this.#balancer.pick(this.#preferred);
    const untried = this.#usable.filter((backend) => !tried.includes(backend));
    return this.#balancer.pick(heaviest(this.#best(untried)));
  }

  /** Whether another one is left to try beside these. */
  hasOther(tried: readonly Backend[]): boolean {
    return this.#usable.some((backend) => !tried.includes(backend));
  }

  /** A connect failure, or a reset before the first byte; `silent` when its host gave no sign of life. */
  failed(backend: Backend, silent = false): void {
    if (silent) this.#options.suspects.silent(backend.instance.hostId);
    if (!this.#outlier.failed(backend, this.#usable)) return;
    this.#ejected.add(backend);
    this.#arrange();
  }

  /** To be called when a connection of `backend` or an attempt has ended. */
  ended(backend: Backend): void {
    backend.active -= 1;
    if (backend.active === 0 && this.#leaving.get(backend.id) === backend) this.#leaving.delete(backend.id);
  }

  /** Usable ones first, then those that still carry connections. */
  list(): readonly Backend[] {
    this.#refresh();
    for (const backend of this.#usable) this.#outlier.forget(backend);
    return [...this.#usable, ...this.#leaving.values()];
  }

  /** Arranges anew when an ejection or a suspicion has ended, or a suspicion has begun. */
  #refresh(): void {
    const { clock, suspects } = this.#options;
    if (clock.monotonicMs() >= this.#reviewAtMs || suspects.version !== this.#suspectsVersion) this.#arrange();
  }

  /** Those that are neither ejected nor of a suspect host; where there are none, those of other hosts; else all. */
  #best(backends: readonly Backend[]): readonly Backend[] {
    const { suspects } = this.#options;
    const calm =
      suspects.version === 0
        ? backends
        : backends.filter(({ instance }) => suspects.untilMs(instance.hostId) === undefined);
    const best = calm.filter((backend) => backend.ejectedUntilMs === undefined);
    if (best.length > 0) return best;
    return calm.length > 0 ? calm : backends;
  }

  #arrange(): void {
    const { suspects } = this.#options;
    this.#suspectsVersion = suspects.version;
    this.#reviewAtMs = Number.POSITIVE_INFINITY;
    this.#preferred = this.#usable;
    if (this.#ejected.size > 0) {
      this.#outlier.review(this.#usable);
      for (const backend of this.#ejected) {
        if (backend.ejectedUntilMs === undefined) this.#ejected.delete(backend);
        else this.#reviewAtMs = Math.min(this.#reviewAtMs, backend.ejectedUntilMs);
      }
    }
    if (suspects.count > 0) {
      for (const { instance } of this.#usable) {
        this.#reviewAtMs = Math.min(this.#reviewAtMs, suspects.untilMs(instance.hostId) ?? this.#reviewAtMs);
      }
      this.#preferred = this.#best(this.#usable);
    } else if (this.#ejected.size > 0) this.#preferred = this.#best(this.#usable);
    if (this.#weightless > 0) this.#preferred = heaviest(this.#preferred);
  }
}

function adopt(known: Backend | undefined, instance: Instance, endpoint: Endpoint): Backend {
  if (known === undefined) return new Backend(instance, endpoint);
  if (known.instance.incarnation !== instance.incarnation) Outlier.forgive(known);
  known.instance = instance;
  known.endpoint = endpoint;
  return known;
}

/** Weight 0 takes traffic only when nothing else is there. */
function heaviest(backends: readonly Backend[]): readonly Backend[] {
  const weighted = backends.filter((backend) => backend.instance.weight > 0);
  return weighted.length > 0 ? weighted : backends;
}
