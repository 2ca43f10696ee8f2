import t from 'tap';
import { ManualClock } from '../src/base/clock.ts';
import { Latest } from '../src/base/feed.ts';
import { PersistentMap } from '../src/base/persistent-map.ts';
import { Catalog } from '../src/catalog/catalog.ts';
import { emptySnapshot, type Service, type Snapshot } from '../src/catalog/snapshot.ts';
import type { Instance, StoredStatus } from '../src/model/instance.ts';
import { keysOf } from '../src/store/keys.ts';
import { hostId, instanceRecord, parts, shownInstance } from '../test/support/records.ts';
import { watchBrakes } from './brake-watch.ts';
import { appearanceGraceMs } from './lost-hosts-watch.ts';
import { watchUsable } from './usable-watch.ts';

t.test('the brake is told, with its numbers, and agrees with what says that nothing is usable', async (t) => {
  const clock = new ManualClock(Date.parse('2030-01-02T03:04:05.678Z'));
  const shared = parts(clock);
  const catalog = new Catalog({ ...shared, keys: keysOf('t'), self: { hostId: hostId(1), hostName: 'web-1' } });
  t.teardown(watchBrakes(catalog.snapshots, shared.conditions, clock));
  t.teardown(watchUsable(catalog.snapshots, shared.conditions, clock));
  const put = async (names: string, status: StoredStatus): Promise<void> => {
    const puts = [...names].map((name) => instanceRecord({ name, status }));
    catalog.applyOwn({ kind: 'delta', puts, deletes: [], revision: '' });
    await clock.advance(0);
  };
  const told = (): string[] => shared.conditions.list().map(({ id, message }) => `${id}: ${message}`);
  const saying = (count: number): string =>
    `service.db.brake: db: ${count} of 5 instances turned critical within 30 s; all are still used, at most until 2030-01-02T03:14:05Z`;

  await put('abcde', 'passing');
  await put('ab', 'critical');
  t.same(told(), []);
  await put('c', 'critical');
  t.same(told(), [saying(3)]);
  t.match(shared.conditions.list(), [{ severity: 'warning', hint: /legate instances db shows/ }]);
  await put('d', 'critical');
  await put('e', 'critical');
  t.same(told(), [saying(3)], 'not a line for each');
  await clock.advance(5000);
  t.same(told(), [saying(5)]);
  await put('abc', 'passing');
  t.same(told(), [], 'over when half pass');

  await clock.advance(31_000);
  await put('abc', 'critical');
  t.match(told(), [/^service\.db\.brake/], 'nothing says that none is usable');
  await clock.advance(600_000);
  t.same(told(), ['service.db.usable: db: none of its instances is usable (5 critical)']);
  await put('a', 'passing');
  t.same(told(), []);
  catalog.applyOwn({ kind: 'reset', items: [], revision: '' });
  await clock.advance(0);
  t.same(told(), []);
});

t.test('of lost hosts no check is hinted at', async (t) => {
  const clock = new ManualClock(0);
  const shared = { ...parts(clock), clock };
  const snapshots = new Latest<Snapshot>(emptySnapshot);
  t.teardown(watchUsable(snapshots, shared.conditions, shared.clock));
  t.teardown(watchBrakes(snapshots, shared.conditions, shared.clock));
  const show = async (statuses: readonly Instance['status'][], more: Partial<Service> = {}): Promise<string[]> => {
    const instances = statuses.map((status, n) => shownInstance({ name: `a${n}`, host: `web-${n + 2}`, status }));
    const base = { name: 'db', port: 1, protocol: 'tcp', balance: 'random', vip: undefined, faults: [] } as const;
    const service: Service = {
      ...base,
      instances,
      usable: more.brake === undefined && !statuses.includes('passing') ? [] : instances,
      ...more,
    };
    snapshots.set({ ...snapshots.value, services: PersistentMap.from([['db', service]]) });
    await Promise.resolve();
    return shared.conditions.list().map(({ hint }) => hint);
  };
  t.same(await show(['lost']), [], 'the sign of life of its host may be about to come');
  t.same(await show(['passing']), []);
  t.same(await show(['lost']), ['web-2 is lost: see legate hosts']);
  t.same(await show([]), []);
  t.same(await show(['lost']), []);
  await shared.clock.advance(appearanceGraceMs);
  t.same(await show(['lost']), ['web-2 is lost: see legate hosts']);
  t.same(await show(['lost', 'lost']), ['web-2, web-3 are lost: see legate hosts']);
  t.same(await show(['critical', 'lost']), [
    "legate instances db shows each one's last check; web-3 is lost: see legate hosts",
  ]);
  const brake = { sinceMs: 0, untilMs: 1000 };
  t.match(await show(['lost', 'lost', 'passing'], { brake }), [/^their hosts are lost: see legate hosts; those/]);
  t.match(await show(['lost', 'critical'], { brake: { ...brake } }), [/^see what they have in common/]);
});
