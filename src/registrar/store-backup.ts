import { createHash } from 'node:crypto';
import { LegateError } from '../base/errors.ts';
import { FieldFault, Fields } from '../base/fields.ts';
import { printable, truncate } from '../base/text.ts';
import type { Keys } from '../store/keys.ts';
import { maxKeyBytes, type Store } from '../store/store.ts';
import { readMesh } from './mesh-records.ts';

const backupVersion = 1;
const maxRecords = 1_000_000;
/** A value of 1 MiB in base64, its key, and their wrapping. */
const maxLineBytes = 2 * 1024 * 1024;
/** Bytes of a backup that are made at a time. */
const partLength = 256 * 1024;

export interface BackupHeader {
  readonly meshId: string;
  /** The mesh's name, for people. */
  readonly mesh: string;
  /** Of the store that was saved; all records are from this one moment. */
  readonly revision: string;
  readonly atMs: number;
  readonly count: number;
  /** Users' keys that vanish by themselves: they are not saved. */
  readonly leasedLeftOut: number;
}

export interface Backup {
  readonly header: BackupHeader;
  /** Keys without the mesh's own prefix. */
  readonly records: ReadonlyMap<string, { readonly value: Uint8Array }>;
}

/**
 * All that lasts of a mesh, from one moment, as lines of JSON: a header with a checksum, then a key and its value in
 * base64 on each line. Signs of life and keys with a lease are left out: they would not be true later. E_STORE_DAMAGED
 * when the store does not say which mesh it holds.
 */
export async function makeBackup(
  store: Store,
  keys: Keys,
  { mesh, nowMs }: { readonly mesh: string; readonly nowMs: number },
): Promise<{ readonly header: BackupHeader; readonly parts: Iterable<string> }> {
  const { meshId, records, leased, revision } = await readMesh(store, keys);
  if (meshId === undefined) {
    throw new LegateError('E_STORE_DAMAGED', 'the store does not say which mesh it holds', {
      hint: 'legate status may say why',
    });
  }
  const hash = createHash('sha256');
  for (const [key, { value }] of records) hash.update(line(key, value));
  const header = { meshId, mesh, revision, atMs: nowMs, count: records.size, leasedLeftOut: leased.size };
  const parts = function* (): Generator<string> {
    let part = `${JSON.stringify({ legate: 'backup', v: backupVersion, ...header, sha256: hash.digest('hex') })}\n`;
    for (const [key, { value }] of records) {
      part += line(key, value);
      if (part.length < partLength) continue;
      yield part;
      part = '';
    }
    yield part;
  };
  return { header, parts: parts() };
}

function line(key: string, value: Uint8Array): string {
  return `${JSON.stringify({ key, value: Buffer.from(value).toString('base64') })}\n`;
}

/** Reads a whole backup, or throws E_INVALID with what is wrong with it: nothing of a damaged one is to be used. */
export function parseBackup(bytes: Uint8Array): Backup {
  try {
    return read(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength));
  } catch (error) {
    if (!(error instanceof FieldFault || error instanceof SyntaxError || error instanceof TypeError)) throw error;
    const reason = error instanceof FieldFault ? error.message : 'a line of it is not JSON in UTF-8';
    throw new LegateError(
      'E_INVALID',
      `this is not a backup that can be restored: ${truncate(printable(reason), 300)}`,
      {
        hint: 'nothing was written; take the file that legate store backup wrote, as it is',
      },
    );
  }
}

function read(bytes: Buffer): Backup {
  const lines = linesOf(bytes);
  const first = lines.next();
  if (first.done === true) throw new FieldFault('it is empty');
  const { header, sha256 } = readHeader(documentOf(first.value));
  const hash = createHash('sha256');
  const records = new Map<string, { readonly value: Uint8Array }>();
  for (const each of lines) {
    if (records.size >= header.count) throw new FieldFault(`it has more than the ${header.count} records it speaks of`);
    hash.update(each).update('\n');
    const fields = new Fields(documentOf(each));
    const key = readKey(fields.raw('key'));
    if (records.has(key)) throw new FieldFault(`${JSON.stringify(key)} is in it twice`);
    records.set(key, { value: readValue(fields.raw('value'), key) });
  }
  if (records.size < header.count) {
    throw new FieldFault(`it is cut off: ${records.size} of ${header.count} records are there`);
  }
  if (hash.digest('hex') !== sha256) throw new FieldFault('its checksum is wrong, so it was damaged or changed');
  return { header, records };
}

function* linesOf(bytes: Buffer): Generator<Buffer> {
  for (let start = 0; start < bytes.length; ) {
    const end = bytes.indexOf(0x0a, start);
    if (end < 0) throw new FieldFault('it is cut off: its last line does not end');
    if (end - start > maxLineBytes) throw new FieldFault(`a line has more than ${maxLineBytes} bytes`);
    yield bytes.subarray(start, end);
    start = end + 1;
  }
}

function documentOf(bytes: Buffer): unknown {
  return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)) as unknown;
}

function readHeader(document: unknown): { readonly header: BackupHeader; readonly sha256: string } {
  const fields = new Fields(document);
  if (fields.raw('legate') !== 'backup') throw new FieldFault('it does not begin as a backup of Legate does');
  const version = fields.integer('v', 1, 1_000_000);
  if (version > backupVersion) throw new FieldFault(`it was written by a newer version of Legate (format ${version})`);
  const header = {
    meshId: fields.text('meshId', 32, 32),
    mesh: fields.text('mesh', 255, 1),
    revision: fields.text('revision', 64),
    atMs: fields.integer('atMs', 0, 8.64e15),
    count: fields.integer('count', 0, maxRecords),
    leasedLeftOut: fields.integer('leasedLeftOut', 0, maxRecords),
  };
  return { header, sha256: fields.text('sha256', 64, 64) };
}

/** What a backup never holds is not restored either: who else is there, and marks of moves. */
const notRestored = /^(?:meta|moved|copying|alive\/.*|leased\/.*)$/s;

function readKey(key: unknown): string {
  if (typeof key !== 'string' || key === '' || Buffer.byteLength(key) > maxKeyBytes) {
    throw new FieldFault('a key is missing, empty or too long');
  }
  if (key.includes('\0') || /\p{Surrogate}/u.test(key)) throw new FieldFault('a key is not well-formed');
  if (notRestored.test(key)) throw new FieldFault(`${JSON.stringify(truncate(key, 80))} has no place in a backup`);
  return key;
}

function readValue(value: unknown, key: string): Uint8Array {
  const bytes = typeof value === 'string' ? Buffer.from(value, 'base64') : undefined;
  // What decodes to other bytes than it was made of is not base64.
  if (bytes !== undefined && bytes.toString('base64') === value) return bytes;
  throw new FieldFault(`the value of ${JSON.stringify(truncate(key, 80))} is not base64`);
}
