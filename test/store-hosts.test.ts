import t, { type Test } from 'tap';
import { type Clock, systemClock } from '../src/base/clock.ts';
import { Latest } from '../src/base/feed.ts';
import { PersistentMap } from '../src/base/persistent-map.ts';
import { Catalog } from '../src/catalog/catalog.ts';
import { parseIpv4Range } from '../src/model/address.ts';
import type { InstanceRecord } from '../src/model/instance.ts';
import type { DeclaredPorts } from '../src/model/link.ts';
import type { Policy } from '../src/model/policy.ts';
import type { ServiceRecord, ServiceSettings } from '../src/model/service.ts';
import { awaitedGraceMs } from '../src/registrar/declared-services.ts';
import { HostSweeper } from '../src/registrar/host-sweeper.ts';
import { limitedHost, openMesh } from '../src/registrar/mesh-identity.ts';
import { keepMesh } from '../src/registrar/mesh-keeper.ts';
import { Registrar } from '../src/registrar/registrar.ts';
import { ServiceClaims } from '../src/registrar/service-claims.ts';
import { ServiceOrders } from '../src/registrar/service-orders.ts';
import { keysOf } from '../src/store/keys.ts';
import type { Store } from '../src/store/store.ts';
import { offeredConfig } from './contract/offered-harness.ts';
import { makeTestAuthority } from './support/certificates.ts';
import { openTestStore, stateOf } from './support/etcd.ts';
import { OfferedStore } from './support/offered-store.ts';
import { hostId, hostRecord, instanceRecord, parts } from './support/records.ts';
import { testPolicy, testTrust } from './support/trust.ts';
import { waitFor } from './support/wait.ts';

/** The rooms of two hosts' sidecars that write to the store: of the authority's, which has it, and of one that reaches it over TLS. */

const keys = keysOf('legate');
const [hostA, hostB, hostC] = [hostId(10), hostId(11), hostId(12)];
const names: Record<string, string> = { [hostA]: 'web-1', [hostB]: 'web-2' };
const range = parseIpv4Range('240.158.0.0/16');
if (range === undefined) throw new Error('the range is none');
const vip = { on: true, range };
const authority = await makeTestAuthority();
const a = await authority.issue(hostA);

/** Nobody waits a minute here until what containers waited for goes. */
const hasty: Clock = {
  ...systemClock,
  after: (delayMs, run) => systemClock.after(delayMs === awaitedGraceMs ? 50 : delayMs, run),
};

interface Given {
  readonly settings?: Readonly<Record<string, ServiceSettings>>;
  readonly remembered: string;
  readonly forgotten?: () => ReadonlySet<string>;
}

/** What the sidecar has running on an opened store. */
function host(t: Test, store: Store, id: string, policy: Latest<Policy | undefined>, given: Given) {
  const shared = parts();
  const name = names[id] ?? id;
  const catalog = new Catalog({ ...shared, keys, self: { hostId: id, hostName: name } });
  const declared = new Latest<DeclaredPorts>(PersistentMap.empty());
  const on = { ...shared, store, keys, policy, snapshots: catalog.snapshots };
  const registrar = new Registrar({ ...on, host: hostRecord(id, name), leaseTtlMs: 10_000 });
  const settings = new Map(Object.entries(given.settings ?? {}));
  const services = { ...on, settings, links: [], vip, declared };
  const claims = new ServiceClaims({ ...services, hostId: id, clock: hasty });
  const orders = new ServiceOrders({
    ...services,
    hostName: name,
    wanted: () => [],
    adopt: (service) => claims.adopt(service),
  });
  const { forgotten = () => new Set<string>() } = given;
  const sweeper = new HostSweeper({ ...on, hostId: id, forgotten, holdsStore: id === hostA, mayWrite: () => true });
  const ended = new AbortController();
  const { signal } = ended;
  registrar.setDesired({ kind: 'reset', items: [], revision: '' });
  const limited = () => (id === hostA ? undefined : limitedHost(policy.value, id));
  const mesh = { remembered: given.remembered, saved: () => catalog.saved(), limited, signal };
  const loops = [
    catalog.follow(store, signal, keys),
    registrar.run(signal),
    claims.run(signal),
    sweeper.run(signal),
    keepMesh({ ...shared, store, keys, ...mesh }),
  ];
  t.teardown(async () => {
    ended.abort();
    await Promise.allSettled(loops);
  });
  const have = (...records: InstanceRecord[]): void => {
    const change = { kind: 'reset', items: records, revision: '' } as const;
    catalog.applyOwn(change);
    registrar.setDesired(change);
  };
  return { catalog, declared, orders, have, conditions: shared.conditions, saved: () => catalog.saved() };
}

async function serviceIn(store: Store, name: string): Promise<ServiceRecord | undefined> {
  const entry = await store.get(keys.service(name));
  return entry && JSON.parse(Buffer.from(entry.value).toString());
}

t.test('a host that is not the authority lives within the rules', async (t) => {
  const grants = [{ hostId: hostA, service: 'paid', setAtMs: 1 }];
  const policy = new Latest<Policy | undefined>(testPolicy(hostA, { grants }));
  const offered = await OfferedStore.open(t, { trust: testTrust(a, policy, names) });
  const own = testTrust(await authority.issue(hostB), policy);
  const opened = await openTestStore(t, offeredConfig(offered.port, true), undefined, own);
  await stateOf(opened, 'connected');
  const refused = (): Promise<number> => offered.metric('legate_store_refused_writes_total');

  const limited = limitedHost(policy.value, hostB);
  t.ok(limited);
  await t.rejects(openMesh({ store: opened.store, keys, ...(limited && { limited }) }), {
    code: 'E_STORE_AWAY',
    hint: /authority's host/,
  });
  const { meshId: remembered } = await openMesh({ store: offered.store, keys });
  await openMesh({ store: opened.store, keys, remembered, ...(limited && { limited }) });

  const forgotten = (): ReadonlySet<string> => new Set([hostC]);
  await offered.store.put(keys.host(hostC), Buffer.from('{}'));
  const settings = { db: { balance: 'random' as const } };
  const onA = host(t, offered.store, hostA, policy, { remembered });
  const onB = host(t, opened.store, hostB, policy, { remembered, settings, forgotten });
  const shown = (name: string) => onA.catalog.snapshots.value.services.get(name);
  await waitFor(
    'both hosts',
    () => [...onA.catalog.snapshots.value.hosts.values()].filter(({ alive }) => alive).length === 2,
  );

  onB.have(instanceRecord({ name: 'db-1', service: 'db' }), instanceRecord({ name: 'paid-1', service: 'paid' }));
  await waitFor('its service with an address', () => shown('db')?.vip !== undefined);
  t.match(await serviceIn(offered.store, 'db'), { balance: 'random', port: 5432 }, 'made as its configuration says');
  t.equal(await serviceIn(offered.store, 'paid'), undefined, 'what it is not granted it does not make');
  await waitFor(
    'the instance of that',
    async () => (await offered.store.get(keys.instance(hostB, 'paid-1'))) !== undefined,
  );

  onB.have(instanceRecord({ name: 'db-1', service: 'db', port: 5433 }));
  await waitFor('the port to follow', () => shown('db')?.port === 5433);
  onB.have(instanceRecord({ name: 'db-1', service: 'db', port: 5433, protocol: 'udp' }));
  await waitFor('no address for datagrams', () => shown('db')?.protocol === 'udp' && shown('db')?.vip === undefined);
  onB.have(instanceRecord({ name: 'db-1', service: 'db' }));
  await waitFor('the address again', () => shown('db')?.vip !== undefined);

  onB.declared.set(onB.declared.value.with([['paid', [9000]]], []));
  await waitFor(
    'what its containers wait for',
    async () => (await serviceIn(offered.store, 'paid'))?.awaitedBy === hostB,
  );
  onB.declared.set(onB.declared.value.with([['late', [9001]]], []));
  await waitFor('another one', async () => (await serviceIn(offered.store, 'late'))?.vip !== undefined);
  onB.declared.set(onB.declared.value.with([], ['late']));
  await waitFor('that it goes again', async () => (await serviceIn(offered.store, 'late')) === undefined, {
    timeoutMs: 30_000,
  });
  onA.have(instanceRecord({ name: 'paid-1', service: 'paid', port: 80 }));
  await waitFor('an instance of who is granted it', async () => {
    const record = await serviceIn(offered.store, 'paid');
    return record?.awaitedBy === undefined && record?.port === 80 && record.vip !== undefined;
  });

  t.equal(await refused(), 0, 'until now nothing was tried that is not allowed');
  t.ok(await offered.store.get(keys.host(hostC)), 'nor were the records of a lost host deleted by it');
  await t.rejects(onB.orders.set('db', { balance: 'round-robin' }), {
    code: 'E_DENIED',
    hint: "settings are changed on the authority's host web-1, or from here with --admin",
  });
  t.equal(await refused(), 1);
  await onA.orders.set('db', { balance: 'round-robin' });
  await waitFor('the note of its configuration', () =>
    onB.conditions.list().some(({ id, message }) => id === 'services.settings.db' && message.includes('random')),
  );
  t.equal((await serviceIn(offered.store, 'db'))?.balance, 'round-robin', 'which is not obeyed');

  await offered.store.delete(keys.service('db'));
  await offered.store.delete(keys.meta);
  await waitFor('that the mesh is written back', async () => (await offered.store.get(keys.meta)) !== undefined);
  await waitFor('its service', async () => (await serviceIn(offered.store, 'db'))?.vip !== undefined);
  t.equal(await refused(), 1, 'of which it wrote only what it may');
});
