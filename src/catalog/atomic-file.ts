import { randomBytes } from 'node:crypto';
import { open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';

/**
 * Replaces a file as a whole: after a crash at any moment there is either the old or the new content. Only the owner may
 * read it. Errors are the operating system's (`ENOSPC`, `EACCES`, …); the old file is then untouched.
 */
export async function writeAtomically(path: string, parts: Iterable<string>): Promise<void> {
  const temporary = `${path}.${randomBytes(4).toString('hex')}.tmp`;
  try {
    const file = await open(temporary, 'wx', 0o600);
    try {
      for (const part of parts) await file.writeFile(part);
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
