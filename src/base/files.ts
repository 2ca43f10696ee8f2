import { randomBytes } from 'node:crypto';
import { mkdirSync, readFileSync } from 'node:fs';
import { open, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { describeError, LegateError, systemCode } from './errors.ts';

/**
 * Replaces a file as a whole: after a crash at any moment there is either the old or the new content. Only the owner may
 * read it. Errors are the operating system's (`ENOSPC`, `EACCES`, …); the old file is then untouched.
 */
export async function writeFileAtomically(
  path: string,
  parts: Iterable<string> | AsyncIterable<string | Uint8Array>,
): Promise<void> {
  const temporary = `${path}.${randomBytes(4).toString('hex')}.tmp`;
  try {
    const file = await open(temporary, 'wx', 0o600);
    try {
      for await (const part of parts) await file.writeFile(part);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw error;
  }
  await syncFolder(dirname(path));
}

/** Makes the new name durable; not every file system allows it, and without it only the newest version may be lost. */
async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r').catch(() => undefined);
  await folder?.sync().catch(() => undefined);
  await folder?.close().catch(() => undefined);
}

/** A failure of `writeFileAtomically` as a reader of a terminal is to see it: E_PERMISSION, with what to do. */
export function cannotWrite(path: string, error: unknown): LegateError {
  return new LegateError('E_PERMISSION', `${path} cannot be written: ${describeError(error)}`, {
    hint: 'check data_dir: its permissions, and the space on its disk',
    cause: error,
  });
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

/**
 * The text of a file of at most `maxBytes`; undefined when there is none. `tooLarge` is called for by a larger one,
 * without reading it.
 */
export async function readBounded(
  path: string,
  maxBytes: number,
): Promise<string | undefined | { tooLargeBytes: number }> {
  const file = await open(path, 'r').catch((error: unknown) => {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
    throw error;
  });
  if (file === undefined) return undefined;
  try {
    const { size } = await file.stat();
    return size > maxBytes ? { tooLargeBytes: size } : await file.readFile('utf8');
  } finally {
    await file.close();
  }
}
