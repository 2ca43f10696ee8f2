import { constants } from 'node:fs';
import { access, mkdir, open, readdir, readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { ClassicLevel } from 'classic-level';
import { describeError, isLegateError, LegateError, systemCode } from '../../base/errors.ts';
import { findDamagedTable } from './tables.ts';

export type Level = ClassicLevel<Buffer, Buffer>;

export interface OpenedFolder {
  readonly level: Level;
  /** Whether Legate has had a store here before: then an empty LevelDB is a loss, not a beginning. */
  readonly known: boolean;
  /** Bytes of its log that LevelDB could not read and left out. */
  readonly droppedBytes: number;
}

/** Says that a complete store was here; LevelDB leaves files of other names alone. */
const markerName = 'LEGATE-STORE';
const maxLogBytes = 1024 * 1024;

/**
 * Opens the LevelDB in the folder `path`, which is made (0700) when it is not there. LevelDB makes a new database
 * wherever it finds no CURRENT file, and removes what it takes for remains: that is allowed only where our marker says
 * that there never was a store. Errors: E_IN_USE, E_PERMISSION, E_STORE_AWAY (disk), E_STORE_DAMAGED.
 */
export async function openFolder(path: string): Promise<OpenedFolder> {
  try {
    await mkdir(path, { recursive: true, mode: 0o700 });
    await access(path, constants.R_OK | constants.W_OK | constants.X_OK);
    const known = (await readdir(path)).includes(markerName);
    const damaged = await findDamagedTable(path);
    if (damaged !== undefined) throw damagedError(path, `its file ${damaged} is damaged`);
    const level: Level = new ClassicLevel(path, { keyEncoding: 'buffer', valueEncoding: 'buffer' });
    await level.open({ createIfMissing: !known, compression: false });
    return { level, known, droppedBytes: await droppedBytesOf(path) };
  } catch (error) {
    throw isLegateError(error) ? error : openError(path, error);
  }
}

/** To be called once the new store is complete on disk. */
export async function markFolder(path: string, storeId: string): Promise<void> {
  const temporary = join(path, `${markerName}.tmp`);
  const file = await open(temporary, 'w', 0o600);
  try {
    await file.writeFile(`store ${storeId} of Legate; LevelDB files beside this one\n`);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(temporary, join(path, markerName));
  const folder = await open(path);
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/** What the error of a write or read means for people: a short problem, and a hint. */
export function describeDiskError(path: string, error: unknown): { problem: string; hint: string } {
  const text = `${describeError(error)} ${systemCode(error) ?? ''}`;
  if (/No space left|ENOSPC|quota|EDQUOT/i.test(text)) {
    return { problem: `no space left for the store in ${path}`, hint: `free space on the file system of ${path}` };
  }
  if (/Read-only file system|EROFS/i.test(text)) {
    return {
      problem: `the file system of ${path} is read-only`,
      hint: 'mount it writable; the kernel log may say why',
    };
  }
  if (/Too many open files|EMFILE|ENFILE/i.test(text)) {
    return {
      problem: `too many open files for the store in ${path}`,
      hint: 'raise the limit on open files (ulimit -n)',
    };
  }
  return {
    problem: `the store in ${path} cannot be written: ${describeError(error)}`,
    hint: `look for disk errors in the kernel log, and whether ${path} is still there and ours`,
  };
}

export function damagedError(path: string, what: string, cause?: unknown): LegateError {
  return new LegateError('E_STORE_DAMAGED', `the store in ${path} cannot be read: ${what}`, {
    hint: `restore a backup of ${path}, or move the folder away: hosts then write their own records again, the users' kv/ is lost`,
    cause,
  });
}

/** What an error of LevelDB or the file system while opening means. */
export function openError(path: string, error: unknown): LegateError {
  const reason = error instanceof Error && error.cause !== undefined ? error.cause : error;
  const text = `${describeError(reason)} ${systemCode(reason) ?? ''}`;
  if (systemCode(reason) === 'LEVEL_LOCKED') {
    if (/Permission denied/i.test(text)) return permissionError(path, error);
    return new LegateError('E_IN_USE', `another sidecar uses the store in ${path}`, {
      hint: 'stop it, or give this one a data_dir of its own',
      cause: error,
    });
  }
  if (/Permission denied|Operation not permitted|EACCES|EPERM/i.test(text)) return permissionError(path, error);
  if (/No space left|ENOSPC|quota|EDQUOT|Too many open files|EMFILE|ENFILE|Read-only|EROFS/i.test(text)) {
    const { problem, hint } = describeDiskError(path, reason);
    return new LegateError('E_STORE_AWAY', problem, { hint, cause: error });
  }
  return damagedError(path, describeError(reason), error);
}

function permissionError(path: string, cause: unknown): LegateError {
  return new LegateError('E_PERMISSION', `no permission for the store in ${path}`, {
    hint: `run the sidecar as the owner of ${path}, or change its owner`,
    cause,
  });
}

/** LevelDB passes over what it cannot read in its log and tells only its own log file, so that is where we look. */
async function droppedBytesOf(path: string): Promise<number> {
  const text = await readFile(join(path, 'LOG'), 'latin1').catch(() => '');
  let dropped = 0;
  for (const [, bytes] of text.slice(0, maxLogBytes).matchAll(/: dropping (\d+) bytes; /g)) dropped += Number(bytes);
  return dropped;
}
