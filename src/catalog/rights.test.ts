import t from 'tap';
import { MemoryStore } from '../../test/support/memory-store.ts';
import { policyOf } from '../../test/support/policies.ts';
import { hostId, hostRecord, instanceRecord, parts } from '../../test/support/records.ts';
import { waitFor } from '../../test/support/wait.ts';
import { ManualClock } from '../base/clock.ts';
import { Latest } from '../base/feed.ts';
import type { Policy } from '../model/policy.ts';
import { keysOf } from '../store/keys.ts';
import { Catalog } from './catalog.ts';
import { encodeAlive, encodeHost, encodeInstance, encodeMeta } from './codec.ts';

const keys = keysOf('test');
const [self, two, three] = [hostId(1), hostId(2), hostId(3)];

t.test('what hosts offer without a grant, and all of a revoked one, stays out of the picture', async (t) => {
  const clock = new ManualClock();
  const metrics = parts().metrics;
  const policy = new Latest<Policy | undefined>(undefined);
  const store = new MemoryStore();
  await store.put(keys.meta, encodeMeta({ meshId: 'ab'.repeat(16), format: 1 }));
  for (const [id, name] of [
    [self, 'web-1'],
    [two, 'web-2'],
    [three, 'web-3'],
  ] as const) {
    await store.put(keys.host(id), encodeHost(hostRecord(id, name)));
    await store.put(keys.aliveOf(id), encodeAlive({ sinceMs: 1 }));
    for (const service of ['db', 'web']) {
      await store.put(keys.instance(id, service), encodeInstance(instanceRecord({ name: service, service })));
    }
  }
  const catalog = new Catalog({ ...parts(clock), metrics, keys, self: { hostId: self, hostName: 'web-1' }, policy });
  const ended = new AbortController();
  const following = catalog.follow(store, ended.signal);
  t.teardown(() => {
    ended.abort();
    return following;
  });
  const shown = (service: string): string =>
    (catalog.snapshots.value.services.get(service)?.instances ?? []).map(({ host }) => host).join(' ');
  const follow = async (what: string, next: Partial<Policy>, db: string, web: string): Promise<void> => {
    policy.set(policyOf(next));
    await waitFor(what, () => shown('db') === db && shown('web') === web, { everyMs: 1 });
  };
  await waitFor('the store', () => shown('db') === 'web-1 web-2 web-3', { everyMs: 1 });
  t.strictSame(catalog.ungranted.value, []);

  const grant = (hostId: string, service: string) => ({ hostId, service, setAtMs: 1 });
  const ungranted = (): string[] => catalog.ungranted.value.map(({ id, service }) => `${id} ${service}`);
  await follow('db is granted to one', { grants: [grant(two, 'db')] }, 'web-2', 'web-1 web-3');
  t.strictSame(ungranted(), ['web-1/db db', 'web-2/web web', 'web-3/db db'], 'its own one, too');
  t.match(await metrics.exposition(), /legate_catalog_ungranted_count 3/);
  const before = catalog.snapshots.value;
  policy.set(policyOf({ grants: [grant(two, 'db')], default: 'deny' }));
  await new Promise((resolve) => setImmediate(resolve));
  t.equal(catalog.snapshots.value, before, 'a policy with the same grants changes nothing');
  await store.put(keys.instance(three, 'db-2'), encodeInstance(instanceRecord({ name: 'db-2', service: 'db' })));
  await waitFor('a new one is kept out too', () => catalog.ungranted.value.length === 4, { everyMs: 1 });
  await store.delete(keys.instance(three, 'db-2'));
  await waitFor('and forgotten when it goes', () => catalog.ungranted.value.length === 3, { everyMs: 1 });

  await follow('any service', { grants: [grant(two, 'db'), grant(two, '*')] }, 'web-2', 'web-1 web-2 web-3');
  const revoked = [{ hostId: two, name: 'web-2', setAtMs: 1 }];
  await follow('a revoked host', { revoked }, 'web-1 web-3', 'web-1 web-3');
  t.notOk(catalog.snapshots.value.hosts.has(two));
  t.strictSame([...catalog.forgotten], [two], 'its records may be deleted');
  t.strictSame(catalog.ungranted.value, []);
  await follow(
    'this host itself sees what it has',
    { revoked: [{ hostId: self, name: 'web-1', setAtMs: 1 }] },
    'web-1 web-2 web-3',
    'web-1 web-2 web-3',
  );

  // What this host tells of itself, before the store has heard of it.
  const outside = instanceRecord({ name: 'mail-1', service: 'mail', source: 'external:smtp.example.com:25' });
  const items = [
    instanceRecord({ name: 'db-9', service: 'db' }),
    instanceRecord({ name: 'web', service: 'web' }),
    outside,
  ];
  catalog.applyOwn({ kind: 'reset', items, revision: '' });
  await follow(
    'its present instances count',
    { grants: [grant(two, 'db'), grant(two, 'mail')] },
    'web-2',
    'web-1 web-3',
  );
  t.strictSame(
    ungranted(),
    ['web-1/db-9 db', 'web-2/web web', 'web-3/db db'],
    'what is outside of the mesh is no offer',
  );
  t.equal(shown('mail'), 'web-1');
  catalog.applyOwn({ kind: 'delta', puts: [], deletes: ['db-9'], revision: '' });
  await waitFor('nothing of its own is left out', () => ungranted()[0] === 'web-2/web web', { everyMs: 1 });
});
