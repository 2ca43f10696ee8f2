import t, { type Test } from 'tap';
import { MemoryStore } from '../../test/support/memory-store.ts';
import { hostId, hostRecord, instanceRecord, parts } from '../../test/support/records.ts';
import { ManualClock } from '../base/clock.ts';
import { LegateError } from '../base/errors.ts';
import { decodeInstance } from '../catalog/codec.ts';
import type { InstanceRecord } from '../model/instance.ts';
import { keysOf } from '../store/keys.ts';
import { Registrar, type RegistrarOptions } from './registrar.ts';

const keys = keysOf('test');
const self = hostId(1);
const mine = keys.instancesOf(self);

function bench(t: Test, store = new MemoryStore(), over: Partial<RegistrarOptions> = {}) {
  const clock = new ManualClock();
  const shared = parts(clock);
  const registrar = new Registrar({
    ...shared,
    store,
    keys,
    host: hostRecord(self, 'web-1'),
    leaseTtlMs: 10_000,
    random: () => 0.5,
    ...over,
  });
  const ended = new AbortController();
  const running = registrar.run(ended.signal);
  const close = async (): Promise<void> => {
    ended.abort();
    await running;
  };
  t.teardown(close);
  const reset = (...names: string[]) =>
    registrar.setDesired({ kind: 'reset', items: names.map((name) => instanceRecord({ name })), revision: '' });
  const put = (...records: InstanceRecord[]) =>
    registrar.setDesired({ kind: 'delta', puts: records, deletes: [], revision: '' });
  const names = () => store.keys(mine).map((key) => key.slice(mine.length));
  return { clock, store, registrar, close, reset, put, names, conditions: shared.conditions };
}

t.test('the store says what this host has, and little is written for it', async (t) => {
  const b = bench(t);
  await b.clock.advance(1000);
  t.same(b.store.writes, [], 'nothing before it is known what is wanted');
  b.reset('a', 'b');
  await b.clock.advance(0);
  t.same(b.store.writes, [`put ${mine}a`, `put ${mine}b`, `put ${keys.host(self)}`, `put ${keys.aliveOf(self)}`]);
  t.equal(b.store.txnSizes.length, 2, 'the records in one, the sign of life in one');
  b.put(instanceRecord({ name: 'b', status: 'critical' }));
  b.registrar.setDesired({ kind: 'delta', puts: [], deletes: ['a'], revision: '' });
  await b.clock.advance(0);
  t.same(b.store.writes.slice(4), [`put ${mine}b`, `delete ${mine}a`]);
  b.put(instanceRecord({ name: 'b', status: 'critical' }));
  b.store.resetWatches();
  b.store.requests.length = 0;
  await b.clock.advance(1_320_000);
  t.equal(b.store.writes.length, 6, 'full comparisons find nothing to write');
  t.same(
    b.store.requests,
    [`range ${mine}`, `range ${keys.host(self)}`, `range ${mine}`, `range ${keys.host(self)}`],
    'and are all that is asked in 22 minutes',
  );
});

t.test('a restart with the same host id writes nothing but its sign of life', async (t) => {
  const first = bench(t);
  first.reset('a', 'b');
  await first.clock.advance(0);
  await first.close();
  const before = first.store.writes.length;
  const second = bench(t, first.store);
  second.reset('a', 'b');
  await second.clock.advance(120_000);
  t.same(second.store.writes.slice(before), [`put ${keys.aliveOf(self)}`]);
  await second.close();
  const third = bench(t, first.store);
  third.reset('b', 'c');
  await third.clock.advance(0);
  t.same(third.names(), ['b', 'c'], 'and what changed while it was down is corrected');
});

t.test('faults of the store are outlived', async (t) => {
  const away = new LegateError('E_STORE_AWAY', 'it does not answer');
  const cases: [what: string, disturb: (b: ReturnType<typeof bench>) => Promise<unknown> | unknown][] = [
    ['a write that fails', (b) => b.store.failNext(away, away, away)],
    [
      'the store is away for a while',
      async (b) => {
        b.store.setAway(true);
        await b.clock.advance(30_000);
        b.store.setAway(false);
      },
    ],
    ['a watch that begins anew', (b) => b.store.resetWatches()],
    ['somebody deletes our record', (b) => b.store.delete(`${mine}a`)],
    ['somebody damages our record', (b) => b.store.put(`${mine}a`, new TextEncoder().encode('garbage'))],
    ['somebody adds one of ours', (b) => b.store.put(`${mine}foreign`, new TextEncoder().encode('garbage'))],
    ['somebody deletes our host record', (b) => b.store.delete(keys.host(self))],
    ['somebody deletes our sign of life', (b) => b.store.delete(keys.aliveOf(self))],
    ['our lease lapses', (b) => b.store.lapse()],
    ['the store comes back empty', (b) => b.store.replace()],
  ];
  for (const [what, disturb] of cases) {
    const b = bench(t);
    b.reset('a', 'b');
    await b.clock.advance(0);
    await disturb(b);
    b.put(instanceRecord({ name: 'c', status: 'critical' }));
    await b.clock.advance(20_000);
    t.same(b.names(), ['a', 'b', 'c'], what);
    t.match(decodeInstance(new TextEncoder().encode(b.store.dump()[`${mine}c`]), 'c'), {
      ok: true,
      value: { status: 'critical' },
    });
    t.match(decodeInstance(new TextEncoder().encode(b.store.dump()[`${mine}a`]), 'a'), { ok: true }, what);
    t.same(b.store.keys(keys.hosts), [keys.host(self)], what);
    t.same(b.store.keys(keys.alive), [keys.aliveOf(self)], what);
    t.equal(b.store.leases, 1, what);
    t.same(b.conditions.list(), [], what);
    await b.close();
  }
});

t.test('while it fails it says so', async (t) => {
  const b = bench(t);
  b.reset('a');
  await b.clock.advance(0);
  b.store.setAway(true);
  b.put(instanceRecord({ name: 'b' }));
  await b.clock.advance(10_000);
  t.match(b.conditions.list(), [{ id: 'registrar.write', message: /wait to be written/ }]);
  b.store.setAway(false);
  await b.clock.advance(10_000);
  t.same(b.conditions.list(), []);
  t.same(b.names(), ['a', 'b']);
});

t.test('a change that no watch told is found by the full comparison', async (t) => {
  const { store, ...b } = bench(t);
  b.reset('a', 'b');
  await b.clock.advance(0);
  store.silent = true;
  await store.delete(`${mine}a`);
  await store.put(`${mine}z`, new TextEncoder().encode('{}'));
  await b.clock.advance(30_000);
  t.same(b.names(), ['b', 'z']);
  await b.clock.advance(300_000);
  t.same(b.names(), ['a', 'b']);
});

t.test('many records go in bounded transactions, and one bad record does not hold up the others', async (t) => {
  const b = bench(t);
  b.reset(...Array.from({ length: 250 }, (_, index) => `i-${index}`), 'x'.repeat(2000));
  await b.clock.advance(0);
  t.equal(b.names().length, 250);
  t.ok(b.store.txnSizes.every((size) => size <= b.store.limits.txnOperations));
  t.match(b.conditions.list(), [{ severity: 'error', message: /refuses the record/ }]);
});

t.test('what belongs to a source that has not reported yet is left alone', async (t) => {
  const store = new MemoryStore();
  const before = bench(t, store);
  before.reset('a', 'b');
  await before.clock.advance(0);
  await before.close();
  let ready = false;
  const after = bench(t, store, { mayDelete: () => ready });
  after.reset('c');
  await after.clock.advance(90_000);
  t.same(after.names(), ['a', 'b', 'c']);
  ready = true;
  after.put(instanceRecord({ name: 'a' }));
  await after.clock.advance(0);
  t.same(after.names(), ['a', 'c']);
});

t.test('leaving ends the sign of life at once and leaves the records', async (t) => {
  const b = bench(t);
  b.reset('a');
  await b.clock.advance(0);
  await b.registrar.leave();
  await b.clock.advance(20_000);
  t.same(b.store.keys(keys.alive), []);
  t.equal(b.store.leases, 0);
  t.same(b.names(), ['a']);
  const never = bench(t);
  await never.registrar.leave();
});

t.test('a lease that the store no longer knows is replaced', async (t) => {
  const b = bench(t);
  b.reset('a');
  await b.clock.advance(0);
  await b.store.delete(keys.aliveOf(self));
  b.store.failNext(new LegateError('E_NOT_FOUND', 'no such lease'));
  await b.clock.advance(5000);
  t.equal(b.store.requests.filter((request) => request === 'lease').length, 2);
  t.same(b.store.keys(keys.alive), [keys.aliveOf(self)]);
});

t.test('two sidecars with one host id are slowed down and told so', async (t) => {
  const clock = new ManualClock();
  const one = bench(t, new MemoryStore(), { clock });
  const other = bench(t, one.store, { clock });
  one.reset('a', 'b');
  other.reset('b', 'c');
  await clock.advance(5000);
  t.ok(one.store.writes.length < 1000, `${one.store.writes.length} writes`);
  t.match(one.conditions.list(), [{ id: 'registrar.contested', hint: /copy of this data_dir/ }]);
  await one.close();
  await other.close();
});
