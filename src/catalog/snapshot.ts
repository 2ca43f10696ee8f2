import { PersistentMap } from '../base/persistent-map.ts';
import type { Host } from '../model/host.ts';
import type { Instance, Protocol } from '../model/instance.ts';
import type { Weights } from '../model/routes.ts';
import type { Balance } from '../model/service.ts';
import type { FurtherSettings } from '../model/service-settings.ts';
import type { TakenBack } from '../model/taken-back.ts';

/**
 * This host's picture of hosts, services and instances. A snapshot and all that hangs off it is frozen; a new one shares
 * everything that did not change, so that `services.changesSince(previous.services)` tells what did at the cost of what
 * did. DNS, links and the kernel read `Service.usable` and so always agree.
 */
export interface Snapshot {
  /** Counts this process's snapshots; 0 is the empty one before anything is known. */
  readonly version: number;
  /** `none`: nothing is known yet. `disk`: from the last run, not yet confirmed by the store. */
  readonly origin: 'none' | 'disk' | 'store';
  /** The store's revision that it reflects; empty when unknown. */
  readonly revision: string;
  /** By host id. */
  readonly hosts: PersistentMap<Host>;
  /** By service name. */
  readonly services: PersistentMap<Service>;
  /** Service names by virtual address. */
  readonly vips: PersistentMap<string>;
  /** Instances by address (`10.0.0.1`), for PTR: names of the services that have one there. */
  readonly addresses: PersistentMap<readonly string[]>;
}

/** A service with its instances. Replaced as a whole when anything in it changes; unchanged ones keep their identity. */
export interface Service extends FurtherSettings {
  readonly name: string;
  readonly port: number;
  readonly protocol: Protocol;
  readonly balance: Balance;
  /** The split before the present one. */
  readonly formerSplit?: Weights;
  /** Set while the split is as a rollout guard left it. */
  readonly takenBack?: TakenBack;
  readonly vip: string | undefined;
  /** All of them, by id. */
  readonly instances: readonly Instance[];
  /**
   * Those that new connections may go to: passing or warning, not draining, of the service's protocol; while the brake
   * holds also those whose turn to critical or lost set it off. By id.
   */
  readonly usable: readonly Instance[];
  /** Set while the brake on mass withdrawal holds. */
  readonly brake?: Brake;
  /** What is contradictory about it, for people: `web-1/abc-53-udp speaks udp, the service tcp`. */
  readonly faults: readonly string[];
}

/** More than half of a service's instances turned critical or lost within a short time: they go on being used. */
export interface Brake {
  /** Wall clock, milliseconds. */
  readonly sinceMs: number;
  /** When it ends at the latest, wall clock in milliseconds. */
  readonly untilMs: number;
}

export const emptySnapshot: Snapshot = Object.freeze({
  version: 0,
  origin: 'none',
  revision: '',
  hosts: PersistentMap.empty<Host>(),
  services: PersistentMap.empty<Service>(),
  vips: PersistentMap.empty<string>(),
  addresses: PersistentMap.empty<readonly string[]>(),
});
