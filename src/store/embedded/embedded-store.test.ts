import { execFileSync } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { Follower } from '../../../test/contract/follower.ts';
import { unless } from '../../../test/support/needs.ts';
import { waitFor } from '../../../test/support/wait.ts';
import { systemClock } from '../../base/clock.ts';
import { Conditions } from '../../base/conditions.ts';
import { isLegateError } from '../../base/errors.ts';
import { silentLog } from '../../base/log.ts';
import { Metrics } from '../../base/metrics.ts';
import { openStore } from '../backends.ts';
import { openEmbeddedStore } from './embedded-store.ts';

async function folderOf(t: { teardown(run: () => Promise<void>): void }): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'legate-embedded-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

async function metricOf(metrics: Metrics, name: string): Promise<number> {
  const [, value] = new RegExp(`^${name} (.+)$`, 'm').exec(await metrics.exposition()) ?? [];
  return Number(value);
}

t.test('history is kept for the last revisions only', async (t) => {
  const metrics = new Metrics();
  const store = await openEmbeddedStore({
    path: await folderOf(t),
    clock: systemClock,
    log: silentLog,
    metrics,
    compaction: { keepRevisions: 50 },
  });
  t.teardown(() => store.close());
  const first = await store.put('a', Buffer.from('0'));
  let recent = '';
  for (let index = 0; index < 300; index += 1) {
    const revision = await store.put('a', Buffer.from(String(index)));
    if (index === 260) recent = revision;
  }
  await waitFor('compaction', async () => (await metricOf(metrics, 'legate_store_history_revisions')) <= 55);
  t.ok((await metricOf(metrics, 'legate_store_history_revisions')) >= 50);
  t.ok((await metricOf(metrics, 'legate_store_compacted_revisions_total')) >= 245);
  for (const [from, kind] of [
    [first, 'reset'],
    [recent, 'delta'],
  ] as const) {
    const follower = new Follower(store, '', from);
    await follower.has(new Map([['a', '299']]));
    t.equal(follower.changes[0]?.kind, kind);
    await follower.stop();
  }
  await t.rejects(store.compact('nonsense'), { code: 'E_INVALID' });
  await t.rejects(store.compact(recent.replace(/\.\d+$/, '.99999')), { code: 'E_INVALID' });
});

t.test('a watcher that takes nothing holds bounded memory and still converges', async (t) => {
  const metrics = new Metrics();
  const store = await openEmbeddedStore({ path: await folderOf(t), clock: systemClock, log: silentLog, metrics });
  t.teardown(() => store.close());
  const abort = new AbortController();
  const feed = store.watch('', { signal: abort.signal })[Symbol.asyncIterator]();
  await feed.next();
  for (let round = 0; round < 2; round += 1) {
    for (let index = 0; index < 20; index += 1) await store.put(`k${index}`, Buffer.alloc(1024 * 1024, round));
  }
  await store.delete('k7');
  t.ok((await metricOf(metrics, 'legate_store_watch_lags_total')) >= 1);
  t.ok((await metricOf(metrics, 'legate_store_watch_queued_keys')) <= 20);
  const seen = new Map<string, number | undefined>();
  while (seen.size !== 19 || [...seen.values()].some((value) => value !== 1)) {
    const { value: change } = await feed.next();
    if (change === undefined) break;
    if (change.kind === 'delta') for (const key of change.deletes) seen.delete(key);
    for (const { key, value } of change.kind === 'reset' ? change.items : change.puts) seen.set(key, value[0]);
  }
  t.equal(seen.size, 19);
  t.notOk(seen.has('k7'));
  abort.abort();
  t.ok((await feed.next()).done);
});

t.test('a full disk: away with the reason, and back by itself', { skip: unless('netns') }, async (t) => {
  const folder = await folderOf(t);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=6m', 'tmpfs', folder]);
  const metrics = new Metrics();
  const conditions = new Conditions(silentLog, systemClock, metrics);
  const options = { dataDir: folder, clock: systemClock, log: silentLog, metrics, conditions };
  const store = await openStore({ kind: 'embedded', leaseTtlMs: 10_000, listen: undefined }, options);
  t.teardown(async () => {
    await store.close();
    execFileSync('umount', [folder]);
  });
  const lease = await store.lease(1000);
  await store.put('leased', Buffer.from('1'), { lease });
  const follower = new Follower(store, '');
  const filler = join(folder, 'filler');
  await writeFile(filler, Buffer.alloc(4 * 1024 * 1024));
  const acknowledged = new Set<string>(['leased']);
  let failure: unknown;
  for (let index = 0; failure === undefined && index < 1000; index += 1) {
    await store.put(`k${index}`, Buffer.alloc(50_000, index)).then(
      () => acknowledged.add(`k${index}`),
      (error: unknown) => {
        failure = error;
      },
    );
  }
  t.ok(isLegateError(failure, 'E_STORE_AWAY'), String(failure));
  t.match(failure, { cause: { message: /No space left/ } });
  t.match(store.status.value, { state: 'away', problem: /no space left/, hint: /free space/ });
  t.match(conditions.list(), [{ id: 'store.embedded.away', severity: 'error', hint: /free space/ }]);
  await t.rejects(store.put('x', Buffer.from('x')), { code: 'E_STORE_AWAY' });
  await t.rejects(store.get('x'), { code: 'E_STORE_AWAY' });
  t.notOk(lease.lost.aborted);
  await rm(filler);
  await waitFor('the store is back', () => store.status.value.state === 'connected', { timeoutMs: 20_000 });
  t.same(conditions.list(), []);
  await store.put('after', Buffer.from('x'));
  const keys = new Set((await store.range('')).entries.map(({ key }) => key));
  t.same(
    [...acknowledged].filter((key) => !keys.has(key)),
    [],
    `${acknowledged.size} acknowledged writes are there`,
  );
  await waitFor('the watch goes on', () => follower.entries.size === keys.size && follower.entries.has('after'));
  t.equal(follower.changes.filter(({ kind }) => kind === 'reset').length, 1, 'without a reset');
  await follower.stop();
  await lease.revoke();
  t.equal(await store.get('leased'), undefined);
});

t.test('concurrent writers share batches', async (t) => {
  const metrics = new Metrics();
  const store = await openEmbeddedStore({ path: await folderOf(t), clock: systemClock, log: silentLog, metrics });
  t.teardown(() => store.close());
  const revisions = await Promise.all(Array.from({ length: 200 }, (_, index) => store.put('k', Buffer.of(index))));
  t.equal(new Set(revisions).size, 200, 'each with a revision of its own');
  t.ok((await metricOf(metrics, 'legate_store_commits_total')) < 20);
  const abort = new AbortController();
  const running = store.put('k', Buffer.of(1), { signal: abort.signal });
  abort.abort(new Error('enough'));
  await t.rejects(running, { message: 'enough' });
  await store.put('k', Buffer.of(2));
});
