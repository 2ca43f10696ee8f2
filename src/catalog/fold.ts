import type { Host, HostRecord } from '../model/host.ts';
import type { Instance, InstanceRecord } from '../model/instance.ts';
import type { ServiceRecord } from '../model/service.ts';
import type { VipClaim } from './codec.ts';
import { mergeMembers, viewService } from './service-view.ts';
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
  readonly removed: Set<Instance>;
  readonly added: Set<Instance>;
}

const noMembers: readonly Instance[] = Object.freeze([]);

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
  readonly #addresses = new Map<string, Map<string, number>>();
  readonly #dirtyServices = new Set<string>();
  readonly #dirtyHosts = new Set<string>();
  readonly #dirtyAddresses = new Set<string>();

  constructor(self: { readonly hostId: string; readonly hostName: string }) {
    this.#self = self;
  }

  get dirty(): boolean {
    return this.#dirtyServices.size + this.#dirtyHosts.size + this.#dirtyAddresses.size > 0;
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
    this.#dirtyHosts.add(hostId);
    this.#remake(hostId, host);
  }

  setInstance(hostId: string, name: string, record: InstanceRecord | undefined, revision: string): void {
    const host = this.#host(hostId);
    const before = host.members.get(name);
    if (before !== undefined && before.record === record && before.instance.revision === revision) return;
    if (before !== undefined) this.#leave(before.instance);
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

  /** The snapshot after all changes noted so far. */
  next(previous: Snapshot, origin: Snapshot['origin'], revision: string): Snapshot {
    const services: [string, Service][] = [];
    const gone: string[] = [];
    const vips: [string, string][] = [];
    const freed: string[] = [];
    for (const name of this.#dirtyServices) {
      const before = previous.services.get(name);
      const after = this.#viewOf(name, before);
      if (after === undefined) gone.push(name);
      else services.push([name, after]);
      if (before?.vip !== undefined && before.vip !== after?.vip) freed.push(before.vip);
      if (after?.vip !== undefined) vips.push([after.vip, name]);
    }
    const hosts: [string, Host][] = [];
    const goneHosts: string[] = [];
    for (const hostId of this.#dirtyHosts) this.#viewHost(hostId, hosts, goneHosts);
    const addresses: [string, readonly string[]][] = [];
    const unused: string[] = [];
    for (const address of this.#dirtyAddresses) {
      const names = this.#addresses.get(address);
      if (names === undefined) unused.push(address);
      else addresses.push([address, sortedNames(names.keys(), previous.addresses.get(address))]);
    }
    for (const dirty of [this.#dirtyServices, this.#dirtyHosts, this.#dirtyAddresses]) dirty.clear();
    return Object.freeze({
      version: previous.version + 1,
      origin,
      revision,
      hosts: previous.hosts.with(hosts, goneHosts),
      services: previous.services.with(services, gone),
      vips: previous.vips.with(vips, freed),
      addresses: previous.addresses.with(addresses, unused),
    });
  }

  #viewOf(name: string, before: Service | undefined): Service | undefined {
    const state = this.#services.get(name);
    if (state === undefined) return undefined;
    const members = before?.instances ?? noMembers;
    const changed = state.removed.size + state.added.size > 0;
    const instances = changed ? mergeMembers(members, state) : members;
    state.removed.clear();
    state.added.clear();
    const view = viewService(name, state.record, this.#vipOf(name, state.record), instances, before);
    if (view === undefined) this.#services.delete(name);
    return view;
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
    const service = this.#service(instance.service);
    service.added.add(instance);
    this.#dirtyServices.add(instance.service);
    let names = this.#addresses.get(instance.address);
    if (names === undefined) {
      names = new Map();
      this.#addresses.set(instance.address, names);
    }
    const count = names.get(instance.service) ?? 0;
    names.set(instance.service, count + 1);
    if (count === 0) this.#dirtyAddresses.add(instance.address);
  }

  #leave(instance: Instance): void {
    const service = this.#service(instance.service);
    if (!service.added.delete(instance)) service.removed.add(instance);
    this.#dirtyServices.add(instance.service);
    const names = this.#addresses.get(instance.address);
    const count = names?.get(instance.service) ?? 0;
    if (names === undefined || count > 1) names?.set(instance.service, count - 1);
    else {
      names.delete(instance.service);
      if (names.size === 0) this.#addresses.delete(instance.address);
      this.#dirtyAddresses.add(instance.address);
    }
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
      service = { record: undefined, removed: new Set(), added: new Set() };
      this.#services.set(name, service);
    }
    return service;
  }
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

/** The names in order, frozen; `before` itself when they are the same. */
function sortedNames(names: Iterable<string>, before: readonly string[] | undefined): readonly string[] {
  const sorted = [...names].sort();
  const same = before?.length === sorted.length && before.every((name, index) => name === sorted[index]);
  return same && before !== undefined ? before : Object.freeze(sorted);
}
