import t from 'tap';
import { compareNumberedRevisions } from '../../src/store/revision.ts';
import { TestConsul, unlessConsul } from '../support/consul.ts';
import { openConsul } from '../support/consul-client.ts';
import { waitFor } from '../support/wait.ts';
import { Follower } from './follower.ts';

const skip = unlessConsul();
const patient = { timeoutMs: 45_000 };

// They share nothing, and wait more than they work.
t.jobs = 2;

t.test('a leader that is killed and one that hangs', { skip, timeout: 115_000 }, async (t) => {
  const consul = await TestConsul.start(t, { servers: 3 });
  // The client's first endpoint is the leader itself, so that it has to move as well.
  const leader = await consul.leader();
  const others = consul.urls.filter((url) => url !== leader.url);
  const { store, metrics } = await openConsul([leader.url, ...others]);
  t.teardown(() => store.close());
  const lease = await store.lease(10_000);
  await store.put('/legate/m/alive', Buffer.from('here'), { lease });
  const follower = new Follower(store, '/legate/m/');
  t.teardown(() => follower.stop());
  await waitFor('the first picture', () => follower.entries.size === 1);
  const { storeId } = store.status.value;

  let killed = false;
  const acknowledged = new Map<string, number>();
  const revisions: string[] = [];
  let failed = 0;
  let after = 0;
  let stopping = false;
  const write = async (writer: number): Promise<void> => {
    for (let index = 0; !stopping; index += 1) {
      const key = `/legate/m/${writer}/${index % 40}`;
      try {
        const began = killed;
        revisions.push(await store.put(key, Buffer.from(String(index))));
        acknowledged.set(key, index);
        if (began) after += 1;
      } catch {
        // Whether it was written is not known: a newer value than the acknowledged one may be found.
        failed += 1;
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    }
  };
  const writers = [0, 1].map(write);
  await waitFor('writes', () => acknowledged.size > 20, patient);
  await leader.kill();
  killed = true;
  const killedAt = performance.now();
  await waitFor('writes after the leader was killed', () => after > 10, patient);
  t.comment(`writes again after ${Math.round(performance.now() - killedAt)} ms; ${failed} failed`);
  stopping = true;
  await Promise.all(writers);
  t.equal(store.status.value.state, 'connected');
  t.equal(store.status.value.storeId, storeId, 'it is the same store');
  const found = new Map((await store.range('/legate/m/')).entries.map(({ key, value }) => [key, `${value}`]));
  const lost = [...acknowledged].filter(([key, value]) => !(Number(found.get(key)) >= value));
  t.same(lost, [], `${acknowledged.size} acknowledged writes are there`);
  t.equal(new Set(revisions).size, revisions.length, 'no revision was given out twice');
  await waitFor('a watch that has it all', () => {
    const texts = follower.texts();
    return texts.size === found.size && [...found].every(([key, value]) => texts.get(key) === value);
  });
  const resets = follower.changes.filter(({ kind }) => kind === 'reset').length;
  t.equal(resets, 1, 'the watch went on with what changed');
  t.notOk(lease.lost.aborted, 'the lease survived');
  t.equal(`${(await store.get('/legate/m/alive'))?.value}`, 'here');
  t.match(await metrics.exposition(), /legate_store_endpoint_changes_total 1/);

  // Back to three, and then the present endpoint says nothing any more: no connection is refused, nothing is answered.
  leader.start();
  await consul.hasLeader();
  const silent = consul.servers.find(({ url }) => url === others[0]);
  silent?.signal('SIGSTOP');
  t.teardown(() => silent?.signal('SIGCONT'));
  const last = await waitFor(
    'a write past the silent server',
    () => store.put('/legate/m/last', Buffer.from('1')),
    patient,
  );
  t.ok(revisions.every((each) => compareNumberedRevisions(each, last) < 0));
  await waitFor('the watch past the silent server', () => follower.entries.has('/legate/m/last'), patient);
  silent?.signal('SIGCONT');
  t.notOk(lease.lost.aborted, 'and the lease again');
});

t.test('a Consul that goes away whole, and one that comes back empty', { skip, timeout: 115_000 }, async (t) => {
  const consul = await TestConsul.start(t);
  const { store } = await openConsul(consul.urls);
  t.teardown(() => store.close());
  const first = await store.put('/legate/m/k', Buffer.from('1'));
  const lease = await store.lease(10_000);
  const follower = new Follower(store, '/legate/m/');
  await waitFor('the first picture', () => follower.entries.size === 1);
  const { storeId } = store.status.value;

  await consul.stop();
  await waitFor('away, without being asked', () => store.status.value.state === 'away', patient);
  t.match(store.status.value.problem, /127\.0\.0\.1:\d+ is not reached/);
  t.ok(store.status.value.hint);
  t.equal(store.status.value.storeId, storeId);
  await t.rejects(store.get('/legate/m/k'), { code: 'E_STORE_AWAY', message: /127\.0\.0\.1/ });
  consul.startAll();
  await waitFor('connected', () => store.status.value.state === 'connected', patient);
  t.equal((await store.get('/legate/m/k'))?.revision, first, 'the same store');
  await store.put('/legate/m/k', Buffer.from('2'));
  await follower.has(new Map([['/legate/m/k', '2']]));
  t.equal(follower.changes.filter(({ kind }) => kind === 'reset').length, 1);
  t.notOk(lease.lost.aborted, 'a restart ends no lease');

  await consul.wipe();
  await waitFor('another store', () => store.status.value.storeId !== storeId, patient);
  await follower.has(new Map());
  t.equal(follower.changes.at(-1)?.kind, 'reset', 'never deletions');
  t.ok(follower.changes.every((change) => change.kind === 'reset' || change.deletes.length === 0));
  await waitFor('the lease is lost', () => lease.lost.aborted, patient);
  const guard = { kind: 'revision', key: '/legate/m/k', revision: first } as const;
  t.same(await store.txn([guard], [{ kind: 'delete', key: '/legate/m/k' }]), { ok: false });
  await t.rejects(store.put('/legate/m/k', Buffer.from('3'), { lease }), { code: 'E_NOT_FOUND' });
  await store.put('/legate/m/k', Buffer.from('4'));
  await follower.has(new Map([['/legate/m/k', '4']]));
  await follower.stop();
});
