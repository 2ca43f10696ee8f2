import { randomBytes } from 'node:crypto';
import { chmodSync, closeSync, existsSync, openSync, readdirSync, rmSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { LegateError, systemCode } from '../src/base/errors.ts';
import { cannotWrite, makePrivateFolder, readFileIfAny, writeFileAtomically } from '../src/base/files.ts';
import { startTimeOf, whileAlive } from '../src/base/processes.ts';
import { hostFiles } from '../src/pki/host-files.ts';

/** Between looks whether the directory is still there. */
const watchEveryMs = 5000;
/** What `membership.ts` says while this host has keys of an authority that is elsewhere. */
const formerAuthorityId = 'pki.elsewhere';
/** How long a start waits for a holder that may be about to end, and between looks. */
const usualHolderLimitMs = 2000;
const holderEveryMs = 10;

/** What a host remembers about itself, in `host.json` of its data directory. */
export interface HostIdentity {
  /** Durable, made once: 16 lower-case hexadecimal digits. */
  readonly hostId: string;
  /** The mesh's id, once it is known; a store with another one is refused. */
  readonly meshId: string | undefined;
}

/** The sidecar's folder: identity, last snapshot, registered instances, embedded store. One sidecar at a time. */
export interface DataDir {
  readonly path: string;
  readonly identity: HostIdentity;
  readonly snapshotFile: string;
  readonly instancesFile: string;
  readonly drainedFile: string;
  /** What the last starts called themselves. */
  readonly claimsFile: string;
  readonly storePath: string;
  /** Where the mesh has moved to from the store that the configuration names. */
  readonly movedFile: string;
  /** What a host that joined a mesh was told of it. */
  readonly joinedFile: string;
  /** Its data-plane processes, which outlive it when it is killed or replaced. */
  readonly workersFile: string;
  /** Which sidecar still answers names while the next one starts. */
  readonly namesFile: string;
  rememberMesh(meshId: string): Promise<void>;
  /** Makes this directory that of another host, of another mesh or of the same: what was known of the mesh is forgotten. */
  becomeHost(identity: { readonly hostId: string; readonly meshId: string }): Promise<void>;
  release(): void;
}

interface Waiting {
  readonly clock: Clock;
  readonly signal: AbortSignal;
  readonly holderLimitMs?: number | undefined;
}

/** Opens and locks `path`. A living sidecar that holds it, also 2 s later (`holderLimitMs`): E_IN_USE with its pid. */
export async function openDataDir(path: string, waiting: Waiting): Promise<DataDir> {
  makePrivateFolder(path);
  closeEmpty(path);
  const lock = join(path, 'agent.pid');
  await takeLock(lock, path, waiting);
  removeRemains(path);
  try {
    const file = join(path, 'host.json');
    let identity = parseIdentity(readFileIfAny(file, 64 * 1024), file);
    if (identity === undefined) {
      identity = { hostId: randomBytes(8).toString('hex'), meshId: undefined };
      await saveIdentity(file, identity);
    }
    return {
      path,
      get identity() {
        return identity as HostIdentity;
      },
      snapshotFile: join(path, 'snapshot.json'),
      instancesFile: join(path, 'instances.json'),
      drainedFile: join(path, 'drained.json'),
      claimsFile: join(path, 'claims.json'),
      storePath: join(path, 'store'),
      movedFile: join(path, 'moved.json'),
      joinedFile: join(path, 'joined.json'),
      workersFile: join(path, 'workers'),
      namesFile: join(path, 'names'),
      async rememberMesh(meshId) {
        if (identity?.meshId === meshId) return;
        identity = { hostId: (identity as HostIdentity).hostId, meshId };
        await saveIdentity(file, identity);
      },
      async becomeHost(next) {
        if (identity?.hostId === next.hostId && identity.meshId === next.meshId) return;
        for (const name of ['snapshot.json', 'moved.json', 'claims.json']) rmSync(join(path, name), { force: true });
        identity = { hostId: next.hostId, meshId: next.meshId };
        await saveIdentity(file, identity);
      },
      release: () => rmSync(lock, { force: true }),
    };
  } catch (error) {
    rmSync(lock, { force: true });
    throw error;
  }
}

/**
 * Says when somebody removed the directory under a running sidecar: everything goes on, and what is written from then on
 * is gone at the next start. Says while others can enter it, and has done with what was said of a former authority's keys
 * when these are gone. Runs until aborted.
 */
export async function watchDataDir(
  path: string,
  { clock, conditions, signal }: { clock: Clock; conditions: Conditions; signal: AbortSignal },
): Promise<void> {
  const id = 'agent.data_dir';
  for (;;) {
    tellMode(path, conditions);
    await clock.sleep(watchEveryMs, signal);
    if (!existsSync(hostFiles(path).authority)) conditions.clear(formerAuthorityId);
    if (existsSync(join(path, 'host.json'))) conditions.clear(id);
    else {
      const message = `data_dir ${path} was removed while the sidecar runs: what is written now is lost at the next start`;
      conditions.raise(id, 'error', message, 'put it back from a backup, then restart the sidecar');
    }
  }
}

/** An empty folder that somebody made for the sidecar (Docker, for a mount) is closed to others before anything is in it. */
function closeEmpty(path: string): void {
  try {
    if (readdirSync(path).length === 0) chmodSync(path, 0o700);
  } catch {
    // `watchDataDir` tells when it is open, and the lock when nothing can be written.
  }
}

/**
 * Not mended here: the directory may be one that holds more than Legate's files, and then it is not Legate's to close.
 */
function tellMode(path: string, conditions: Conditions): void {
  const id = 'agent.data_dir.mode';
  const mode = process.platform === 'win32' ? undefined : statSync(path, { throwIfNoEntry: false })?.mode;
  if (mode === undefined || (mode & 0o077) === 0) {
    conditions.clear(id);
    return;
  }
  const message = `data_dir ${path} can be entered by others (mode 0${(mode & 0o777).toString(8)})`;
  conditions.raise(id, 'note', message, `chmod 0700 ${path}`);
}

/** What a sidecar that was killed while it replaced a file has left; each killing would leave one more. */
function removeRemains(path: string): void {
  for (const name of readdirSync(path)) if (/\.[0-9a-f]{8}\.tmp$/.test(name)) rmSync(join(path, name), { force: true });
}

function saveIdentity(file: string, identity: HostIdentity): Promise<void> {
  const text = `${JSON.stringify({ v: 1, ...identity }, null, 2)}\n`;
  return writeFileAtomically(file, [text]).catch((error: unknown) => Promise.reject(cannotWrite(file, error)));
}

function parseIdentity(text: string | undefined, file: string): HostIdentity | undefined {
  if (text === undefined) return undefined;
  try {
    const parsed: unknown = JSON.parse(text);
    if (typeof parsed === 'object' && parsed !== null && 'hostId' in parsed) {
      const { hostId } = parsed;
      const meshId = 'meshId' in parsed && typeof parsed.meshId === 'string' ? parsed.meshId : undefined;
      if (typeof hostId === 'string' && /^[0-9a-f]{16}$/.test(hostId)) return { hostId, meshId };
    }
  } catch {
    // Reported below, like every other content that is not an identity.
  }
  throw new LegateError('E_INVALID', `${file} does not hold a host's identity`, {
    hint: 'restore it from a backup; if you move it away, this host becomes a new one and its old records stay until deregistered',
  });
}

/** The pid in the lock while its process lives. */
function livingHolder(lock: string): string | undefined {
  const [pid = '', startTime = ''] = (readFileIfAny(lock, 1024) ?? '').trim().split(' ');
  return startTime !== '' && startTimeOf(Number(pid)) === startTime ? pid : undefined;
}

async function takeLock(
  lock: string,
  path: string,
  { clock, signal, holderLimitMs = usualHolderLimitMs }: Waiting,
): Promise<void> {
  const waitUntilMs = clock.monotonicMs() + holderLimitMs;
  for (let attempt = 0; attempt < 2; attempt += 1) {
    try {
      const file = openSync(lock, 'wx', 0o600);
      writeSync(file, `${process.pid} ${startTimeOf(process.pid) ?? ''}\n`);
      closeSync(file);
      return;
    } catch (error) {
      if (systemCode(error) !== 'EEXIST') {
        throw new LegateError('E_PERMISSION', `cannot write to data_dir ${path} (${systemCode(error) ?? 'error'})`, {
          hint: 'run as the user that owns it, free some space, or choose another data_dir',
          cause: error,
        });
      }
      let pid = livingHolder(lock);
      await whileAlive(async () => {
        while (pid !== undefined && clock.monotonicMs() < waitUntilMs) {
          await clock.sleep(holderEveryMs, signal);
          pid = livingHolder(lock);
        }
      });
      if (pid !== undefined) {
        throw new LegateError('E_IN_USE', `data_dir ${path} is in use by another sidecar (pid ${pid})`, {
          hint: 'stop that one first, take its place (--replace), or give this one a data_dir of its own',
        });
      }
      rmSync(lock, { force: true });
    }
  }
  throw new LegateError('E_IN_USE', `data_dir ${path} is being taken by another sidecar`, {
    hint: 'start one at a time',
  });
}
