import { mkdirSync, readFileSync } from 'node:fs';
import { open, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { LegateError, systemCode } from './errors.ts';

/**
 * Replaces a file as a whole: written beside it, synced, renamed, the folder synced. A crash leaves the old or the new
 * content, never a part.
 */
export async function writeFileAtomically(path: string, content: string | Uint8Array, mode = 0o600): Promise<void> {
  const temporary = `${path}.${process.pid}.tmp`;
  try {
    const file = await open(temporary, 'w', mode);
    try {
      await file.writeFile(content);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    const folder = await open(dirname(path), 'r');
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

/** The text of a file, undefined when it does not exist. Larger than `limitBytes`: E_TOO_LARGE. */
export function readFileIfAny(path: string, limitBytes = 64 * 1024 * 1024): string | undefined {
  try {
    const content = readFileSync(path);
    if (content.length <= limitBytes) return content.toString('utf8');
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined;
    throw error;
  }
  throw new LegateError('E_TOO_LARGE', `${path} is larger than ${limitBytes} bytes`, {
    hint: 'move the file away; it is not one that Legate wrote',
  });
}

/** Makes a folder that only its owner enters, and its parents; E_PERMISSION when that is not allowed. */
export function makePrivateFolder(...parts: readonly string[]): string {
  const path = join(...parts);
  try {
    mkdirSync(path, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw new LegateError('E_PERMISSION', `cannot make the folder ${path} (${systemCode(error) ?? 'unknown error'})`, {
      hint: 'choose another data_dir, or run with the right to write there',
      cause: error,
    });
  }
  return path;
}
