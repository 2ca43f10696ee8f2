import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ByteReader } from './byte-reader.ts';

const blockBytes = 32_768;
const headerBytes = 7;

/**
 * The numbers of the table files that belong to the database in `path`; others are remains of a crash. Empty when the
 * manifest is missing or damaged: LevelDB verifies its checksums itself and refuses to open then. Formats: LevelDB,
 * doc/log_format.md and doc/impl.md.
 */
export async function liveTables(path: string): Promise<ReadonlySet<number>> {
  const live = new Set<string>();
  try {
    const current = (await readFile(join(path, 'CURRENT'), 'latin1')).trim();
    if (!/^MANIFEST-\d+$/.test(current)) return new Set();
    for (const edit of recordsOf(await readFile(join(path, current)))) applyEdit(edit, live);
  } catch (error) {
    if (error instanceof RangeError || (error instanceof Error && 'code' in error && error.code === 'ENOENT')) {
      return new Set();
    }
    throw error;
  }
  return new Set([...live].map((file) => Number(file.split('/')[1])));
}

function* recordsOf(file: Buffer): Generator<Buffer, void, undefined> {
  let parts: Buffer[] = [];
  let offset = 0;
  while (offset + headerBytes <= file.length) {
    const left = blockBytes - (offset % blockBytes);
    if (left < headerBytes) {
      offset += left;
      continue;
    }
    const length = file.readUInt16LE(offset + 4);
    const type = file[offset + 6];
    offset += headerBytes;
    parts.push(file.subarray(offset, offset + length));
    offset += length;
    // 1 is a whole record, 2 to 4 its first, middle and last part.
    if (type === 1 || type === 4) {
      yield Buffer.concat(parts);
      parts = [];
    }
  }
}

function applyEdit(edit: Buffer, live: Set<string>): void {
  const reader = new ByteReader(edit);
  const text = (): Buffer => reader.bytes(reader.varint());
  const file = (): string => {
    const level = reader.varint();
    return `${level}/${reader.varint()}`;
  };
  while (!reader.atEnd) {
    const tag = reader.varint();
    if (tag === 1) text();
    else if (tag === 2 || tag === 3 || tag === 4 || tag === 9) reader.varint();
    else if (tag === 5) {
      reader.varint();
      text();
    } else if (tag === 6) live.delete(file());
    else if (tag === 7) {
      live.add(file());
      reader.varint();
      text();
      text();
    } else throw new RangeError('an unknown part of a version edit');
  }
}
