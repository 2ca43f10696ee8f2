import type { Clock } from '../src/base/clock.ts';
import type { CounterCell } from '../src/base/metrics.ts';
import type { Service } from '../src/catalog/snapshot.ts';
import type { Endpoint } from '../src/model/address.ts';
import type { Instance } from '../src/model/instance.ts';
import type { Balance } from '../src/model/service.ts';
import { Backend } from './balance/backend.ts';
import { type Balancer, createBalancer } from './balance/balancer.ts';
import { Outlier } from './outlier.ts';

export interface BackendsOptions {
  readonly clock: Clock;
  readonly random: () => number;
  /** Counts ejections. */
  readonly ejections: CounterCell;
  /** What this host dials for an instance; undefined when it cannot or should not. */
  readonly dial: (instance: Instance) => Endpoint | undefined;
}

/** The instances of one service as this host's links see them: who may get the next connection, and who had how many. */
export class Backends {
  readonly #options: BackendsOptions;
  readonly #outlier: Outlier;
  #balance: Balance | undefined;
  #balancer: Balancer;
  /** Usable and dialable. */
  #usable: Backend[] = [];
  #byId = new Map<string, Backend>();
  /** No longer usable, with connections that still run. */
  readonly #leaving = new Map<string, Backend>();
  /** Those to choose from: not ejected, of weight above 0 if there is any. */
  #preferred: readonly Backend[] = [];
  /** Monotonic; when the first ejection ends. */
  #reviewAtMs = Number.POSITIVE_INFINITY;

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
    const previous = this.#byId;
    this.#byId = new Map();
    this.#usable = [];
    for (const instance of service?.usable ?? []) {
      const endpoint = this.#options.dial(instance);
      if (endpoint === undefined) continue;
      const backend = adopt(previous.get(instance.id) ?? this.#leaving.get(instance.id), instance, endpoint);
      this.#leaving.delete(instance.id);
      this.#byId.set(instance.id, backend);
      this.#usable.push(backend);
    }
    for (const [id, backend] of previous) {
      if (!this.#byId.has(id) && backend.active > 0) this.#leaving.set(id, backend);
    }
    this.#arrange();
  }

  /** The next one to try, or undefined when each has been tried. Ejected ones are the last resort. */
  pick(tried: readonly Backend[]): Backend | undefined {
    if (this.#options.clock.monotonicMs() >= this.#reviewAtMs) this.#arrange();
    if (tried.length === 0) return this.#balancer.pick(this.#preferred);
    const untried = this.#usable.filter((backend) => !tried.includes(backend));
    const available = untried.filter((backend) => backend.ejectedUntilMs === undefined);
    return this.#balancer.pick(heaviest(available.length > 0 ? available : untried));
  }

  /** Whether another one is left to try beside these. */
  hasOther(tried: readonly Backend[]): boolean {
    return this.#usable.some((backend) => !tried.includes(backend));
  }

  /** A connect failure, or a reset before the first byte. */
  failed(backend: Backend): void {
    if (this.#outlier.failed(backend, this.#usable)) this.#arrange();
  }

  /** To be called when a connection of `backend` or an attempt has ended. */
  ended(backend: Backend): void {
    backend.active -= 1;
    if (backend.active === 0 && this.#leaving.get(backend.id) === backend) this.#leaving.delete(backend.id);
  }

  /** Usable ones first, then those that still carry connections. */
  list(): readonly Backend[] {
    if (this.#options.clock.monotonicMs() >= this.#reviewAtMs) this.#arrange();
    return [...this.#usable, ...this.#leaving.values()];
  }

  #arrange(): void {
    this.#outlier.review(this.#usable);
    const available = this.#usable.filter((backend) => backend.ejectedUntilMs === undefined);
    this.#preferred = heaviest(available);
    this.#reviewAtMs = this.#usable.reduce(
      (earliest, backend) => Math.min(earliest, backend.ejectedUntilMs ?? earliest),
      Number.POSITIVE_INFINITY,
    );
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
