import t from 'tap';
import type { Learned } from '../proxy/local-plane.ts';
import { ManualClock } from '../src/base/clock.ts';
import { silentLog } from '../src/base/log.ts';
import { Metrics } from '../src/base/metrics.ts';
import { encodeMeta } from '../src/catalog/codec.ts';
import { keysOf } from '../src/store/keys.ts';
import { MemoryStore } from '../test/support/memory-store.ts';
import { waitFor } from '../test/support/wait.ts';
import { LearnedPairs } from './learned-pairs.ts';
import { LearnedReports } from './plane/learned-reports.ts';

const keys = keysOf('home');
const [self, other] = ['1'.repeat(16), '2'.repeat(16)];

t.test('what was learned is kept in a small record of one’s own, and merged with what others wrote', async (t) => {
  const clock = new ManualClock();
  const metrics = new Metrics();
  const store = new MemoryStore();
  await store.put(keys.meta, encodeMeta({ meshId: 'ab'.repeat(16), format: 1 }));
  await store.put(keys.learned + self, Buffer.from(JSON.stringify({ v: 1, pairs: [['web', 'db', 2, 5, 6]] })));
  const learned = new LearnedPairs({ hostId: self, clock, log: silentLog, metrics });
  const ended = new AbortController();
  const keeping = learned.keep(store, keys, ended.signal);
  t.teardown(() => {
    ended.abort();
    return keeping;
  });
  const writes = (): number => store.writes.filter((write) => write === `put ${keys.learned}${self}`).length;
  learned.note({ consumer: 'web', service: 'db' });
  learned.note({ consumer: 'api', service: 'db' });
  await waitFor('it is written', () => writes() === 2);
  const stored = (): { pairs: unknown[][] } => JSON.parse(store.dump(keys.learned)[keys.learned + self] ?? '{}');
  t.match(stored().pairs, [
    ['web', 'db', 3, 5],
    ['api', 'db', 1],
  ]);
  for (let each = 0; each < 1000; each += 1) learned.note({ consumer: 'web', service: 'db' });
  await clock.advance(6000);
  t.equal(writes(), 2, 'counts alone are not written at once');
  for (let each = 0; each < 600; each += 1) learned.note({ consumer: `c${each}`, service: 'db' });
  await waitFor('and with new pairs', async () => {
    await clock.advance(5000);
    return writes() > 2;
  });
  t.equal(stored().pairs.length, 500, 'bounded');
  t.match(await metrics.exposition(), /legate_policy_learned_lost_total 102/);

  const hostile: unknown[] = [
    '{',
    [],
    { v: 2, pairs: [['x', 'y', 1, 1, 1]] },
    { v: 1, pairs: Array.from({ length: 501 }, () => ['x', 'y', 1, 1, 1]) },
    {
      v: 1,
      pairs: [
        ['ok', 'db', 4, 1, 2],
        ['\u001b[2J', 'db', 1, 1, 1],
      ],
    },
    { v: 1, pairs: [['many', 'db', 1e300, 1, 1]] },
    { v: 1, pairs: 'x'.repeat(200_000) },
  ];
  for (const [index, record] of hostile.entries()) {
    const value = typeof record === 'string' ? record : JSON.stringify(record);
    await store.put(keys.learned + index.toString(16).padStart(16, '0'), Buffer.from(value));
  }
  await store.put(`${keys.learned}nobody`, Buffer.from(JSON.stringify({ v: 1, pairs: [['x', 'y', 1, 1, 1]] })));
  await store.put(keys.learned + other, Buffer.from(JSON.stringify({ v: 1, pairs: [['web', 'db', 7, 1, 9]] })));
  const all = await learned.all(store, keys);
  t.match(all[0], { consumer: 'web', service: 'db', count: 1010, firstMs: 1, hostIds: [self, other] });
  const strange = all.filter(({ service, consumer }) => service !== 'db' || !/^[a-z0-9]+$/.test(consumer));
  t.strictSame(strange, []);
  t.ok(
    all.some(({ consumer }) => consumer === 'ok'),
    'what can be read of a record counts',
  );
});

t.test('what workers report together is counted call by call', async (t) => {
  const clock = new ManualClock();
  const metrics = new Metrics();
  const learned = new LearnedPairs({ hostId: self, clock, log: silentLog, metrics });
  const told: (readonly Learned[])[] = [];
  const reports = new LearnedReports({ clock, tell: (pairs) => told.push(pairs) });
  for (let call = 0; call < 5; call += 1) reports.add({ consumer: 'web', service: 'db' });
  reports.add({ consumer: 'api', service: 'db' });
  await clock.advance(LearnedReports.everyMs);
  reports.add({ consumer: 'web', service: 'db' });
  await clock.advance(LearnedReports.everyMs);
  t.equal(told.length, 2);
  for (const pair of told.flat()) learned.note(pair);
  t.match(await learned.all(undefined, keys), [
    { consumer: 'web', service: 'db', count: 6 },
    { consumer: 'api', service: 'db', count: 1 },
  ]);
  t.match(await metrics.exposition(), /legate_policy_learned_total 7/);
});
