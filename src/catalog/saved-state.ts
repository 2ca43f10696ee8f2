import type { HostRecord } from '../model/host.ts';
import type { InstanceRecord } from '../model/instance.ts';
import type { ServiceRecord } from '../model/service.ts';
import type { SavedBrake } from './brake.ts';
import type { AliveRecord, VipClaim } from './codec.ts';

/** A checked record and the revision of the write that it came from. */
export interface Stamped<T> {
  readonly record: T;
  readonly revision: string;
}

/** What the catalog knows, in the form that outlives the process. Own instances are as they were on this host. */
export interface SavedState {
  readonly meshId: string;
  /** The store that the revisions belong to; undefined when none was ever reached. */
  readonly storeId: string | undefined;
  readonly revision: string;
  /** Wall clock of the moment at which the store last confirmed all this, milliseconds; 0 when it never did. */
  readonly confirmedAtMs: number;
  /** By host id. */
  readonly hosts: ReadonlyMap<string, Stamped<HostRecord>>;
  /** By host id: those that had a sign of life. */
  readonly alive: ReadonlyMap<string, Stamped<AliveRecord>>;
  /** By `<host id>/<name>`. */
  readonly instances: ReadonlyMap<string, Stamped<InstanceRecord>>;
  /** By service name. */
  readonly services: ReadonlyMap<string, Stamped<ServiceRecord>>;
  /** By address, released ones too. */
  readonly vips: ReadonlyMap<string, Stamped<VipClaim>>;
  /** By service name: what holds or may soon hold back a mass withdrawal. */
  readonly brakes: ReadonlyMap<string, SavedBrake>;
  /** By host id: for how long it was seen lost while the store answered, milliseconds. */
  readonly lost: ReadonlyMap<string, number>;
}

/** The instances of one host, for a sidecar that remembers its own. */
export function recordsOfHost(saved: SavedState, hostId: string): InstanceRecord[] {
  const prefix = `${hostId}/`;
  return [...saved.instances].filter(([key]) => key.startsWith(prefix)).map(([, { record }]) => record);
}

/** The virtual addresses that services held, so that they get the same ones again. */
export function rememberedVips(saved: SavedState): Map<string, string> {
  const vips = new Map<string, string>();
  for (const [address, { record }] of saved.vips)
    if (record.releasedAtMs === undefined) vips.set(record.service, address);
  for (const [name, { record }] of saved.services) if (record.vip !== undefined) vips.set(name, record.vip);
  return vips;
}
