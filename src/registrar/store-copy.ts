import type { Clock } from '../base/clock.ts';
import { describeError, isLegateError, LegateError } from '../base/errors.ts';
import type { Log } from '../base/log.ts';
import { printable, truncate } from '../base/text.ts';
import { encodeMeta, formatVersion } from '../catalog/codec.ts';
import { batches } from '../store/batches.ts';
import type { Keys } from '../store/keys.ts';
import type { Entry, Guard, Lease, Store, Write } from '../store/store.ts';
import { besideGuards, bytesOf, checkFits, type MeshRecords, readMesh } from './mesh-records.ts';
import { encodeMarker, type MovedTo, notMoving } from './store-marker.ts';

/** A marker of a copy that died vanishes after this; some backends take up to twice as long. */
const markerTtlMs = 10_000;
/** Users' writes are refused for at most this long; a copy that is not through by then gives up. */
const maxRefusalMs = 60_000;
/** How often the end of the copy is tried to be written when the store does not say whether it was. */
const maxEndTries = 10;
const endPauseMs = 250;
/** Guards beside each batch: that the target is still the one being copied into. */
const batchGuards = 1;
const namesShown = 5;

export type CopyPhase = 'reading' | 'copying' | 'comparing' | 'ending';

export interface CopyProgress {
  readonly phase: CopyPhase;
  /** Keys written so far, and how many there are to write as far as known. */
  readonly keys: number;
  readonly ofKeys: number;
  readonly bytes: number;
}

export interface CopyOptions {
  readonly source: Store;
  readonly sourceKeys: Keys;
  readonly target: Store;
  readonly targetKeys: Keys;
  readonly to: MovedTo;
  /** Looks at both stores and writes nothing. */
  readonly dryRun?: boolean;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly onProgress: (progress: CopyProgress) => void;
}

export interface CopyResult {
  readonly keys: number;
  readonly bytes: number;
  /** Keys that vanish by themselves: copied with their whole time to live anew. */
  readonly leased: number;
  /** Hosts that showed a sign of life in the source. */
  readonly alive: ReadonlySet<string>;
  /** For how long users' writes were refused. */
  readonly refusedMs: number;
}

/**
 * Copies a running mesh into another store, and then says in the old one that the mesh has moved. Nothing that was
 * acknowledged is lost: first everything is copied while the mesh runs; then a marker stops the writes of users and of
 * settings (each carries a guard on it), the differences are copied and all is compared; the target's `meta`, by which a
 * store is recognised as a mesh's, comes last, and then the marker tells where to. Hosts write their own records anew
 * wherever they go. A failure before the end takes the marker away and leaves the target without `meta`, to be copied
 * into again. Errors: E_CONFLICT, E_STORE_FOREIGN, E_TOO_LARGE and those of the stores.
 */
export async function copyMesh(options: CopyOptions): Promise<CopyResult> {
  return await new MeshCopy(options).run();
}

class MeshCopy {
  readonly #options: CopyOptions;
  #keys = 0;
  #bytes = 0;

  constructor(options: CopyOptions) {
    this.#options = options;
  }

  async run(): Promise<CopyResult> {
    const { source, sourceKeys, target, targetKeys, signal, dryRun } = this.#options;
    this.#tell('reading', 0);
    const mesh = await readMesh(source, sourceKeys, { signal });
    const found = await readMesh(target, targetKeys, { signal });
    const meshId = checkSource(mesh);
    checkTarget(found, meshId);
    checkFits(mesh.records, target.limits);
    const { alive } = mesh;
    if (dryRun === true) {
      const bytes = bytesOf(mesh.records.values());
      return { keys: mesh.records.size, bytes, leased: mesh.leased.size, alive, refusedMs: 0 };
    }
    await this.#claimTarget(found, meshId);
    await this.#write(differences(mesh.records, found.records, targetKeys), 'copying');
    const refusal = await this.#refuseWrites();
    try {
      const counted = await this.#finish(meshId, refusal);
      return { ...counted, alive };
    } catch (error) {
      await this.#undo(meshId, refusal.lease);
      throw error;
    }
  }

  #tell(phase: CopyPhase, ofKeys: number): void {
    this.#options.onProgress({ phase, keys: this.#keys, ofKeys, bytes: this.#bytes });
  }

  /** Makes the target one that is being copied into: without `meta`, so that nobody takes it for the mesh's. */
  async #claimTarget({ meta, copyingMeshId }: MeshRecords, meshId: string): Promise<void> {
    const { target, targetKeys, signal } = this.#options;
    const guards: Guard[] = [
      meta === undefined
        ? { kind: 'absent', key: targetKeys.meta }
        : { kind: 'revision', key: targetKeys.meta, revision: meta.revision },
      { kind: copyingMeshId === undefined ? 'absent' : 'exists', key: targetKeys.copying },
    ];
    const writes: Write[] = [
      { kind: 'put', key: targetKeys.copying, value: encodeMeta({ meshId, format: formatVersion }) },
      { kind: 'delete', key: targetKeys.moved },
      ...(meta === undefined ? [] : [{ kind: 'delete', key: targetKeys.meta } as const]),
    ];
    if ((await target.txn(guards, writes, { signal })).ok) return;
    throw new LegateError('E_CONFLICT', 'somebody else writes into the target', { hint: 'look who, then try again' });
  }

  async #write(writes: readonly Write[], phase: CopyPhase): Promise<void> {
    const { target, targetKeys, signal } = this.#options;
    const guards: Guard[] = [{ kind: 'exists', key: targetKeys.copying }];
    const ofKeys = this.#keys + writes.length;
    this.#tell(phase, ofKeys);
    for (const batch of batches(writes, besideGuards(target.limits, batchGuards))) {
      signal.throwIfAborted();
      if (!(await target.txn(guards, batch, { signal })).ok) {
        throw new LegateError('E_CONFLICT', 'the target is no longer the one that was copied into', {
          hint: 'does another copy run, or has somebody emptied it? Try again',
        });
      }
      this.#keys += batch.length;
      for (const write of batch) if (write.kind === 'put') this.#bytes += write.value.byteLength;
      this.#tell(phase, ofKeys);
    }
  }

  /** From here on no write of users and settings is acknowledged by the source. */
  async #refuseWrites(): Promise<Refusal> {
    const { source, sourceKeys, to, clock, signal } = this.#options;
    const lease = await source.lease(markerTtlMs, { signal });
    try {
      const value = encodeMarker({ state: 'moving', atMs: clock.nowMs(), to });
      const guards: Guard[] = [notMoving(sourceKeys), { kind: 'exists', key: sourceKeys.meta }];
      const put = await source.txn(guards, [{ kind: 'put', key: sourceKeys.moved, value, lease }], { signal });
      if (put.ok) return { lease, revision: put.revision, sinceMs: clock.monotonicMs() };
      throw new LegateError('E_CONFLICT', 'the mesh is being moved already, or has moved', {
        hint: `legate status says where; a copy that died is forgotten after ${(markerTtlMs * 2) / 1000} s`,
      });
    } catch (error) {
      await lease.revoke().catch(() => undefined);
      throw error;
    }
  }

  async #finish(meshId: string, refusal: Refusal): Promise<Omit<CopyResult, 'alive'>> {
    const { source, sourceKeys, target, targetKeys, signal, clock } = this.#options;
    const now = await readMesh(source, sourceKeys, { signal });
    const there = await readMesh(target, targetKeys, { signal });
    checkFits(now.records, target.limits);
    await this.#write(differences(now.records, there.records, targetKeys), 'comparing');
    await this.#writeLeased(now);
    this.#checkTime(refusal);
    const copied = await readMesh(target, targetKeys, { signal });
    const wrong = differences(now.records, copied.records, targetKeys)[0]?.key;
    if (wrong !== undefined || copied.leased.size !== now.leased.size) {
      const what = truncate(printable(wrong ?? 'a key with a lease'), 100);
      throw new LegateError('E_CONFLICT', `the target is not what was copied: ${what}`, {
        hint: 'does somebody else write into it?',
      });
    }
    this.#tell('ending', this.#keys);
    const meta = encodeMeta({ meshId, format: formatVersion });
    const ended = await target.txn(
      [
        { kind: 'absent', key: targetKeys.meta },
        { kind: 'exists', key: targetKeys.copying },
      ],
      [
        { kind: 'put', key: targetKeys.meta, value: meta },
        { kind: 'delete', key: targetKeys.copying },
      ],
      { signal },
    );
    if (!ended.ok) throw new LegateError('E_CONFLICT', 'somebody else writes into the target', { hint: 'try again' });
    this.#checkTime(refusal);
    await this.#end(refusal);
    const refusedMs = Math.round(clock.monotonicMs() - refusal.sinceMs);
    const bytes = bytesOf(now.records.values());
    return { keys: now.records.size, bytes, leased: now.leased.size, refusedMs };
  }

  /** Locks and the like live on for their whole time: too long is safe for those who hold them, too short is not. */
  async #writeLeased({ leased }: MeshRecords): Promise<void> {
    const { target, targetKeys, signal } = this.#options;
    const leases = new Map<number, Lease>();
    for (const ttlMs of new Set([...leased.values()].map((each) => each.ttlMs))) {
      leases.set(ttlMs, await target.lease(ttlMs, { keepAlive: false, signal }));
    }
    const writes = [...leased].flatMap(([key, { entry, ttlMs }]): Write[] => {
      const lease = leases.get(ttlMs);
      const value = Buffer.from(String(ttlMs));
      return [
        { kind: 'put', key: targetKeys.root + key, value: entry.value, ...(lease && { lease }) },
        { kind: 'put', key: targetKeys.leased + key.slice('kv/'.length), value, ...(lease && { lease }) },
      ];
    });
    await this.#write(writes, 'comparing');
  }

  #checkTime({ lease, sinceMs }: Refusal): void {
    if (lease.lost.aborted) {
      throw new LegateError('E_STORE_AWAY', 'the old store was away for too long while the last keys were copied', {
        hint: 'the mesh stays where it is; try again',
      });
    }
    if (this.#options.clock.monotonicMs() - sinceMs <= maxRefusalMs) return;
    throw new LegateError('E_TIMEOUT', `the last differences were not copied within ${maxRefusalMs / 1000} s`, {
      hint: 'the mesh stays where it is; is the target slow? Try again when less is written',
    });
  }

  /** Says in the source where the mesh lives now; only while the marker that stops writes is still there. */
  async #end({ revision }: Refusal): Promise<void> {
    const { source, sourceKeys, to, clock, log } = this.#options;
    const value = encodeMarker({ state: 'moved', atMs: clock.nowMs(), to });
    for (let tries = 1; ; tries += 1) {
      try {
        const guards: Guard[] = [{ kind: 'revision', key: sourceKeys.moved, revision }];
        if ((await source.txn(guards, [{ kind: 'put', key: sourceKeys.moved, value }])).ok) return;
        const present = await source.get(sourceKeys.moved);
        if (present !== undefined && Buffer.compare(present.value, value) === 0) return;
        throw new LegateError('E_CONFLICT', 'the old store took writes again before the end was written', {
          hint: 'the mesh stays where it is; try again',
        });
      } catch (error) {
        if (!isLegateError(error, 'E_STORE_AWAY') || tries >= maxEndTries) throw error;
        log.warn('the end of the move is not written yet', { 'store.reason': describeError(error) });
        await clock.sleep(endPauseMs);
      }
    }
  }

  /**
   * Lets the source take writes again, and takes back that the target is the mesh's. Where the source cannot say whether
   * it tells of the move already, the target stays complete: it may be where the mesh lives now.
   */
  async #undo(meshId: string, lease: Lease): Promise<void> {
    const { source, sourceKeys, target, targetKeys, log } = this.#options;
    const value = encodeMeta({ meshId, format: formatVersion });
    try {
      // The lease takes the marker with it; one that lapsed has done so already.
      await lease.revoke().catch(() => undefined);
      if ((await source.get(sourceKeys.moved)) !== undefined) return;
      await target.txn(
        [{ kind: 'exists', key: targetKeys.meta }],
        [
          { kind: 'delete', key: targetKeys.meta },
          { kind: 'put', key: targetKeys.copying, value },
        ],
      );
    } catch (error) {
      log.warn('what a failed copy has left could not be taken back', { 'store.reason': describeError(error) });
    }
  }
}

interface Refusal {
  readonly lease: Lease;
  /** Of the marker. */
  readonly revision: string;
  readonly sinceMs: number;
}

/** What makes `there` like `wanted`: keys that differ, and those that are too many. */
function differences(wanted: ReadonlyMap<string, Entry>, there: ReadonlyMap<string, Entry>, { root }: Keys): Write[] {
  const writes: Write[] = [];
  for (const [key, { value }] of wanted) {
    const present = there.get(key);
    if (present === undefined || Buffer.compare(present.value, value) !== 0) {
      writes.push({ kind: 'put', key: root + key, value });
    }
  }
  for (const key of there.keys()) if (!wanted.has(key)) writes.push({ kind: 'delete', key: root + key });
  return writes;
}

function checkSource({ meshId }: MeshRecords): string {
  if (meshId !== undefined) return meshId;
  throw new LegateError('E_STORE_DAMAGED', 'the store does not say which mesh it holds', {
    hint: 'legate status may say why',
  });
}

/** Only an empty store, one that holds this mesh and that nobody uses, or a copy that did not end, is written into. */
function checkTarget({ meta, meshId, records, leased, alive, copyingMeshId }: MeshRecords, ours: string): void {
  if (meta !== undefined && meshId !== ours) {
    const whose = meshId === undefined ? 'something that cannot be read' : `mesh ${meshId}`;
    throw new LegateError('E_STORE_FOREIGN', `the target holds ${whose}, this is mesh ${ours}`, {
      hint: 'copy into an empty store, or under another --prefix',
    });
  }
  if (copyingMeshId !== undefined && copyingMeshId !== ours) {
    throw new LegateError('E_STORE_FOREIGN', 'the target holds a copy of another mesh that did not end', {
      hint: 'copy into an empty store, or under another --prefix',
    });
  }
  if (alive.size > 0) {
    const hosts = [...alive].slice(0, namesShown).map((id) => printable(truncate(id, 40)));
    throw new LegateError('E_CONFLICT', `${alive.size} hosts use the target already: ${hosts.join(', ')}`, {
      hint: 'it must be empty, or hold this mesh from before and be used by nobody',
    });
  }
  const isOurs = meta !== undefined || copyingMeshId !== undefined;
  if (isOurs || records.size + leased.size === 0) return;
  const shown = [...records.keys(), ...leased.keys()].slice(0, namesShown).map((key) => printable(truncate(key, 60)));
  throw new LegateError('E_CONFLICT', `the target is not empty: it has ${shown.join(', ')} and no mesh`, {
    hint: 'copy into an empty store, or under another --prefix',
  });
}
