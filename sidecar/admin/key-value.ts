import { type Context, Hono } from 'hono';
import { LegateError } from '../../src/base/errors.ts';
import { checkNotMoving, notMoving } from '../../src/registrar/store-marker.ts';
import type { Keys } from '../../src/store/keys.ts';
import { type Guard, type Lease, maxKeyBytes, type Store, type TxnResult, type Write } from '../../src/store/store.ts';
import type { AdminBackend } from './backend.ts';
import type { KvListDocument } from './documents.ts';
import { KeyLeases } from './key-leases.ts';
import { KeyWatches } from './key-watch.ts';

/** Most entries that one listing returns. */
const maxListed = 10_000;

/**
 * The users' own keys: raw bytes in and out, the revision in `ETag`, `cas=REVISION` for compare-and-swap (`0`: the key
 * must be absent), `recurse` for all keys under a prefix (GET and DELETE), `lease_ttl` for a key that vanishes so long
 * after it was last written, `watch` for a stream of what a key becomes.
 */
export function keyValueRoutes(backend: AdminBackend): Hono {
  const app = new Hono();
  const leases = new KeyLeases();
  const watches = new KeyWatches();
  app.get('/*', async (context) => {
    const { store, keys } = backend.userKeys();
    const prefix = keys.kv;
    const recurse = 'recurse' in context.req.query();
    const key = keyOf(context, recurse);
    if ('watch' in context.req.query()) return watches.stream(context, { store, prefix, key, recurse });
    if (recurse) {
      const found = await store.range(prefix + key, { limit: maxListed });
      const entries = found.entries.map((entry) => ({
        key: entry.key.slice(prefix.length),
        value: Buffer.from(entry.value).toString('base64'),
        revision: entry.revision,
      }));
      return context.json({ revision: found.revision, entries } satisfies KvListDocument);
    }
    const entry = await store.get(prefix + key);
    if (entry === undefined) throw absent(key);
    context.header('ETag', `"${entry.revision}"`);
    context.header('Content-Type', 'application/octet-stream');
    return context.body(Uint8Array.from(entry.value));
  });
  app.put('/*', async (context) => {
    const { store, keys } = backend.userKeys();
    const key = keyOf(context, false);
    const stored = keys.userKey(key);
    const leaseTtl = context.req.query('lease_ttl');
    const ttlMs = leaseTtl === undefined ? undefined : KeyLeases.ttlMs(leaseTtl);
    const value = new Uint8Array(await context.req.arrayBuffer());
    const guards = guardsOf(context, keys, stored);
    const write = (lease?: Lease): Promise<TxnResult> =>
      store.txn(guards, [
        { kind: 'put', key: stored, value, ...(lease && { lease }) },
        lease === undefined
          ? { kind: 'delete', key: keys.leased + key }
          : { kind: 'put', key: keys.leased + key, value: Buffer.from(String(ttlMs)), lease },
      ]);
    const result = await (ttlMs === undefined ? write() : leases.with(store, key, ttlMs, write));
    if (!result.ok) throw await changed(store, keys, key);
    if (ttlMs === undefined) await leases.forget(key);
    context.header('ETag', `"${result.revision}"`);
    return context.json({ key, revision: result.revision });
  });
  app.delete('/*', async (context) => {
    const { store, keys } = backend.userKeys();
    if ('recurse' in context.req.query()) {
      return context.json({ deleted: await deleteAll(store, keys, keyOf(context, false)) });
    }
    const key = keyOf(context, false);
    const guards = guardsOf(context, keys, keys.userKey(key));
    const found = await store.get(keys.userKey(key));
    if (found === undefined) throw absent(key);
    const result = await store.txn(guards, deletionOf(keys, key));
    if (!result.ok) throw await changed(store, keys, key);
    await leases.forget(key);
    return context.json({ key, revision: result.revision });
  });
  return app;
}

/** The key, and the mark that it vanishes by itself. */
function deletionOf(keys: Keys, key: string): Write[] {
  return [
    { kind: 'delete', key: keys.userKey(key) },
    { kind: 'delete', key: keys.leased + key },
  ];
}

/** Deletes everything under a prefix, a bounded number at a time; how many keys it were. */
async function deleteAll(store: Store, keys: Keys, prefix: string): Promise<number> {
  let deleted = 0;
  for (;;) {
    const limit = Math.floor((store.limits.txnOperations - 1) / 2);
    const { entries } = await store.range(keys.userKey(prefix), { limit });
    if (entries.length === 0) return deleted;
    const writes = entries.flatMap(({ key }) => deletionOf(keys, key.slice(keys.kv.length)));
    if (!(await store.txn([notMoving(keys)], writes)).ok) {
      await checkNotMoving(store, keys);
      continue;
    }
    deleted += entries.length;
  }
}

function keyOf(context: Context, mayBeEmpty: boolean): string {
  const path = context.req.path.slice('/api/kv'.length).replace(/^\//, '');
  let key: string;
  try {
    key = decodeURIComponent(path);
  } catch {
    throw new LegateError('E_INVALID', 'the key is not percent-encoded UTF-8');
  }
  if (key === '' && !mayBeEmpty) throw new LegateError('E_INVALID', 'the key is empty');
  if (key.includes('\0')) throw new LegateError('E_INVALID', 'the key has a NUL character');
  if (Buffer.byteLength(key) > maxKeyBytes - 128) {
    throw new LegateError('E_TOO_LARGE', `the key is longer than ${maxKeyBytes - 128} bytes`);
  }
  return key;
}

function guardsOf(context: Context, keys: Keys, key: string): Guard[] {
  const cas = context.req.query('cas');
  if (cas === undefined) return [notMoving(keys)];
  if (!/^[\w.:-]{1,64}$/.test(cas)) throw new LegateError('E_INVALID', 'cas is not a revision');
  return [notMoving(keys), cas === '0' ? { kind: 'absent', key } : { kind: 'revision', key, revision: cas }];
}

function absent(key: string): LegateError {
  return new LegateError('E_NOT_FOUND', `there is no key ${JSON.stringify(key)}`, {
    hint: 'legate kv list shows the keys',
  });
}

/** Why a guarded write did not happen; throws when the reason is that the mesh moves. */
async function changed(store: Store, keys: Keys, key: string): Promise<LegateError> {
  await checkNotMoving(store, keys);
  return new LegateError('E_CONFLICT', `${JSON.stringify(key)} is not at that revision any more`, {
    hint: 'read it again and decide anew',
  });
}
