import t from 'tap';
import { hostId, shownInstance } from '../../test/support/records.ts';
import { ManualClock } from '../base/clock.ts';
import { Conditions } from '../base/conditions.ts';
import { Latest } from '../base/feed.ts';
import { silentLog } from '../base/log.ts';
import { Metrics } from '../base/metrics.ts';
import { PersistentMap } from '../base/persistent-map.ts';
import { type Ipv4Range, parseIpv4Range } from '../model/address.ts';
import type { Instance } from '../model/instance.ts';
import { InstanceAddresses } from './instance-addresses.ts';
import { emptySnapshot, type Service, type Snapshot } from './snapshot.ts';

function serviceOf(name: string, instances: readonly Instance[]): Service {
  const fixed = { port: 5432, protocol: 'tcp', balance: 'round-robin', vip: undefined, faults: [] } as const;
  return { ...fixed, name, instances, usable: instances };
}

function bed(rangeText = '240.78.0.0/16') {
  const snapshots = new Latest<Snapshot>(emptySnapshot);
  const conditions = new Conditions(silentLog, new ManualClock(), new Metrics());
  let tunnels = true;
  const addresses = new InstanceAddresses({
    range: parseIpv4Range(rangeText) as Ipv4Range,
    snapshots,
    conditions,
    dialler: () => ({ hostId: hostId(1), clearUnderlay: true, tunnels }),
  });
  const set = async (...services: readonly Service[]): Promise<void> => {
    const before = snapshots.value;
    const map = PersistentMap.from(services.map((service) => [service.name, service] as const));
    snapshots.set({ ...before, version: before.version + 1, services: map });
    await new Promise((resolve) => setImmediate(resolve));
  };
  const join = (to: boolean): void => {
    tunnels = to;
    addresses.review();
  };
  return { addresses, conditions, set, join };
}

const there = (name: string, fields: Partial<Instance> = {}): Instance =>
  shownInstance({ name, host: 'db-2', hostId: hostId(2), ...fields });

t.test('instances that only a tunnel leads to have an address here, and keep it', async (t) => {
  const { addresses, set, join } = bed();
  const a = there('a');
  const published = there('c', { reach: 'mesh', published: { address: '10.0.0.2', port: 1 } });
  await set(serviceOf('db', [shownInstance({ name: 'own' }), a, there('b', { port: 6000 }), published]));
  t.same([...addresses.table.value].sort(), [
    ['db-2/a', { service: 'db', address: '240.78.0.1', port: 5432 }],
    ['db-2/b', { service: 'db', address: '240.78.0.2', port: 6000 }],
  ]);
  const before = addresses.table.value.get('db-2/a');
  await set(serviceOf('db', [{ ...a, status: 'critical' }, there('b', { port: 6001 })]));
  t.equal(addresses.table.value.get('db-2/a'), before, 'also while it is not well');
  t.match(addresses.table.value.get('db-2/b'), { address: '240.78.0.2', port: 6001 });
  await set(serviceOf('db', [there('b', { port: 6001 })]));
  t.equal(addresses.addressOf('db-2/a'), undefined);
  await set(serviceOf('db', [there('d')]), serviceOf('web', [there('e', { service: 'web' })]));
  t.same([...addresses.table.value].map(([id, { address }]) => [id, address]).sort(), [
    ['db-2/d', '240.78.0.3'],
    ['db-2/e', '240.78.0.4'],
  ]);
  join(false);
  t.equal(addresses.table.value.size, 0, 'without tunnels there are none');
  join(true);
  t.equal(addresses.table.value.size, 2);
});

t.test('their number is bounded, and used addresses come round again', async (t) => {
  const { addresses, conditions, set } = bed('240.78.0.0/29');
  await set(
    serviceOf(
      'db',
      ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'].map((name) => there(name)),
    ),
  );
  t.equal(addresses.table.value.size, 6);
  t.match(conditions.list(), [{ id: InstanceAddresses.condition, severity: 'note' }]);
  await set(serviceOf('db', [there('b')]));
  t.same(conditions.list(), []);
  await set(serviceOf('db', [there('b'), there('z')]));
  t.equal(addresses.addressOf('db-2/z'), '240.78.0.1', 'the longest unused');
  const many = bed();
  await many.set(
    serviceOf(
      'db',
      Array.from({ length: 600 }, (_, index) => there(`i${index}`)),
    ),
  );
  t.equal(many.addresses.table.value.size, InstanceAddresses.maxAddresses);
});
