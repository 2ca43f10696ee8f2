import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { systemCode } from '../../base/errors.ts';
import { ByteReader } from './byte-reader.ts';
import { liveTables } from './manifest.ts';

/**
 * LevelDB, as classic-level builds it, believes what its table files say and ends the whole process when one holds
 * garbage. So their checksums are verified here before it sees them. Format: LevelDB, doc/table_format.md.
 */
const footerBytes = 48;
const trailerBytes = 5;
const magic = Buffer.from('57fb808b247547db', 'hex');

/** The first damaged table file that LevelDB would read, with its name; undefined when all are intact. Only reads. */
export async function findDamagedTable(path: string): Promise<string | undefined> {
  const live = await liveTables(path);
  for (const name of await readdir(path)) {
    const [, digits] = /^(\d+)\.(?:ldb|sst)$/.exec(name) ?? [];
    if (digits === undefined || !live.has(Number(digits))) continue;
    const file = await readWhole(join(path, name));
    if (file !== undefined && !isIntactTable(file)) return name;
  }
  return undefined;
}

async function readWhole(file: string): Promise<Buffer | undefined> {
  try {
    return await readFile(file);
  } catch (error) {
    // Another process may have the store and compact it; LevelDB will say so.
    if (systemCode(error) === 'ENOENT') return undefined;
    if (systemCode(error) === 'EIO') return Buffer.alloc(0);
    throw error;
  }
}

/** Whether every block of a table file has the checksum it should have. */
export function isIntactTable(file: Buffer): boolean {
  if (file.length < footerBytes || !file.subarray(-magic.length).equals(magic)) return false;
  try {
    const footer = new ByteReader(file.subarray(-footerBytes, -magic.length));
    const blocks = [blockOf(file, footer), blockOf(file, footer)];
    for (const { content, compressed } of blocks) {
      // We write none; where a tool of others did, the checksum of the index itself has to do.
      if (compressed) continue;
      for (const handle of valuesOf(content)) blockOf(file, new ByteReader(handle));
    }
    return true;
  } catch (error) {
    if (error instanceof RangeError) return false;
    throw error;
  }
}

/** The content of the block that the next handle names. Throws RangeError when it is damaged. */
function blockOf(file: Buffer, handle: ByteReader): { content: Buffer; compressed: boolean } {
  const offset = handle.varint();
  const size = handle.varint();
  const end = offset + size;
  if (end + trailerBytes > file.length) throw new RangeError('a block beyond the end of the file');
  if (unmask(file.readUInt32LE(end + 1)) !== crc32c(file, offset, end + 1)) throw new RangeError('a damaged block');
  return { content: file.subarray(offset, end), compressed: file[end] !== 0 };
}

/** The values of a block's entries, here handles of further blocks. */
function* valuesOf(block: Buffer): Generator<Buffer, void, undefined> {
  if (block.length < 4) throw new RangeError('a block without restarts');
  const end = block.length - 4 - 4 * block.readUInt32LE(block.length - 4);
  if (end < 0) throw new RangeError('a block with too many restarts');
  const reader = new ByteReader(block.subarray(0, end));
  while (!reader.atEnd) {
    reader.varint();
    const keyBytes = reader.varint();
    const valueBytes = reader.varint();
    reader.bytes(keyBytes);
    yield reader.bytes(valueBytes);
  }
}

/** LevelDB stores checksums turned and shifted, so that a checksum of checksums stays meaningful. */
function unmask(masked: number): number {
  const turned = (masked - 0xa282ead8) >>> 0;
  return ((turned >>> 17) | (turned << 15)) >>> 0;
}

/** CRC-32C (Castagnoli), RFC 3720 appendix B.4; Node has only the other CRC-32. */
const castagnoli = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1;
  return value;
});

function crc32c(buffer: Buffer, from: number, to: number): number {
  let crc = 0xffffffff;
  for (let index = from; index < to; index += 1) {
    crc = (castagnoli[(crc ^ (buffer[index] ?? 0)) & 0xff] ?? 0) ^ (crc >>> 8);
  }
  return (crc ^ 0xffffffff) >>> 0;
}
