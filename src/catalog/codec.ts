import { FieldFault, Fields } from '../base/fields.ts';
import { printable, truncate } from '../base/text.ts';
import type { Endpoint } from '../model/address.ts';
import type { HostRecord } from '../model/host.ts';
import { type InstanceRecord, protocols, type StoredStatus } from '../model/instance.ts';
import { instanceNameFault, nameFault } from '../model/names.ts';
import { readRoutes, readWeights, routeLimits, tagFault } from '../model/routes.ts';
import { balances, type DerivedField, derivedFields, type ServiceRecord } from '../model/service.ts';
import {
  type FurtherField,
  type FurtherSettings,
  furtherKinds,
  furtherSettings,
  pickFurther,
  type SettingKind,
} from '../model/service-settings.ts';
import type { TakenBack } from '../model/taken-back.ts';

/**
 * The stored form of Legate's records: JSON with the format's version in `v`. What is read back is hostile: sizes are
 * bounded, every field is checked, and a fault is a reason in words, never an exception. Fields that are not known are
 * ignored; a newer version is refused with that reason, because its fields may mean something else.
 */
export const formatVersion = 1;

export type Decoded<T> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly reason: string };

/** A host's sign of life; the key says whose, the lease says that it holds. */
export interface AliveRecord {
  /** Wall clock of the sidecar's start, milliseconds. */
  readonly sinceMs: number;
  /** Which sidecar it is from; earlier versions did not say. */
  readonly claim?: HostClaim;
}

/** What tells the sidecars apart that may claim one host id. Unknown parts are empty. */
export interface HostClaim {
  /** Made anew at each start: 32 hexadecimal digits. */
  readonly nonce: string;
  /** Digests of the machine's id and of its boot's. */
  readonly machine: string;
  readonly boot: string;
  /** Its process, as far as the same boot's others can see it. */
  readonly process: string;
  /** The advertised address. */
  readonly address: string;
}

/** Who holds, or last held, a virtual address. */
export interface VipClaim {
  readonly service: string;
  readonly claimedAtMs: number;
  /** Set when the service was forgotten; the address may then be claimed again. */
  readonly releasedAtMs?: number;
}

export interface MeshMeta {
  /** 32 hexadecimal digits, made once when the mesh's first store was written. */
  readonly meshId: string;
  readonly format: number;
  /** When the mesh was last written into a store that had been emptied. */
  readonly restoredAtMs?: number;
}

/** Bounds of what is read. An instance that exceeds them is refused where it is registered. */
export const recordLimits = {
  bytes: 128 * 1024,
  tags: 256,
  tagLength: 256,
  metaEntries: 256,
  metaKeyLength: 256,
  metaLength: 4096,
  outputLength: 500,
  sourceLength: 300,
  incarnationLength: 200,
  derived: 32,
  derivedLength: 60,
  claimLength: 100,
} as const;

const storedStatuses: readonly StoredStatus[] = ['starting', 'passing', 'warning', 'critical'];
const reaches = ['host', 'mesh'] as const;
const maxTimeMs = 8.64e15;
const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true });
const hostIdPattern = /^[0-9a-f]{16}$/;
const meshIdPattern = /^[0-9a-f]{32}$/;

export function hostIdFault(id: string): string | undefined {
  return hostIdPattern.test(id) ? undefined : 'is not 16 hexadecimal digits';
}

function meshIdFault(id: string): string | undefined {
  return meshIdPattern.test(id) ? undefined : 'is not 32 hexadecimal digits';
}

/** A nonce has the form of a mesh's id. */
export const nonceFault = meshIdFault;

/** The plain object that is stored for an instance; equal records give equal texts, whatever order theirs has. */
export function instanceDocument(record: InstanceRecord): object {
  return {
    v: formatVersion,
    name: record.name,
    service: record.service,
    address: record.address,
    port: record.port,
    protocol: record.protocol,
    reach: record.reach,
    ...(record.published && { published: { address: record.published.address, port: record.published.port } }),
    tags: record.tags,
    meta: Object.fromEntries(Object.entries(record.meta).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0))),
    weight: record.weight,
    status: record.status,
    draining: record.draining,
    output: record.output,
    source: record.source,
    incarnation: record.incarnation,
  };
}

export function hostDocument(record: HostRecord): object {
  const { id, name, address, version, zone, tunnelPort } = record;
  return { v: formatVersion, id, name, address, version, zone, tunnelPort };
}

export function serviceDocument(record: ServiceRecord): object {
  const { name, port, protocol, balance, vip, formerSplit, takenBack, derived, awaitedBy } = record;
  return {
    v: formatVersion,
    name,
    port,
    protocol,
    balance,
    ...furtherSettings(record),
    ...(vip !== undefined && { vip }),
    ...(formerSplit !== undefined && { formerSplit }),
    ...(takenBack !== undefined && { takenBack }),
    ...(derived !== undefined && { derived }),
    ...(awaitedBy !== undefined && { awaitedBy }),
  };
}

export function vipClaimDocument(claim: VipClaim): object {
  const { service, claimedAtMs, releasedAtMs } = claim;
  return { v: formatVersion, service, claimedAtMs, ...(releasedAtMs !== undefined && { releasedAtMs }) };
}

export function aliveDocument({ sinceMs, claim }: AliveRecord): object {
  if (claim === undefined) return { v: formatVersion, sinceMs };
  const { nonce, machine, boot, process, address } = claim;
  return { v: formatVersion, sinceMs, claim: { nonce, machine, boot, process, address } };
}

export function encodeInstance(record: InstanceRecord): Uint8Array {
  return encode(instanceDocument(record));
}

export function encodeHost(record: HostRecord): Uint8Array {
  return encode(hostDocument(record));
}

export function encodeService(record: ServiceRecord): Uint8Array {
  return encode(serviceDocument(record));
}

export function encodeVipClaim(claim: VipClaim): Uint8Array {
  return encode(vipClaimDocument(claim));
}

export function encodeAlive(record: AliveRecord): Uint8Array {
  return encode(aliveDocument(record));
}

export function encodeMeta(meta: MeshMeta): Uint8Array {
  const { meshId, format, restoredAtMs } = meta;
  return encode({ v: formatVersion, meshId, format, ...(restoredAtMs !== undefined && { restoredAtMs }) });
}

function encode(document: object): Uint8Array {
  return encoder.encode(JSON.stringify(document));
}

/** Reads an instance that is stored under `name`. */
export function readInstance(document: unknown, name: string): Decoded<InstanceRecord> {
  return reading(document, (fields) => {
    const published = fields.has('published') ? readEndpoint(fields.fields('published')) : undefined;
    // Most have none; a record in one literal costs a third of one that is put together.
    const record: InstanceRecord = {
      name: sameAs(fields.name('name', instanceNameFault), name),
      service: fields.name('service', nameFault),
      address: fields.address('address'),
      port: fields.integer('port', 1, 65535),
      protocol: fields.oneOf('protocol', protocols),
      reach: fields.oneOf('reach', reaches),
      tags: fields.texts('tags', recordLimits.tags, recordLimits.tagLength),
      meta: fields.textMap('meta', recordLimits.metaEntries, recordLimits.metaKeyLength, recordLimits.metaLength),
      weight: fields.integer('weight', 0, 65535),
      status: fields.oneOf('status', storedStatuses),
      draining: fields.flag('draining'),
      output: fields.text('output', recordLimits.outputLength),
      source: fields.text('source', recordLimits.sourceLength, 1),
      incarnation: fields.text('incarnation', recordLimits.incarnationLength),
    };
    return Object.freeze(published === undefined ? record : { ...record, published });
  });
}

export function readHost(document: unknown, id: string): Decoded<HostRecord> {
  return reading(document, (fields) =>
    Object.freeze({
      id: sameAs(fields.name('id', hostIdFault), id),
      name: fields.name('name', nameFault),
      address: fields.address('address'),
      version: fields.text('version', 60, 1),
      ...(fields.has('zone') && { zone: fields.name('zone', nameFault) }),
      ...(fields.has('tunnelPort') && { tunnelPort: fields.integer('tunnelPort', 1, 65535) }),
    }),
  );
}

export function readService(document: unknown, name: string): Decoded<ServiceRecord> {
  return reading(document, (fields) =>
    Object.freeze({
      name: sameAs(fields.name('name', nameFault), name),
      port: fields.integer('port', 1, 65535),
      protocol: fields.oneOf('protocol', protocols),
      balance: fields.oneOf('balance', balances),
      ...readFurther(fields),
      ...(fields.has('vip') && { vip: fields.ipv4('vip') }),
      ...(fields.has('formerSplit') && { formerSplit: readBy(fields, 'formerSplit', readWeights) }),
      ...(fields.has('takenBack') && { takenBack: readTakenBack(fields.fields('takenBack')) }),
      ...(fields.has('derived') && { derived: readDerived(fields) }),
      ...(fields.has('awaitedBy') && { awaitedBy: fields.name('awaitedBy', hostIdFault) }),
    }),
  );
}

function readTakenBack(fields: Fields): TakenBack {
  const count = (name: string): number => fields.integer(name, 0, Number.MAX_SAFE_INTEGER);
  return Object.freeze({
    tag: fields.name('tag', tagFault),
    weight: fields.integer('weight', 0, routeLimits.weight),
    hostId: fields.name('hostId', hostIdFault),
    atMs: fields.integer('atMs', 0, maxTimeMs),
    requests: count('requests'),
    errors: count('errors'),
    against: fields.name('against', tagFault),
    againstRequests: count('againstRequests'),
    againstErrors: count('againstErrors'),
  });
}

/** Words that are no settings of this version are left out. */
function readDerived(fields: Fields): readonly DerivedField[] {
  const words = new Set(fields.texts('derived', recordLimits.derived, recordLimits.derivedLength));
  return Object.freeze(derivedFields.filter((field) => words.has(field)));
}

function readFurther(fields: Fields): FurtherSettings {
  return pickFurther((field) => (fields.has(field) ? readSetting(fields, field) : undefined));
}

function readSetting(fields: Fields, field: FurtherField): unknown {
  const { form }: SettingKind = furtherKinds[field];
  switch (form.kind) {
    case 'choice':
      return fields.oneOf(field, form.words);
    case 'duration':
      return fields.integer(field, form.minMs, form.maxMs);
    case 'number':
      return fields.integer(field, form.min, form.max);
    case 'size':
      return fields.integer(field, 0, form.max);
    case 'text':
      return fields.name(field, form.fault);
    case 'weights':
      return readBy(fields, field, readWeights);
    case 'routes':
      return readBy(fields, field, readRoutes);
  }
}

/** Reads a field whose form the model knows; its first fault is the record's. */
function readBy<T>(
  fields: Fields,
  name: string,
  read: (value: unknown, path: string, fault: (path: string, message: string) => void) => T | undefined,
): T {
  const value = read(fields.raw(name), name, (path, message) => {
    throw new FieldFault(truncate(`${printable(path)}: ${message}`, 300));
  });
  if (value === undefined) throw new FieldFault(`${name}: cannot be read`);
  return value;
}

export function readVipClaim(document: unknown): Decoded<VipClaim> {
  return reading(document, (fields) =>
    Object.freeze({
      service: fields.name('service', nameFault),
      claimedAtMs: fields.integer('claimedAtMs', 0, maxTimeMs),
      ...(fields.has('releasedAtMs') && { releasedAtMs: fields.integer('releasedAtMs', 0, maxTimeMs) }),
    }),
  );
}

export function readAlive(document: unknown): Decoded<AliveRecord> {
  return reading(document, (fields) => {
    const sinceMs = fields.integer('sinceMs', 0, maxTimeMs);
    return Object.freeze(fields.has('claim') ? { sinceMs, claim: readClaim(fields.fields('claim')) } : { sinceMs });
  });
}

function readClaim(fields: Fields): HostClaim {
  return Object.freeze({
    nonce: fields.name('nonce', nonceFault),
    machine: fields.text('machine', recordLimits.claimLength),
    boot: fields.text('boot', recordLimits.claimLength),
    process: fields.text('process', recordLimits.claimLength),
    address: fields.address('address'),
  });
}

export function readMeta(document: unknown): Decoded<MeshMeta> {
  return reading(document, (fields) =>
    Object.freeze({
      meshId: fields.name('meshId', meshIdFault),
      format: fields.integer('format', 1, 1_000_000),
      ...(fields.has('restoredAtMs') && { restoredAtMs: fields.integer('restoredAtMs', 0, 8.64e15) }),
    }),
  );
}

export function decodeInstance(value: Uint8Array, name: string): Decoded<InstanceRecord> {
  return decoding(value, (document) => readInstance(document, name));
}

export function decodeHost(value: Uint8Array, id: string): Decoded<HostRecord> {
  return decoding(value, (document) => readHost(document, id));
}

export function decodeService(value: Uint8Array, name: string): Decoded<ServiceRecord> {
  return decoding(value, (document) => readService(document, name));
}

export function decodeVipClaim(value: Uint8Array): Decoded<VipClaim> {
  return decoding(value, readVipClaim);
}

export function decodeAlive(value: Uint8Array): Decoded<AliveRecord> {
  return decoding(value, readAlive);
}

export function decodeMeta(value: Uint8Array): Decoded<MeshMeta> {
  return decoding(value, readMeta);
}

/** The reason begins so when a newer Legate wrote the entry; such an entry is left alone, not repaired. */
export const newerVersionReason = 'it is of a newer version';

function decoding<T>(value: Uint8Array, read: (document: unknown) => Decoded<T>): Decoded<T> {
  if (value.byteLength > recordLimits.bytes) {
    return { ok: false, reason: `it has ${value.byteLength} bytes, more than ${recordLimits.bytes}` };
  }
  let document: unknown;
  try {
    document = JSON.parse(decoder.decode(value));
  } catch {
    return { ok: false, reason: 'it is not JSON in UTF-8' };
  }
  return read(document);
}

function reading<T>(document: unknown, read: (fields: Fields) => T): Decoded<T> {
  try {
    const fields = new Fields(document);
    const version = fields.integer('v', 1, Number.MAX_SAFE_INTEGER);
    if (version > formatVersion) {
      return { ok: false, reason: `${newerVersionReason} (${version}; this one reads up to ${formatVersion})` };
    }
    return { ok: true, value: read(fields) };
  } catch (error) {
    if (error instanceof FieldFault) return { ok: false, reason: error.message };
    throw error;
  }
}

function readEndpoint(fields: Fields): Endpoint {
  return Object.freeze({ address: fields.address('address'), port: fields.integer('port', 1, 65535) });
}

function sameAs(value: string, key: string): string {
  if (value === key) return value;
  throw new FieldFault(`it says that it is "${value}", its key says "${truncate(printable(key), 140)}"`);
}

/** A record as the catalog keeps it, or why this instance cannot be stored. */
export function checkedInstance(record: InstanceRecord): Decoded<InstanceRecord> {
  return decodeInstance(encodeInstance(record), record.name);
}
