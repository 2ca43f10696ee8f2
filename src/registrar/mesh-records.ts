import { LegateError } from '../base/errors.ts';
import { decodeMeta } from '../catalog/codec.ts';
import type { Keys } from '../store/keys.ts';
import type { Entry, OperationOptions, Store, StoreLimits } from '../store/store.ts';

/** All that a mesh has in a store, at one revision; keys without the mesh's own prefix. */
export interface MeshRecords {
  /** Undefined when `meta` is not there or cannot be read. */
  readonly meshId: string | undefined;
  readonly meta: Entry | undefined;
  readonly revision: string;
  /** What lasts, without `meta`, signs of life and marks of moves: `services/db` and so on. */
  readonly records: ReadonlyMap<string, Entry>;
  /** The users' own keys that vanish by themselves, and after how many milliseconds: `kv/jobs/leader`. */
  readonly leased: ReadonlyMap<string, { readonly entry: Entry; readonly ttlMs: number }>;
  /** Ids of the hosts that show a sign of life. */
  readonly alive: ReadonlySet<string>;
  /** Whether a copy into this store was begun and not ended: the mesh that was copied. */
  readonly copyingMeshId: string | undefined;
}

const maxTtlMs = 31 * 24 * 3_600_000;

export async function readMesh(store: Store, keys: Keys, options: OperationOptions = {}): Promise<MeshRecords> {
  const { entries, revision } = await store.range(keys.root, options);
  const records = new Map<string, Entry>();
  const ttls = new Map<string, number>();
  const alive = new Set<string>();
  let meta: Entry | undefined;
  let copyingMeshId: string | undefined;
  for (const entry of entries) {
    const { key } = entry;
    if (key === keys.meta) meta = entry;
    else if (key === keys.copying) copyingMeshId = meshIdOf(entry) ?? '';
    else if (key.startsWith(keys.alive)) alive.add(key.slice(keys.alive.length));
    else if (key.startsWith(keys.leased)) ttls.set(`kv/${key.slice(keys.leased.length)}`, ttlOf(entry));
    else if (key !== keys.moved) records.set(key.slice(keys.root.length), entry);
  }
  const leased = new Map<string, { entry: Entry; ttlMs: number }>();
  for (const [key, ttlMs] of ttls) {
    const entry = records.get(key);
    records.delete(key);
    if (entry !== undefined) leased.set(key, { entry, ttlMs });
  }
  return { meshId: meta && meshIdOf(meta), meta, revision, records, leased, alive, copyingMeshId };
}

export function bytesOf(entries: Iterable<Entry>): number {
  let bytes = 0;
  for (const { value } of entries) bytes += value.byteLength;
  return bytes;
}

/** What is left of a store's limits beside `guards` that come with each transaction. */
export function besideGuards(limits: StoreLimits, guards: number): StoreLimits {
  return { ...limits, txnOperations: limits.txnOperations - guards };
}

/** Refuses what a store would refuse, before anything is written. */
export function checkFits(records: ReadonlyMap<string, { readonly value: Uint8Array }>, limits: StoreLimits): void {
  const largest = [...records].find(([, { value }]) => value.byteLength > limits.valueBytes);
  if (largest === undefined) return;
  const [key, { value }] = largest;
  const what = `${JSON.stringify(key)} has ${value.byteLength} bytes`;
  throw new LegateError('E_TOO_LARGE', `${what}, and a value of the store may have ${limits.valueBytes}`, {
    hint: 'delete that key or make it smaller; nothing was written',
  });
}

function meshIdOf(entry: Entry): string | undefined {
  const meta = decodeMeta(entry.value);
  return meta.ok ? meta.value.meshId : undefined;
}

function ttlOf({ value }: Entry): number {
  const ttlMs = Number(Buffer.from(value.subarray(0, 20)).toString('latin1'));
  return Number.isInteger(ttlMs) && ttlMs > 0 ? Math.min(ttlMs, maxTtlMs) : 1000;
}
