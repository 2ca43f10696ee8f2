import { cp, mkdtemp, readdir, readFile, rm, truncate, unlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ClassicLevel } from 'classic-level';
import fc from 'fast-check';
import t from 'tap';
import { systemClock } from '../../base/clock.ts';
import { Conditions } from '../../base/conditions.ts';
import { isLegateError } from '../../base/errors.ts';
import { silentLog } from '../../base/log.ts';
import { Metrics } from '../../base/metrics.ts';
import { type EmbeddedStore, openEmbeddedStore } from './embedded-store.ts';
import { openError } from './folder.ts';
import { historyKey, keyKey } from './records.ts';

const metrics = new Metrics();
const conditions = new Conditions(silentLog, systemClock, metrics);

function open(path: string): Promise<EmbeddedStore> {
  return openEmbeddedStore({ path, clock: systemClock, log: silentLog, metrics: new Metrics(), conditions });
}

async function folderOf(t: { teardown(run: () => Promise<void>): void }): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'legate-damage-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** Changes what lies in LevelDB, as a fault of the disk below its own checksums would. */
async function alter(path: string, run: (level: ClassicLevel<Buffer, Buffer>) => Promise<void>): Promise<void> {
  const level = new ClassicLevel<Buffer, Buffer>(path, { keyEncoding: 'buffer', valueEncoding: 'buffer' });
  await level.open();
  await run(level);
  await level.close();
}

async function spoil(level: ClassicLevel<Buffer, Buffer>, dbKey: Buffer): Promise<void> {
  const record = await level.get(dbKey);
  if (record === undefined) throw new Error('there is nothing to spoil');
  record[record.length - 1] = (record.at(-1) ?? 0) ^ 1;
  await level.put(dbKey, record);
}

t.test('a damaged record is left out and told, until it is written anew', async (t) => {
  const path = await folderOf(t);
  const before = await open(path);
  for (const key of ['a', 'b', 'c']) await before.put(key, Buffer.from(key));
  await before.close();
  await alter(path, async (level) => {
    await spoil(level, keyKey('b'));
    await level.put(keyKey('c'), Buffer.from('short'));
  });
  const store = await open(path);
  t.teardown(() => store.close());
  t.match(conditions.list(), [{ id: 'store.embedded.records', message: /^2 records .* first b$/ }]);
  t.equal(await store.get('b'), undefined);
  t.same(
    (await store.range('')).entries.map(({ key }) => key),
    ['a'],
  );
  t.same(await store.txn([{ kind: 'exists', key: 'b' }], []), { ok: false });
  const healed = await store.txn(
    [{ kind: 'absent', key: 'b' }],
    [{ kind: 'put', key: 'b', value: Buffer.from('new') }],
  );
  t.ok(healed.ok);
  t.equal(Buffer.from((await store.get('b'))?.value ?? []).toString(), 'new');
  t.ok(await store.txn([], [{ kind: 'delete', key: 'c' }]));
  t.same(conditions.list(), [], 'the fault is over');
});

t.test('damaged or missing history makes watches begin anew', async (t) => {
  const path = await folderOf(t);
  const before = await open(path);
  const revisions: string[] = [];
  for (let index = 0; index < 10; index += 1) revisions.push(await before.put(`k${index}`, Buffer.from('x')));
  await before.close();
  const at = (index: number): number => Number(revisions[index]?.split('.')[1]);
  await alter(path, async (level) => {
    await level.del(historyKey(at(3)));
    await spoil(level, historyKey(at(5)));
  });
  const store = await open(path);
  t.teardown(() => store.close());
  for (const [index, kind] of [
    [1, 'reset'],
    [4, 'reset'],
    [7, 'delta'],
  ] as const) {
    const from = revisions[index] ?? '';
    for await (const change of store.watch('', { signal: AbortSignal.timeout(10_000), from })) {
      t.equal(change.kind, kind, `from ${index}`);
      break;
    }
  }
});

t.test('a lost end of the log never makes revisions go back', async (t) => {
  const path = await folderOf(t);
  const first = await open(path);
  t.teardown(() => first.close());
  await first.put('kept', Buffer.from('1'));
  const kept = (await first.range('')).revision;
  let lost = '';
  for (let index = 0; index < 50; index += 1) lost = await first.put('lost', Buffer.alloc(1000, index));
  // A copy of the files without closing is what a crash leaves; cutting the log is what a lying disk adds.
  const copy = await folderOf(t);
  await cp(path, copy, { recursive: true });
  const [log = ''] = (await readdir(copy)).filter((name) => name.endsWith('.log'));
  await truncate(join(copy, log), 20_000);
  const store = await open(copy);
  t.teardown(() => store.close());
  t.ok(store.compareRevisions(await store.put('next', Buffer.from('2')), lost) > 0);
  t.equal(store.status.value.storeId, first.status.value.storeId);
  for (const [from, kind] of [
    [lost, 'reset'],
    [kept, 'delta'],
  ] as const) {
    for await (const change of store.watch('', { signal: AbortSignal.timeout(10_000), from })) {
      t.equal(change.kind, kind);
      break;
    }
  }
});

t.test('what cannot be opened is refused with a hint and left as it was', async (t) => {
  const good = await folderOf(t);
  const store = await open(good);
  for (let index = 0; index < 200; index += 1) await store.put(`k${index}`, Buffer.alloc(100, index));
  await t.rejects(open(good), { code: 'E_IN_USE', message: /another sidecar uses the store/, hint: /data_dir/ });
  await store.close();
  await (await open(good)).close();

  const cases: [what: string, spoil: (path: string) => Promise<void>][] = [
    ['no CURRENT', (path) => unlink(join(path, 'CURRENT'))],
    ['garbage in CURRENT', (path) => writeFile(join(path, 'CURRENT'), 'garbage')],
    [
      'no tables',
      async (path) => {
        for (const name of await readdir(path)) if (name.endsWith('.ldb')) await unlink(join(path, name));
      },
    ],
    [
      'an empty table',
      async (path) => {
        for (const name of await readdir(path)) if (name.endsWith('.ldb')) await truncate(join(path, name), 0);
      },
    ],
    ['an emptied LevelDB', (path) => alter(path, (level) => level.clear())],
    ['a damaged head', (path) => alter(path, (level) => spoil(level, Buffer.from('H')))],
    [
      'another LevelDB',
      async (path) => {
        await rm(path, { recursive: true });
        await alter(path, (level) => level.put(Buffer.from('x'), Buffer.from('y')));
      },
    ],
    [
      'a file',
      async (path) => {
        await rm(path, { recursive: true });
        await writeFile(path, 'x');
      },
    ],
  ];
  for (const [what, run] of cases) {
    const path = join(await folderOf(t), 'store');
    await cp(good, path, { recursive: true });
    await run(path);
    const files = await readdir(path).catch(() => []);
    await t.rejects(open(path), { code: 'E_STORE_DAMAGED', hint: /restore a backup .* or move the folder away/ }, what);
    const left = new Set(await readdir(path).catch(() => []));
    const removed = files.filter((name) => name.endsWith('.ldb') && !left.has(name));
    t.same(removed, [], `${what}: no table was removed`);
  }

  const errors: [cause: { code: string; message: string }, code: string][] = [
    [{ code: 'EACCES', message: 'EACCES: permission denied, mkdir' }, 'E_PERMISSION'],
    [{ code: 'LEVEL_LOCKED', message: 'IO error: lock /s/LOCK: Resource temporarily unavailable' }, 'E_IN_USE'],
    [{ code: 'LEVEL_LOCKED', message: 'IO error: lock /s/LOCK: Permission denied' }, 'E_PERMISSION'],
    [{ code: 'LEVEL_IO_ERROR', message: 'IO error: /s/000004.log: Permission denied' }, 'E_PERMISSION'],
    [{ code: 'LEVEL_IO_ERROR', message: 'IO error: /s/000004.log: No space left on device' }, 'E_STORE_AWAY'],
    [{ code: 'LEVEL_CORRUPTION', message: 'Corruption: checksum mismatch' }, 'E_STORE_DAMAGED'],
  ];
  for (const [{ code, message }, wanted] of errors) {
    const error = new Error('Database failed to open', { cause: Object.assign(new Error(message), { code }) });
    t.equal(openError('/s', error).code, wanted, message);
  }
});

t.test('random garbage in the files: refused or left out, never more', async (t) => {
  const folder = await folderOf(t);
  const base = join(folder, 'base');
  const first = await open(base);
  for (let index = 0; index < 300; index += 1) await first.put(`k${index % 100}`, Buffer.alloc(150, index));
  await first.close();
  const second = await open(base);
  for (let index = 0; index < 100; index += 1) await second.put(`k${index}`, Buffer.alloc(150, index));
  const copy = join(folder, 'copy');
  await cp(base, copy, { recursive: true });
  await second.close();
  const names = (await readdir(copy)).filter((name) => !/^LO/.test(name)).sort();
  const victim = join(folder, 'victim');
  const outcomes = { refused: 0, opened: 0 };
  const damage = fc.record({
    name: fc.constantFrom(...names),
    at: fc.double({ min: 0, max: 1, noNaN: true }),
    bytes: fc.uint8Array({ minLength: 1, maxLength: 300 }),
    cut: fc.boolean(),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(damage, { minLength: 1, maxLength: 3 }), async (damages) => {
      await rm(victim, { recursive: true, force: true });
      await cp(copy, victim, { recursive: true });
      for (const { name, at, bytes, cut } of damages) {
        const file = await readFile(join(victim, name));
        const offset = Math.floor(at * file.length);
        file.set(bytes.subarray(0, file.length - offset), offset);
        await writeFile(join(victim, name), cut ? file.subarray(0, offset) : file);
      }
      let store: EmbeddedStore;
      try {
        store = await open(victim);
      } catch (error) {
        outcomes.refused += 1;
        if (!isLegateError(error, 'E_STORE_DAMAGED')) throw error;
        return;
      }
      try {
        outcomes.opened += 1;
        for (const { key, value } of (await store.range('')).entries) {
          if (!/^k\d+$/.test(key) || value.length !== 150) throw new Error(`garbage as an entry: ${key}`);
        }
        for (let index = 0; index < 100; index += 1) await store.get(`k${index}`);
        await store.put('k1', Buffer.alloc(150));
        if ((await store.get('k1')) === undefined) throw new Error('a new write is not there');
      } finally {
        await store.close();
      }
    }),
    { numRuns: 150 },
  );
  t.ok(outcomes.refused > 0 && outcomes.opened > 0, `${outcomes.refused} refused, ${outcomes.opened} opened`);
});
