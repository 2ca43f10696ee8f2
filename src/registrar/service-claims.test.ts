import t, { type Test } from 'tap';
import { MemoryStore } from '../../test/support/memory-store.ts';
import { hostId, instanceRecord, parts } from '../../test/support/records.ts';
import { ManualClock } from '../base/clock.ts';
import { Latest } from '../base/feed.ts';
import { PersistentMap } from '../base/persistent-map.ts';
import { Catalog } from '../catalog/catalog.ts';
import {
  decodeMeta,
  decodeService,
  decodeVipClaim,
  encodeMeta,
  encodeService,
  encodeVipClaim,
  type VipClaim,
} from '../catalog/codec.ts';
import type { SavedState } from '../catalog/saved-state.ts';
import { parseIpv4Range } from '../model/address.ts';
import type { InstanceRecord } from '../model/instance.ts';
import type { DeclaredPorts } from '../model/link.ts';
import { keysOf } from '../store/keys.ts';
import { awaitedGraceMs } from './declared-services.ts';
import { openMesh } from './mesh-identity.ts';
import { keepMesh } from './mesh-keeper.ts';
import { ServiceClaims, type ServiceClaimsOptions } from './service-claims.ts';
import { withSettings } from './service-record.ts';
import { chooseVip } from './vip-choice.ts';

const keys = keysOf('test');
const meshId = 'ab'.repeat(16);
const range = parseIpv4Range('240.77.0.0/16');
if (range === undefined) throw new Error('not a range');
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

function bench(t: Test, store: MemoryStore, over: Partial<ServiceClaimsOptions> = {}, number = 1) {
  const clock = new ManualClock();
  const shared = parts(clock);
  const self = { hostId: hostId(number), hostName: `web-${number}` };
  const catalog = new Catalog({ ...shared, keys, self });
  const claims = new ServiceClaims({
    ...shared,
    store,
    keys,
    hostId: self.hostId,
    snapshots: catalog.snapshots,
    settings: new Map(),
    links: [],
    vip: { on: true, range: range as never },
    random: () => 0.5,
    ...over,
  });
  const ended = new AbortController();
  const running = Promise.all([claims.run(ended.signal), catalog.follow(store, ended.signal)]);
  t.teardown(async () => {
    ended.abort();
    await running;
  });
  const have = (...records: InstanceRecord[]) => catalog.applyOwn({ kind: 'reset', items: records, revision: '' });
  return { clock, catalog, have, conditions: shared.conditions };
}

function service(store: MemoryStore, name: string) {
  const result = decodeService(bytes(store.dump()[keys.service(name)] ?? ''), name);
  return result.ok ? result.value : undefined;
}

function claim(store: MemoryStore, address = ''): VipClaim | undefined {
  const result = decodeVipClaim(bytes(store.dump()[keys.vip(address)] ?? ''));
  return result.ok ? result.value : undefined;
}

async function opened(): Promise<MemoryStore> {
  const store = new MemoryStore();
  await store.put(keys.meta, encodeMeta({ meshId, format: 1 }));
  return store;
}

t.test('the choice of an address', async (t) => {
  const small = parseIpv4Range('10.9.0.0/29');
  if (small === undefined) return;
  const taken = (service: string, releasedAtMs?: number): VipClaim => ({
    service,
    claimedAtMs: 1,
    ...(releasedAtMs !== undefined && { releasedAtMs }),
  });
  const first = chooseVip({ service: 'db', range, claims: new Map() });
  t.equal(chooseVip({ service: 'db', range, claims: new Map() }), first, 'the same on every host');
  t.not(chooseVip({ service: 'web', range, claims: new Map() }), first);
  t.equal(chooseVip({ service: 'db', range, claims: new Map(), remembered: '240.77.3.4' }), '240.77.3.4');
  t.equal(
    chooseVip({ service: 'db', range, claims: new Map(), remembered: '10.0.0.1' }),
    first,
    'remembered from another range',
  );
  t.equal(
    chooseVip({ service: 'db', range, claims: new Map([['240.77.3.4', taken('web')]]), remembered: '240.77.3.4' }),
    first,
  );
  t.equal(
    chooseVip({ service: 'db', range, claims: new Map([['240.77.9.9', taken('db', 4)]]) }),
    '240.77.9.9',
    'the one it gave back',
  );
  const seen = new Set<string>();
  const claims = new Map<string, VipClaim | undefined>();
  for (let index = 0; index < 6; index += 1) {
    const address = chooseVip({ service: `s-${index}`, range: small, claims }) ?? 'none';
    seen.add(address);
    claims.set(address, taken(`s-${index}`));
  }
  t.same(
    [...seen].sort(),
    [1, 2, 3, 4, 5, 6].map((offset) => `10.9.0.${offset}`),
    'never the first and the last',
  );
  t.equal(chooseVip({ service: 'more', range: small, claims }), undefined);
  claims.set('10.9.0.3', taken('s', 50));
  claims.set('10.9.0.5', taken('s', 40));
  claims.set('10.9.0.6', undefined);
  t.equal(chooseVip({ service: 'more', range: small, claims }), '10.9.0.5', 'the one given back longest ago');
  for (let index = 0; index < 3000; index += 1) {
    const address = chooseVip({ service: `n-${index}`, range: { ...range, size: 64 }, claims: new Map() });
    if (address === '240.77.0.0' || address === '240.77.0.53' || address === '240.77.0.63') t.fail(address);
  }
});

t.test('a service gets its record and address when its first instance appears', async (t) => {
  const store = await opened();
  const b = bench(t, store);
  b.have(
    instanceRecord({ name: 'a', port: 5432 }),
    instanceRecord({ name: 'u', service: 'dns', port: 53, protocol: 'udp' }),
  );
  await b.clock.advance(0);
  const vip = service(store, 'db')?.vip;
  t.match(service(store, 'db'), { port: 5432, protocol: 'tcp', balance: 'round-robin' });
  t.match(claim(store, vip), { service: 'db' });
  t.equal(b.catalog.snapshots.value.services.get('db')?.vip, vip);
  t.match(service(store, 'dns'), { port: 53, protocol: 'udp' });
  t.equal(service(store, 'dns')?.vip, undefined, 'datagrams are not relayed yet');
  const { length } = store.writes;
  b.have(instanceRecord({ name: 'a', port: 5432, status: 'critical' }));
  store.resetWatches();
  await b.clock.advance(60_000);
  t.equal(store.writes.length, length, 'once');
});

t.test('settings are written where absent; a difference is told, not fought over', async (t) => {
  const store = await opened();
  const settings = new Map([
    ['db', { port: 1000, balance: 'random' as const }],
    ['empty', {}],
  ]);
  const b = bench(t, store, { settings, links: [{ service: 'linked', listen: { address: '127.0.0.1', port: 1 } }] });
  await b.clock.advance(0);
  t.match(service(store, 'db'), { port: 1000, balance: 'random', vip: /^240\.77\./ });
  t.equal(service(store, 'linked'), undefined, 'nothing is known about it yet');
  t.same(b.conditions.list(), []);
  await store.put(
    keys.service('db'),
    encodeService({ name: 'db', port: 2000, protocol: 'tcp', balance: 'random', vip: service(store, 'db')?.vip ?? '' }),
  );
  await store.put(
    keys.service('linked'),
    encodeService({ name: 'linked', port: 9, protocol: 'tcp', balance: 'random' }),
  );
  await b.clock.advance(0);
  t.match(b.conditions.list(), [
    { severity: 'note', message: /services.db.port is 1000 in the configuration and 2000 in the mesh/ },
  ]);
  t.equal(service(store, 'db')?.port, 2000);
  t.match(service(store, 'linked'), { vip: /^240\.77\./ }, 'a link suffices for an address');
  t.same((await bench(t, store, { settings, vip: { on: false, range } })).conditions.list(), []);
});

t.test('two hosts at the same moment: one wins, the other takes the result over', async (t) => {
  const store = await opened();
  const first = bench(t, store, {}, 1);
  const second = bench(t, store, {}, 2);
  await first.clock.advance(0);
  let waiting = 0;
  let release = (): void => undefined;
  const both = new Promise<void>((resolve) => {
    release = resolve;
  });
  store.beforeTxn = async () => {
    waiting += 1;
    if (waiting === 2) release();
    await both;
  };
  first.have(instanceRecord({ name: 'a', port: 1 }));
  second.have(instanceRecord({ name: 'a', port: 1 }));
  await first.clock.advance(1000);
  await second.clock.advance(1000);
  t.equal(store.keys(keys.vips).length, 1);
  t.same(store.writes.filter((write) => write === `put ${keys.service('db')}`).length, 1);
});

t.test('damage is repaired and the address stays', async (t) => {
  const cases: [what: string, disturb: (store: MemoryStore, vip: string) => Promise<unknown>][] = [
    ['the claim is deleted', (store, vip) => store.delete(keys.vip(vip))],
    ['the record is deleted', (store) => store.delete(keys.service('db'))],
    ['the record is damaged', (store) => store.put(keys.service('db'), bytes('{'))],
  ];
  for (const [what, disturb] of cases) {
    const store = await opened();
    const b = bench(t, store);
    b.have(instanceRecord({ name: 'a' }));
    await b.clock.advance(0);
    const vip = service(store, 'db')?.vip ?? '';
    await disturb(store, vip);
    await b.clock.advance(1000);
    t.match(service(store, 'db'), { vip, port: 5432 }, what);
    t.match(claim(store, vip), { service: 'db' }, what);
  }
  const store = await opened();
  const newer = '{"v":9}';
  await store.put(keys.service('db'), bytes(newer));
  const b = bench(t, store);
  b.have(instanceRecord({ name: 'a' }));
  await b.clock.advance(1000);
  t.equal(store.dump()[keys.service('db')], newer, 'what a newer version wrote is left alone');
});

t.test('while the store is away there is no address, and none before the store is ours', async (t) => {
  const store = new MemoryStore();
  const b = bench(t, store);
  b.have(instanceRecord({ name: 'a' }));
  await b.clock.advance(1000);
  t.same(store.keys(), [], 'without meta nothing is claimed');
  store.setAway(true);
  await b.clock.advance(10_000);
  t.match(b.conditions.list(), [{ id: 'services.write' }]);
  store.setAway(false);
  await openMesh({ store, keys });
  await b.clock.advance(10_000);
  t.match(service(store, 'db'), { vip: /^240\.77\./ });
  t.same(b.conditions.list(), []);
});

t.test('whose store it is', async (t) => {
  const saved: SavedState = {
    meshId,
    storeId: 'memory-1',
    revision: '9',
    confirmedAtMs: 1,
    hosts: new Map(),
    alive: new Map(),
    brakes: new Map(),
    lost: new Map(),
    instances: new Map(),
    services: new Map(
      Array.from({ length: 70 }, (_, index) => [
        `s-${index}`,
        {
          record: {
            name: `s-${index}`,
            port: 1,
            protocol: 'tcp',
            balance: 'random',
            vip: `240.77.1.${index}`,
          } as const,
          revision: '1',
        },
      ]),
    ),
    vips: new Map(
      Array.from({ length: 70 }, (_, index) => [
        `240.77.1.${index}`,
        { record: { service: `s-${index}`, claimedAtMs: 1 }, revision: '1' },
      ]),
    ),
  };
  const created = await openMesh({ store: new MemoryStore(), keys });
  t.match(created, { outcome: 'created', meshId: /^[0-9a-f]{32}$/ });
  t.same(await openMesh({ store: await opened(), keys }), { outcome: 'opened', meshId });
  t.same(await openMesh({ store: await opened(), keys, remembered: meshId }), { outcome: 'opened', meshId });
  const empty = new MemoryStore();
  await empty.put(keys.vip('240.77.1.3'), encodeVipClaim({ service: 'faster', claimedAtMs: 2 }));
  t.same(await openMesh({ store: empty, keys, saved }), { outcome: 'restored', meshId });
  t.equal(empty.keys(keys.services).length, 70);
  t.equal(empty.keys(keys.vips).length, 70);
  t.equal(claim(empty, '240.77.1.3')?.service, 'faster', 'what is there stays');
  t.equal(empty.writes.at(-1), `put ${keys.meta}`, 'meta comes last');
  await t.rejects(openMesh({ store: await opened(), keys, remembered: 'cd'.repeat(16) }), {
    code: 'E_STORE_FOREIGN',
    hint: /data_dir/,
  });
  const damaged = new MemoryStore();
  await damaged.put(keys.meta, bytes('x'));
  await t.rejects(openMesh({ store: damaged, keys }), { code: 'E_STORE_DAMAGED' });
  const racing = new MemoryStore();
  racing.beforeTxn = async () => {
    racing.beforeTxn = undefined;
    await racing.put(keys.meta, encodeMeta({ meshId, format: 1 }));
  };
  t.same(await openMesh({ store: racing, keys }), { outcome: 'opened', meshId });
});

t.test('a store that comes back empty while we run is made ours again', async (t) => {
  const store = await opened();
  const clock = new ManualClock();
  const { conditions } = parts(clock);
  const b = bench(t, store);
  b.have(instanceRecord({ name: 'a' }));
  await b.clock.advance(0);
  const vip = service(store, 'db')?.vip;
  const ended = new AbortController();
  const keeping = keepMesh({
    store,
    keys,
    remembered: meshId,
    saved: () => b.catalog.saved(),
    clock,
    conditions,
    signal: ended.signal,
  });
  t.teardown(async () => {
    ended.abort();
    await keeping;
  });
  store.replace();
  await b.clock.advance(10_000);
  t.same(decodeMeta(bytes(store.dump()[keys.meta] ?? '')), {
    ok: true,
    value: { meshId, format: 1, restoredAtMs: clock.nowMs() },
  });
  t.match(service(store, 'db'), { vip });
  t.match(claim(store, vip), { service: 'db' });
  t.equal(b.catalog.snapshots.value.services.get('db')?.vip, vip);
});

t.test('a service that a container waits for', async (t) => {
  const store = await opened();
  const ports = (wanted: Readonly<Record<string, readonly number[]>>): DeclaredPorts =>
    PersistentMap.from(Object.entries(wanted));
  const declared = new Latest(ports({ redis: [6379, 7000], soon: [] }));
  const b = bench(t, store, { declared });
  await b.clock.advance(0);
  const vip = service(store, 'redis')?.vip;
  t.match(service(store, 'redis'), { port: 6379, protocol: 'tcp', awaitedBy: hostId(1) }, 'at the port that it wants');
  t.match(claim(store, vip), { service: 'redis' }, 'has an address');
  t.equal(service(store, 'soon'), undefined, 'without a port there is nothing to make yet');
  declared.set(ports({ redis: [6379], later: [80] }));
  await b.clock.advance(0);
  t.match(service(store, 'later'), { port: 80 }, 'declared later');

  declared.set(ports({}));
  await b.clock.advance(awaitedGraceMs - 1);
  declared.set(ports({ redis: [6379] }));
  await b.clock.advance(2);
  t.equal(service(store, 'later'), undefined, 'nobody waits any more');
  t.equal(service(store, 'redis')?.vip, vip, 'a container that is replaced finds what it had');
  declared.set(ports({}));
  await b.clock.advance(awaitedGraceMs);
  t.equal(service(store, 'redis'), undefined);
  t.match(claim(store, vip), { service: 'redis', releasedAtMs: b.clock.nowMs() });
  declared.set(ports({ redis: [6379] }));
  await b.clock.advance(0);
  t.equal(service(store, 'redis')?.vip, vip, 'the address that it had');

  b.have(instanceRecord({ name: 'r', service: 'redis', port: 6380 }));
  await b.clock.advance(0);
  t.match(service(store, 'redis'), { port: 6380, vip }, 'the first instance says which port it has');
  t.equal(service(store, 'redis')?.awaitedBy, undefined);
  b.have();
  declared.set(ports({}));
  await b.clock.advance(2 * awaitedGraceMs);
  t.equal(service(store, 'redis')?.vip, vip, 'what has had an instance stays');

  // Without virtual addresses nothing is gained by a record.
  const bare = await opened();
  const without = bench(t, bare, {
    declared: new Latest(ports({ redis: [6379] })),
    vip: { on: false, range: range as never },
  });
  await without.clock.advance(0);
  t.equal(service(bare, 'redis'), undefined);
});

t.test('an awaited service is only taken back by who made it, and not from others', async (t) => {
  const store = await opened();
  const ports: DeclaredPorts = PersistentMap.from([['redis', [6379]]]);
  const one = new Latest(ports);
  const two = new Latest(ports);
  const a = bench(t, store, { declared: one });
  await a.clock.advance(0);
  const b = bench(t, store, { declared: two }, 2);
  await b.clock.advance(0);
  const vip = service(store, 'redis')?.vip;
  t.equal(service(store, 'redis')?.awaitedBy, hostId(1));
  const none: DeclaredPorts = PersistentMap.empty();
  one.set(none);
  await a.clock.advance(awaitedGraceMs);
  await b.clock.advance(1000);
  t.match(service(store, 'redis'), { awaitedBy: hostId(2), vip }, 'the other host still waits');
  await a.clock.advance(2 * awaitedGraceMs);
  t.equal(service(store, 'redis')?.vip, vip, 'and it is not the first one’s to remove');

  // What was made in a former run is found again.
  const c = bench(t, store, { declared: new Latest(none) }, 2);
  two.set(none);
  await c.clock.advance(awaitedGraceMs);
  t.equal(service(store, 'redis'), undefined);

  // What somebody has set in the meantime is his.
  const record = { name: 'kept', port: 1, protocol: 'tcp', balance: 'random' } as const;
  await store.put(keys.service('kept'), encodeService(withSettings({ ...record, awaitedBy: hostId(2) }, { port: 2 })));
  await c.clock.advance(2 * awaitedGraceMs);
  t.match(service(store, 'kept'), { port: 2 });
});
