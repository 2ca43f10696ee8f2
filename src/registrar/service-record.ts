import type { Service } from '../catalog/snapshot.ts';
import type { Instance } from '../model/instance.ts';
import type { Weights } from '../model/routes.ts';
import {
  defaultBalance,
  derivedFields,
  type ServiceField,
  type ServiceRecord,
  type ServiceSettings,
  serviceFields,
} from '../model/service.ts';
import { furtherFields, furtherSettings, sameSetting } from '../model/service-settings.ts';
import { type TakenBack, withoutSide } from '../model/taken-back.ts';

/** How a service's stored record comes to be and changes. Pure: an unchanged record is the same object. */

/**
 * The record of a service that has none: as set, else as its first instance is. One that cannot be read (`isDamaged`) is
 * made anew from what was known of it; one that is gone was perhaps forgotten a moment ago, and does not come back
 * without a reason. Undefined without a port.
 */
export function freshRecord(
  name: string,
  settings: ServiceSettings,
  { service, isDamaged }: { readonly service: Service | undefined; readonly isDamaged: boolean },
): ServiceRecord | undefined {
  const known = isDamaged || (service !== undefined && service.instances.length > 0) ? service : undefined;
  const port = settings.port ?? known?.port;
  if (port === undefined) return undefined;
  const protocol = settings.protocol ?? known?.protocol ?? 'tcp';
  const balance = settings.balance ?? known?.balance ?? defaultBalance;
  const derived = derivedFields.filter((field) => settings[field] === undefined);
  const further = furtherSettings({ ...(known && furtherSettings(known)), ...furtherSettings(settings) });
  return { name, port, protocol, balance, ...further, ...(derived.length > 0 && { derived }) };
}

/** The record of a service that a container of `hostId` waits for, at the port that it wants until an instance comes. */
export function awaitedRecord(name: string, settings: ServiceSettings, port: number, hostId: string): ServiceRecord {
  const { protocol = 'tcp', balance = defaultBalance } = settings;
  const derived = derivedFields.filter((field) => settings[field] === undefined);
  return { name, port, protocol, balance, ...furtherSettings(settings), derived, awaitedBy: hostId };
}

/** The record of a service that has had an instance. */
export function arrived(record: ServiceRecord): ServiceRecord {
  if (record.awaitedBy === undefined) return record;
  const { awaitedBy: _, ...rest } = record;
  return rest;
}

/** The record with these settings as chosen ones. */
export function withSettings(record: ServiceRecord, settings: ServiceSettings): ServiceRecord {
  const given = serviceFields.filter((field) => settings[field] !== undefined);
  const isSame = given.every((field) => sameSetting(settings[field], record[field]) && !isDerived(record, field));
  // Whoever sets a split, be it the one that there is, has seen what a guard did.
  const { takenBack } = settings.split === undefined ? record : {};
  if (isSame && takenBack === record.takenBack) return record;
  const { derived: before = [], takenBack: _, ...rest } = arrived(record);
  const derived = before.filter((field) => settings[field] === undefined);
  const isNewSplit = settings.split !== undefined && !sameSetting(settings.split, record.split ?? {});
  const formerSplit = isNewSplit && { formerSplit: record.split ?? {} };
  const kept = { ...(takenBack && { takenBack }), ...(derived.length > 0 && { derived }) };
  return { ...rest, ...settings, ...formerSplit, ...kept };
}

/** The record once a guard has taken a side of its split back. */
export function withTakenBack(record: ServiceRecord, split: Weights, takenBack: TakenBack): ServiceRecord {
  return { ...record, split: withoutSide(split, takenBack.tag), formerSplit: split, takenBack };
}

/**
 * The record as if nobody had chosen these: port and protocol are those that all instances have, and stay where they have
 * not one.
 */
export function withoutSettings(
  record: ServiceRecord,
  fields: readonly ServiceField[],
  instances: readonly Instance[],
): ServiceRecord {
  const chosen = fields.filter((field) => !isDerived(record, field));
  if (chosen.length === 0) return record;
  const derived = derivedFields.filter((field) => chosen.includes(field) || isDerived(record, field));
  const balance = chosen.includes('balance') ? defaultBalance : record.balance;
  const rest: Partial<Record<keyof ServiceRecord, unknown>> & ServiceRecord = { ...record, balance };
  for (const field of furtherFields) if (chosen.includes(field)) delete rest[field];
  return followingInstances({ ...rest, ...(derived.length > 0 && { derived }) }, instances);
}

/** The record with those of the settings that nobody has chosen yet. */
export function withAbsentSettings(record: ServiceRecord, settings: ServiceSettings): ServiceRecord {
  const absent = Object.entries(settings).filter(([field]) => isDerived(record, field as ServiceField));
  return absent.length === 0 ? record : withSettings(record, Object.fromEntries(absent));
}

/** The record with the port and the protocol, where nobody chose them, that all instances have by now. */
export function followingInstances(record: ServiceRecord, instances: readonly Instance[]): ServiceRecord {
  const port = isDerived(record, 'port') ? agreed(instances, 'port') : undefined;
  const protocol = isDerived(record, 'protocol') ? agreed(instances, 'protocol') : undefined;
  const next = { ...record, port: port ?? record.port, protocol: protocol ?? record.protocol };
  return next.port === record.port && next.protocol === record.protocol ? record : next;
}

/** The settings that somebody else has chosen otherwise. */
export function contradictions(record: ServiceRecord, settings: ServiceSettings): ServiceField[] {
  const isOther = (field: ServiceField): boolean =>
    record[field] !== undefined && !sameSetting(settings[field], record[field]);
  return serviceFields.filter((field) => settings[field] !== undefined && isOther(field));
}

/** What all instances have; undefined when they differ, or there is none. */
export function agreed<K extends 'port' | 'protocol'>(instances: readonly Instance[], key: K): Instance[K] | undefined {
  const value = instances[0]?.[key];
  return instances.every((instance) => instance[key] === value) ? value : undefined;
}

function isDerived(record: ServiceRecord, field: ServiceField): boolean {
  return record[field] === undefined || (record.derived?.some((each) => each === field) ?? false);
}
