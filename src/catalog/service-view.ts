import { type Instance, isUsableStatus, type Protocol, transportOf } from '../model/instance.ts';
import { defaultBalance, type ServiceRecord } from '../model/service.ts';
import { furtherFields, furtherSettings, sameSetting } from '../model/service-settings.ts';
import { changedList } from './members.ts';
import type { Brake, Service } from './snapshot.ts';

/** Contradictions that a service lists; what is beyond is counted in a last line. */
const maxFaults = 20;

/** The changes of one service since its last view was made. */
export interface MemberChanges {
  readonly removed: Set<Instance>;
  readonly added: Set<Instance>;
}

const noChanges: MemberChanges = { removed: new Set(), added: new Set() };
const noInstances: readonly Instance[] = Object.freeze([]);
const noFaults: readonly string[] = Object.freeze([]);

/** The brake while it holds, and whom it keeps. */
export interface HeldBrake {
  readonly brake: Brake | undefined;
  readonly keeps: (instance: Instance) => boolean;
}

/** Whether new connections may go to the instance. */
function isUsable(instance: Instance, protocol: Protocol, { brake, keeps }: HeldBrake): boolean {
  if (instance.draining || contradicts(instance, protocol)) return false;
  return isUsableStatus(instance.status) || (brake !== undefined && keeps(instance));
}

/**
 * Whether the instance says that it speaks something else than the service, and is therefore left out. One that only says
 * `tcp`, the default, contradicts nothing that is spoken above TCP.
 */
function contradicts(instance: Instance, protocol: Protocol): boolean {
  if (instance.protocol === protocol) return false;
  return instance.protocol !== 'tcp' || transportOf(protocol) !== 'tcp';
}

/** What a service's view is made of. */
export interface ServiceParts {
  readonly name: string;
  readonly record: ServiceRecord | undefined;
  readonly vip: { readonly address: string | undefined; readonly fault: string | undefined };
  /** Undefined when its instances are as they were. */
  readonly changes: MemberChanges | undefined;
  readonly held: HeldBrake;
}

/**
 * The service as readers see it, or `before` itself when nothing in it differs; undefined when there is neither a record
 * nor an instance. Without a record, port and protocol are those of the first instance by id. Its lists are derived from
 * the former ones where only some instances changed.
 */
export function viewService(
  { name, record, vip, changes = noChanges, held }: ServiceParts,
  before: Service | undefined,
): Service | undefined {
  const added = [...changes.added];
  const instances = changedList(before?.instances ?? noInstances, changes.removed, added);
  const first = instances[0];
  const protocol = record?.protocol ?? first?.protocol;
  const port = record?.port ?? first?.port;
  if (protocol === undefined || port === undefined) return undefined;
  const balance = record?.balance ?? defaultBalance;
  const { brake } = held;
  const similar = before !== undefined && before.protocol === protocol && before.brake === brake;
  const usable = similar
    ? changedList(
        before.usable,
        changes.removed,
        added.filter((instance) => isUsable(instance, protocol, held)),
      )
    : instances.filter((instance) => isUsable(instance, protocol, held));
  const plain =
    similar &&
    before.faults.length === 0 &&
    vip.fault === undefined &&
    !added.some((instance) => contradicts(instance, protocol));
  const faults = plain ? noFaults : faultsOf(instances, protocol, vip.fault);
  if (
    similar &&
    before.instances === instances &&
    before.port === port &&
    before.balance === balance &&
    furtherFields.every((field) => sameSetting(before[field], record?.[field])) &&
    sameSetting(before.formerSplit, record?.formerSplit) &&
    sameSetting(before.takenBack, record?.takenBack) &&
    before.vip === vip.address &&
    sameList(before.faults, faults)
  ) {
    return before;
  }
  return Object.freeze({
    name,
    port,
    protocol,
    balance,
    ...(record && furtherSettings(record)),
    ...(record?.formerSplit && { formerSplit: record.formerSplit }),
    ...(record?.takenBack && { takenBack: record.takenBack }),
    vip: vip.address,
    instances: Object.freeze(instances),
    usable: before !== undefined && sameList(before.usable, usable) ? before.usable : Object.freeze(usable),
    ...(brake && { brake }),
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
