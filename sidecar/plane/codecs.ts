import { PersistentMap } from '../../src/base/persistent-map.ts';
import { changedList, type InstanceKey, instanceAt } from '../../src/catalog/members.ts';
import { emptySnapshot, type Service, type Snapshot } from '../../src/catalog/snapshot.ts';
import type { Caller, CallerTable } from '../../src/model/caller.ts';
import type { Host } from '../../src/model/host.ts';
import type { Instance } from '../../src/model/instance.ts';

/**
 * How a value that changes as a whole travels as what changed: in parts, each small enough that neither side stands still
 * for it, and each of which leads to a value of its own. Both sides begin with `initial`, so that the first change is the
 * reset. What did not change keeps its identity on the other side, too.
 */
export interface Codec<T> {
  readonly initial: T;
  diff(before: T, after: T): Iterable<unknown>;
  /** `part` is one of the other side's `diff`. */
  apply(before: T, part: never): T;
}

/** Entries of maps, and instances, that travel in one part. */
export const maxPartSize = 256;

/** For values that are small: they travel as a whole. */
export function wholly<T>(initial: T): Codec<T> {
  return {
    initial,
    diff: (before, after) => (Object.is(before, after) ? [] : [after]),
    apply: (_before, part: T) => part,
  };
}

interface MapPart<V> {
  readonly puts: readonly (readonly [string, V])[];
  readonly deletes: readonly string[];
}

export function byEntry<V>(): Codec<PersistentMap<V>> {
  return {
    initial: PersistentMap.empty<V>(),
    diff: (before, after) => mapParts(before, after),
    apply: (before, { puts, deletes }: MapPart<V>) => before.with(puts, deletes),
  };
}

function* mapParts<V>(before: PersistentMap<V>, after: PersistentMap<V>): IterableIterator<MapPart<V>> {
  let puts: [string, V][] = [];
  let deletes: string[] = [];
  for (const { key, after: value } of after.changesSince(before)) {
    if (value === undefined) deletes.push(key);
    else puts.push([key, value]);
    if (puts.length + deletes.length < maxPartSize) continue;
    yield { puts, deletes };
    puts = [];
    deletes = [];
  }
  if (puts.length + deletes.length > 0) yield { puts, deletes };
}

interface CallersPart extends MapPart<Caller> {
  readonly off: string | undefined;
}

export const callersCodec: Codec<CallerTable> = {
  initial: { off: 'control has not told yet who calls', bound: PersistentMap.empty() },
  *diff(before, after) {
    const { off } = after;
    if (before.off !== off) yield { off, puts: [], deletes: [] } satisfies CallersPart;
    for (const part of mapParts(before.bound, after.bound)) yield { off, ...part } satisfies CallersPart;
  },
  apply: (before, { off, puts, deletes }: CallersPart) => ({ off, bound: before.bound.with(puts, deletes) }),
};

/** Members of a list of instances that came or were replaced, and that went or were replaced. */
interface ListPart<T> {
  readonly puts: readonly T[];
  readonly deletes: readonly InstanceKey[];
}

interface ServicePart {
  readonly head: Omit<Service, 'instances' | 'usable'>;
  readonly instances: ListPart<Instance>;
  /** Those that are among the instances travel as their keys only. */
  readonly usable: ListPart<Instance | InstanceKey>;
}

interface SnapshotPart {
  readonly version: number;
  readonly origin: Snapshot['origin'];
  readonly revision: string;
  readonly hosts?: MapPart<Host>;
  readonly vips?: MapPart<string>;
  readonly services?: MapPart<ServicePart>;
}

/** What links and tunnels use of a snapshot; names by address are only for name servers. */
export const snapshotCodec: Codec<Snapshot> = {
  initial: emptySnapshot,
  *diff(before, after) {
    const { version, origin, revision } = after;
    if (before === after) return;
    const about = { version, origin, revision };
    for (const hosts of mapParts(before.hosts, after.hosts)) yield { ...about, hosts } satisfies SnapshotPart;
    for (const vips of mapParts(before.vips, after.vips)) yield { ...about, vips } satisfies SnapshotPart;
    for (const services of serviceParts(before, after)) yield { ...about, services } satisfies SnapshotPart;
    yield about satisfies SnapshotPart;
  },
  apply(before, { version, origin, revision, hosts, vips, services }: SnapshotPart) {
    return {
      version,
      origin,
      revision,
      hosts: hosts === undefined ? before.hosts : before.hosts.with(hosts.puts, hosts.deletes),
      vips: vips === undefined ? before.vips : before.vips.with(vips.puts, vips.deletes),
      services:
        services === undefined
          ? before.services
          : before.services.with(
              services.puts.map(([name, part]) => [name, builtService(before.services.get(name), part)] as const),
              services.deletes,
            ),
      addresses: before.addresses,
    };
  },
};

function* serviceParts(before: Snapshot, after: Snapshot): IterableIterator<MapPart<ServicePart>> {
  let puts: [string, ServicePart][] = [];
  let deletes: string[] = [];
  let size = 0;
  for (const { key, before: old, after: service } of after.services.changesSince(before.services)) {
    if (service === undefined) deletes.push(key);
    else {
      const part = servicePart(old, service);
      puts.push([key, part]);
      size += part.instances.puts.length;
    }
    size += 1;
    if (size < maxPartSize) continue;
    yield { puts, deletes };
    puts = [];
    deletes = [];
    size = 0;
  }
  if (size > 0) yield { puts, deletes };
}

const noInstances: readonly Instance[] = [];

function servicePart(before: Service | undefined, after: Service): ServicePart {
  const { instances, usable, ...head } = after;
  const changed = listPart(before?.usable ?? noInstances, usable);
  const puts = changed.puts.map((instance) =>
    instanceAt(instances, instance) === instance ? keyOf(instance) : instance,
  );
  return {
    head,
    instances: listPart(before?.instances ?? noInstances, instances),
    usable: { puts, deletes: changed.deletes },
  };
}

/** Both lists are in order, so that what did not change is passed over by comparing references. */
function listPart(before: readonly Instance[], after: readonly Instance[]): ListPart<Instance> {
  if (before === after) return { puts: [], deletes: [] };
  const puts: Instance[] = [];
  const deletes: InstanceKey[] = [];
  let next = 0;
  for (const instance of after) {
    if (before[next] === instance) {
      next += 1;
      continue;
    }
    // Found further on: all in between have gone. Else it is new, or has replaced one that is passed over later.
    const old = instanceAt(before, instance, next);
    if (old !== instance) {
      puts.push(instance);
      continue;
    }
    for (let gone = before[next]; gone !== undefined && gone !== instance; gone = before[next]) {
      deletes.push(keyOf(gone));
      next += 1;
    }
    next += 1;
  }
  for (const gone of before.slice(next)) deletes.push(keyOf(gone));
  return { puts, deletes };
}

function keyOf({ id, hostId }: Instance): InstanceKey {
  return { id, hostId };
}

function builtService(before: Service | undefined, { head, instances: list, usable: subset }: ServicePart): Service {
  const instances = builtList(before?.instances ?? noInstances, list.deletes, list.puts);
  const usable = subset.puts.map((each) => ('service' in each ? each : instanceAt(instances, each)));
  return {
    ...head,
    instances,
    usable: builtList(
      before?.usable ?? noInstances,
      subset.deletes,
      usable.filter((instance) => instance !== undefined),
    ),
  };
}

function builtList(
  before: readonly Instance[],
  deletes: readonly InstanceKey[],
  puts: readonly Instance[],
): readonly Instance[] {
  const removed = deletes.map((key) => instanceAt(before, key)).filter((instance) => instance !== undefined);
  return changedList(before, new Set(removed), puts);
}
