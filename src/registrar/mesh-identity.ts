import { randomBytes } from 'node:crypto';
import { type Clock, systemClock } from '../base/clock.ts';
import { LegateError } from '../base/errors.ts';
import {
  decodeMeta,
  encodeMeta,
  encodeService,
  encodeVipClaim,
  formatVersion,
  newerVersionReason,
} from '../catalog/codec.ts';
import type { SavedState } from '../catalog/saved-state.ts';
import { isInCharge, mayOffer, type Policy } from '../model/policy.ts';
import { batches } from '../store/batches.ts';
import type { Keys } from '../store/keys.ts';
import type { Guard, Store, Write } from '../store/store.ts';

export interface OpenMeshOptions {
  readonly store: Store;
  readonly keys: Keys;
  /** The mesh's id as this host knows it; the saved state's by default. */
  readonly remembered?: string;
  /** What this host knew last. */
  readonly saved?: SavedState;
  /** Says when a mesh was written back. */
  readonly clock?: Clock;
  /** Where this host may not make the mesh itself, but only write back what it is granted. */
  readonly limited?: LimitedHost;
  readonly signal?: AbortSignal;
}

/** A host that is not the authority's, in a store that holds it to that. */
export interface LimitedHost {
  readonly mayOffer: (service: string) => boolean;
}

/** What the policy leaves to this host in a store that others share; undefined where it may do everything. */
export function limitedHost(policy: Policy | undefined, hostId: string): LimitedHost | undefined {
  return isInCharge(policy, hostId) ? undefined : { mayOffer: (service) => mayOffer(policy, hostId, service) };
}

export interface OpenedMesh {
  readonly meshId: string;
  /** `restored`: the store had come back empty and got the settings and claims back that this host knew. */
  readonly outcome: 'opened' | 'created' | 'restored';
}

/**
 * Makes sure that the store is this mesh's. An empty one becomes it: a new mesh when nothing is remembered, otherwise the
 * remembered one, with its services and claims written back before `meta`, by which all others recognise it. Errors:
 * E_STORE_FOREIGN, E_STORE_DAMAGED when `meta` cannot be read, E_CONFLICT while a mesh is being copied into it, E_STORE_AWAY
 * until the authority's host has written `meta`, where this host may not, and the store's own.
 */
export async function openMesh({
  store,
  keys,
  remembered,
  saved,
  clock = systemClock,
  limited,
  signal,
}: OpenMeshOptions): Promise<OpenedMesh> {
  const known = remembered ?? saved?.meshId;
  const options = signal === undefined ? {} : { signal };
  const found = await readMeta(store, keys, known, options);
  if (found !== undefined) return { meshId: checkMesh(found, known), outcome: 'opened' };
  await checkNoCopy(store, keys, options);
  if (known !== undefined && saved !== undefined) await writeBack(store, keys, saved, { ...options, limited });
  if (limited !== undefined) {
    throw new LegateError('E_STORE_AWAY', "the store has no mesh yet: it waits for the authority's host", {
      hint: "start the sidecar of the authority's host; if the store is not that of this mesh, correct store.endpoints",
    });
  }
  const meshId = known ?? randomBytes(16).toString('hex');
  const restored = known === undefined ? {} : { restoredAtMs: Math.trunc(clock.nowMs()) };
  const value = encodeMeta({ meshId, format: formatVersion, ...restored });
  const result = await store.txn(
    [
      { kind: 'absent', key: keys.meta },
      { kind: 'absent', key: keys.copying },
    ],
    [{ kind: 'put', key: keys.meta, value }],
    options,
  );
  if (result.ok) return { meshId, outcome: known === undefined ? 'created' : 'restored' };
  const faster = await readMeta(store, keys, known, options);
  if (faster === undefined) throw new LegateError('E_CONFLICT', `${keys.meta} comes and goes`, { hint: 'try again' });
  return { meshId: checkMesh(faster, known), outcome: 'opened' };
}

async function readMeta(
  store: Store,
  keys: Keys,
  known: string | undefined,
  options: { signal?: AbortSignal },
): Promise<string | undefined> {
  const entry = await store.get(keys.meta, options);
  if (entry === undefined) return undefined;
  const meta = decodeMeta(entry.value);
  if (meta.ok && meta.value.format <= formatVersion) return meta.value.meshId;
  const reason = meta.ok ? `${newerVersionReason} (${meta.value.format})` : meta.reason;
  const newer = reason.startsWith(newerVersionReason);
  const own = `delete the key ${keys.meta}: the hosts of this mesh then write it and what they know again`;
  const hint = known === undefined ? 'restore the store from a backup' : own;
  throw new LegateError('E_STORE_DAMAGED', `${keys.meta} in the store cannot be used: ${reason}`, {
    hint: newer ? 'install the newer version of Legate on this host too' : hint,
  });
}

/** What a copy has not completed is nobody's mesh yet. */
async function checkNoCopy(store: Store, keys: Keys, options: { signal?: AbortSignal }): Promise<void> {
  if ((await store.get(keys.copying, options)) === undefined) return;
  throw new LegateError('E_CONFLICT', 'a mesh is being copied into this store, and the copy has not ended', {
    hint: `wait for it; if it failed, run legate store copy again, or delete ${keys.copying} to use what is there`,
  });
}

function checkMesh(found: string, known: string | undefined): string {
  if (known === undefined || found === known) return found;
  throw new LegateError('E_STORE_FOREIGN', `the store holds mesh ${found}, this host belongs to mesh ${known}`, {
    hint: 'check the store settings; to move this host to the other mesh, give it an empty data_dir',
  });
}

/** Writes what is absent; what another host has written back before stays. */
async function writeBack(
  store: Store,
  keys: Keys,
  saved: SavedState,
  { limited, ...options }: { signal?: AbortSignal; limited: LimitedHost | undefined },
): Promise<void> {
  const isOurs = (service: string): boolean => limited?.mayOffer(service) ?? true;
  const claims = [...saved.vips].filter(([, { record }]) => isOurs(record.service));
  const services = [...saved.services].filter(([name]) => isOurs(name));
  const all = [
    ...claims.map(([address, { record }]) => put(keys.vip(address), encodeVipClaim(record))),
    ...services.map(([name, { record }]) => put(keys.service(name), encodeService(record))),
  ];
  // Who waits for `meta` comes by again and again.
  const present = limited && (await presentKeys(store, [keys.vips, keys.services], options));
  const writes = all.filter(({ key }) => present?.has(key) !== true);
  for (const batch of batches(writes, store.limits, 1)) {
    const whole = await putAbsent(store, batch, options);
    if (!whole) for (const write of batch) await putAbsent(store, [write], options);
  }
}

async function presentKeys(
  store: Store,
  prefixes: readonly string[],
  options: { signal?: AbortSignal },
): Promise<ReadonlySet<string>> {
  const ranges = await Promise.all(prefixes.map((prefix) => store.range(prefix, options)));
  return new Set(ranges.flatMap(({ entries }) => entries.map(({ key }) => key)));
}

function put(key: string, value: Uint8Array): Write {
  return { kind: 'put', key, value };
}

async function putAbsent(store: Store, writes: readonly Write[], options: { signal?: AbortSignal }): Promise<boolean> {
  const guards = writes.map(({ key }): Guard => ({ kind: 'absent', key }));
  return (await store.txn(guards, writes, options)).ok;
}
