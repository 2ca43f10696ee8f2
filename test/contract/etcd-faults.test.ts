import { chmodSync, cpSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { create } from '@bufbuild/protobuf';
import t from 'tap';
import { Connection } from '../../src/store/etcd/connection.ts';
import { api } from '../../src/store/etcd/messages.ts';
import { PutRequestSchema } from '../../src/store/etcd-api/gen/etcd_pb.ts';
import { EtcdCluster, openTestStore, Relay, stateOf, storeUrl } from '../support/etcd.ts';
import { unless } from '../support/needs.ts';
import { waitFor } from '../support/wait.ts';
import { Follower } from './follower.ts';

const skip = unless('command:etcd', 'command:etcdctl', 'command:openssl');
const bytes = (text: string): Uint8Array => Buffer.from(text);
const portOf = (cluster: EtcdCluster): number => cluster.members[0]?.url.port ?? 0;

// They share nothing, and wait more than they work.
t.jobs = 3;

t.test('another cluster behind the address is another store', { skip }, async (t) => {
  const [first, second] = await Promise.all([EtcdCluster.start(t), EtcdCluster.start(t)]);
  await second.must('put', '/w/second', '2');
  const relay = await Relay.open(t, portOf(first));
  const opened = await openTestStore(t, first.config({ endpoints: [storeUrl(relay.port)] }));
  const { store } = opened;
  await store.put('/w/first', bytes('1'));
  const { storeId } = store.status.value;
  const follower = new Follower(store, '/w/');
  t.teardown(() => follower.stop());
  await follower.has(new Map([['/w/first', '1']]));
  const lease = await store.lease(60_000);
  relay.targetPort = portOf(second);
  relay.cut();
  await follower.has(new Map([['/w/second', '2']]));
  t.equal(follower.changes.at(-1)?.kind, 'reset');
  t.match(store.status.value, { state: 'connected' });
  t.not(store.status.value.storeId, storeId);
  await waitFor('the lease to be lost', () => lease.lost.aborted);

  await t.test('but one wrong address among two is refused', async (t) => {
    const direct = await Relay.open(t, portOf(first));
    const endpoints = [storeUrl(direct.port), storeUrl(portOf(second))];
    const opened = await openTestStore(t, first.config({ endpoints }));
    const { store, conditions } = opened;
    const { value } = store.status;
    await stateOf(opened, 'connected');
    t.equal(store.status.value.storeId, storeId);
    direct.closed = true;
    direct.cut();
    t.match(await stateOf(opened, 'away'), /is of another cluster .*members of one cluster only/);
    const ids = conditions.list().map(({ id }) => id);
    t.match(ids.sort(), ['store.etcd.away', /^store\.etcd\.foreign\./]);
    await t.rejects(store.put('/w/x', bytes('')), { code: 'E_STORE_AWAY' });
    direct.closed = false;
    await stateOf(opened, 'connected');
    t.equal(store.status.value.storeId, storeId);
    t.not(value, store.status.value);
  });
});

t.test('history that is not there any more begins with a reset', { skip }, async (t) => {
  const cluster = await EtcdCluster.start(t);
  const [member] = cluster.members;
  if (member === undefined) return;
  const relay = await Relay.open(t, member.url.port);
  const opened = await openTestStore(t, cluster.config({ endpoints: [storeUrl(relay.port)] }));
  const { store, conditions, metrics } = opened;
  await store.put('/w/old', bytes('1'));
  const follower = new Follower(store, '/w/');
  t.teardown(() => follower.stop());
  await follower.has(new Map([['/w/old', '1']]));

  await t.test('compacted while away', async (t) => {
    relay.closed = true;
    relay.cut();
    t.match(await stateOf(opened, 'away'), /closes the connection at once/);
    await cluster.must('put', '/w/new', '2');
    await cluster.must('del', '/w/old');
    const { header } = JSON.parse(await cluster.must('put', '/other', 'x', '--write-out=json'));
    await cluster.must('compact', String(header.revision));
    relay.closed = false;
    await follower.has(new Map([['/w/new', '2']]));
    t.equal(follower.changes.at(-1)?.kind, 'reset');
  });

  await t.test('a deletion at the very revision up to which was compacted', async () => {
    relay.closed = true;
    relay.cut();
    await stateOf(opened, 'away');
    await cluster.must('del', '/w/new');
    const { header } = JSON.parse(await cluster.must('get', 'x', '--write-out=json'));
    await cluster.must('compact', String(header.revision));
    relay.closed = false;
    await follower.has(new Map());
  });

  await t.test('a backup that is older than what was seen', async (t) => {
    await store.put('/w/kept', bytes('1'));
    await follower.has(new Map([['/w/kept', '1']]));
    const backup = join(cluster.folder, 'backup');
    await cluster.must('snapshot', 'save', backup);
    await store.put('/w/lost', bytes('2'));
    const last = await store.put('/w/kept', bytes('3'));
    await follower.has(
      new Map([
        ['/w/lost', '2'],
        ['/w/kept', '3'],
      ]),
    );
    await member.kill();
    rmSync(join(cluster.folder, member.name), { recursive: true });
    const restored = join(cluster.folder, 'restored');
    const words = ['--name', member.name, '--initial-cluster', `${member.name}=${member.peerUrl}`];
    const rest = ['--initial-cluster-token', cluster.folder, '--initial-advertise-peer-urls', member.peerUrl];
    await cluster.must('snapshot', 'restore', backup, '--data-dir', restored, ...words, ...rest);
    cpSync(restored, join(cluster.folder, member.name), { recursive: true });
    member.start();
    await follower.has(new Map([['/w/kept', '1']]));
    t.equal(follower.changes.at(-1)?.kind, 'reset');
    t.ok(store.compareRevisions(follower.changes.at(-1)?.revision ?? '', last) < 0, 'revisions went back');
    await store.put('/w/after', bytes('4'));
    await waitFor('the watch to go on', () => follower.entries.has('/w/after'));
    t.equal(store.status.value.state, 'connected');
  });

  await t.test('keys that Legate cannot have written are left out and named', async (t) => {
    const connection = new Connection(member.url, undefined);
    t.teardown(() => connection.end(connection.failure));
    const strange = [
      Buffer.from('/w/\xff\xfe', 'latin1'),
      Buffer.from('/w/nul\0'),
      Buffer.from(`/w/${'x'.repeat(2000)}`),
    ];
    for (const key of strange) {
      await connection.call(api.put, create(PutRequestSchema, { key, value: bytes('?') }), { timeoutMs: 5000 });
    }
    await store.put('/w/after', bytes('5'));
    await waitFor('the watch to go on', () => follower.texts().get('/w/after') === '5');
    t.same([...follower.entries.keys()].sort(), ['/w/after', '/w/kept']);
    t.same(
      (await store.range('/w/')).entries.map(({ key }) => key),
      ['/w/after', '/w/kept'],
    );
    t.equal(conditions.list()[0]?.id, 'store.etcd.keys');
    t.match(await metrics.exposition(), /legate_store_foreign_keys_total 6/);
  });
});

t.test('reads more than fits into a message', { skip }, async (t) => {
  const cluster = await EtcdCluster.start(t);
  const { store } = await openTestStore(t, cluster.config());
  const value = Buffer.alloc(20_000, 7);
  for (let from = 0; from < 1200; from += 50) {
    const writes = Array.from({ length: 50 }, (_, index) => ({
      kind: 'put' as const,
      ...{ key: `/large/${from + index}`, value },
    }));
    await store.txn([], writes);
  }
  t.equal((await store.range('/large/')).entries.length, 1200);
  t.equal((await store.range('/large/', { limit: 1100 })).entries.length, 1100);
  const follower = new Follower(store, '/large/');
  await waitFor('a reset', () => follower.changes.length > 0);
  t.equal(follower.entries.size, 1200);
  await follower.stop();
});

t.test('goes on with an etcd that answers slowly', { skip }, async (t) => {
  const cluster = await EtcdCluster.start(t);
  const relay = await Relay.open(t, portOf(cluster));
  relay.delayMs = 150;
  const opened = await openTestStore(t, cluster.config({ endpoints: [storeUrl(relay.port)] }));
  const { store } = opened;
  const lease = await store.lease(2000);
  await store.put('/slow/1', bytes('1'), { lease });
  const follower = new Follower(store, '/slow/');
  t.teardown(() => follower.stop());
  await follower.has(new Map([['/slow/1', '1']]));
  relay.delayMs = 300;
  await Promise.all(Array.from({ length: 20 }, (_, index) => store.put(`/slow/${index}`, bytes('1'))));
  await waitFor('the watch to go on', () => follower.entries.size === 20);
  await new Promise((resolve) => setTimeout(resolve, lease.ttlMs * 1.5));
  t.notOk(lease.lost.aborted);
  t.equal(relay.accepted, 1, 'on one connection');
});

t.test('tells of an etcd that has no space', { skip }, async (t) => {
  const cluster = await EtcdCluster.start(t, { args: ['--quota-backend-bytes', String(16 * 1024 * 1024)] });
  const { store, conditions } = await openTestStore(t, cluster.config());
  const lease = await store.lease(3000);
  await store.put('/alive/1', bytes('1'), { lease });
  const follower = new Follower(store, '/alive/');
  t.teardown(() => follower.stop());
  const value = Buffer.alloc(1024 * 1024, 1);
  const fill = async (): Promise<void> => {
    for (let count = 0; count < 40; count += 1) await store.put('/fill', value);
  };
  await t.rejects(fill(), { code: 'E_STORE_AWAY', message: /space/, hint: /etcdctl alarm disarm.*etcdctl alarm list/ });
  t.match(conditions.list(), [{ id: 'store.etcd.alarm', severity: 'error', message: /NOSPACE/ }]);
  t.equal(store.status.value.state, 'connected', 'it can be read');
  t.ok(await store.get('/alive/1'));
  await store.delete('/alive/1');
  await follower.has(new Map());
  await new Promise((resolve) => setTimeout(resolve, lease.ttlMs * 1.2));
  t.notOk(lease.lost.aborted, 'leases are kept alive');
  const { header } = JSON.parse(await cluster.must('get', 'x', '--write-out=json'));
  await cluster.must('compact', String(header.revision));
  await cluster.must('defrag');
  await cluster.must('alarm', 'disarm');
  await store.put('/alive/1', bytes('2'));
  await waitFor('the condition to end', () => conditions.list().length === 0);
});

t.test('speaks TLS, with files that are read for each connection', { skip }, async (t) => {
  const [cluster, other] = await Promise.all([
    EtcdCluster.start(t, { tls: true }),
    EtcdCluster.start(t, { tls: true }),
  ]);
  const tls = cluster.certificates;
  if (tls === undefined || other.certificates === undefined) return;
  const { store } = await openTestStore(t, cluster.config());
  await store.put('/a', bytes('1'));
  const ca = join(cluster.folder, 'other-ca.pem');
  cpSync(other.certificates.ca, ca);
  const wrong = await openTestStore(t, cluster.config({ tls: { ...tls, ca } }));
  t.match(await stateOf(wrong, 'away'), /certificate .*check store\.tls\.ca/);
  cpSync(tls.ca, ca);
  await stateOf(wrong, 'connected');
  const plain = await openTestStore(t, cluster.config({ endpoints: [storeUrl(portOf(cluster))], tls: {} }));
  await stateOf(plain, 'away');
  const nameless = await openTestStore(t, cluster.config({ tls: { ca: tls.ca } }));
  t.match(await stateOf(nameless, 'away'), /etcd cannot be used: https:/);
  chmodSync(tls.key, 0o640);
  await t.rejects(openTestStore(t, cluster.config()), { code: 'E_PERMISSION', hint: /chmod 600/ });
  const junk = join(cluster.folder, 'junk.pem');
  writeFileSync(junk, 'junk', { mode: 0o600 });
  await t.rejects(openTestStore(t, cluster.config({ tls: { ...tls, key: junk } })), { code: 'E_CONFIG' });
  await t.rejects(openTestStore(t, cluster.config({ tls: { ca: '/nowhere' } })), {
    code: 'E_CONFIG',
    message: /does not exist/,
  });
});

/** What README says for a host named web-1, word for word but for the password, which etcdctl asks for otherwise. */
const roleCommands = [
  'role add legate-web-1',
  'role grant-permission legate-web-1 readwrite /legate/ --prefix',
  'user add web-1:first-secret',
  'user grant-role web-1 legate-web-1',
];

t.test('one role and one password a host', { skip }, async (t) => {
  const cluster = await EtcdCluster.start(t, { args: ['--auth-token-ttl=1'] });
  for (const command of roleCommands) await cluster.must(...command.split(' '));
  const root = await cluster.enableAuth();
  const file = cluster.credentialsFile('web-1:first-secret');
  const opened = await openTestStore(t, cluster.config({ credentialsFile: file }));
  const { store, conditions, lines } = opened;
  await store.put('/legate/home/a', bytes('1'));
  const follower = new Follower(store, '/legate/home/');
  t.teardown(() => follower.stop());
  await follower.has(new Map([['/legate/home/a', '1']]));

  await t.test('reaches its prefix and nothing else', async (t) => {
    for (const run of [() => store.get('/other/a'), () => store.put('/legate', bytes('')), () => store.range('')]) {
      await t.rejects(async () => await run(), { code: 'E_UNAUTHORIZED', hint: /grant-permission/ });
    }
    t.equal(store.status.value.state, 'connected');
    const outside = new Follower(store, '/other/');
    await waitFor('a condition', () => conditions.list().some(({ id }) => id === 'store.etcd.denied./other/'));
    await cluster.must(...root, 'role', 'grant-permission', 'legate-web-1', 'read', '/other/', '--prefix');
    await waitFor('a reset', () => outside.changes.length > 0);
    await outside.stop();
    await waitFor('no condition', () => conditions.list().length === 0);
  });

  await t.test('goes on when its token has expired', async (t) => {
    await new Promise((resolve) => setTimeout(resolve, 2500));
    await store.put('/legate/home/a', bytes('2'));
    const late = new Follower(store, '/legate/home/');
    await late.has(new Map([['/legate/home/a', '2']]));
    await late.stop();
    await follower.has(new Map([['/legate/home/a', '2']]));
    t.equal(store.status.value.state, 'connected');
  });

  await t.test('says so when its password is not right any more', async (t) => {
    await cluster.must(...root, 'user', 'delete', 'web-1');
    await cluster.must(...root, 'user', 'add', 'web-1:second-secret');
    await cluster.must(...root, 'user', 'grant-role', 'web-1', 'legate-web-1');
    await t.rejects(store.put('/legate/home/a', bytes('3')), { code: 'E_STORE_AWAY' });
    t.match(await stateOf(opened, 'away'), /authentication failed.*check store\.credentials_file/);
    writeFileSync(file, 'web-1:second-secret\n');
    await stateOf(opened, 'connected');
    await store.put('/legate/home/a', bytes('4'));
    await follower.has(new Map([['/legate/home/a', '4']]));
  });

  await t.test('refuses files that cannot be meant', async (t) => {
    const open = (credentialsFile: string): Promise<unknown> => openTestStore(t, cluster.config({ credentialsFile }));
    await t.rejects(open(cluster.credentialsFile('web-1:x', 0o644)), { code: 'E_PERMISSION', hint: /chmod 600/ });
    await t.rejects(open(cluster.credentialsFile('only-a-user')), { code: 'E_CONFIG', message: /user:password/ });
    await t.rejects(open('/nowhere'), { code: 'E_CONFIG' });
    const none = await openTestStore(t, cluster.config());
    t.match(await stateOf(none, 'away'), /user name is empty.*store\.credentials_file/);
  });

  t.notMatch([...lines, JSON.stringify(conditions.list())].join(), /secret/, 'nothing tells a password');
});
