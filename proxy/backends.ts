import type { Clock } from '../src/base/clock.ts';
import type { CounterCell } from '../src/base/metrics.ts';
import { compareInstances } from '../src/catalog/members.ts';
import type { Service } from '../src/catalog/snapshot.ts';
import type { Dial } from '../src/model/dial.ts';
import type { Instance } from '../src/model/instance.ts';
import type { Balance } from '../src/model/service.ts';
import { defaultPreference, httpDefaults } from '../src/model/service-settings.ts';
import { Backend, type Distance } from './balance/backend.ts';
import { type Balancer, createBalancer } from './balance/balancer.ts';
import { type EjectionReason, Outlier } from './outlier.ts';
import { AnswerTimes, slowness, slowOnes } from './slowness.ts';
import type { Suspects } from './suspects.ts';
import type { TunnelState } from './tunnel/tunnels.ts';

export interface BackendsOptions {
  readonly clock: Clock;
  readonly random: () => number;
  /** Counts ejections. */
  readonly ejections: Readonly<Record<EjectionReason, CounterCell>>;
  /** Hosts whose instances are tried last. */
  readonly suspects: Suspects;
  /** What this host dials for an instance; undefined when it cannot or should not. */
  readonly dial: (instance: Instance) => Dial | undefined;
  /** How far away a host is. */
  readonly distance: (hostId: string) => Distance;
  readonly tunnels?: TunnelStates | undefined;
}

/** Which hosts are reached through tunnels now. */
export interface TunnelStates {
  /** Counts the changes. */
  readonly version: number;
  state(hostId: string): TunnelState;
}

const noInstances: readonly Instance[] = [];
const noHosts: ReadonlySet<string> = new Set();

/** The instances of one service as this host's links see them: who may get the next connection, and who had how many. */
export class Backends {
  readonly #options: BackendsOptions;
  readonly #outlier: Outlier;
  #balance: Balance | undefined;
  #prefersNear = true;
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
  /** Those of them that a connection can be tried to now: all but those behind a tunnel that is not there. */
  #openable: readonly Backend[] = [];
  readonly #byId = new Map<string, Backend>();
  /** No longer usable, with connections that still run. */
  readonly #leaving = new Map<string, Backend>();
  /** Those to choose from: neither ejected nor of a suspect host, of weight above 0 if there is any. */
  #preferred: readonly Backend[] = [];
  /** Monotonic; when the first ejection or suspicion ends. */
  #reviewAtMs = Number.POSITIVE_INFINITY;
  /** The versions of the suspects and of the tunnels that `#preferred` knows. */
  #suspectsVersion = 0;
  #tunnelsVersion = 0;
  /** Whether a usable one is reached through a tunnel, and whether some are nearer than others. */
  #tunnelledHosts: ReadonlySet<string> = noHosts;
  #hasTiers = false;
  /** So many times slower than its siblings is too slow; 0: nobody is. */
  #slowFactor = 0;
  /** Monotonic; when slowness is judged next. */
  #windowEndsMs = Number.POSITIVE_INFINITY;

  constructor(options: BackendsOptions) {
    this.#options = options;
    this.#outlier = new Outlier(options.clock, options.ejections);
    this.#balancer = createBalancer('round-robin', options.random, () => options.clock.monotonicMs());
  }

  /** How many instances could be dialled now. */
  get size(): number {
    return this.#usable.length;
  }

  /** Takes a new version of the service over; undefined when the service is gone. */
  update(service: Service | undefined): void {
    this.#watchSlowness(service?.ejectSlow ?? httpDefaults.ejectSlow);
    if (service !== undefined && service.balance !== this.#balance) {
      this.#balance = service.balance;
      const { random, clock } = this.#options;
      this.#balancer = createBalancer(service.balance, random, () => clock.monotonicMs());
    }
    const prefersNear = (service?.prefer ?? defaultPreference) === 'near';
    const instances = service?.usable ?? noInstances;
    if (instances === this.#instances && prefersNear === this.#prefersNear) return;
    this.#prefersNear = prefersNear;
    if (instances !== this.#instances) this.#takeOver(instances);
    this.#arrange();
  }

  /** What is dialled, or how far away hosts are, has changed for all of them. */
  reviewAll(): void {
    this.#weightless = 0;
    const slots: (Backend | undefined)[] = [];
    for (const instance of this.#instances) {
      const backend = this.#take(instance);
      slots.push(backend);
      if (backend === undefined) this.#drop(this.#byId.get(instance.id));
      else if (instance.weight === 0) this.#weightless += 1;
    }
    this.#slots = slots;
    this.#usable = slots.filter((backend) => backend !== undefined);
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
      if (!taken.has(backend)) this.#drop(backend);
    }
    this.#instances = instances;
    this.#slots = slots;
    this.#usable = complete ? (slots as Backend[]) : slots.filter((backend) => backend !== undefined);
  }

  #drop(backend: Backend | undefined): void {
    if (backend === undefined) return;
    this.#byId.delete(backend.id);
    this.#ejected.delete(backend);
    if (backend.active > 0) this.#leaving.set(backend.id, backend);
  }

  #take(instance: Instance): Backend | undefined {
    const dial = this.#options.dial(instance);
    if (dial === undefined) return undefined;
    const left = this.#leaving.get(instance.id);
    // Connections to a host that lost power seem to run for a while: what they remember of it is from before.
    if (left !== undefined && this.#options.suspects.isOther(instance.hostId)) Outlier.forgive(left);
    const distance = this.#options.distance(instance.hostId);
    const backend = adopt(this.#byId.get(instance.id) ?? left, instance, dial, distance);
    this.#leaving.delete(instance.id);
    this.#byId.set(instance.id, backend);
    return backend;
  }

  /**
   * The next one to try, or undefined when each has been tried. Ejected ones come after all others, and those of suspect
   * hosts and tunnels last: they cost more than a refusal. Those without a tunnel are not tried. Among equally good ones the nearest come
   * first, and among these the service's balance decides, where it is `hash` by the key.
   */
  pick(tried: readonly Backend[], key?: number): Backend | undefined {
    this.#refresh();
    if (tried.length === 0) return this.#balancer.pick(this.#preferred, key);
    const untried = this.#openable.filter((backend) => !tried.includes(backend));
    return this.#balancer.pick(this.#nearest(heaviest(this.#best(untried))), key);
  }

  /** This one, when it can be tried now. */
  only(id: string, tried: readonly Backend[]): Backend | undefined {
    this.#refresh();
    const backend = this.#byId.get(id);
    return backend !== undefined && !tried.includes(backend) && this.#openable.includes(backend) ? backend : undefined;
  }

  /** Whether it is usable and can be dialled. */
  has(id: string): boolean {
    return this.#byId.has(id);
  }

  /** Whether another one is left to try beside these. */
  hasOther(tried: readonly Backend[]): boolean {
    this.#refresh();
    return this.#openable.some((backend) => !tried.includes(backend));
  }

  /** One that cannot be tried now because there is no tunnel to its host at present. */
  get waiting(): Backend | undefined {
    this.#refresh();
    return this.#openable === this.#usable ? undefined : this.#usable.find((each) => !this.#openable.includes(each));
  }

  /** The hosts that usable ones are reached at through tunnels. */
  get tunnelledHosts(): ReadonlySet<string> {
    return this.#tunnelledHosts;
  }

  /** A connect failure, or a reset before the first byte; `silent` when its host gave no sign of life. */
  failed(backend: Backend, silent = false): void {
    if (silent) this.#options.suspects.silent(backend.instance.hostId);
    if (!this.#outlier.failed(backend, this.#usable)) return;
    this.#ejected.add(backend);
    this.#arrange();
  }

  /**
   * It answered a request; `isError`: that it has a fault of its own (5xx); `ms`: how long it took, where the answer is one
   * that its speed can be judged by.
   */
  answered(backend: Backend, isError: boolean, ms: number | undefined): void {
    if (ms !== undefined && this.#slowFactor > 0) {
      backend.times ??= new AnswerTimes();
      backend.times.add(ms);
    }
    if (!isError && backend.errors === 0) backend.failures = 0;
    else if (this.#outlier.answered(backend, isError, this.#usable)) {
      this.#ejected.add(backend);
      this.#arrange();
    }
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
    const { clock, suspects, tunnels } = this.#options;
    const nowMs = clock.monotonicMs();
    if (nowMs >= this.#windowEndsMs) this.#judgeSlowness(nowMs);
    const isStale =
      nowMs >= this.#reviewAtMs ||
      suspects.version !== this.#suspectsVersion ||
      (this.#tunnelledHosts.size > 0 && tunnels?.version !== this.#tunnelsVersion);
    if (isStale) this.#arrange();
  }

  #watchSlowness(factor: number): void {
    if (factor === this.#slowFactor) return;
    this.#slowFactor = factor;
    this.#windowEndsMs = factor > 0 ? this.#options.clock.monotonicMs() + slowness.windowMs : Number.POSITIVE_INFINITY;
    for (const backend of this.#byId.values()) backend.times = undefined;
  }

  /** Ejects those who were too slow in the window that ends, and begins the next one. */
  #judgeSlowness(nowMs: number): void {
    this.#windowEndsMs = nowMs + slowness.windowMs;
    for (const slow of slowOnes(this.#usable, this.#slowFactor)) {
      if (!this.#outlier.slow(slow, this.#usable)) continue;
      this.#ejected.add(slow);
      // The choice is arranged anew at once.
      this.#reviewAtMs = nowMs;
    }
    for (const { times } of this.#usable) times?.clear();
  }

  /** Those that are neither ejected nor of a suspect host; where there are none, those of other hosts; else all. */
  #best(backends: readonly Backend[]): readonly Backend[] {
    const { suspects } = this.#options;
    const calm =
      suspects.version === 0 && this.#tunnelledHosts.size === 0
        ? backends
        : backends.filter(
            (backend) => suspects.untilMs(backend.instance.hostId) === undefined && this.#tunnelIs(backend, 'ready'),
          );
    const best = calm.filter((backend) => backend.ejectedUntilMs === undefined);
    if (best.length > 0) return best;
    return calm.length > 0 ? calm : backends;
  }

  /** Whether it is dialled itself, or the tunnel to its host is in one of these states. */
  #tunnelIs({ dial, instance }: Backend, ...states: readonly string[]): boolean {
    return dial.via === 'direct' || states.includes(this.#options.tunnels?.state(instance.hostId).state ?? '');
  }

  #arrangeTunnels(): void {
    const hosts = new Set<string>();
    for (const { dial, instance } of this.#usable) if (dial.via === 'tunnel') hosts.add(instance.hostId);
    this.#tunnelledHosts = hosts.size === 0 ? noHosts : hosts;
    this.#openable = this.#usable;
    if (hosts.size === 0) return;
    const openable = this.#usable.filter((backend) => this.#tunnelIs(backend, 'ready', 'suspect'));
    if (openable.length < this.#usable.length) this.#openable = openable;
  }

  #nearest(backends: readonly Backend[]): readonly Backend[] {
    if (!this.#hasTiers) return backends;
    let nearest: Distance = 2;
    for (const { distance } of backends) if (distance < nearest) nearest = distance;
    return backends.filter(({ distance }) => distance === nearest);
  }

  #arrange(): void {
    const { suspects, tunnels } = this.#options;
    this.#suspectsVersion = suspects.version;
    this.#tunnelsVersion = tunnels?.version ?? 0;
    const [first] = this.#usable;
    this.#arrangeTunnels();
    this.#hasTiers = this.#prefersNear && this.#usable.some(({ distance }) => distance !== first?.distance);
    this.#reviewAtMs = Number.POSITIVE_INFINITY;
    this.#preferred = this.#openable;
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
    }
    const hasTroubled = suspects.count > 0 || this.#ejected.size > 0 || this.#tunnelledHosts.size > 0;
    if (hasTroubled) this.#preferred = this.#best(this.#openable);
    if (this.#weightless > 0) this.#preferred = heaviest(this.#preferred);
    this.#preferred = this.#nearest(this.#preferred);
  }
}

function adopt(known: Backend | undefined, instance: Instance, dial: Dial, distance: Distance): Backend {
  if (known === undefined) return new Backend(instance, dial, distance);
  if (known.instance.incarnation !== instance.incarnation) Outlier.forgive(known);
  known.instance = instance;
  known.dial = dial;
  known.distance = distance;
  return known;
}

/** Weight 0 takes traffic only when nothing else is there. */
function heaviest(backends: readonly Backend[]): readonly Backend[] {
  const weighted = backends.filter((backend) => backend.instance.weight > 0);
  return weighted.length > 0 ? weighted : backends;
}
