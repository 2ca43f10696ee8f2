import { isUtf8 } from 'node:buffer';
import { printable, truncate } from '../../../base/text.ts';
import { maxKeyBytes } from '../../store.ts';
import type { KeyBounds } from '../committer.ts';
import { tables } from '../records.ts';
import { invalid, rpcError } from './errors.ts';

/** Prefix ends and the like may be any bytes, but not longer than a key and its end. */
const maxBoundBytes = maxKeyBytes + 1;

/** The keys that a request names by `key` and `range_end`, as etcd's API defines them (rpc.proto, RangeRequest). */
export interface KeyRange {
  /** The one key, when it names just that. */
  readonly single: string | undefined;
  readonly bounds: KeyBounds;
  /** The bounds as text of one character a byte, so that they compare and index as bytes do; no `lt`: to the end. */
  readonly from: string;
  readonly to: string | undefined;
}

/** A key to be written, or to be read by itself. */
export function parseKeyBytes(bytes: Uint8Array): string {
  if (bytes.byteLength === 0) throw rpcError('emptyKey');
  if (bytes.byteLength > maxKeyBytes) {
    throw invalid(`a key of ${bytes.byteLength} bytes is over this store's limit of ${maxKeyBytes}`);
  }
  const key = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (!isUtf8(key) || key.includes(0)) {
    throw invalid(`key ${truncate(printable(key.toString()), 80)}: this store takes keys of UTF-8 without NUL only`);
  }
  return key.toString();
}

export function parseKeyRange(keyBytes: Uint8Array, endBytes: Uint8Array): KeyRange {
  if (endBytes.byteLength === 0) {
    const single = parseKeyBytes(keyBytes);
    const gte = dbKey(keyBytes);
    return { single, bounds: { gte, lt: Buffer.concat([gte, Buffer.of(0)]) }, from: latin(keyBytes), to: undefined };
  }
  if (keyBytes.byteLength === 0) throw rpcError('emptyKey');
  if (keyBytes.byteLength > maxBoundBytes || endBytes.byteLength > maxBoundBytes) {
    throw invalid(`the bounds of a range are at most ${maxBoundBytes} bytes long`);
  }
  const open = endBytes.byteLength === 1 && endBytes[0] === 0;
  const gte = dbKey(keyBytes);
  const lt = open ? tables.keys.lt : dbKey(endBytes);
  return { single: undefined, bounds: { gte, lt }, from: latin(keyBytes), to: open ? undefined : latin(endBytes) };
}

/** All keys with this prefix, which does not end in 0xff. */
export function prefixBounds(prefix: Buffer): KeyBounds {
  const end = Buffer.from(prefix);
  const last = end.length - 1;
  end[last] = (end[last] ?? 0) + 1;
  return { gte: dbKey(prefix), lt: dbKey(end) };
}

/** The prefix, when the range is all keys with one; every key begins with the empty text. */
export function prefixOf({ single, from, to }: KeyRange): string | undefined {
  if (single !== undefined) return undefined;
  if (to === undefined) return from === '\u0000' ? '' : undefined;
  const last = to.length - 1;
  const isEnd =
    from.length === to.length &&
    from.slice(0, last) === to.slice(0, last) &&
    from.charCodeAt(last) + 1 === to.charCodeAt(last);
  return isEnd ? from : undefined;
}

/** `key` as text of one character a byte. */
export function includes(range: KeyRange, key: string): boolean {
  if (range.single !== undefined) return key === range.from;
  return key >= range.from && (range.to === undefined || key < range.to);
}

export function latin(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1');
}

export function latinOf(key: string): string {
  return Buffer.from(key).toString('latin1');
}

function dbKey(bytes: Uint8Array): Buffer {
  return Buffer.concat([tables.keys.gte, bytes]);
}
