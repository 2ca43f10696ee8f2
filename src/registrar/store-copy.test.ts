import t from 'tap';
import { MemoryStore } from '../../test/support/memory-store.ts';
import { ManualClock } from '../base/clock.ts';
import { LegateError } from '../base/errors.ts';
import { silentLog } from '../base/log.ts';
import { encodeMeta, formatVersion } from '../catalog/codec.ts';
import { keysOf } from '../store/keys.ts';
import type { Store } from '../store/store.ts';
import { type CopyPhase, copyMesh } from './store-copy.ts';
import { checkNotMoving, decodeMarker, type MovedTo, notMoving, readMarker } from './store-marker.ts';

const keys = keysOf('m');
const targetKeys = keysOf('m', '/other');
const meshId = 'a'.repeat(32);
const meta = encodeMeta({ meshId, format: formatVersion });
const text = (value: string): Uint8Array => new TextEncoder().encode(value);
const to: MovedTo = { kind: 'etcd', endpoints: ['http://e:1'], prefix: '/other', tls: false, credentials: false };

async function sourceOf(entries: Readonly<Record<string, string>> = {}): Promise<MemoryStore> {
  const store = new MemoryStore();
  await store.put(keys.meta, meta);
  for (const [key, value] of Object.entries(entries)) await store.put(keys.root + key, text(value));
  return store;
}

function copying(
  source: MemoryStore,
  target: MemoryStore,
  more: { onPhase?: (phase: CopyPhase) => void; signal?: AbortSignal; dryRun?: boolean } = {},
): ReturnType<typeof copyMesh> {
  const { onPhase, signal = new AbortController().signal, dryRun = false } = more;
  let last: CopyPhase | undefined;
  return copyMesh({
    ...{ source, sourceKeys: keys, target, targetKeys, to, dryRun, signal },
    clock: new ManualClock(),
    log: silentLog,
    onProgress: ({ phase }) => {
      if (phase !== last) onPhase?.(phase);
      last = phase;
    },
  });
}

/** As every write of users: guarded. False when it was refused. */
async function userWrite(store: Store, key: string, value: string): Promise<boolean> {
  const write = { kind: 'put', key: keys.userKey(key), value: text(value) } as const;
  return (await store.txn([notMoving(keys)], [write])).ok;
}

t.test('all that lasts is copied, meta last, and the marker says where to', async (t) => {
  const source = await sourceOf({ 'services/db': 's', 'kv/a': '1', 'kv/lock': 'l', 'leased/lock': '30000' });
  await source.put(keys.aliveOf('0011223344556677'), text('{}'));
  const target = new MemoryStore();
  const result = await copying(source, target);
  t.match(result, { keys: 2, leased: 1, alive: new Set(['0011223344556677']) });
  t.same(
    target.keys(),
    ['kv/a', 'kv/lock', 'leased/lock', 'meta', 'services/db'].map((key) => targetKeys.root + key),
  );
  const written = target.writes.filter((write) => write.startsWith('put'));
  t.equal(written.at(-1), `put ${targetKeys.meta}`);
  t.match(await readMarker(source, keys), { state: 'moved', to });
  t.notOk(await userWrite(source, 'late', 'x'));
  await t.rejects(checkNotMoving(source, keys), { code: 'E_STORE_AWAY', message: /moved to etcd at http:\/\/e:1/ });
  await t.rejects(copying(source, new MemoryStore()), { code: 'E_CONFLICT' }, 'what has moved does not move again');
  t.equal(target.leases, 1, 'keys with a time to live have it anew');
});

t.test('a write is in the target, or it was refused', async (t) => {
  // At every transaction of the copy somebody writes into the source, before and after it.
  const source = await sourceOf({ 'kv/changed': 'before', 'kv/deleted': 'x' });
  const target = new MemoryStore();
  const acknowledged = new Map<string, string>();
  let refused = 0;
  let count = 0;
  let busy = false;
  const interfere = async (): Promise<void> => {
    if (busy) return;
    busy = true;
    count += 1;
    for (const key of ['changed', `new-${count}`]) {
      if (await userWrite(source, key, `${count}`)) acknowledged.set(key, `${count}`);
      else refused += 1;
    }
    busy = false;
  };
  source.beforeTxn = interfere;
  target.beforeTxn = interfere;
  await copying(source, target);
  t.ok(acknowledged.size >= 3 && refused > 0, `${acknowledged.size} acknowledged, ${refused} refused`);
  const there = target.dump(targetKeys.kv);
  for (const [key, value] of acknowledged) t.equal(there[targetKeys.userKey(key)], value, key);
});

t.test('a copy that fails at any moment leaves the mesh where it is, and can be made again', async (t) => {
  const whole = await sourceOf({ 'kv/a': '1', 'services/db': 's' });
  const counted = new MemoryStore();
  let txns = 0;
  const count = (): void => {
    txns += 1;
  };
  whole.beforeTxn = count;
  counted.beforeTxn = count;
  await copying(whole, counted);
  t.ok(txns >= 4, `${txns} transactions`);
  for (let failing = 1; failing <= txns; failing += 1) {
    const source = await sourceOf({ 'kv/a': '1', 'services/db': 's' });
    const target = new MemoryStore();
    let left = failing;
    const fail = (): void => {
      left -= 1;
      if (left === 0) throw new LegateError('E_TIMEOUT', 'made to fail');
    };
    source.beforeTxn = fail;
    target.beforeTxn = fail;
    await t.rejects(copying(source, target), { message: 'made to fail' }, `at transaction ${failing}`);
    t.ok(await userWrite(source, 'a', '2'), 'writes are taken again');
    t.equal(target.dump()[targetKeys.meta], undefined, 'nobody takes the target for the mesh');
    await copying(source, target);
    t.equal(target.dump()[targetKeys.userKey('a')], '2');
  }
});

t.test('called off, and a marker that lapsed', async (t) => {
  for (const phase of ['copying', 'comparing'] as const) {
    const [source, target] = [await sourceOf({ 'kv/a': '1' }), new MemoryStore()];
    const abort = new AbortController();
    const onPhase = (now: CopyPhase): void => {
      if (now === phase) abort.abort(new LegateError('E_CLOSED', 'called off'));
    };
    if (phase === 'comparing') target.beforeTxn = () => void userWrite(source, 'b', '2');
    await t.rejects(copying(source, target, { onPhase, signal: abort.signal }), { message: 'called off' }, phase);
    t.ok(await userWrite(source, 'a', '2'));
  }
  const [source, target] = [await sourceOf({ 'kv/a': '1' }), new MemoryStore()];
  const onPhase = (now: CopyPhase): void => {
    if (now === 'ending') source.lapse();
  };
  await t.rejects(copying(source, target, { onPhase }), { code: 'E_STORE_AWAY' });
  t.ok(await userWrite(source, 'a', '2'));
  t.equal(target.dump()[targetKeys.meta], undefined);
});

t.test('targets', async (t) => {
  const source = await sourceOf({ 'kv/a': '1', 'kv/b': '2' });
  const cases: [what: string, there: Record<string, Uint8Array>, expected: RegExp | undefined][] = [
    ['empty', {}, undefined],
    ['of another mesh', { meta: encodeMeta({ meshId: 'b'.repeat(32), format: 1 }) }, /holds mesh b{32}/],
    ['unreadable', { meta: text('{}') }, /cannot be read/],
    ['with something in it', { 'services/x': text('1') }, /is not empty: it has services\/x/],
    ['of this mesh, in use', { meta, 'alive/0011223344556677': text('{}') }, /1 hosts use the target/],
    ['of this mesh, from before', { meta, 'kv/a': text('old'), 'kv/gone': text('x'), moved: text('{}') }, undefined],
    ['of a copy that died', { copying: meta, 'kv/x': text('half') }, undefined],
    ["of another mesh's copy", { copying: encodeMeta({ meshId: 'b'.repeat(32), format: 1 }) }, /another mesh/],
  ];
  for (const [what, there, expected] of cases) {
    const target = new MemoryStore();
    for (const [key, value] of Object.entries(there)) await target.put(targetKeys.root + key, value);
    const before = target.dump();
    if (expected !== undefined) {
      await t.rejects(copying(source, target), { message: expected }, what);
      t.same(target.dump(), before, `${what}: untouched`);
      continue;
    }
    const { keys: count } = await copying(source, target, { dryRun: true });
    t.equal(count, 2);
    t.same(target.dump(), before, `${what}: a dry run writes nothing`);
    const again = await sourceOf({ 'kv/a': '1', 'kv/b': '2' });
    await copying(again, target);
    t.same(
      target.keys(),
      ['kv/a', 'kv/b', 'meta'].map((key) => targetKeys.root + key),
      what,
    );
  }
});

t.test('markers are hostile bytes', (t) => {
  const unknown = { state: 'moving', to: { endpoints: [] } };
  for (const bytes of [
    '',
    '{}',
    'null',
    '[1]',
    '{"v":2}',
    '{"v":1,"state":"moved","atMs":1,"to":{}}',
    '\xff'.repeat(20_000),
  ]) {
    t.match(decodeMarker(Buffer.from(bytes, 'latin1')), unknown, bytes.slice(0, 40));
  }
  t.end();
});
