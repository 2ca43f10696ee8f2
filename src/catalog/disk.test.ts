import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { mkdir, rename } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { MemoryStore } from '../../test/support/memory-store.ts';
import { hostId, hostRecord, instanceRecord, type Parts, parts } from '../../test/support/records.ts';
import { waitFor } from '../../test/support/wait.ts';
import { ManualClock } from '../base/clock.ts';
import { keysOf } from '../store/keys.ts';
import { Catalog } from './catalog.ts';
import { encodeAlive, encodeHost, encodeInstance, encodeMeta, encodeService, encodeVipClaim } from './codec.ts';
import { parseSaved, SnapshotFile } from './disk.ts';
import { recordsOfHost, rememberedVips } from './saved-state.ts';

const keys = keysOf('test');
const self = hostId(1);
const meshId = 'ab'.repeat(16);

function folder(t: Test): string {
  const path = mkdtempSync(join(tmpdir(), 'legate-disk-'));
  t.teardown(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

async function filled(t: Test, shared: Parts): Promise<{ store: MemoryStore; catalog: Catalog }> {
  const store = new MemoryStore();
  await store.put(keys.meta, encodeMeta({ meshId, format: 1 }));
  await store.put(keys.host(self), encodeHost(hostRecord(self, 'web-1')));
  await store.put(keys.aliveOf(self), encodeAlive({ sinceMs: 1 }));
  await store.put(keys.instance(self, 'a'), encodeInstance(instanceRecord({ name: 'a', meta: { zone: 'x' } })));
  await store.put(
    keys.service('db'),
    encodeService({ name: 'db', port: 5432, protocol: 'tcp', balance: 'random', vip: '240.77.0.9' }),
  );
  await store.put(keys.vip('240.77.0.9'), encodeVipClaim({ service: 'db', claimedAtMs: 4 }));
  await store.put(keys.vip('240.77.0.8'), encodeVipClaim({ service: 'web', claimedAtMs: 4, releasedAtMs: 5 }));
  const catalog = new Catalog({ ...shared, keys, self: { hostId: self, hostName: 'web-1' } });
  const ended = new AbortController();
  const following = catalog.follow(store, ended.signal);
  t.teardown(async () => {
    ended.abort();
    await following;
  });
  await waitFor('the store', () => catalog.snapshots.value.origin === 'store' && catalog.meshId !== undefined, {
    everyMs: 1,
  });
  return { store, catalog };
}

t.test('what was known comes back as it was', async (t) => {
  const shared = parts();
  const path = join(folder(t), 'snapshot.json');
  const { catalog } = await filled(t, shared);
  const file = new SnapshotFile({ ...shared, path });
  t.equal(await file.load(), undefined, 'nothing at the first start, and no complaint');
  t.equal(await file.write(catalog), true);
  t.equal(statSync(path).mode & 0o777, 0o600);
  const saved = await new SnapshotFile({ ...parts(), path, meshId }).load();
  t.match(saved, { meshId, storeId: 'memory-1', revision: catalog.snapshots.value.revision });
  if (saved === undefined) return;
  t.same(recordsOfHost(saved, self), [instanceRecord({ name: 'a', meta: { zone: 'x' } })]);
  t.same([...rememberedVips(saved)], [['db', '240.77.0.9']]);
  t.equal(saved.vips.get('240.77.0.8')?.record.releasedAtMs, 5);
  t.ok(saved.alive.has(self));
  t.same(shared.conditions.list(), []);
});

t.test('a change is on disk a little later, and all of it after the end', async (t) => {
  const clock = new ManualClock();
  const shared = parts(clock);
  const path = join(folder(t), 'snapshot.json');
  const { catalog } = await filled(t, shared);
  const file = new SnapshotFile({ ...shared, path });
  const ended = new AbortController();
  const keeping = file.keep(catalog, ended.signal);
  await clock.advance(1000);
  await waitFor('the first write', () => existsSync(path));
  catalog.applyOwn({ kind: 'reset', items: [instanceRecord({ name: 'later' })], revision: '' });
  await clock.advance(0);
  t.notMatch(readFileSync(path, 'utf8'), /later/);
  await waitFor('the change', async () => {
    await clock.advance(1000);
    return readFileSync(path, 'utf8').includes('"later"');
  });
  t.notMatch(readFileSync(path, 'utf8'), /"zone"/, 'own instances are as they are on this host');
  catalog.applyOwn({ kind: 'delta', puts: [instanceRecord({ name: 'last' })], deletes: [], revision: '' });
  await clock.advance(0);
  ended.abort();
  await keeping;
  t.match(readFileSync(path, 'utf8'), /"last"/);
  t.same(readdirSync(join(path, '..')), ['snapshot.json'], 'no temporary file is left');
});

t.test(
  'for how long hosts were lost and what the brake keeps outlive the process, as far as they can be read',
  async (t) => {
    const clock = new ManualClock();
    const path = join(folder(t), 'snapshot.json');
    const { store, catalog } = await filled(t, parts(clock));
    const hosts = [hostId(2), hostId(3)];
    for (const id of hosts) {
      await store.put(keys.host(id), encodeHost(hostRecord(id, `web-${id.slice(-1)}`)));
      await store.put(keys.aliveOf(id), encodeAlive({ sinceMs: 1 }));
      await store.put(keys.instance(id, 'x'), encodeInstance(instanceRecord({ name: 'x' })));
    }
    await clock.advance(0);
    for (const id of hosts) await store.delete(keys.aliveOf(id));
    await clock.advance(0);
    const file = new SnapshotFile({ ...parts(clock), path });
    const ended = new AbortController();
    const keeping = file.keep(catalog, ended.signal);
    await waitFor('the first write', async () => {
      await clock.advance(1000);
      return existsSync(path);
    });
    const { saved: first } = parseSaved(readFileSync(path, 'utf8'));
    t.match(first.brakes.get('db'), { turned: [{ byLoss: true }, { byLoss: true }], episode: { keepsLost: true } });
    const atFirst = first.lost.get(hostId(2)) ?? 0;
    await waitFor('it is written though nothing changes', async () => {
      await clock.advance(100_000);
      return (parseSaved(readFileSync(path, 'utf8')).saved.lost.get(hostId(2)) ?? 0) > atFirst + 500_000;
    });
    ended.abort();
    await keeping;
    const text = readFileSync(path, 'utf8');
    const { saved, skipped } = parseSaved(text);
    t.same(skipped, []);
    t.same([...saved.lost.keys()].sort(), hosts);
    const damaged = text.replace(/"lost":.*/, '"lost":[["x",1],["0000000000000002",-1],7,["0000000000000003",5]]}');
    t.same([...parseSaved(damaged).saved.lost], [[hostId(3), 5]]);
    t.equal(parseSaved(damaged).skipped.length, 3);
    t.equal(parseSaved(text.replace(/,\n"lost":.*/, '}')).saved.lost.size, 0, 'a file of an earlier version');
  },
);

t.test('a disk that refuses is reported, tried again, and then forgotten', async (t) => {
  const clock = new ManualClock();
  const shared = parts(clock);
  const place = join(folder(t), 'data');
  const path = join(place, 'snapshot.json');
  const { catalog } = await filled(t, shared);
  const ended = new AbortController();
  const keeping = new SnapshotFile({ ...shared, path }).keep(catalog, ended.signal);
  await clock.advance(600);
  await waitFor('the complaint', () => shared.conditions.list().length === 1);
  t.match(shared.conditions.list(), [
    { id: 'catalog.disk.write', message: /cannot be written .*ENOENT/, hint: /data_dir/ },
  ]);
  await mkdir(place);
  await clock.advance(10_000);
  await waitFor('the retry', async () => {
    await clock.advance(1000);
    return existsSync(path) && shared.conditions.list().length === 0;
  });
  ended.abort();
  await keeping;
});

t.test('a file that cannot be used is said so, and the start goes on without it', async (t) => {
  const shared = parts();
  const place = folder(t);
  const path = join(place, 'snapshot.json');
  const { catalog } = await filled(t, shared);
  await new SnapshotFile({ ...shared, path }).write(catalog);
  const good = readFileSync(path, 'utf8');
  const cases: [what: string, change: () => void, message: RegExp][] = [
    ['truncated', () => truncateSync(path, Math.floor(good.length / 2)), /not used: .*JSON/],
    ['empty', () => truncateSync(path, 0), /not used/],
    ['garbage', () => writeFileSync(path, Buffer.alloc(300, 0xff)), /not used/],
    ['another kind of JSON', () => writeFileSync(path, '[]'), /is not an object/],
    ['newer', () => writeFileSync(path, good.replace('{"v":1', '{"v":7')), /newer version \(7\)/],
    ['another mesh', () => writeFileSync(path, good.replace(meshId, 'cd'.repeat(16))), /of another mesh/],
    ['too large', () => truncateSync(path, 300 * 1024 * 1024), /bytes, more than/],
  ];
  for (const [what, change, message] of cases) {
    writeFileSync(path, good);
    change();
    const { conditions, ...rest } = parts();
    t.equal(await new SnapshotFile({ ...rest, conditions, path, meshId }).load(), undefined, what);
    t.match(conditions.list(), [{ id: 'catalog.disk.load', message }], what);
  }
  writeFileSync(path, good.replace('"port":5432', '"port":0'));
  const { conditions, ...rest } = parts();
  const saved = await new SnapshotFile({ ...rest, conditions, path }).load();
  t.equal(saved?.hosts.size, 1, 'one bad entry spoils nothing else');
  t.match(conditions.list(), [{ message: /1 entries of .* cannot be read: (services|instances): port/ }]);
  await rename(path, join(place, 'else'));
  await mkdir(path);
  t.equal(await new SnapshotFile({ ...parts(), path }).load(), undefined, 'a folder in its place');
});

t.test('whatever is in the file, reading it gives a state or throws a plain fault', async () => {
  const base = {
    v: 1,
    meshId,
    storeId: null,
    revision: '',
    confirmedAtMs: 0,
    hosts: [],
    alive: [],
    services: [],
    vips: [],
    instances: [],
  };
  const tables = fc.constantFrom('hosts', 'alive', 'services', 'vips', 'instances', 'meshId', 'v');
  fc.assert(
    fc.property(
      tables,
      fc.oneof(fc.jsonValue(), fc.array(fc.tuple(fc.string(), fc.string(), fc.jsonValue()))),
      (name, value) => {
        try {
          parseSaved(JSON.stringify({ ...base, [name]: value }));
        } catch (error) {
          if (!(error instanceof Error) || error instanceof TypeError || error instanceof RangeError) throw error;
        }
      },
    ),
    { numRuns: 400 },
  );
});
