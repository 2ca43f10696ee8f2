import t, { type Test } from 'tap';
import { MemoryStore } from '../../test/support/memory-store.ts';
import { hostId, instanceRecord, parts } from '../../test/support/records.ts';
import { ManualClock } from '../base/clock.ts';
import { Catalog } from '../catalog/catalog.ts';
import { decodeService, decodeVipClaim, encodeMeta, encodeService, type VipClaim } from '../catalog/codec.ts';
import { parseIpv4Range } from '../model/address.ts';
import type { InstanceRecord } from '../model/instance.ts';
import type { LinkListener } from '../model/link.ts';
import type { Weights } from '../model/routes.ts';
import type { ServiceRecord, ServiceSettings } from '../model/service.ts';
import { keysOf } from '../store/keys.ts';
import { ServiceClaims } from './service-claims.ts';
import { ServiceOrders } from './service-orders.ts';

const keys = keysOf('test');
const found = parseIpv4Range('240.77.0.0/16');
if (found === undefined) throw new Error('not a range');
const range = found;
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

interface Given {
  readonly settings?: Readonly<Record<string, ServiceSettings>>;
  readonly links?: readonly LinkListener[];
  readonly vipsOn?: boolean;
  readonly wanted?: readonly string[];
}

/** One host: what it has, what it claims, and what is ordered on it. */
function host(
  t: Test,
  store: MemoryStore,
  number: number,
  { settings = {}, links = [], vipsOn = true, wanted = [] }: Given = {},
) {
  const clock = new ManualClock();
  const shared = parts(clock);
  const self = { hostId: hostId(number), hostName: `web-${number}` };
  const catalog = new Catalog({ ...shared, keys, self });
  const options = {
    ...shared,
    ...self,
    store,
    keys,
    snapshots: catalog.snapshots,
    settings: new Map(Object.entries(settings)),
    links,
    vip: { on: vipsOn, range },
    wanted: (service: string) => (service === 'db' ? wanted : []),
    random: () => 0.5,
  };
  const claims = new ServiceClaims(options);
  const orders = new ServiceOrders({ ...options, adopt: (name) => claims.adopt(name) });
  const ended = new AbortController();
  const running = Promise.all([claims.run(ended.signal), catalog.follow(store, ended.signal)]);
  const leave = async (): Promise<void> => {
    ended.abort();
    await running;
  };
  t.teardown(leave);
  return {
    clock,
    orders,
    leave,
    have: (...records: InstanceRecord[]) => catalog.applyOwn({ kind: 'reset', items: records, revision: '' }),
    told: () => shared.conditions.list(),
    shown: (name: string) => catalog.snapshots.value.services.get(name),
    /** Lets an order run to its end, and time with it. */
    async done<T>(order: Promise<T>): Promise<T> {
      let isDone = false;
      const end = (): void => {
        isDone = true;
      };
      order.then(end, end);
      for (let step = 0; step < 100 && !isDone; step += 1) await clock.advance(100);
      return order;
    },
  };
}

async function opened(): Promise<MemoryStore> {
  const store = new MemoryStore();
  await store.put(keys.meta, encodeMeta({ meshId: 'ab'.repeat(16), format: 1 }));
  return store;
}

function stored(store: MemoryStore, name: string): ServiceRecord | undefined {
  const result = decodeService(bytes(store.dump()[keys.service(name)] ?? ''), name);
  return result.ok ? result.value : undefined;
}

function claim(store: MemoryStore, address = ''): VipClaim | undefined {
  const result = decodeVipClaim(bytes(store.dump()[keys.vip(address)] ?? ''));
  return result.ok ? result.value : undefined;
}

t.test('settings of a configuration reach a service that its first instance had made', async (t) => {
  const store = await opened();
  const first = host(t, store, 1);
  first.have(instanceRecord({ name: 'a', port: 8080 }));
  await first.clock.advance(0);
  const before = stored(store, 'db');
  t.match(before, { port: 8080, protocol: 'tcp', balance: 'round-robin', derived: ['port', 'protocol', 'balance'] });
  const since = store.writes.length;
  const second = host(t, store, 2, { settings: { db: { port: 80, balance: 'random' } } });
  await second.clock.advance(1000);
  await first.clock.advance(1000);
  const after = stored(store, 'db');
  t.same(after, { ...before, port: 80, balance: 'random', derived: ['protocol'] });
  t.same(store.writes.slice(since), [`put ${keys.service('db')}`], 'one write, and the claim is left alone');
  t.match(first.shown('db'), { port: 80, balance: 'random', vip: before?.vip });
  t.same(second.told(), []);

  const third = host(t, store, 3, { settings: { db: { port: 81, protocol: 'http' } } });
  await third.clock.advance(1000);
  t.match(stored(store, 'db'), { port: 80, protocol: 'http' }, 'what nobody chose, and no more');
  t.equal(stored(store, 'db')?.derived, undefined);
  t.match(third.told(), [
    {
      message: 'services.db.port is 81 in the configuration and 80 in the mesh',
      hint: 'run legate service set db port=81 for the whole mesh, or correct the configuration',
    },
  ]);
  await third.done(third.orders.set('db', { port: 81 }));
  await second.clock.advance(1000);
  t.same(third.told(), [], 'the hint helps');
  t.match(second.told(), [{ message: /db.port is 80 in the configuration and 81 in the mesh/ }]);
});

t.test(
  'a record without the note counts as chosen; two configurations at once: one wins, the other tells',
  async (t) => {
    const old = await opened();
    await old.put(keys.service('db'), encodeService({ name: 'db', port: 1, protocol: 'tcp', balance: 'random' }));
    const b = host(t, old, 1, { settings: { db: { port: 2 } } });
    await b.clock.advance(1000);
    t.match(stored(old, 'db'), { port: 1 });
    t.equal(b.told().length, 1);

    const store = await opened();
    const derived = ['port', 'protocol', 'balance'] as const;
    await store.put(
      keys.service('db'),
      encodeService({ name: 'db', port: 1, protocol: 'tcp', balance: 'hash', derived }),
    );
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
    const one = host(t, store, 1, { settings: { db: { port: 10 } } });
    const two = host(t, store, 2, { settings: { db: { port: 20, balance: 'random' } } });
    await one.clock.advance(1000);
    await two.clock.advance(1000);
    await one.clock.advance(1000);
    t.match(stored(store, 'db'), { balance: 'random', derived: ['protocol'] });
    t.ok([10, 20].includes(stored(store, 'db')?.port ?? 0));
    t.equal(one.told().length + two.told().length, 1);
  },
);

t.test('a port that nobody chose moves with the instances, not with those that are left', async (t) => {
  const store = await opened();
  const b = host(t, store, 1);
  const at = async (...ports: number[]): Promise<number | undefined> => {
    b.have(...ports.map((port) => instanceRecord({ name: `p-${port}`, port })));
    await b.clock.advance(1000);
    return stored(store, 'db')?.port;
  };
  t.equal(await at(1000), 1000);
  const vip = stored(store, 'db')?.vip;
  t.equal(await at(2000), 2000, 'replaced');
  t.equal(await at(2000, 3000), 2000);
  t.equal(await at(3000), 2000, 'one of two was lost: consumers of the other go on');
  t.equal(await at(), 2000);
  t.equal(await at(3000), 3000, 'all were gone in between');
  t.match(stored(store, 'db'), { vip, derived: ['port', 'protocol', 'balance'] });
  await b.done(b.orders.set('db', { port: 4000 }));
  t.equal(await at(5000), 4000, 'chosen');
  b.have(instanceRecord({ name: 'p', port: 5000, protocol: 'http' }));
  await b.clock.advance(1000);
  t.match(stored(store, 'db'), { port: 4000, protocol: 'http', derived: ['protocol', 'balance'] });
});

t.test('set: what is given, at once; a service that is not there needs a port', async (t) => {
  const store = await opened();
  const b = host(t, store, 1);
  await b.clock.advance(0);
  await t.rejects(b.done(b.orders.set('db', { balance: 'random' })), {
    code: 'E_INVALID',
    message: /needs a port/,
    hint: 'legate service set db port=NUMBER',
  });
  await t.rejects(b.orders.set('db', {}), { code: 'E_INVALID', message: /nothing to set/ });
  await t.rejects(b.orders.set('DB', { port: 1 }), { code: 'E_INVALID', message: /name "DB"/ });
  t.same(store.keys(keys.services), []);
  const made = await b.done(b.orders.set('db', { port: 5432 }));
  t.match(made, { port: 5432, protocol: 'tcp', balance: 'round-robin', vip: /^240\.77\./ }, 'it has an address');
  t.same(stored(store, 'db')?.derived, ['protocol', 'balance']);
  const since = store.writes.length;
  t.same(await b.done(b.orders.set('db', { port: 5432 })), made);
  t.equal(store.writes.length, since, 'nothing to write');
  store.beforeTxn = async () => {
    store.beforeTxn = undefined;
    await store.put(keys.service('db'), encodeService({ ...(made as ServiceRecord), balance: 'hash' }));
  };
  t.match(await b.done(b.orders.set('db', { port: 99 })), { port: 99, balance: 'hash' }, 'somebody was faster');
  let writes = 0;
  store.beforeTxn = async () => {
    writes += 1;
    await store.put(keys.service('db'), encodeService({ name: 'db', port: writes, protocol: 'tcp', balance: 'hash' }));
  };
  await t.rejects(b.done(b.orders.set('db', { port: 100 })), { code: 'E_CONFLICT' });
  store.beforeTxn = undefined;
  await store.put(keys.service('db'), bytes('{"v":9}'));
  await t.rejects(b.done(b.orders.set('db', { port: 1 })), { code: 'E_CONFLICT', message: /newer version/ });
  await t.rejects(b.done(b.orders.forget('db')), { code: 'E_CONFLICT', message: /newer version/ });
  await store.put(keys.service('db'), bytes('{'));
  t.match(await b.done(b.orders.set('db', { port: 7 })), { port: 7 }, 'a damaged record is replaced');
  store.setAway(true);
  await t.rejects(b.done(b.orders.set('db', { port: 1 })), { code: 'E_STORE_AWAY' });
});

t.test('what is taken back is as where nobody chose', async (t) => {
  const store = await opened();
  const b = host(t, store, 1);
  await b.clock.advance(0);
  await b.done(b.orders.set('web', { port: 80, retries: 0, timeoutMs: 5000 }));
  const after = await b.done(b.orders.set('web', { maxBodyBytes: 9 }, ['retries', 'parkMs']));
  t.match(after, { timeoutMs: 5000, maxBodyBytes: 9, retries: undefined });
  t.notOk('retries' in (stored(store, 'web') ?? {}));
  const since = store.writes.length;
  await b.done(b.orders.set('web', {}, ['retries']));
  t.equal(store.writes.length, since, 'nothing to write');
});

t.test('a balance, a port and a protocol that are taken back are those of nobody', async (t) => {
  const store = await opened();
  const b = host(t, store, 1, { settings: { web: { balance: 'hash' } } });
  b.have(instanceRecord({ name: 'a', port: 8080 }), instanceRecord({ name: 'b', port: 8080 }));
  await b.clock.advance(0);
  await b.done(b.orders.set('db', { port: 80, protocol: 'http', balance: 'random' }));
  t.equal(stored(store, 'db')?.derived, undefined);
  t.match(await b.done(b.orders.set('db', {}, ['balance'])), { port: 80, protocol: 'http', balance: 'round-robin' });
  t.same(stored(store, 'db')?.derived, ['balance']);
  const after = await b.done(b.orders.set('db', { retries: 1 }, ['port', 'protocol']));
  t.match(after, { port: 8080, protocol: 'tcp', retries: 1 }, 'those of all of its instances');
  t.same(stored(store, 'db')?.derived, ['port', 'protocol', 'balance']);
  const since = store.writes.length;
  await b.done(b.orders.set('db', {}, ['port', 'balance']));
  t.equal(store.writes.length, since, 'nothing to write');
  t.match(await b.done(b.orders.set('web', { port: 80, balance: 'random' })), { balance: 'random' });
  t.match(await b.done(b.orders.set('web', {}, ['port'])), { port: 80 }, 'where there is no other it stays');
  b.done(b.orders.set('web', {}, ['balance'])).catch(() => undefined);
  await b.clock.advance(5000);
  t.match(b.shown('web'), { balance: 'hash' }, 'what a configuration says holds again');
});

t.test('a split is set as a whole, and the one before is remembered', async (t) => {
  const store = await opened();
  const b = host(t, store, 1);
  await b.clock.advance(0);
  const first = await b.done(b.orders.set('web', { port: 80, protocol: 'http', split: { stable: 95, canary: 5 } }));
  t.match(first, { split: { stable: 95, canary: 5 }, formerSplit: undefined });
  const second = await b.done(b.orders.set('web', { split: { canary: 100 } }));
  t.same([second.split, second.formerSplit], [{ canary: 100 }, { stable: 95, canary: 5 }]);
  const since = store.writes.length;
  t.equal(await b.done(b.orders.set('web', { split: { canary: 100 } })), second, 'the same again changes nothing');
  t.equal(store.writes.length, since);
  const third = await b.done(b.orders.set('web', { split: {}, routes: [{ match: { path: '/x' }, service: 'x' }] }));
  t.same([third.split, third.formerSplit, third.routes?.length], [{}, { canary: 100 }, 1]);
});

t.test('a guard takes back a side of the split that it judged, and says so until somebody sets one', async (t) => {
  const store = await opened();
  const b = host(t, store, 1);
  await b.clock.advance(0);
  const split = { canary: 5, stable: 95 };
  const seen = { requests: 50, errors: 20, against: 'stable', againstRequests: 900, againstErrors: 1 };
  const takenBack = { tag: 'canary', weight: 5, hostId: hostId(1), atMs: 1, ...seen };
  const take = (judged: Weights, tag = 'canary') =>
    b.done(b.orders.takeBack('web', judged, { ...takenBack, tag, weight: judged[tag] ?? 0 }));
  t.equal(await take(split), false, 'no such service');
  await b.done(b.orders.set('web', { port: 80, protocol: 'http', split }));
  t.equal(await take(split), false, 'no guard');
  await b.done(b.orders.set('web', { splitGuard: 3 }));
  t.equal(await take({ canary: 6, stable: 94 }), false, 'another split');
  t.equal(await take(split, 'stable'), false, 'the heaviest');
  t.equal(await take(split), true);
  const after = { canary: 0, stable: 95 };
  t.match(stored(store, 'web'), { split: after, formerSplit: split, takenBack });
  t.equal(await take(split), false, 'only once');
  t.match(await b.done(b.orders.set('web', { balance: 'random' })), { takenBack }, 'another setting leaves it');
  const seenSince = await b.done(b.orders.set('web', { split: after }));
  t.equal(seenSince.takenBack, undefined, 'the same split by hand ends it');
  t.same([seenSince.split, seenSince.formerSplit], [after, split]);
  await b.done(b.orders.set('web', { split }));
  t.equal(await take(split), true);
  const again = await b.done(b.orders.set('web', { split }));
  t.same([again.split, again.formerSplit, again.takenBack], [split, after, undefined]);
});

t.test('a service that turns to datagrams gives its address back, and gets it again', async (t) => {
  const store = await opened();
  const b = host(t, store, 1);
  b.have(instanceRecord({ name: 'a' }));
  await b.clock.advance(0);
  const { vip } = stored(store, 'db') ?? {};
  t.match(await b.done(b.orders.set('db', { protocol: 'udp' })), { protocol: 'udp' });
  await b.clock.advance(1000);
  t.equal(stored(store, 'db')?.vip, undefined);
  t.match(claim(store, vip), { service: 'db', releasedAtMs: Number });
  t.equal(b.shown('db')?.vip, undefined);
  t.match(await b.done(b.orders.set('db', { protocol: 'http' })), { vip });
  t.equal(claim(store, vip)?.releasedAtMs, undefined);
  await b.leave();
  const without = host(t, store, 2, { vipsOn: false, settings: { db: {} } });
  await without.done(without.orders.set('db', { protocol: 'udp' }));
  t.match(stored(store, 'db'), { protocol: 'udp', vip }, 'a host without virtual addresses leaves them to others');
});

t.test('forget: only what nobody has anything to do with', async (t) => {
  const store = await opened();
  const b = host(t, store, 1, {
    settings: { set: { port: 1 } },
    links: [{ service: 'linked', listen: { address: '127.0.0.1', port: 1 } }],
  });
  await t.rejects(b.orders.forget('db'), { code: 'E_STORE_AWAY' }, 'before the store has told');
  const names = ['a', 'b', 'c', 'd'];
  b.have(...names.map((name) => instanceRecord({ name })));
  await b.clock.advance(0);
  const vip = stored(store, 'db')?.vip ?? '';
  await t.rejects(b.orders.forget('db'), {
    code: 'E_CONFLICT',
    message: 'db has instances: web-1/a (passing), web-1/b (passing), web-1/c (passing) and 1 more',
    hint: /deregister/,
  });
  await t.rejects(b.orders.forget('set'), {
    code: 'E_CONFLICT',
    message: /configuration of web-1 names set: services.set/,
  });
  await b.done(b.orders.set('linked', { port: 2 }));
  await t.rejects(b.orders.forget('linked'), { code: 'E_CONFLICT', message: /names linked: links\[0\]/ });
  await t.rejects(b.orders.forget('absent'), { code: 'E_NOT_FOUND' });
  b.have();
  await b.clock.advance(0);
  t.match(b.shown('db'), { vip, instances: [] }, 'it stays, with its address');

  const linking = host(t, store, 2, { links: [{ service: 'db', listen: { address: '127.0.0.1', port: 1 } }] });
  await linking.clock.advance(0);
  t.same(await b.done(b.orders.forget('db')), [vip]);
  await linking.clock.advance(1000);
  t.equal(stored(store, 'db'), undefined, "another host's link does not bring it back");
  t.match(claim(store, vip), { service: 'db', releasedAtMs: Number });
  for (const each of [b, linking]) t.equal(each.shown('db'), undefined);
  await t.rejects(b.orders.forget('db'), { code: 'E_NOT_FOUND' });
  b.have(instanceRecord({ name: 'e', port: 9 }));
  await b.clock.advance(1000);
  t.match(stored(store, 'db'), { port: 9, vip }, 'a later one begins anew, at the address if it is still free');
  t.equal(claim(store, vip)?.releasedAtMs, undefined);

  b.have();
  await b.clock.advance(0);
  store.beforeTxn = async () => {
    store.beforeTxn = undefined;
    await store.put(
      keys.service('db'),
      encodeService({ name: 'db', port: 10, protocol: 'tcp', balance: 'random', vip }),
    );
  };
  t.same(await b.done(b.orders.forget('db')), [vip], 'changed meanwhile: looked at again');
  await store.put(keys.service('bad'), bytes('{'));
  t.same(await b.done(b.orders.forget('bad')), [], 'a damaged record goes too');
  t.same(store.keys(keys.services), [keys.service('linked'), keys.service('set')]);
});

t.test('forget: not while an instance of this host is only away', async (t) => {
  const store = await opened();
  const wanted = ['a', 'b'];
  const b = host(t, store, 1, { wanted });
  b.have(instanceRecord({ name: 'a' }));
  await b.clock.advance(0);
  await t.rejects(b.orders.forget('db'), {
    code: 'E_CONFLICT',
    message: 'db has instances: web-1/a (passing), web-1/b (deregistered, comes back by itself)',
  });
  b.have();
  wanted.shift();
  await b.clock.advance(0);
  await t.rejects(b.orders.forget('db'), {
    code: 'E_CONFLICT',
    message: 'db has instances: web-1/b (deregistered, comes back by itself)',
  });
  wanted.shift();
  t.equal((await b.done(b.orders.forget('db'))).length, 1);
});
