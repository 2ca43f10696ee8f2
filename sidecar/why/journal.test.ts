import t from 'tap';
import { ManualClock } from '../../src/base/clock.ts';
import { Latest } from '../../src/base/feed.ts';
import { PersistentMap } from '../../src/base/persistent-map.ts';
import { emptySnapshot, type Service, type Snapshot } from '../../src/catalog/snapshot.ts';
import type { Instance } from '../../src/model/instance.ts';
import type { Policy } from '../../src/model/policy.ts';
import { hostId as id, shownInstance } from '../../test/support/records.ts';
import { Journal } from './journal.ts';

const one = shownInstance({ name: 'a' });
const two = shownInstance({ name: 'b', host: 'web-2', hostId: id(2) });
const base: Policy = {
  ...{ mesh: 'legate', meshId: 'aa', version: 1, authority: id(1), roots: [], default: 'allow', mode: 'enforce' },
  ...{ fromLinks: true, intents: [], grants: [], external: [], revoked: [] },
};

function snapshotOf(instances: readonly Instance[], isAlive = true): Snapshot {
  const db: Service = {
    ...{ name: 'db', port: 5432, protocol: 'tcp', balance: 'random', vip: '240.77.0.1', faults: [] },
    ...{ instances, usable: instances },
  };
  const host = { id: id(2), name: 'web-2', address: '10.77.0.2', version: '1', alive: isAlive, revision: '' };
  const [services, hosts] = [PersistentMap.from([['db', db]] as const), PersistentMap.from([[id(2), host]] as const)];
  return { ...emptySnapshot, origin: 'store', services, hosts };
}

t.test('the last changes of a service, its hosts and the policy, newest first', async (t) => {
  const clock = new ManualClock();
  const snapshots = new Latest<Snapshot>(emptySnapshot);
  const policy = new Latest<Policy | undefined>(undefined);
  const journal = new Journal({ self: { hostId: id(1) }, snapshots, policy, clock });
  const about = { service: 'db', consumer: 'web', hostIds: new Set([id(2)]), most: 100 };
  const texts = (): string[] => journal.changes(about).map(({ text }) => text);
  const show = async (snapshot: Snapshot): Promise<void> => {
    snapshots.set(snapshot);
    await Promise.resolve();
    await clock.advance(1000);
  };
  await show(snapshotOf([one, two]));
  t.same(texts(), [], 'the first picture is no change');
  const sick = { ...one, status: 'critical', output: 'no route' } as const;
  await show(snapshotOf([sick, two]));
  t.same(texts(), ['web-1/a turned critical: no route']);
  t.equal(journal.sinceOf('db', 'web-1/a'), clock.nowMs() - 1000);
  t.equal(journal.sinceOf('db', 'web-2/b'), undefined);
  await show(snapshotOf([{ ...sick, draining: true }], false));
  t.same(texts().slice(0, 3).sort(), ['host web-2 was lost', 'web-1/a began to drain', 'web-2/b left']);
  t.same(journal.departed('db'), ['web-2/b']);
  t.match(journal.lastDeparture('db'), { id: 'web-2/b', host: 'web-2', atMs: clock.nowMs() - 1000 });
  t.equal(journal.changes({ ...about, most: 1 }).length, 1);
  const intents = [{ consumer: 'web', service: 'db', action: 'deny', setAtMs: 5 }] as const;
  for (const next of [base, { ...base, version: 2, intents }]) {
    policy.set(next);
    await Promise.resolve();
    await clock.advance(1000);
  }
  t.equal(texts()[0], 'policy v2 set the intent deny web db');
  t.notOk(
    journal.changes({ ...about, consumer: 'other' }).some(({ text }) => text.includes('intent')),
    'of others',
  );
  for (let round = 0; round < 100; round += 1) await show(snapshotOf(round % 2 === 0 ? [] : [one]));
  t.ok(texts().length < 40, 'bounded');
  journal.close();
});

t.test('a host that appears did not come back', async (t) => {
  const clock = new ManualClock();
  const snapshots = new Latest<Snapshot>({ ...emptySnapshot, origin: 'store' });
  const policy = new Latest<Policy | undefined>(undefined);
  const journal = new Journal({ self: { hostId: id(1) }, snapshots, policy, clock });
  for (const isAlive of [false, true, false, true]) {
    snapshots.set(snapshotOf([], isAlive));
    await Promise.resolve();
    await clock.advance(1000);
  }
  const hosts = journal.changes({ service: '', consumer: 'web', hostIds: new Set([id(2)]), most: 100 });
  t.same(
    hosts.map(({ text }) => text),
    ['host web-2 is back', 'host web-2 was lost', 'host web-2 came'],
  );
  journal.close();
});
