import { type Clock, systemClock } from '../base/clock.ts';
import { LegateError } from '../base/errors.ts';
import { encodeMeta, formatVersion } from '../catalog/codec.ts';
import { batches } from '../store/batches.ts';
import type { Keys } from '../store/keys.ts';
import type { Guard, Store, Write } from '../store/store.ts';
import { besideGuards, checkFits, readMesh } from './mesh-records.ts';
import type { Backup } from './store-backup.ts';
import { checkNotMoving, notMoving } from './store-marker.ts';

/** Keys that differ and are named; beyond these they are counted. */
const maxNamed = 20;

export interface RestoreResult {
  /** Keys that were absent and are written. */
  readonly written: number;
  /** Keys that said something else and were replaced. */
  readonly replaced: number;
  /** Keys that say the same already. */
  readonly same: number;
  /** Keys that say something else and were left, because replacing was not asked for. */
  readonly different: number;
  /** Records of hosts that are alive, which know better themselves. */
  readonly ofLivingHosts: number;
  /** The first of `different`. */
  readonly named: readonly string[];
}

export interface RestoreOptions {
  readonly store: Store;
  readonly keys: Keys;
  readonly backup: Backup;
  readonly overwrite: boolean;
  /** Whether the backup may be of another mesh. */
  readonly foreign: boolean;
  /** The mesh of this host, where it is known: an emptied store takes a backup of it. */
  readonly meshId?: string | undefined;
  readonly clock?: Clock;
}

/**
 * Writes what a backup has and the store has not; with `overwrite` also what the store has otherwise. Nothing is deleted,
 * and records of hosts that are alive stay theirs. A key that somebody else writes meanwhile stays as they wrote it, and
 * counts as different. Errors: E_STORE_FOREIGN, E_TOO_LARGE, and E_STORE_AWAY while the mesh moves.
 */
export async function restoreBackup({
  store,
  keys,
  backup,
  overwrite,
  foreign,
  meshId,
  clock = systemClock,
}: RestoreOptions): Promise<RestoreResult> {
  const mesh = await readMesh(store, keys);
  const isEmptied = mesh.meta === undefined && mesh.copyingMeshId === undefined && meshId !== undefined;
  const present = isEmptied ? meshId : mesh.meshId;
  if (backup.header.meshId !== present && !foreign) {
    const message = `the backup is of mesh ${backup.header.meshId}, this store holds mesh ${present ?? 'unknown'}`;
    throw new LegateError('E_STORE_FOREIGN', message, {
      hint: 'nothing was written; --foreign takes its records over into this mesh',
    });
  }
  checkFits(backup.records, store.limits);
  await checkNotMoving(store, keys);
  const restore = new Restore(store, keys);
  const wanted: Planned[] = [];
  for (const [key, { value }] of backup.records) {
    const present = mesh.records.get(key) ?? mesh.leased.get(key)?.entry;
    const stored = keys.root + key;
    if (isOf(mesh.alive, key)) restore.ofLivingHosts += 1;
    else if (present === undefined) {
      wanted.push({ write: { kind: 'put', key: stored, value }, guard: { kind: 'absent', key: stored } });
    } else if (Buffer.compare(present.value, value) === 0) restore.same += 1;
    else if (!overwrite || mesh.leased.has(key)) restore.differs(key);
    else {
      const guard: Guard = { kind: 'revision', key: stored, revision: present.revision };
      wanted.push({ write: { kind: 'put', key: stored, value }, guard });
    }
  }
  await restore.write(wanted);
  // What was lost is back, and `meta`, by which all hosts recognise the mesh, comes last.
  if (isEmptied) await restore.writeMeta(meshId, Math.trunc(clock.nowMs()));
  const { written, replaced, same, different, ofLivingHosts, named } = restore;
  return { written, replaced, same, different, ofLivingHosts, named };
}

interface Planned {
  readonly write: Write;
  readonly guard: Guard;
}

class Restore {
  written = 0;
  replaced = 0;
  same = 0;
  different = 0;
  ofLivingHosts = 0;
  readonly named: string[] = [];
  readonly #store: Store;
  readonly #keys: Keys;

  constructor(store: Store, keys: Keys) {
    this.#store = store;
    this.#keys = keys;
  }

  differs(key: string): void {
    this.different += 1;
    if (this.named.length < maxNamed) this.named.push(key);
  }

  async write(wanted: readonly Planned[]): Promise<void> {
    const guards = new Map(wanted.map(({ write, guard }) => [write.key, guard]));
    const writes = wanted.map(({ write }) => write);
    for (const batch of batches(writes, besideGuards(this.#store.limits, 1), 1)) {
      if (await this.#try(batch, guards)) continue;
      await checkNotMoving(this.#store, this.#keys);
      for (const write of batch) {
        if (!(await this.#try([write], guards))) this.differs(write.key.slice(this.#keys.root.length));
      }
    }
  }

  /** Unless somebody was faster. */
  async writeMeta(meshId: string, restoredAtMs: number): Promise<void> {
    const { meta, copying } = this.#keys;
    const guards: Guard[] = [meta, copying].map((key) => ({ kind: 'absent', key }));
    const value = encodeMeta({ meshId, format: formatVersion, restoredAtMs });
    await this.#store.txn([notMoving(this.#keys), ...guards], [{ kind: 'put', key: meta, value }]);
  }

  async #try(batch: readonly Write[], guards: ReadonlyMap<string, Guard>): Promise<boolean> {
    const own = batch.flatMap(({ key }) => guards.get(key) ?? []);
    const { ok } = await this.#store.txn([notMoving(this.#keys), ...own], batch);
    if (!ok) return false;
    for (const { kind } of own) {
      if (kind === 'absent') this.written += 1;
      else this.replaced += 1;
    }
    return true;
  }
}

/** Whether the key is a record of one of these hosts, or of an instance on them. */
function isOf(hosts: ReadonlySet<string>, key: string): boolean {
  const [, id] = /^(?:hosts|instances)\/([^/]+)/.exec(key) ?? [];
  return id !== undefined && hosts.has(id);
}
