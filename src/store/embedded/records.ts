import { crc32 } from 'node:zlib';

/**
 * The records of the embedded store in LevelDB, and what each key means. The first byte of a key is its table:
 *
 * - `H`           the head: store id, revision, and how far history reaches back.
 * - `k` + key     the current version of a key. LevelDB orders these by bytes, which is the order of ranges.
 * - `h` + number  the keys that this revision wrote, or a gap in the numbering. No values: a watch that resumes reads
 *                 the current ones, because a feed may skip versions but never the last.
 * - `l` + id      a lease and its TTL. Which keys hang on it is said by their own records.
 *
 * Every value begins with a format byte and a CRC-32 over the key and the rest, so that a record which was damaged or
 * has strayed to another key is recognised. Numbers are big-endian.
 */
export interface KeyRecord {
  readonly value: Uint8Array;
  /** Revision of the last write. */
  readonly revision: number;
  /** Revision of the write that made the key. */
  readonly created: number;
  /** Counts the writes since it was made, from 1. */
  readonly version: number;
  readonly lease: string | undefined;
}

export interface Head {
  readonly storeId: string;
  readonly revision: number;
  /** No revision above this has ever been given out. */
  readonly reserved: number;
  /** History up to and including this revision is gone. */
  readonly compacted: number;
  /** Whether the store was closed in good order and not opened since. */
  readonly clean: boolean;
}

/** What one revision changed: its keys; or that the numbers after `gapAfter` up to this one were never used. */
export type HistoryRecord = { readonly keys: readonly string[] } | { readonly gapAfter: number };

const format = 1;
const prefixBytes = 5;
const keyHeaderBytes = prefixBytes + 8 * 4;
const noLease = '0'.repeat(16);

export const headKey = Buffer.from('H');

/** The bounds of a table, for iterating: `gte` and `lt`. */
export const tables = {
  keys: { gte: Buffer.from('k'), lt: Buffer.from('l') },
  history: { gte: Buffer.from('h'), lt: Buffer.from('i') },
  leases: { gte: Buffer.from('l'), lt: Buffer.from('m') },
} as const;

export function keyKey(key: string): Buffer {
  return Buffer.from(`k${key}`);
}

/** All keys with this prefix; 0xff never occurs in UTF-8. */
export function keyRange(prefix: string): { gte: Buffer; lt: Buffer } {
  const gte = keyKey(prefix);
  return { gte, lt: Buffer.concat([gte, Buffer.of(0xff)]) };
}

export function keyOf(dbKey: Uint8Array): string {
  return Buffer.from(dbKey.buffer, dbKey.byteOffset + 1, dbKey.byteLength - 1).toString();
}

export function historyKey(revision: number): Buffer {
  const key = Buffer.alloc(9, 'h');
  writeNumber(key, revision, 1);
  return key;
}

export function revisionOf(dbKey: Buffer): number | undefined {
  return dbKey.length === 9 ? readNumber(dbKey, 1) : undefined;
}

export function leaseKey(id: string): Buffer {
  return Buffer.concat([tables.leases.gte, Buffer.from(id, 'hex')]);
}

export function leaseOf(dbKey: Buffer): string {
  return dbKey.toString('hex', 1);
}

/** Room for a record with this value; `sealKey` fills in the rest once the revision is known. */
export function prepareKey(value: Uint8Array): Buffer {
  const record = Buffer.allocUnsafe(keyHeaderBytes + value.byteLength);
  record.set(value, keyHeaderBytes);
  return record;
}

export function sealKey(dbKey: Buffer, record: Buffer, fields: Omit<KeyRecord, 'value'>): KeyRecord {
  writeNumber(record, fields.revision, prefixBytes);
  writeNumber(record, fields.created, prefixBytes + 8);
  writeNumber(record, fields.version, prefixBytes + 16);
  record.write(fields.lease ?? noLease, prefixBytes + 24, 'hex');
  seal(dbKey, record);
  return { ...fields, value: record.subarray(keyHeaderBytes) };
}

/** Undefined when the record is damaged; so with all of these. */
export function parseKey(dbKey: Uint8Array, record: Buffer): KeyRecord | undefined {
  if (record.length < keyHeaderBytes || !intact(dbKey, record)) return undefined;
  const lease = record.toString('hex', prefixBytes + 24, prefixBytes + 32);
  return {
    value: record.subarray(keyHeaderBytes),
    revision: readNumber(record, prefixBytes),
    created: readNumber(record, prefixBytes + 8),
    version: readNumber(record, prefixBytes + 16),
    lease: lease === noLease ? undefined : lease,
  };
}

export function formatHead(head: Head): Buffer {
  const record = Buffer.alloc(prefixBytes + 8 * 4 + 1);
  record.write(head.storeId, prefixBytes, 'hex');
  writeNumber(record, head.revision, prefixBytes + 8);
  writeNumber(record, head.reserved, prefixBytes + 16);
  writeNumber(record, head.compacted, prefixBytes + 24);
  record[prefixBytes + 32] = head.clean ? 1 : 0;
  return seal(headKey, record);
}

export function parseHead(record: Buffer): Head | undefined {
  if (record.length !== prefixBytes + 33 || !intact(headKey, record)) return undefined;
  return {
    storeId: record.toString('hex', prefixBytes, prefixBytes + 8),
    revision: readNumber(record, prefixBytes + 8),
    reserved: readNumber(record, prefixBytes + 16),
    compacted: readNumber(record, prefixBytes + 24),
    clean: record[prefixBytes + 32] === 1,
  };
}

export function formatHistory(dbKey: Buffer, history: HistoryRecord): Buffer {
  if ('gapAfter' in history) {
    const record = Buffer.alloc(prefixBytes + 9, 'g');
    writeNumber(record, history.gapAfter, prefixBytes + 1);
    return seal(dbKey, record);
  }
  // Keys contain no NUL, so it separates them.
  const text = Buffer.from(history.keys.join('\u0000'));
  const record = Buffer.alloc(prefixBytes + 1 + text.length, 'k');
  record.set(text, prefixBytes + 1);
  return seal(dbKey, record);
}

export function parseHistory(dbKey: Uint8Array, record: Buffer): HistoryRecord | undefined {
  if (record.length < prefixBytes + 2 || !intact(dbKey, record)) return undefined;
  if (record[prefixBytes] === 0x6b) return { keys: record.toString('utf8', prefixBytes + 1).split('\u0000') };
  return record.length === prefixBytes + 9 ? { gapAfter: readNumber(record, prefixBytes + 1) } : undefined;
}

export function formatLease(dbKey: Buffer, ttlMs: number): Buffer {
  const record = Buffer.alloc(prefixBytes + 8);
  writeNumber(record, ttlMs, prefixBytes);
  return seal(dbKey, record);
}

export function parseLease(dbKey: Buffer, record: Buffer): number | undefined {
  if (dbKey.length !== 9 || record.length !== prefixBytes + 8 || !intact(dbKey, record)) return undefined;
  return readNumber(record, prefixBytes);
}

function seal(dbKey: Uint8Array, record: Buffer): Buffer {
  record[0] = format;
  record.writeUInt32BE(checksum(dbKey, record), 1);
  return record;
}

function intact(dbKey: Uint8Array, record: Buffer): boolean {
  return record[0] === format && record.readUInt32BE(1) === checksum(dbKey, record);
}

function checksum(dbKey: Uint8Array, record: Buffer): number {
  return crc32(record.subarray(prefixBytes), crc32(dbKey));
}

function writeNumber(buffer: Buffer, value: number, offset: number): void {
  buffer.writeUInt32BE(Math.floor(value / 2 ** 32), offset);
  buffer.writeUInt32BE(value >>> 0, offset + 4);
}

function readNumber(buffer: Buffer, offset: number): number {
  return buffer.readUInt32BE(offset) * 2 ** 32 + buffer.readUInt32BE(offset + 4);
}
