import type { Host, HostRecord } from '../model/host.ts';
import { type Instance, type InstanceRecord, isUsableStatus } from '../model/instance.ts';
import type { ServiceRecord } from '../model/service.ts';
import { AddressIndex } from './address-index.ts';
import { brakeWindowMs, keyOf, type Moment, type SavedBrake, ServiceBrake } from './brake.ts';
import type { VipClaim } from './codec.ts';
import { type HeldBrake, type MemberChanges, viewService } from './service-view.ts';
import type { Service, Snapshot } from './snapshot.ts';

interface HostState {
  record: HostRecord | undefined;
  revision: string;
  alive: boolean;
  /** By name. */
  readonly members: Map<string, Member>;
}

/** What was noted of an instance beside what readers see of it, which also depends on its host. */
interface Member {
  readonly record: InstanceRecord;
  readonly instance: Instance;
}

interface ServiceState {
  record: ServiceRecord | undefined;
  /** Since the last view; undefined when its instances are as they were. */
  changes: MemberChanges | undefined;
  size: number;
  /** How many are passing or warning and not draining. */
  passing: number;
}

/** What the brakes are judged by. */
interface Judged extends Moment {
  readonly hostsLost: number;
}

const notHeld: HeldBrake = Object.freeze({ brake: undefined, keeps: () => false });

/**
 * Turns single changes of records into the next snapshot at the cost of what they touch: a change is noted with the
 * services, hosts and addresses that it concerns, and only these are made anew when the next snapshot is asked for.
 * Who calls decides what is true; nothing here reads, waits or decodes.
 */
export class Fold {
  readonly #self: { readonly hostId: string; readonly hostName: string };
  readonly #hosts = new Map<string, HostState>();
  readonly #services = new Map<string, ServiceState>();
  readonly #claims = new Map<string, string>();
  /** Which services' records name an address, to settle contradictions the same way on every host. */
  readonly #named = new Map<string, Set<string>>();
  /** Addresses by the service that claims them, for services whose record is missing or damaged. */
  readonly #claimed = new Map<string, Set<string>>();
  readonly #addresses = new AddressIndex();
  /** Brakes of services of which any instance turned critical. */
  readonly #brakes = new Map<string, ServiceBrake>();
  /** Those that hold, with the monotonic moment at which they end. */
  readonly #held = new Map<string, number>();
  /** Hosts that are lost, with the monotonic moment of that, until a window of the brake is over. */
  readonly #lostAt = new Map<string, number>();
  /** Hosts that were lost since the last snapshot. */
  readonly #justLost = new Set<string>();
  readonly #dirtyServices = new Set<string>();
  readonly #dirtyHosts = new Set<string>();

  constructor(self: { readonly hostId: string; readonly hostName: string }) {
    this.#self = self;
  }

  get dirty(): boolean {
    return this.#dirtyServices.size + this.#dirtyHosts.size + this.#addresses.dirty > 0;
  }

  setHost(hostId: string, record: HostRecord | undefined, revision: string): void {
    const host = this.#host(hostId);
    const renamed = host.record?.name !== record?.name;
    host.record = record;
    host.revision = revision;
    this.#dirtyHosts.add(hostId);
    if (renamed) this.#remake(hostId, host);
  }

  setAlive(hostId: string, alive: boolean): void {
    const host = this.#host(hostId);
    if (host.alive === alive) return;
    host.alive = alive;
    if (alive) for (const lost of [this.#justLost, this.#lostAt]) lost.delete(hostId);
    else this.#justLost.add(hostId);
    this.#dirtyHosts.add(hostId);
    this.#remake(hostId, host);
  }

  setInstance(hostId: string, name: string, record: InstanceRecord | undefined, revision: string): void {
    const host = this.#host(hostId);
    const before = host.members.get(name);
    if (before !== undefined && before.record === record && before.instance.revision === revision) return;
    if (before !== undefined) this.#leave(before.instance);
    this.#readdress(before?.record, record);
    if (record === undefined) {
      host.members.delete(name);
      this.#dirtyHosts.add(hostId);
    } else this.#enter(hostId, host, record, revision);
  }

  setService(name: string, record: ServiceRecord | undefined): void {
    const service = this.#service(name);
    const before = service.record?.vip;
    service.record = record;
    this.#dirtyServices.add(name);
    if (before === record?.vip) return;
    if (before !== undefined) this.#unlink(this.#named, before, name);
    if (record?.vip !== undefined) link(this.#named, record.vip, name);
    for (const address of [before, record?.vip]) if (address !== undefined) this.#touchHolders(address);
  }

  setClaim(address: string, claim: VipClaim | undefined): void {
    const before = this.#claims.get(address);
    const after = claim?.releasedAtMs === undefined ? claim?.service : undefined;
    if (before === after) return;
    if (before !== undefined) {
      this.#unlink(this.#claimed, before, address);
      this.#dirtyServices.add(before);
    }
    if (after === undefined) this.#claims.delete(address);
    else {
      this.#claims.set(address, after);
      link(this.#claimed, after, address);
      this.#dirtyServices.add(after);
    }
    this.#touchHolders(address);
  }

  /** How many services' brakes hold. */
  get braked(): number {
    return this.#held.size;
  }

  /** The monotonic moment at which the first brake ends at the latest; undefined when none holds. */
  get brakesEndMs(): number | undefined {
    let first: number | undefined;
    for (const endsMs of this.#held.values()) if (first === undefined || endsMs < first) first = endsMs;
    return first;
  }

  /** Has the brakes that end by now judged anew with the next snapshot. */
  endBrakes(nowMs: number): void {
    for (const [name, endsMs] of this.#held) if (endsMs <= nowMs) this.#dirtyServices.add(name);
  }

  /** What must outlive the process of the brakes, by service. */
  savedBrakes(now: Moment): Map<string, SavedBrake> {
    const saved = new Map<string, SavedBrake>();
    for (const [name, brake] of this.#brakes) {
      const state = brake.saved(now);
      if (state !== undefined) saved.set(name, state);
    }
    return saved;
  }

  /** Takes over which hosts the last run had lost, by the monotonic moment of that, which may be before this process. */
  restoreLost(lostAt: ReadonlyMap<string, number>): void {
    for (const [hostId, atMs] of lostAt) this.#lostAt.set(hostId, atMs);
  }

  /** Takes over the brakes of the last run, after its instances. */
  restoreBrakes(saved: ReadonlyMap<string, SavedBrake>, now: Moment): void {
    for (const [name, state] of saved) {
      if (!this.#services.has(name)) continue;
      const find = (key: string): Instance | undefined => {
        const slash = key.indexOf('/');
        const member = this.#hosts.get(key.slice(0, slash))?.members.get(key.slice(slash + 1));
        return member?.instance.service === name ? member.instance : undefined;
      };
      this.#brakes.set(name, ServiceBrake.restored(state, find, now));
      this.#dirtyServices.add(name);
    }
  }

  /** The snapshot after all changes noted so far, which is taken as the moment at which they happened. */
  next(previous: Snapshot, origin: Snapshot['origin'], revision: string, now: Moment): Snapshot {
    const hostsLost = this.#countLost(now.monotonicMs);
    const services: [string, Service][] = [];
    const gone: string[] = [];
    const vips: [string, string][] = [];
    const freed: string[] = [];
    for (const name of this.#dirtyServices) {
      const before = previous.services.get(name);
      const after = this.#viewOf(name, before, { ...now, hostsLost });
      if (after === undefined) gone.push(name);
      else services.push([name, after]);
      if (before?.vip !== undefined && before.vip !== after?.vip) freed.push(before.vip);
      if (after?.vip !== undefined) vips.push([after.vip, name]);
    }
    const hosts: [string, Host][] = [];
    const goneHosts: string[] = [];
    for (const hostId of this.#dirtyHosts) this.#viewHost(hostId, hosts, goneHosts);
    const addresses = this.#addresses.changes(previous.addresses);
    for (const dirty of [this.#dirtyServices, this.#dirtyHosts]) dirty.clear();
    return Object.freeze({
      version: previous.version + 1,
      origin,
      revision,
      hosts: previous.hosts.with(hosts, goneHosts),
      services: previous.services.with(services, gone),
      vips: previous.vips.with(vips, freed),
      addresses: previous.addresses.with(addresses.puts, addresses.deletes),
    });
  }

  /** How many hosts were lost within the window; with the second, services of the first ones are judged anew. */
  #countLost(nowMs: number): number {
    for (const [hostId, atMs] of this.#lostAt) if (nowMs - atMs > brakeWindowMs) this.#lostAt.delete(hostId);
    if (this.#justLost.size === 0) return this.#lostAt.size;
    const others = this.#lostAt.size === 1 ? [...this.#lostAt.keys()] : [];
    for (const hostId of this.#justLost) if (hostId !== this.#self.hostId) this.#lostAt.set(hostId, nowMs);
    this.#justLost.clear();
    if (this.#lostAt.size > 1) {
      for (const hostId of others) {
        for (const { record } of this.#hosts.get(hostId)?.members.values() ?? [])
          this.#dirtyServices.add(record.service);
      }
    }
    return this.#lostAt.size;
  }

  #viewOf(name: string, before: Service | undefined, now: Judged): Service | undefined {
    const state = this.#services.get(name);
    if (state === undefined) return undefined;
    const { record, changes } = state;
    state.changes = undefined;
    const held = this.#judge(name, state, changes, now);
    const view = viewService({ name, record, vip: this.#vipOf(name, record), changes, held }, before);
    if (view === undefined) for (const known of [this.#services, this.#brakes, this.#held]) known.delete(name);
    return view;
  }

  /** Tells the service's brake who changed, and asks whether it holds. A service in which nothing fails has none. */
  #judge(name: string, state: ServiceState, changes: MemberChanges | undefined, now: Judged): HeldBrake {
    let brake = this.#brakes.get(name);
    if (changes !== undefined && (brake !== undefined || hasTroubled(changes.added))) {
      brake ??= new ServiceBrake();
      const before = new Map<string, Instance>();
      for (const instance of changes.removed) before.set(keyOf(instance), instance);
      for (const instance of changes.added) {
        const key = keyOf(instance);
        brake.note(before.get(key), instance, now.monotonicMs);
        before.delete(key);
      }
      for (const instance of before.values()) brake.forget(instance);
    }
    if (brake === undefined) return notHeld;
    const { size, passing } = state;
    const held = brake.judge({ size, passing, hostsLost: now.hostsLost }, now);
    const { endsMs } = brake;
    if (endsMs === undefined) this.#held.delete(name);
    else this.#held.set(name, endsMs);
    if (brake.idle) this.#brakes.delete(name);
    else this.#brakes.set(name, brake);
    const keeper = brake;
    return held === undefined ? notHeld : { brake: held, keeps: (instance) => keeper.keeps(instance) };
  }

  /** The claim decides; where there is none, the record that names the address, and of several the first by name. */
  #vipOf(name: string, record: ServiceRecord | undefined): { address: string | undefined; fault: string | undefined } {
    const address = record?.vip ?? first(this.#claimed.get(name));
    if (address === undefined) return { address: undefined, fault: undefined };
    const holder = this.#claims.get(address) ?? first(this.#named.get(address));
    if (holder === name) return { address, fault: undefined };
    return { address: undefined, fault: `its virtual address ${address} belongs to ${holder}` };
  }

  #viewHost(hostId: string, hosts: [string, Host][], gone: string[]): void {
    const state = this.#hosts.get(hostId);
    if (state?.record === undefined) {
      gone.push(hostId);
      if (state !== undefined && state.members.size === 0 && !state.alive) this.#hosts.delete(hostId);
    } else {
      hosts.push([
        hostId,
        Object.freeze({ ...state.record, alive: this.#isAlive(hostId, state), revision: state.revision }),
      ]);
    }
  }

  #isAlive(hostId: string, host: HostState): boolean {
    return host.alive || hostId === this.#self.hostId;
  }

  #instance(hostId: string, host: HostState, record: InstanceRecord, revision: string): Instance {
    const name = hostId === this.#self.hostId ? this.#self.hostName : (host.record?.name ?? hostId);
    const status = this.#isAlive(hostId, host) ? record.status : 'lost';
    return Object.freeze({ ...record, id: `${name}/${record.name}`, host: name, hostId, status, revision });
  }

  #enter(hostId: string, host: HostState, record: InstanceRecord, revision: string): void {
    const instance = this.#instance(hostId, host, record, revision);
    host.members.set(record.name, { record, instance });
    this.#join(instance);
  }

  /** Makes a host's instances anew because its name or its sign of life changed. */
  #remake(hostId: string, host: HostState): void {
    for (const { record, instance } of [...host.members.values()]) {
      this.#leave(instance);
      this.#enter(hostId, host, record, instance.revision);
    }
  }

  #join(instance: Instance): void {
    const state = this.#service(instance.service);
    state.size += 1;
    if (passes(instance)) state.passing += 1;
    changesOf(state).added.add(instance);
    this.#dirtyServices.add(instance.service);
  }

  #leave(instance: Instance): void {
    const state = this.#service(instance.service);
    state.size -= 1;
    if (passes(instance)) state.passing -= 1;
    const changes = changesOf(state);
    if (!changes.added.delete(instance)) changes.removed.add(instance);
    this.#dirtyServices.add(instance.service);
  }

  #readdress(before: InstanceRecord | undefined, after: InstanceRecord | undefined): void {
    if (before?.address === after?.address && before?.service === after?.service) return;
    if (before !== undefined) this.#addresses.remove(before.address, before.service);
    if (after !== undefined) this.#addresses.add(after.address, after.service);
  }

  #touchHolders(address: string): void {
    for (const name of this.#named.get(address) ?? []) this.#dirtyServices.add(name);
    const holder = this.#claims.get(address);
    if (holder !== undefined) this.#dirtyServices.add(holder);
  }

  #unlink(index: Map<string, Set<string>>, key: string, value: string): void {
    const values = index.get(key);
    values?.delete(value);
    if (values?.size === 0) index.delete(key);
  }

  #host(hostId: string): HostState {
    let host = this.#hosts.get(hostId);
    if (host === undefined) {
      host = { record: undefined, revision: '', alive: false, members: new Map() };
      this.#hosts.set(hostId, host);
    }
    return host;
  }

  #service(name: string): ServiceState {
    let service = this.#services.get(name);
    if (service === undefined) {
      service = { record: undefined, changes: undefined, size: 0, passing: 0 };
      this.#services.set(name, service);
    }
    return service;
  }
}

function changesOf(state: ServiceState): MemberChanges {
  state.changes ??= { removed: new Set(), added: new Set() };
  return state.changes;
}

function passes({ status, draining }: Instance): boolean {
  return isUsableStatus(status) && !draining;
}

function hasTroubled(instances: Iterable<Instance>): boolean {
  for (const { status } of instances) if (!isUsableStatus(status)) return true;
  return false;
}

function link(index: Map<string, Set<string>>, key: string, value: string): void {
  const values = index.get(key);
  if (values === undefined) index.set(key, new Set([value]));
  else values.add(value);
}

function first(names: ReadonlySet<string> | undefined): string | undefined {
  let least: string | undefined;
  for (const name of names ?? []) if (least === undefined || name < least) least = name;
  return least;
}
