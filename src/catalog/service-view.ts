import { type Instance, isUsableStatus, type Protocol, transportOf } from '../model/instance.ts';
import { defaultBalance, type ServiceRecord } from '../model/service.ts';
import type { Service } from './snapshot.ts';

/** Contradictions that a service lists; what is beyond is counted in a last line. */
const maxFaults = 20;

/** The order of a service's instances: by id, and by host where two hosts carry one name. */
export function compareInstances(a: Instance, b: Instance): number {
  if (a.id !== b.id) return a.id < b.id ? -1 : 1;
  return a.hostId < b.hostId ? -1 : a.hostId > b.hostId ? 1 : 0;
}

/** The changes of one service since its last view was made. */
export interface MemberChanges {
  readonly removed: ReadonlySet<Instance>;
  readonly added: ReadonlySet<Instance>;
}

/** `before` without what was removed and with what was added, in order. Linear in the members, whatever changed. */
export function mergeMembers(before: readonly Instance[], { removed, added }: MemberChanges): Instance[] {
  const kept = removed.size === 0 ? [...before] : before.filter((instance) => !removed.has(instance));
  if (added.size === 0) return kept;
  const fresh = [...added].sort(compareInstances);
  if (kept.length === 0) return fresh;
  if (fresh.length <= 8) {
    for (const instance of fresh) kept.splice(positionOf(kept, instance), 0, instance);
    return kept;
  }
  const merged: Instance[] = [];
  let next = 0;
  for (const instance of kept) {
    for (let other = fresh[next]; other !== undefined && compareInstances(other, instance) < 0; other = fresh[next]) {
      merged.push(other);
      next += 1;
    }
    merged.push(instance);
  }
  return merged.concat(fresh.slice(next));
}

function positionOf(sorted: readonly Instance[], instance: Instance): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const other = sorted[middle];
    if (other !== undefined && compareInstances(other, instance) < 0) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Whether new connections may go to the instance. */
function isUsable(instance: Instance, protocol: Protocol): boolean {
  return isUsableStatus(instance.status) && !instance.draining && !contradicts(instance, protocol);
}

/**
 * Whether the instance says that it speaks something else than the service, and is therefore left out. One that only says
 * `tcp`, the default, contradicts nothing that is spoken above TCP.
 */
function contradicts(instance: Instance, protocol: Protocol): boolean {
  if (instance.protocol === protocol) return false;
  return instance.protocol !== 'tcp' || transportOf(protocol) !== 'tcp';
}

/**
 * The service as readers see it, or `before` itself when nothing in it differs; undefined when there is neither a record
 * nor an instance. Without a record, port and protocol are those of the first instance by id.
 */
export function viewService(
  name: string,
  record: ServiceRecord | undefined,
  vip: { readonly address: string | undefined; readonly fault: string | undefined },
  instances: readonly Instance[],
  before: Service | undefined,
): Service | undefined {
  const first = instances[0];
  const protocol = record?.protocol ?? first?.protocol;
  const port = record?.port ?? first?.port;
  if (protocol === undefined || port === undefined) return undefined;
  const balance = record?.balance ?? defaultBalance;
  const faults = faultsOf(instances, protocol, vip.fault);
  const same = before !== undefined && sameList(before.instances, instances);
  if (
    same &&
    before.port === port &&
    before.protocol === protocol &&
    before.balance === balance &&
    before.vip === vip.address &&
    sameList(before.faults, faults)
  ) {
    return before;
  }
  const usable = instances.filter((instance) => isUsable(instance, protocol));
  return Object.freeze({
    name,
    port,
    protocol,
    balance,
    vip: vip.address,
    instances: same ? before.instances : Object.freeze(instances),
    usable: before !== undefined && sameList(before.usable, usable) ? before.usable : Object.freeze(usable),
    faults: Object.freeze(faults),
  });
}

function faultsOf(instances: readonly Instance[], protocol: Protocol, vipFault: string | undefined): string[] {
  const faults = vipFault === undefined ? [] : [vipFault];
  let more = 0;
  for (const instance of instances) {
    if (!contradicts(instance, protocol)) continue;
    if (faults.length >= maxFaults) more += 1;
    else faults.push(`${instance.id} speaks ${instance.protocol}, the service ${protocol}`);
  }
  if (more > 0) faults.push(`${more} more instances do not speak ${protocol}`);
  return faults;
}

function sameList<T>(a: readonly T[], b: readonly T[]): boolean {
  return a === b || (a.length === b.length && a.every((item, index) => item === b[index]));
}
