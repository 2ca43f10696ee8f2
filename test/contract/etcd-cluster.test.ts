import t, { type Test } from 'tap';
import { isLegateError } from '../../src/base/errors.ts';
import type { Store } from '../../src/store/store.ts';
import { EtcdCluster, type EtcdMember, openTestStore, stateOf, type TestStore } from '../support/etcd.ts';
import { unless } from '../support/needs.ts';
import { waitFor } from '../support/wait.ts';
import { Follower } from './follower.ts';

const skip = unless('command:etcd', 'command:etcdctl');
const bytes = (text: string): Uint8Array => Buffer.from(text);

/** Writes keys one after the other, as a caller does it who tries again; keeps which were acknowledged. */
class Load {
  readonly acknowledged = new Map<string, string>();
  failures = 0;
  #stopped = false;
  readonly #done: Promise<void>;

  constructor(store: Store, prefix: string) {
    this.#done = this.#run(store, prefix);
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#done;
  }

  async #run(store: Store, prefix: string): Promise<void> {
    for (let count = 0; !this.#stopped; count += 1) {
      const key = `${prefix}${count % 50}`;
      try {
        await store.put(key, bytes(String(count)));
        this.acknowledged.set(key, String(count));
      } catch (error) {
        if (!isLegateError(error, 'E_STORE_AWAY')) throw error;
        this.failures += 1;
        // It may have happened, so what the key holds is known again only after the next write to it.
        this.acknowledged.delete(key);
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
  }

  /** Waits until so many more writes were acknowledged. */
  async goesOn(): Promise<void> {
    const key = 'progress';
    this.acknowledged.set(key, '');
    const seen = new Map(this.acknowledged);
    await waitFor('writes to go on', () => [...this.acknowledged].filter(([k, v]) => seen.get(k) !== v).length >= 5, {
      timeoutMs: 20_000,
    });
    this.acknowledged.delete(key);
  }
}

function memberOf(cluster: EtcdCluster, endpoint: string): EtcdMember {
  const member = cluster.members.find(({ url }) => url.text === endpoint);
  if (member === undefined) throw new Error(`no member at ${endpoint}`);
  return member;
}

async function begin(
  t: Test,
  cluster: EtcdCluster,
  prefix: string,
): Promise<TestStore & { load: Load; follower: Follower }> {
  const opened = await openTestStore(t, cluster.config());
  const follower = new Follower(opened.store, prefix);
  follower.ended.catch((error: unknown) => t.fail(String(error)));
  const load = new Load(opened.store, prefix);
  t.teardown(() => follower.stop());
  t.teardown(() => load.stop());
  await load.goesOn();
  return { ...opened, load, follower };
}

t.test('three members', { skip }, async (t) => {
  const cluster = await EtcdCluster.start(t, { members: 3 });

  await t.test('loses no acknowledged write when members are killed', async (t) => {
    const prefix = '/killed/';
    const { store, endpoint, load, follower } = await begin(t, cluster, prefix);
    const lease = await store.lease(3000);
    await store.put('/alive/1', bytes('here'), { lease });
    for (const which of ['the leader', 'the member in use', 'the leader']) {
      const victim = which === 'the leader' ? await cluster.leader() : memberOf(cluster, endpoint());
      await victim.kill();
      await load.goesOn();
      t.pass(`writes go on without ${which}`);
      victim.start();
      await cluster.healthy();
    }
    await load.stop();
    const { entries } = await store.range(prefix);
    const found = new Map(entries.map(({ key, value }) => [key, Buffer.from(value).toString()]));
    for (const [key, value] of load.acknowledged) {
      if (found.get(key) !== value) t.fail(`${key} is ${found.get(key)}, acknowledged was ${value}`);
    }
    t.ok(load.acknowledged.size > 30, `${load.acknowledged.size} keys were written, ${load.failures} writes failed`);
    await follower.has(found);
    t.equal(follower.changes.filter(({ kind }) => kind === 'reset').length, 1, 'every watch was resumed');
    t.notOk(lease.lost.aborted, 'the lease lives');
    t.ok(await store.get('/alive/1'));
  });

  await t.test('leaves a member that accepts and does not answer', async (t) => {
    const { store, endpoint, load, follower } = await begin(t, cluster, '/silent/');
    const lease = await store.lease(10_000);
    const victim = memberOf(cluster, endpoint());
    victim.pause();
    t.teardown(() => victim.resume());
    await load.goesOn();
    t.not(endpoint(), victim.url.text);
    await load.stop();
    const { entries } = await store.range('/silent/');
    await follower.has(new Map(entries.map(({ key, value }) => [key, Buffer.from(value).toString()])));
    t.notOk(lease.lost.aborted);
    victim.resume();
  });

  await t.test('leaves a member that has lost the others, and says why', async (t) => {
    await cluster.healthy();
    const opened = await openTestStore(t, cluster.config());
    const { store, endpoint } = opened;
    await stateOf(opened, 'connected');
    const lease = await store.lease(5000);
    await store.put('/alive/2', bytes('here'), { lease });
    const follower = new Follower(store, '/quorum/');
    t.teardown(() => follower.stop());
    const others = cluster.members.filter(({ url }) => url.text !== endpoint());
    await Promise.all(others.map((member) => member.kill()));
    const why = await stateOf(opened, 'away');
    t.match(why, /no member of etcd can be used: .*(no leader|timed out|no answer|ECONNREFUSED)/);
    t.match(why, /start the missing members|that etcd runs there|look at the log/);
    await t.rejects(store.put('/quorum/1', bytes('1')), { code: 'E_STORE_AWAY' });
    for (const member of others) member.start();
    await stateOf(opened, 'connected');
    await store.put('/quorum/2', bytes('2'));
    await waitFor('the watch to go on', () => follower.entries.has('/quorum/2'));
    t.equal(follower.changes.filter(({ kind }) => kind === 'reset').length, 1);
    // Time without a leader does not count for leases, so it may have been any time.
    await new Promise((resolve) => setTimeout(resolve, lease.ttlMs / 3));
    t.notOk(lease.lost.aborted, 'the lease outlives the loss of the quorum');
    t.ok(await store.get('/alive/2'));
    t.same(opened.conditions.list(), []);
  });
});
