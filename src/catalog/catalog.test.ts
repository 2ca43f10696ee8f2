import t, { type Test } from 'tap';
import { MemoryStore } from '../../test/support/memory-store.ts';
import { hostId, hostRecord, instanceRecord, parts } from '../../test/support/records.ts';
import { waitFor } from '../../test/support/wait.ts';
import { ManualClock } from '../base/clock.ts';
import type { InstanceRecord } from '../model/instance.ts';
import type { ServiceRecord } from '../model/service.ts';
import { keysOf } from '../store/keys.ts';
import { Catalog } from './catalog.ts';
import { encodeAlive, encodeHost, encodeInstance, encodeMeta, encodeService, encodeVipClaim } from './codec.ts';
import type { SavedState } from './saved-state.ts';
import type { Snapshot } from './snapshot.ts';

const keys = keysOf('test');
const self = hostId(1);
const other = hostId(2);
const meshId = 'ab'.repeat(16);

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

class Bench {
  readonly store = new MemoryStore();
  readonly clock = new ManualClock();
  readonly parts = parts(this.clock);
  readonly ended = new AbortController();
  catalog = this.make();
  #following: Promise<void> = Promise.resolve();

  make(): Catalog {
    return new Catalog({ ...this.parts, metrics: parts().metrics, keys, self: { hostId: self, hostName: 'web-1' } });
  }

  follow(): void {
    this.#following = this.catalog.follow(this.store, this.ended.signal);
  }

  async following(): Promise<void> {
    this.follow();
    await waitFor('the store', () => this.snapshot.origin === 'store', { everyMs: 1 });
  }

  get snapshot(): Snapshot {
    return this.catalog.snapshots.value;
  }

  async close(): Promise<void> {
    this.ended.abort();
    await this.#following;
  }

  meta(id = meshId): Promise<unknown> {
    return this.store.put(keys.meta, encodeMeta({ meshId: id, format: 1 }));
  }

  async host(id: string, name: string): Promise<void> {
    await this.store.put(keys.host(id), encodeHost(hostRecord(id, name)));
    await this.store.put(keys.aliveOf(id), encodeAlive({ sinceMs: 1 }));
  }

  instance(host: string, over: Partial<InstanceRecord> & { name: string }): Promise<unknown> {
    return this.store.put(keys.instance(host, over.name), encodeInstance(instanceRecord(over)));
  }

  service(over: Partial<ServiceRecord> & { name: string }): Promise<unknown> {
    return this.store.put(
      keys.service(over.name),
      encodeService({ port: 1, protocol: 'tcp', balance: 'random', ...over }),
    );
  }

  claim(address: string, service: string, releasedAtMs?: number): Promise<unknown> {
    return this.store.put(
      keys.vip(address),
      encodeVipClaim({ service, claimedAtMs: 1, ...(releasedAtMs !== undefined && { releasedAtMs }) }),
    );
  }

  usable(service: string): string[] | undefined {
    return this.snapshot.services.get(service)?.usable.map(({ id }) => id);
  }
}

const bench = async (t: Test, prepare?: (bench: Bench) => Promise<void>): Promise<Bench> => {
  const made = new Bench();
  t.teardown(() => made.close());
  await made.meta();
  await prepare?.(made);
  return made;
};

t.test('a service gathers the instances of all hosts, and only usable ones take connections', async (t) => {
  const b = await bench(t, async (b) => {
    await b.host(self, 'web-1');
    await b.host(other, 'web-2');
    await b.instance(other, { name: 'b', address: '10.0.0.9' });
    await b.instance(self, { name: 'a' });
    await b.instance(self, { name: 'critical', status: 'critical' });
    await b.instance(self, { name: 'starting', status: 'starting' });
    await b.instance(self, { name: 'warning', status: 'warning' });
    await b.instance(self, { name: 'draining', draining: true });
    await b.instance(other, { name: 'udp', protocol: 'udp' });
    await b.instance(hostId(3), { name: 'gone' });
  });
  await b.following();
  const db = b.snapshot.services.get('db');
  t.same(
    db?.instances.map(({ id, status }) => `${id} ${status}`),
    [
      '0000000000000003/gone lost',
      'web-1/a passing',
      'web-1/critical critical',
      'web-1/draining passing',
      'web-1/starting starting',
      'web-1/warning warning',
      'web-2/b passing',
      'web-2/udp passing',
    ],
  );
  t.same(b.usable('db'), ['web-1/a', 'web-1/warning', 'web-2/b']);
  t.same(db?.faults, ['web-2/udp speaks udp, the service tcp']);
  t.match(db, { port: 5432, protocol: 'tcp', balance: 'round-robin', vip: undefined });
  t.same(b.snapshot.addresses.get('10.0.0.9'), ['db']);
  t.match(b.snapshot.hosts.get(other), { name: 'web-2', alive: true });
  await b.service({ name: 'db', port: 77, balance: 'least-connections', vip: '240.77.0.9' });
  await b.claim('240.77.0.9', 'db');
  await waitFor('the record', () => b.snapshot.vips.get('240.77.0.9') === 'db');
  t.match(b.snapshot.services.get('db'), { port: 77, balance: 'least-connections', vip: '240.77.0.9' });
  await b.store.delete(keys.aliveOf(other));
  await waitFor('lost', () => b.usable('db')?.length === 2);
  t.equal(b.snapshot.services.get('db')?.instances.find(({ id }) => id === 'web-2/b')?.status, 'lost');
  await b.host(other, 'web-9');
  await waitFor('back under another name', () => b.usable('db')?.includes('web-9/b'));
});

t.test('our own host is never lost, and is itself before its record is there', async (t) => {
  const b = await bench(t, (b) => b.instance(self, { name: 'a' }).then());
  await b.following();
  t.same(b.usable('db'), ['web-1/a']);
});

t.test('own instances are as they are right now, whatever the store says', async (t) => {
  const b = await bench(t, async (b) => {
    await b.host(self, 'web-1');
    await b.instance(self, { name: 'a' });
    await b.instance(self, { name: 'stale' });
  });
  b.catalog.applyOwn({
    kind: 'reset',
    items: [instanceRecord({ name: 'a', status: 'critical' }), instanceRecord({ name: 'new' })],
    revision: '',
  });
  await turn();
  t.same(b.usable('db'), ['web-1/new'], 'without any store');
  t.equal(b.snapshot.origin, 'none');
  await b.following();
  t.same(
    b.snapshot.services.get('db')?.instances.map(({ name }) => name),
    ['a', 'new'],
  );
  t.same(b.usable('db'), ['web-1/new']);
  b.catalog.applyOwn({ kind: 'delta', puts: [instanceRecord({ name: 'a' })], deletes: ['new'], revision: '' });
  await turn();
  t.same(b.usable('db'), ['web-1/a']);
  await b.instance(self, { name: 'a', status: 'critical' });
  await b.instance(self, { name: 'forged' });
  await turn();
  t.same(b.usable('db'), ['web-1/a']);
  b.store.setAway(true);
  b.catalog.applyOwn({ kind: 'reset', items: [], revision: '' });
  await turn();
  t.equal(b.snapshot.services.get('db'), undefined);
  t.equal(b.snapshot.addresses.size, 0);
});

t.test('a change replaces what it touches and shares everything else', async (t) => {
  const b = await bench(t, async (b) => {
    await b.host(other, 'web-2');
    for (let index = 0; index < 40; index += 1) {
      await b.instance(other, { name: `i-${index}`, service: `s-${index % 8}`, address: `10.0.1.${index}` });
    }
    await b.service({ name: 's-1' });
  });
  await b.following();
  const before = b.snapshot;
  await b.instance(other, { name: 'i-3', service: 's-3', address: '10.0.1.3', status: 'critical' });
  await waitFor('the change', () => b.snapshot !== before);
  const changes = [...b.snapshot.services.changesSince(before.services)];
  t.same(
    changes.map(({ key }) => key),
    ['s-3'],
  );
  const [change] = changes;
  for (const instance of change?.before?.instances ?? []) {
    t.equal(change?.after?.instances.includes(instance), instance.name !== 'i-3', instance.name);
  }
  t.same([...b.snapshot.addresses.changesSince(before.addresses)], []);
  t.same([...b.snapshot.hosts.changesSince(before.hosts)], []);
  t.ok(Object.isFrozen(b.snapshot) && Object.isFrozen(change?.after) && Object.isFrozen(change?.after?.usable));

  const settled = b.snapshot;
  b.store.resetWatches();
  await turn();
  await turn();
  t.equal(b.snapshot.services, settled.services, 'a reset with the same entries changes nothing');
  await b.service({ name: 's-1', balance: 'least-connections' });
  await waitFor('the record', () => b.snapshot.services.get('s-1')?.balance === 'least-connections');
  t.equal(b.snapshot.services.get('s-1')?.instances, settled.services.get('s-1')?.instances);
  t.equal(b.snapshot.services.get('s-1')?.usable, settled.services.get('s-1')?.usable);
});

t.test('changes of one turn make one snapshot', async (t) => {
  const b = await bench(t);
  await b.following();
  const seen: number[] = [];
  b.catalog.snapshots.subscribe(({ version }) => seen.push(version));
  const { version } = b.snapshot;
  for (let index = 0; index < 50; index += 1) {
    b.catalog.applyOwn({ kind: 'delta', puts: [instanceRecord({ name: `i-${index}` })], deletes: [], revision: '' });
  }
  await turn();
  t.same(seen, [version + 1]);
  t.equal(b.usable('db')?.length, 50);
});

t.test('a virtual address belongs to whom the claim names', async (t) => {
  const b = await bench(t, async (b) => {
    await b.service({ name: 'a', vip: '240.77.0.1' });
    await b.service({ name: 'b', vip: '240.77.0.1' });
    await b.claim('240.77.0.1', 'b');
  });
  await b.following();
  t.equal(b.snapshot.vips.get('240.77.0.1'), 'b');
  t.equal(b.snapshot.services.get('a')?.vip, undefined);
  t.same(b.snapshot.services.get('a')?.faults, ['its virtual address 240.77.0.1 belongs to b']);
  await b.store.delete(keys.vip('240.77.0.1'));
  await waitFor('without a claim the first by name', () => b.snapshot.vips.get('240.77.0.1') === 'a');
  t.equal(b.snapshot.services.get('b')?.vip, undefined);
  await b.claim('240.77.0.1', 'b');
  await waitFor('b again', () => b.snapshot.services.get('b')?.vip !== undefined);
  t.same([...b.snapshot.vips], [['240.77.0.1', 'b']]);
  await b.instance(other, { name: 'x', service: 'c' });
  await b.claim('240.77.0.7', 'c');
  await waitFor('the claim stands in for a missing record', () => b.snapshot.services.get('c')?.vip === '240.77.0.7');
  await b.claim('240.77.0.7', 'c', 5);
  await waitFor('released', () => !b.snapshot.vips.has('240.77.0.7'));
});

t.test('damaged entries are quarantined and harm nothing else', async (t) => {
  const b = await bench(t, async (b) => {
    await b.host(other, 'web-2');
    await b.instance(other, { name: 'good' });
    await b.store.put(keys.instance(other, 'bad'), new TextEncoder().encode('{"v":1'));
    await b.store.put(keys.instance(other, 'newer'), new TextEncoder().encode('{"v":9}'));
    await b.store.put(`${keys.instances}nonsense`, new TextEncoder().encode('{}'));
    await b.store.put(keys.service('db'), new TextEncoder().encode('garbage'));
  });
  await b.following();
  const ids = (): string[] =>
    b.parts.conditions
      .list()
      .map(({ id }) => id.replace('catalog.entry./legate/test/', ''))
      .sort();
  t.same(ids(), [`instances/${other}/bad`, `instances/${other}/newer`, 'instances/nonsense', 'services/db']);
  t.same(b.usable('db'), ['web-2/good']);
  await b.instance(other, { name: 'bad' });
  await b.store.delete(`${keys.instances}nonsense`);
  await waitFor('healed', () => b.usable('db')?.length === 2 && ids().length === 2);
  t.same(ids(), [`instances/${other}/newer`, 'services/db']);
  await b.store.put(keys.instance(other, 'good'), new TextEncoder().encode('[]'));
  await waitFor('a good one that turned bad is out', () => b.usable('db')?.length === 1);
});

t.test('from disk first, then the store, sharing what is the same', async (t) => {
  const b = await bench(t, async (b) => {
    await b.host(other, 'web-2');
    await b.instance(other, { name: 'a' });
    await b.instance(other, { name: 'b', service: 'web' });
    await b.service({ name: 'db', vip: '240.77.0.1' });
    await b.claim('240.77.0.1', 'db');
  });
  await b.following();
  const saved = b.catalog.saved() as SavedState;
  t.match(saved, { meshId, storeId: 'memory-1' });
  await b.close();

  const later = new Bench();
  t.teardown(() => later.close());
  later.catalog.restore(saved);
  await turn();
  const restored = later.snapshot;
  t.equal(restored.origin, 'disk');
  t.same(later.usable('db'), ['web-2/a']);
  t.equal(restored.vips.get('240.77.0.1'), 'db');
  t.equal(later.catalog.confirmedAtMs, b.clock.nowMs());
  await b.instance(other, { name: 'a', status: 'critical' });
  const ended = new AbortController();
  const following = later.catalog.follow(b.store, ended.signal);
  await waitFor('the store', () => later.snapshot.origin === 'store');
  t.same(later.usable('db'), []);
  t.equal(later.snapshot.services.get('web'), restored.services.get('web'), 'unchanged since the disk');
  ended.abort();
  await following;
});

t.test('while the store is away nothing changes by itself, and the age is known', async (t) => {
  const b = await bench(t, (b) =>
    b
      .host(other, 'web-2')
      .then(() => b.instance(other, { name: 'a' }))
      .then(),
  );
  await b.following();
  b.store.setAway(true);
  await turn();
  const before = b.catalog.confirmedAtMs;
  await b.clock.advance(60_000);
  t.same(b.usable('db'), ['web-2/a']);
  t.equal(b.catalog.confirmedAtMs, before);
  b.store.setAway(false);
  await b.clock.advance(1000);
  t.equal(b.catalog.confirmedAtMs, b.clock.nowMs());
});

t.test('a store that came back empty is not believed until it is ours again', async (t) => {
  const b = await bench(t, async (b) => {
    for (const [id, name] of [
      [self, 'web-1'],
      [other, 'web-2'],
      [hostId(3), 'web-3'],
    ] as const) {
      await b.host(id, name);
      await b.instance(id, { name: 'a' });
    }
    await b.service({ name: 'db', vip: '240.77.0.1' });
    await b.claim('240.77.0.1', 'db');
  });
  await b.following();
  const three = ['web-1/a', 'web-2/a', 'web-3/a'];
  b.catalog.applyOwn({ kind: 'reset', items: [instanceRecord({ name: 'a' })], revision: '' });
  await turn();
  b.store.replace();
  await b.clock.advance(5000);
  t.same(b.usable('db'), three, 'empty and not ours: nothing is believed');
  await b.meta('cd'.repeat(16));
  await b.clock.advance(5000);
  t.match(b.parts.conditions.list(), [{ id: 'catalog.store.foreign' }]);
  await b.service({ name: 'db', vip: '240.77.0.1' });
  await b.claim('240.77.0.1', 'db');
  await b.meta();
  await b.clock.advance(5000);
  t.same(b.parts.conditions.list(), []);
  t.equal(b.catalog.saved()?.storeId, 'memory-2');
  t.same(b.usable('db'), three, 'hosts that have not returned are kept');
  t.equal(b.snapshot.services.get('db')?.vip, '240.77.0.1');
  await b.instance(other, { name: 'b' });
  await b.host(other, 'web-2');
  await b.clock.advance(0);
  t.same(b.usable('db'), ['web-1/a', 'web-2/b', 'web-3/a'], 'one returned, with other instances');
  b.store.resetWatches();
  await b.clock.advance(0);
  t.same(b.usable('db'), ['web-1/a', 'web-2/b', 'web-3/a']);
  await b.clock.advance(60_000);
  t.same(b.usable('db'), ['web-1/a', 'web-2/b'], 'and one did not return in time');
  t.equal(b.snapshot.hosts.get(hostId(3)), undefined);
});

t.test('foreign and damaged keys of every table are told by name and stop nothing', async (t) => {
  const text = (value: string) => new TextEncoder().encode(value);
  const newer = text('{"v":9,"unheard":true}');
  const values: Readonly<Record<string, Uint8Array>> = {
    [`${keys.hosts}nobody`]: text('{"v":1,"id":"nobody"}'),
    [keys.host(hostId(4))]: newer,
    [`${keys.alive}UPPER`]: encodeAlive({ sinceMs: 1 }),
    [keys.aliveOf(hostId(5))]: text('\u0000'),
    [keys.aliveOf(hostId(6))]: text('{"v":1,"sinceMs":1,"claim":{"nonce":"<script>"}}'),
    [keys.aliveOf(hostId(7))]: newer,
    [`${keys.instances}${other}`]: text('{}'),
    [`${keys.instances}${other}/a/b`]: encodeInstance(instanceRecord({ name: 'b' })),
    [keys.instance(other, 'newer')]: newer,
    [keys.instance(other, 'huge')]: new Uint8Array(200_000),
    [`${keys.services}a b`]: text('[]'),
    [keys.service('newer')]: newer,
    [`${keys.vips}banana`]: encodeVipClaim({ service: 'db', claimedAtMs: 1 }),
    [keys.vip('240.77.0.1')]: newer,
  };
  const b = await bench(t, async (b) => {
    await b.host(other, 'web-2');
    await b.instance(other, { name: 'good' });
    await b.store.put(keys.host(hostId(7)), encodeHost(hostRecord(hostId(7), 'web-7')));
    for (const [key, value] of Object.entries(values)) await b.store.put(key, value);
    await b.store.put(`${keys.root}unheard-of/key`, text('whatever'));
    await b.store.put(keys.userKey('mine'), text('whatever'));
  });
  const ids = (): string[] => b.parts.conditions.list().map(({ id }) => id.replace('catalog.entry.', ''));
  const told = Object.keys(values).sort();
  await b.following();
  t.same(ids().sort(), told);
  t.same(b.usable('db'), ['web-2/good']);
  t.equal(b.snapshot.services.get('db')?.vip, undefined);
  t.ok(b.snapshot.hosts.get(hostId(7))?.alive, 'a host of a newer version lives');
  b.store.resetWatches();
  await turn();
  t.same(ids().sort(), told, 'told once more, and still told');
  for (const [key, value] of Object.entries(values)) await b.store.put(key, value);
  await turn();
  t.same(ids().sort(), told);
  t.ok(b.snapshot.hosts.get(hostId(7))?.alive);
  for (const key of Object.keys(values)) await b.store.delete(key);
  await waitFor('nothing is wrong any more', () => ids().length === 0);
  t.notOk(b.snapshot.hosts.get(hostId(7))?.alive);
  t.same(b.usable('db'), ['web-2/good']);
});
