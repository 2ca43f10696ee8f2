import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { waitFor } from '../../../test/support/wait.ts';
import { ManualClock } from '../../base/clock.ts';
import { silentLog } from '../../base/log.ts';
import { Metrics } from '../../base/metrics.ts';
import type { Lease } from '../store.ts';
import { type EmbeddedStore, openEmbeddedStore } from './embedded-store.ts';
import { Leases } from './leases.ts';

interface Room {
  readonly clock: ManualClock;
  readonly store: EmbeddedStore;
  reopen(): Promise<EmbeddedStore>;
}

async function roomOf(t: { teardown(run: () => Promise<void>): void }): Promise<Room> {
  const folder = await mkdtemp(join(tmpdir(), 'legate-leases-'));
  const clock = new ManualClock();
  const open = (): Promise<EmbeddedStore> =>
    openEmbeddedStore({ path: folder, clock, log: silentLog, metrics: new Metrics(), minLeaseTtlMs: 500 });
  let store = await open();
  t.teardown(async () => {
    await store.close();
    await rm(folder, { recursive: true, force: true });
  });
  const reopen = async (): Promise<EmbeddedStore> => {
    await store.close();
    store = await open();
    return store;
  };
  return { clock, store, reopen };
}

/** A lease as a remote holder knows it: an id. */
function remote(id: string, ttlMs: number): Lease {
  return { id, ttlMs, lost: new AbortController().signal, revoke: async () => undefined };
}

t.test('a lease of a remote holder lives by its keep-alives', async (t) => {
  const { clock, store } = await roomOf(t);
  const { id, ttlMs } = await store.leases.grant(10);
  t.equal(ttlMs, 500, 'raised to the least');
  t.match(id, /^[4-7][0-9a-f]{15}$/);
  await store.put('a', Buffer.from('1'), { lease: remote(id, ttlMs) });
  for (let round = 0; round < 5; round += 1) {
    await clock.advance(400);
    t.same(store.leases.describe(id), { id, ttlMs: 500, remainingMs: 100, keys: ['a'] });
    t.equal(store.leases.keepAlive(id), 500);
  }
  await clock.advance(499);
  t.ok(await store.get('a'));
  await clock.advance(1);
  await waitFor('the lapse', () => !store.leases.has(id));
  t.equal(await store.get('a'), undefined);
  t.equal(store.leases.keepAlive(id), undefined);
  t.equal(store.leases.describe(id), undefined);
  t.notOk(await store.leases.revoke(id));
  await t.rejects(store.put('a', Buffer.from('2'), { lease: remote(id, ttlMs) }), { code: 'E_NOT_FOUND' });
});

/** Leases whose deletions the test decides. */
function bareLeases(clock: ManualClock): { leases: Leases; asked: (() => boolean)[] } {
  const asked: (() => boolean)[] = [];
  const leases = new Leases({
    clock,
    metrics: new Metrics(),
    minTtlMs: 500,
    persist: async () => undefined,
    end: (_id, still) => {
      asked.push(still);
      return new Promise(() => undefined);
    },
  });
  leases.restore(new Map([['4000000000000000', { ttlMs: 1000, keys: new Set(['a']) }]]));
  return { leases, asked };
}

t.test('a keep-alive that comes before the deletion saves the lease', async (t) => {
  const clock = new ManualClock();
  const { leases, asked } = bareLeases(clock);
  await clock.advance(1000);
  const [still] = asked;
  t.equal(still?.(), true);
  leases.keepAlive('4000000000000000');
  t.equal(still?.(), false);
});

t.test('a process that was stopped for a while lets nobody lapse', async (t) => {
  const clock = new ManualClock();
  let stoppedMs = 0;
  const { leases, asked } = bareLeases(
    Object.assign(Object.create(clock) as ManualClock, {
      monotonicMs: () => clock.monotonicMs() + stoppedMs,
      after: (delayMs: number, run: () => void) => clock.after(delayMs, run),
    }),
  );
  stoppedMs = Leases.lateTickMs + 1;
  await clock.advance(1000);
  t.equal(leases.describe('4000000000000000')?.remainingMs, 1000);
  t.equal(asked.length, 0);
  await clock.advance(1000);
  t.equal(asked.length, 1, 'then it does');
});

t.test('after a restart every lease has its full TTL again, and keys follow their last lease', async (t) => {
  const { clock, store, reopen } = await roomOf(t);
  const one = await store.leases.grant(1000);
  const two = await store.leases.grant(3000);
  await store.put('a', Buffer.from('1'), { lease: remote(one.id, 1000) });
  await store.put('moved', Buffer.from('1'), { lease: remote(one.id, 1000) });
  await store.put('moved', Buffer.from('2'), { lease: remote(two.id, 3000) });
  await clock.advance(900);
  const again = await reopen();
  t.same([...again.leases.ids()].sort(), [one.id, two.id].sort());
  t.same(again.leases.describe(one.id), { id: one.id, ttlMs: 1000, remainingMs: 1000, keys: ['a'] });
  t.same(again.leases.describe(two.id), { id: two.id, ttlMs: 3000, remainingMs: 3000, keys: ['moved'] });
  await clock.advance(1000);
  await waitFor('the first lapse', () => !again.leases.has(one.id));
  t.same(
    (await again.range('')).entries.map(({ key }) => key),
    ['moved'],
  );
  t.ok(await again.leases.revoke(two.id));
  t.same((await again.range('')).entries, []);
  const third = await reopen();
  t.same(third.leases.ids(), [], 'what ended has ended');
});
