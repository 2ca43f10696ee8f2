import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { MemoryStore } from '../../test/support/memory-store.ts';
import { hostId, hostRecord, instanceRecord, parts } from '../../test/support/records.ts';
import { ManualClock } from '../base/clock.ts';
import { silentLog } from '../base/log.ts';
import { processName, startTimeOf } from '../base/processes.ts';
import { encodeAlive, type HostClaim } from '../catalog/codec.ts';
import { keysOf } from '../store/keys.ts';
import { checkHostId, OwnClaim, openHostClaim } from './host-claim.ts';
import { Registrar } from './registrar.ts';

const keys = keysOf('test');
const self = hostId(1);
const nonceOf = (digit: string): string => digit.repeat(32);
const claimOf = (over: Partial<HostClaim> = {}): HostClaim => ({
  nonce: nonceOf('a'),
  machine: 'm1',
  boot: 'b1',
  process: '',
  address: '10.77.0.1',
  ...over,
});

t.test('whose sign of life it is', async (t) => {
  const child = spawn('sleep', ['60'], { stdio: 'ignore' });
  t.teardown(() => child.kill('SIGKILL'));
  await once(child, 'spawn');
  const namespace = processName().split(' ')[0];
  const alive = `${namespace} ${child.pid} ${startTimeOf(child.pid ?? 0)}`;
  const dead = `${namespace} ${child.pid} 1`;
  const known = nonceOf('b');
  const strange = nonceOf('c');
  const cases: [what: string, found: Partial<HostClaim>, verdict: string][] = [
    ['this very start', { nonce: nonceOf('a'), address: '10.77.0.9' }, 'ours'],
    ['killed and started again', { nonce: known, process: dead }, 'ours'],
    ['killed, and its data directory could not be written', { nonce: strange, process: dead }, 'ours'],
    ['a running copy on this machine', { nonce: strange, process: alive }, 'other'],
    ['a copy made while the original runs, on this machine', { nonce: known, process: alive }, 'other'],
    ['rebooted', { nonce: known, boot: 'b2' }, 'ours'],
    ['rebooted, without a machine id', { nonce: known, boot: 'b2', machine: '' }, 'unclear'],
    ['a container made anew', { nonce: known, machine: 'm2', process: '1 1 1' }, 'ours'],
    ['rebooted with another address', { nonce: known, boot: 'b2', address: '10.77.0.2' }, 'unclear'],
    [
      'a copy made while the original runs',
      { nonce: known, boot: 'b2', machine: 'm2', address: '10.77.0.2' },
      'unclear',
    ],
    ['an image of which another machine runs', { nonce: strange, boot: 'b2', address: '10.77.0.2' }, 'other'],
    ['and one with our address', { nonce: strange, boot: 'b2', machine: 'm2' }, 'other'],
    ['an older copy of our own directory', { nonce: strange, boot: 'b2' }, 'unclear'],
  ];
  for (const [what, found, verdict] of cases) {
    t.equal(new OwnClaim(claimOf(), new Set([known])).judge(claimOf(found)), verdict, what);
    t.equal(
      new OwnClaim(claimOf(), new Set(), () => true).judge(claimOf(found)),
      'ours',
      'whoever writes there is this host',
    );
  }
});

t.test('a data directory remembers its last starts', async (t) => {
  const path = join(t.testdir(), 'claims.json');
  const options = { path, address: '10.77.0.1', log: silentLog };
  const first = await openHostClaim(options);
  t.match(first.mine, { nonce: /^[0-9a-f]{32}$/, boot: /^[0-9a-f]{32}$/, address: '10.77.0.1' });
  const second = await openHostClaim({ ...options, of: { process: '' } });
  t.not(second.mine.nonce, first.mine.nonce);
  t.equal(second.judge({ ...first.mine, process: '' }), 'ours');
  const moved = await openHostClaim({ ...options, address: '10.77.0.2', of: { process: '' } });
  t.equal(moved.judge({ ...first.mine, process: '', boot: 'other' }), 'unclear');
  for (let start = 0; start < 20; start += 1) await openHostClaim(options);
  t.ok(readFileSync(path).length < 1000, 'and only so many');
  for (const text of ['', '[]', '{"nonces":7}', '{"nonces":[7,"x"]}', 'x'.repeat(100_000)]) {
    writeFileSync(path, text);
    await openHostClaim(options);
    t.match(JSON.parse(readFileSync(path, 'utf8')), { v: 1, nonces: { length: 1 } }, `after ${text.slice(0, 20)}`);
  }
  const readOnly = await openHostClaim({ ...options, path: '/proc/none/claims.json' });
  t.match(readOnly.mine.nonce, /^[0-9a-f]{32}$/, 'a disk that refuses stops nobody');
});

t.test('a start waits for a lease that may be its own, and refuses for a living other', async (t) => {
  const start = async (found: Partial<HostClaim> | undefined, act?: (store: MemoryStore) => Promise<unknown>) => {
    const clock = new ManualClock();
    const store = new MemoryStore();
    const key = keys.aliveOf(self);
    if (found !== undefined) await store.put(key, encodeAlive({ sinceMs: 1, claim: claimOf(found) }));
    let outcome = 'waits';
    const claim = new OwnClaim(claimOf(), new Set([nonceOf('b')]));
    const common = { store, keys, hostId: self, claim, leaseTtlMs: 10_000, clock, log: silentLog };
    const checked = checkHostId({ ...common, signal: new AbortController().signal }).then(
      () => (outcome = 'starts'),
      (error: unknown) => (outcome = String(error)),
    );
    await clock.advance(5000);
    const early = outcome;
    await act?.(store);
    await clock.advance(20_000);
    await checked;
    return [early, outcome];
  };
  t.same(await start(undefined), ['starts', 'starts']);
  t.same(await start({ nonce: nonceOf('b') }), ['starts', 'starts']);
  const refusal = /another sidecar, at 10\.77\.0\.2, runs with this host's id/;
  t.match(await start({ nonce: nonceOf('c'), boot: 'b2', address: '10.77.0.2' }), [refusal, refusal]);
  t.match(await start({ nonce: nonceOf('b'), boot: 'b2', address: '10.77.0.2' }), ['waits', refusal]);
  t.same(
    await start({ nonce: nonceOf('b'), boot: 'b2', address: '10.77.0.2' }, (store) => store.delete(keys.aliveOf(self))),
    ['waits', 'starts'],
  );
});

/** A sidecar's registrar on a shared store. */
function sidecar(t: Test, store: MemoryStore, clock: ManualClock, claim: OwnClaim, name: string) {
  const shared = parts(clock);
  const registrar = new Registrar({
    ...shared,
    store,
    keys,
    host: hostRecord(self, 'web-1'),
    leaseTtlMs: 10_000,
    claim,
    random: () => 0.5,
  });
  const ended = new AbortController();
  const running = registrar.run(ended.signal);
  registrar.setDesired({ kind: 'reset', items: [instanceRecord({ name })], revision: '' });
  const stop = async (): Promise<void> => {
    ended.abort();
    await running;
  };
  t.teardown(stop);
  return { registrar, conditions: shared.conditions, stop };
}

t.test('of two with one id the second writes nothing, says so, and takes over when the first has gone', async (t) => {
  const clock = new ManualClock();
  const store = new MemoryStore();
  const mine = keys.instancesOf(self);
  const first = sidecar(t, store, clock, new OwnClaim(claimOf(), new Set()), 'first');
  await clock.advance(1000);
  const written = store.writes.length;
  const copy = claimOf({ nonce: nonceOf('d'), boot: 'b2', machine: 'm2', address: '10.77.0.2' });
  const second = sidecar(t, store, clock, new OwnClaim(copy, new Set()), 'second');
  await clock.advance(600_000);
  t.equal(store.writes.length, written, 'nobody fights');
  t.match(second.conditions.list(), [
    { id: 'host.duplicate', severity: 'error', message: /at 10\.77\.0\.1, runs with this host's id/, hint: /copy/ },
  ]);
  t.same(first.conditions.list(), []);
  t.notOk(second.registrar.holdsHostId);
  await first.stop();
  store.lapseOf(keys.aliveOf(self));
  await clock.advance(1000);
  t.same(second.conditions.list(), []);
  t.same(store.keys(mine), [`${mine}second`]);
  t.match(store.dump(keys.alive)[keys.aliveOf(self)], /10\.77\.0\.2/);
  const after = store.writes.length;
  const back = sidecar(
    t,
    store,
    clock,
    new OwnClaim(claimOf({ nonce: nonceOf('e') }), new Set([nonceOf('a')])),
    'first',
  );
  await clock.advance(60_000);
  t.equal(store.writes.length, after, 'the original stands back from its copy when it returns');
  t.match(back.conditions.list(), [{ id: 'host.duplicate', message: /at 10\.77\.0\.2/ }]);
  t.same(second.conditions.list(), []);
});

t.test('a sidecar that was killed is replaced at once, while its lease lives', async (t) => {
  const clock = new ManualClock();
  const store = new MemoryStore();
  const killed = sidecar(t, store, clock, new OwnClaim(claimOf(), new Set()), 'a');
  await clock.advance(0);
  await killed.stop();
  const next = claimOf({ nonce: nonceOf('b') });
  const again = sidecar(t, store, clock, new OwnClaim(next, new Set([nonceOf('a')])), 'a');
  const before = store.writes.length;
  await clock.advance(0);
  t.same(store.writes.slice(before), [`put ${keys.aliveOf(self)}`]);
  t.match(store.dump(keys.alive)[keys.aliveOf(self)], new RegExp(nonceOf('b')));
  t.same(again.conditions.list(), []);
  await again.stop();
});

t.test('two that start in the same moment: one of them holds the id', async (t) => {
  const clock = new ManualClock();
  const store = new MemoryStore();
  const one = sidecar(t, store, clock, new OwnClaim(claimOf(), new Set()), 'one');
  const other = claimOf({ nonce: nonceOf('d'), boot: 'b2', machine: 'm2', address: '10.77.0.2' });
  const two = sidecar(t, store, clock, new OwnClaim(other, new Set()), 'two');
  await clock.advance(30_000);
  const told = [one, two].map(({ conditions }) => conditions.list().map(({ id }) => id));
  t.same(told.flat(), ['host.duplicate']);
  const winner = told[0]?.length === 0 ? 'one' : 'two';
  t.same(store.keys(keys.instances), [keys.instance(self, winner)], 'and corrects what the other had written');
  t.equal(store.keys(keys.alive).length, 1);
});

t.test('one whose lease lapsed while another took the id stands back', async (t) => {
  const clock = new ManualClock();
  const store = new MemoryStore();
  const first = sidecar(t, store, clock, new OwnClaim(claimOf(), new Set()), 'first');
  await clock.advance(0);
  const thief = claimOf({ nonce: nonceOf('d'), boot: 'b2', address: '10.77.0.2' });
  store.silent = true;
  store.lapse();
  await store.put(keys.aliveOf(self), encodeAlive({ sinceMs: 1, claim: thief }));
  await clock.advance(2000);
  t.match(first.conditions.list(), [{ id: 'host.duplicate' }], 'although no watch had told');
  t.match(store.dump(keys.alive)[keys.aliveOf(self)], /10\.77\.0\.2/);
});
