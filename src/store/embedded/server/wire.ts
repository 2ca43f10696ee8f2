import { createHash } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import {
  type KeyValue,
  KeyValueSchema,
  type ResponseHeader,
  ResponseHeaderSchema,
} from '../../etcd-api/gen/etcd_pb.ts';
import type { KeyRecord } from '../records.ts';

/** The identity of a store on the wire: another id after its data was lost. `storeId`: 16 hexadecimal digits. */
export class Identity {
  readonly clusterId: bigint;
  readonly memberId: bigint;
  readonly #fixed: Buffer;

  constructor(storeId: string) {
    this.clusterId = BigInt(`0x${storeId}`);
    this.memberId = createHash('sha256').update(`member of ${storeId}`).digest().readBigUInt64BE();
    this.#fixed = concat([0x08, ...varint(this.clusterId), 0x10, ...varint(this.memberId)]);
  }

  header(revision: number): ResponseHeader {
    const { clusterId, memberId } = this;
    return create(ResponseHeaderSchema, { clusterId, memberId, revision: BigInt(revision), raftTerm });
  }

  /** The header as field 1 of any response. */
  headerField(revision: number): Buffer {
    const body = Buffer.concat([this.#fixed, concat([0x18, ...varint(revision), 0x20, Number(raftTerm)])]);
    return lengthDelimited(1, body);
  }
}

/** There are no elections: it is always the first term. */
export const raftTerm = 1n;

/** Base-128 number (protobuf encoding, "Base 128 Varints"). */
export function varint(value: number | bigint): number[] {
  const bytes: number[] = [];
  if (typeof value === 'number' && value < 2 ** 53 && value >= 0) {
    let rest = value;
    while (rest >= 0x80) {
      bytes.push((rest % 0x80) | 0x80);
      rest = Math.floor(rest / 0x80);
    }
    bytes.push(rest);
    return bytes;
  }
  let rest = BigInt.asUintN(64, BigInt(value));
  while (rest >= 0x80n) {
    bytes.push(Number(rest & 0x7fn) | 0x80);
    rest >>= 7n;
  }
  bytes.push(Number(rest));
  return bytes;
}

function concat(bytes: number[]): Buffer {
  return Buffer.from(bytes);
}

/** A field that is a message, text or bytes. */
export function lengthDelimited(field: number, body: Uint8Array): Buffer {
  const head = [(field << 3) | 2, ...varint(body.byteLength)];
  const out = Buffer.allocUnsafe(head.length + body.byteLength);
  out.set(head);
  out.set(body, head.length);
  return out;
}

/** A field that is a number; nothing for 0, which is what its absence means. */
export function numberField(field: number, value: number | bigint): number[] {
  return value === 0 || value === 0n ? [] : [field << 3, ...varint(value)];
}

/** A KeyValue as `field` of another message: what toBinary would give, for paths where there are many. */
export function keyValueField(field: number, key: Uint8Array, record: KeyRecord, keysOnly = false): Buffer {
  const numbers = [
    ...numberField(2, record.created),
    ...numberField(3, record.revision),
    ...numberField(4, record.version),
  ];
  const value = keysOnly ? new Uint8Array() : record.value;
  const valueHead = value.byteLength === 0 ? [] : [0x2a, ...varint(value.byteLength)];
  const tail = record.lease === undefined ? [] : numberField(6, BigInt(`0x${record.lease}`));
  const keyHead = [0x0a, ...varint(key.byteLength)];
  const size = keyHead.length + key.byteLength + numbers.length + valueHead.length + value.byteLength + tail.length;
  const head = [(field << 3) | 2, ...varint(size), ...keyHead];
  const out = Buffer.allocUnsafe(head.length - keyHead.length + size);
  let offset = 0;
  for (const part of [head, key, numbers, valueHead, value, tail]) {
    out.set(part, offset);
    offset += part.length;
  }
  return out;
}

export function keyValue(key: string, record: KeyRecord, keysOnly = false): KeyValue {
  return create(KeyValueSchema, {
    key: Buffer.from(key),
    createRevision: BigInt(record.created),
    modRevision: BigInt(record.revision),
    version: BigInt(record.version),
    value: keysOnly ? new Uint8Array() : record.value,
    lease: leaseNumber(record.lease),
  });
}

/** A lease's id as the API has it: a signed number of 64 bits; 0 for none. */
export function leaseNumber(id: string | undefined): bigint {
  return id === undefined ? 0n : BigInt.asIntN(64, BigInt(`0x${id}`));
}

/** The id as the store has it; undefined for 0. */
export function leaseId(number: bigint): string | undefined {
  return number === 0n ? undefined : BigInt.asUintN(64, number).toString(16).padStart(16, '0');
}

/** A number that is meant to be a revision or count; those beyond 2^53 are no less impossible than 2^53. */
export function toNumber(value: bigint): number {
  return Number(BigInt.asIntN(64, value));
}
