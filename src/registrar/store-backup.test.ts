import t from 'tap';
import { MemoryStore } from '../../test/support/memory-store.ts';
import { ManualClock } from '../base/clock.ts';
import { isLegateError } from '../base/errors.ts';
import { encodeMeta, formatVersion } from '../catalog/codec.ts';
import { keysOf } from '../store/keys.ts';
import { makeBackup, parseBackup } from './store-backup.ts';
import { type RestoreResult, restoreBackup } from './store-restore.ts';

const keys = keysOf('m');
const meshId = 'a'.repeat(32);
const living = '0011223344556677';
const all = Uint8Array.from({ length: 256 }, (_, index) => index);

async function storeOf(entries: Readonly<Record<string, string | Uint8Array>>): Promise<MemoryStore> {
  const store = new MemoryStore();
  await store.put(keys.meta, encodeMeta({ meshId, format: formatVersion }));
  for (const [key, value] of Object.entries(entries)) await store.put(keys.root + key, Buffer.from(value));
  return store;
}

async function backupOf(store: MemoryStore): Promise<Buffer> {
  const { parts } = await makeBackup(store, keys, { mesh: 'm', nowMs: 1 });
  return Buffer.from([...parts].join(''));
}

t.test('what is saved is what is restored', async (t) => {
  const source = await storeOf({
    'kv/bytes': all,
    'kv/': '',
    'kv/ключ "\\\n': 'text',
    'services/db': 's',
    [`hosts/${living}`]: 'h',
    [`instances/${living}/a`]: 'i',
    [`alive/${living}`]: '{}',
    'kv/lock': 'l',
    'leased/lock': '1000',
    moved: '{}',
  });
  const backup = parseBackup(await backupOf(source));
  t.match(backup.header, { meshId, mesh: 'm', count: 6, leasedLeftOut: 1 });
  const restoring = (store: MemoryStore, how: { overwrite?: boolean; foreign?: boolean } = {}) =>
    restoreBackup({ store, keys, backup, overwrite: false, foreign: false, ...how });
  const empty = await storeOf({});
  const nothing: RestoreResult = { written: 0, replaced: 0, same: 0, different: 0, ofLivingHosts: 0, named: [] };
  t.same(await restoring(empty), { ...nothing, written: 6 });
  t.same(parseBackup(await backupOf(empty)).records, backup.records);
  t.same(await restoring(empty), { ...nothing, same: 6 });

  const other = await storeOf({ 'services/db': 'other', [`alive/${living}`]: '{}' });
  t.same(await restoring(other), { ...nothing, written: 3, different: 1, ofLivingHosts: 2, named: ['services/db'] });
  t.equal(other.dump()[keys.service('db')], 'other');
  t.match(await restoring(other, { overwrite: true }), { replaced: 1, same: 3, ofLivingHosts: 2 });
  t.equal(other.dump()[keys.service('db')], 's');

  const foreign = new MemoryStore();
  await foreign.put(keys.meta, encodeMeta({ meshId: 'b'.repeat(32), format: formatVersion }));
  await t.rejects(restoring(foreign), { code: 'E_STORE_FOREIGN' });
  t.same(foreign.keys(), [keys.meta]);
  t.match(await restoring(foreign, { foreign: true }), { written: 6 });

  const emptied = new MemoryStore();
  const known = { store: emptied, keys, backup, overwrite: false, foreign: false, clock: new ManualClock(5) };
  await t.rejects(restoreBackup(known), { code: 'E_STORE_FOREIGN' }, 'whose store it is nobody knows');
  await t.rejects(restoreBackup({ ...known, meshId: 'b'.repeat(32) }), { code: 'E_STORE_FOREIGN' });
  t.same(emptied.keys(), []);
  t.match(await restoreBackup({ ...known, meshId }), { written: 6 }, 'a store that was emptied takes its own backup');
  const restored = encodeMeta({ meshId, format: formatVersion, restoredAtMs: 5 });
  t.equal(emptied.dump()[keys.meta], Buffer.from(restored).toString());
  t.equal(emptied.writes.at(-1), `put ${keys.meta}`, 'meta comes last');

  const moving = await storeOf({ moved: '{"v":1,"state":"moving"}' });
  await t.rejects(restoring(moving), { code: 'E_STORE_AWAY' });
  t.same(moving.keys(), [keys.meta, keys.moved]);
});

t.test('large ones come in batches; whoever writes meanwhile wins', async (t) => {
  const entries = Object.fromEntries(Array.from({ length: 500 }, (_, index) => [`kv/${index}`, 'x'.repeat(9000)]));
  const backup = parseBackup(await backupOf(await storeOf(entries)));
  const store = await storeOf({});
  let raced = false;
  store.beforeTxn = async (_guards, writes) => {
    if (raced || !writes.some(({ key }) => key === keys.userKey('7'))) return;
    raced = true;
    await store.put(keys.userKey('7'), Buffer.from('theirs'));
  };
  const result = await restoreBackup({ store, keys, backup, overwrite: false, foreign: false });
  t.match(result, { written: 499, different: 1, named: ['kv/7'] });
  t.equal(store.dump()[keys.userKey('7')], 'theirs');
  t.ok(Math.max(...store.txnSizes) <= store.limits.txnOperations);
});

t.test('a damaged file is refused, never half read', async (t) => {
  const good = await backupOf(await storeOf({ 'kv/a': all, 'kv/b': 'b', 'services/db': '{"port":1}' }));
  const refused = (bytes: Uint8Array): boolean => {
    try {
      parseBackup(bytes);
      return false;
    } catch (error) {
      if (isLegateError(error, 'E_INVALID')) return true;
      throw error;
    }
  };
  t.notOk(refused(good));
  let taken = 0;
  for (let length = 0; length < good.length; length += 1) if (!refused(good.subarray(0, length))) taken += 1;
  t.equal(taken, 0, 'cut off anywhere');
  // What the checksum does not cover are only words for people: the rest of the header.
  const header = good.indexOf(0x0a);
  for (let at = header + 1; at < good.length; at += 1) {
    for (const change of [1, 0x20, 0x80]) {
      const bytes = Buffer.from(good);
      bytes[at] = (bytes[at] ?? 0) ^ change;
      if (!refused(bytes)) taken += 1;
    }
  }
  t.equal(taken, 0, 'a changed bit anywhere in the records');
  let seed = 12345;
  const random = (below: number): number => {
    seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648;
    return seed % below;
  };
  for (let round = 0; round < 3000; round += 1) {
    const bytes = Buffer.from(good);
    for (let changes = random(6); changes >= 0; changes -= 1) bytes[random(bytes.length)] = random(256);
    const from = random(bytes.length);
    // Whatever comes of it: a backup or E_INVALID, never another error.
    refused(Buffer.concat([bytes.subarray(0, random(bytes.length)), bytes.subarray(from, from + random(200))]));
    refused(bytes);
  }
  const line = (document: unknown): string => `${JSON.stringify(document)}\n`;
  const head = JSON.parse(good.toString().split('\n', 1)[0] ?? '') as Record<string, unknown>;
  const cases: [string, string][] = [
    ['deep', `${'['.repeat(100_000)}\n`],
    ['a number for a key', line({ ...head, count: 1 }) + line({ key: 1, value: '' })],
    ['meta', line({ ...head, count: 1 }) + line({ key: 'meta', value: '' })],
    ['a sign of life', line({ ...head, count: 1 }) + line({ key: 'alive/x', value: '' })],
    ['NUL', line({ ...head, count: 1 }) + line({ key: 'kv/\0', value: '' })],
    ['a lone surrogate', `${line({ ...head, count: 1 })}{"key":"kv/\\ud800","value":""}\n`],
    ['a key too long', line({ ...head, count: 1 }) + line({ key: 'k'.repeat(1025), value: '' })],
    ['half base64', line({ ...head, count: 1 }) + line({ key: 'kv/a', value: 'A' })],
    ['too many by its own word', line({ ...head, count: 1e12 })],
    ['newer', line({ ...head, v: 2 })],
  ];
  for (const [what, text] of cases) t.ok(refused(Buffer.from(text)), what);
});
