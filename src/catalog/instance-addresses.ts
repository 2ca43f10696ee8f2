import type { Conditions } from '../base/conditions.ts';
import { Latest, type Observable } from '../base/feed.ts';
import { PersistentMap } from '../base/persistent-map.ts';
import { type Ipv4Range, numberToIpv4 } from '../model/address.ts';
import { type Dialler, dialOf } from '../model/dial.ts';
import { type Instance, transportOf } from '../model/instance.ts';
import { emptySnapshot, type Service, type Snapshot } from './snapshot.ts';

/** An instance of another host, and the address at which this host serves it. */
export interface InstanceAddress {
  readonly service: string;
  readonly address: string;
  /** The instance's own, which clients dial. */
  readonly port: number;
}

export interface InstanceAddressesOptions {
  readonly range: Ipv4Range;
  readonly snapshots: Observable<Snapshot>;
  readonly dialler: () => Dialler;
  readonly conditions: Conditions;
}

/**
 * The addresses that this host hands out for instances of other hosts which are reached only through tunnels, so that
 * clients that choose among instances themselves (SRV) can dial each of them. They are this host's alone, and stay with an
 * instance while the sidecar runs. They are handed out as instances appear and not when somebody asks, because whoever is
 * told an address dials it at once, and the kernel has to know it by then; so their number is bounded.
 */
export class InstanceAddresses {
  /** Each costs a listener. */
  static readonly maxAddresses = 512;
  static readonly condition = 'link.instances';
  /** By instance id. */
  readonly table = new Latest<PersistentMap<InstanceAddress>>(PersistentMap.empty());
  readonly #options: InstanceAddressesOptions;
  readonly #unsubscribe: () => void;
  #snapshot: Snapshot = emptySnapshot;
  /** Addresses that instances have, also those that are away just now. */
  readonly #given = new Map<string, string>();
  /** Given back, the longest unused first. */
  readonly #free: string[] = [];
  #next = 1;
  #leftOut = new Set<string>();

  constructor(options: InstanceAddressesOptions) {
    this.#options = options;
    this.#unsubscribe = options.snapshots.subscribe((snapshot) => this.#follow(snapshot));
    this.#follow(options.snapshots.value);
  }

  addressOf(instanceId: string): string | undefined {
    return this.table.value.get(instanceId)?.address;
  }

  /** This host joined a mesh, or left it: all is looked at again. */
  review(): void {
    const snapshot = this.#snapshot;
    this.#snapshot = emptySnapshot;
    this.#follow(snapshot);
  }

  close(): void {
    this.#unsubscribe();
    this.#options.conditions.clear(InstanceAddresses.condition);
  }

  #follow(snapshot: Snapshot): void {
    const before = this.#snapshot;
    this.#snapshot = snapshot;
    const puts: [string, InstanceAddress][] = [];
    const gone: string[] = [];
    for (const { before: was, after: is } of snapshot.services.changesSince(before.services)) {
      const wanted = new Set(this.#tunnelled(is));
      const ids = new Set([...wanted].map(({ id }) => id));
      for (const { id } of was?.instances ?? []) {
        this.#leftOut.delete(id);
        if (!ids.has(id) && this.table.value.get(id) !== undefined) gone.push(id);
      }
      for (const instance of wanted) {
        const entry = this.#entry(instance);
        if (entry !== undefined) puts.push([instance.id, entry]);
      }
    }
    if (before === emptySnapshot) {
      const kept = new Set(puts.map(([id]) => id));
      for (const [id] of this.table.value) if (!kept.has(id)) gone.push(id);
    }
    for (const id of gone) this.#giveBack(id);
    if (puts.length > 0 || gone.length > 0) this.table.set(this.table.value.with(puts, gone));
    this.#tellLimit();
  }

  /** All of the service's instances that only a tunnel leads to, usable or not: what is away for a while keeps its address. */
  #tunnelled(service: Service | undefined): readonly Instance[] {
    if (service === undefined || transportOf(service.protocol) !== 'tcp') return [];
    const dialler = this.#options.dialler();
    return service.instances.filter((instance) => {
      const dial = dialOf(instance, dialler);
      return typeof dial !== 'string' && dial.via === 'tunnel';
    });
  }

  #entry({ id, service, port }: Instance): InstanceAddress | undefined {
    const known = this.table.value.get(id);
    if (known?.port === port && known.service === service) return known;
    const address = this.#given.get(id) ?? this.#take();
    if (address === undefined) {
      this.#leftOut.add(id);
      return undefined;
    }
    this.#given.set(id, address);
    return { service, address, port };
  }

  #take(): string | undefined {
    const { range } = this.#options;
    if (this.#given.size >= InstanceAddresses.maxAddresses) return undefined;
    const size = 2 ** (32 - range.prefixLength);
    // A fresh one as long as there are any: an address that meant another instance is remembered by somebody.
    if (this.#next < size - 1) {
      this.#next += 1;
      return numberToIpv4(range.base + this.#next - 1);
    }
    return this.#free.shift();
  }

  #giveBack(id: string): void {
    const address = this.#given.get(id);
    if (address === undefined) return;
    this.#given.delete(id);
    this.#free.push(address);
  }

  #tellLimit(): void {
    const { conditions } = this.#options;
    const [first] = this.#leftOut;
    if (first === undefined) {
      conditions.clear(InstanceAddresses.condition);
      return;
    }
    const message = `more than ${InstanceAddresses.maxAddresses} instances are reached only through tunnels; ${this.#leftOut.size} of them, such as ${first}, have no address of their own here`;
    conditions.raise(InstanceAddresses.condition, 'note', message, 'use the link name, which reaches all of them');
  }
}
