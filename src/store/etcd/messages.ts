import { create } from '@bufbuild/protobuf';
import { definitionOf } from '../etcd-api/definitions.ts';
import {
  Auth,
  type Compare,
  Compare_CompareResult,
  Compare_CompareTarget,
  CompareSchema,
  type KeyValue,
  KV,
  Lease,
  Maintenance,
  type RequestOp,
  RequestOpSchema,
  type ResponseHeader,
  Watch,
} from '../etcd-api/gen/etcd_pb.ts';
import { formatRevision, revisionNumber } from '../revision.ts';
import type { Entry, Guard, Write } from '../store.ts';
import { maxKeyBytes } from '../store.ts';
import { EtcdFailure } from './failure.ts';

/** The calls of etcd's API that this client makes. */
export const api = {
  range: definitionOf(KV.method.range),
  put: definitionOf(KV.method.put),
  deleteRange: definitionOf(KV.method.deleteRange),
  txn: definitionOf(KV.method.txn),
  watch: definitionOf(Watch.method.watch),
  leaseGrant: definitionOf(Lease.method.leaseGrant),
  leaseRevoke: definitionOf(Lease.method.leaseRevoke),
  leaseKeepAlive: definitionOf(Lease.method.leaseKeepAlive),
  status: definitionOf(Maintenance.method.status),
  authenticate: definitionOf(Auth.method.authenticate),
} as const;

/** The cluster and its revision, as an answer's header has them. */
export interface Head {
  /** 16 hex digits. */
  readonly clusterId: string;
  readonly revision: number;
}

/** Without a header, or with one that no etcd writes, it is no answer of etcd: EtcdFailure. */
export function headOf(header: ResponseHeader | undefined): Head {
  if (header === undefined || header.clusterId === 0n) {
    throw new EtcdFailure('not-etcd', 'an answer without the header that etcd writes');
  }
  return { clusterId: header.clusterId.toString(16).padStart(16, '0'), revision: safeNumber(header.revision) };
}

/** A revision or count as a number; beyond what a number can hold exactly, or below 0, it is not etcd's: EtcdFailure. */
export function safeNumber(value: bigint): number {
  const number = Number(value);
  if (!Number.isSafeInteger(number) || number < 0) throw new EtcdFailure('not-etcd', `a revision of ${value}`);
  return number;
}

/** All keys that begin with `prefix`, as etcd names a range. */
export function rangeOf(prefix: string): { key: Uint8Array; rangeEnd: Uint8Array } {
  if (prefix === '') return { key: Buffer.of(0), rangeEnd: Buffer.of(0) };
  const rangeEnd = Buffer.from(prefix);
  // No byte of UTF-8 is 0xff, so the last one can always be raised.
  rangeEnd.writeUInt8((rangeEnd.at(-1) ?? 0) + 1, rangeEnd.length - 1);
  return { key: Buffer.from(prefix), rangeEnd };
}

/** The key as text; undefined for one that is none of ours: no UTF-8, empty, too long or with NUL. */
export function keyText(key: Uint8Array): string | undefined {
  if (key.byteLength === 0 || key.byteLength > maxKeyBytes) return undefined;
  const bytes = Buffer.from(key.buffer, key.byteOffset, key.byteLength);
  const text = bytes.toString('utf8');
  if (text.includes('\ufffd') && !Buffer.from(text).equals(bytes)) return undefined;
  return text.includes('\u0000') ? undefined : text;
}

/** An entry; undefined when its key is none of ours. */
export function entryOf(kv: KeyValue, clusterId: string): Entry | undefined {
  const key = keyText(kv.key);
  if (key === undefined) return undefined;
  return { key, value: kv.value, revision: formatRevision(clusterId, safeNumber(kv.modRevision)) };
}

/** A guard as etcd compares it; undefined for one that cannot hold in this cluster. */
export function compareOf(guard: Guard, clusterId: string): Compare | undefined {
  const key = Buffer.from(guard.key);
  if (guard.kind === 'revision') {
    const number = revisionNumber(clusterId, guard.revision);
    // To etcd, revision 0 is that of a key that is not there.
    if (number === undefined || number === 0) return undefined;
    return create(CompareSchema, {
      result: Compare_CompareResult.EQUAL,
      target: Compare_CompareTarget.MOD,
      key,
      targetUnion: { case: 'modRevision', value: BigInt(number) },
    });
  }
  return create(CompareSchema, {
    result: guard.kind === 'absent' ? Compare_CompareResult.EQUAL : Compare_CompareResult.GREATER,
    target: Compare_CompareTarget.CREATE,
    key,
    targetUnion: { case: 'createRevision', value: 0n },
  });
}

export function operationOf(write: Write): RequestOp {
  const key = Buffer.from(write.key);
  if (write.kind === 'delete')
    return create(RequestOpSchema, { request: { case: 'requestDeleteRange', value: { key } } });
  const put = {
    key,
    value: Buffer.from(write.value),
    lease: write.lease === undefined ? 0n : leaseNumber(write.lease.id),
  };
  return create(RequestOpSchema, { request: { case: 'requestPut', value: put } });
}

/** The id of a lease as etcd has it. One that no etcd gave is that of no lease. */
export function leaseNumber(id: string): bigint {
  if (!/^[0-9a-f]{1,16}$/.test(id)) throw new EtcdFailure('no-lease', 'the lease is not one of etcd');
  return BigInt.asIntN(64, BigInt(`0x${id}`));
}

export function leaseText(id: bigint): string {
  return BigInt.asUintN(64, id).toString(16).padStart(16, '0');
}
