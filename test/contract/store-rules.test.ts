import { chmodSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { status } from '@grpc/grpc-js';
import t from 'tap';
import { Latest } from '../../src/base/feed.ts';
import type { Credentials } from '../../src/model/credentials.ts';
import type { Policy } from '../../src/model/policy.ts';
import { KV, Lease } from '../../src/store/etcd-api/gen/etcd_pb.ts';
import { keysOf } from '../../src/store/keys.ts';
import { type Ran, run, temporaryFolder } from '../support/agent.ts';
import { makeTestAuthority } from '../support/certificates.ts';
import { openTestStore, stateOf } from '../support/etcd.ts';
import { unless } from '../support/needs.ts';
import { OfferedStore, prefixEnd, RawClient } from '../support/offered-store.ts';
import { testPolicy, testTrust } from '../support/trust.ts';
import { waitFor } from '../support/wait.ts';
import { Follower } from './follower.ts';
import { offeredConfig } from './offered-harness.ts';

const [hostA, hostB, hostC] = ['a'.repeat(16), 'b'.repeat(16), 'c'.repeat(16)];
const names = { [hostA]: 'web-1', [hostB]: 'web-2', [hostC]: 'web-3' };
const keys = keysOf('legate');
const bytes = (text: string): Buffer => Buffer.from(text);

const authority = await makeTestAuthority();
const a = await authority.issue(hostA);
const b = await authority.issue(hostB);
const c = await authority.issue(hostC);
const policy = new Latest<Policy | undefined>(testPolicy(hostA));
const offered = await OfferedStore.open(t, { trust: testTrust(a, policy, names) });
const [asA, asB, asC] = [a, b, c].map((own) => new RawClient(t, offered.port, own)) as [
  RawClient,
  RawClient,
  RawClient,
];

const refused = async (name: string, what: Promise<unknown>, details: RegExp): Promise<void> => {
  await t.rejects(what, { code: status.PERMISSION_DENIED, details }, name);
};
const conditionOf = (hostId: string) =>
  offered.conditions.list().find(({ id }) => id === `store.refused.host.${hostId}`);

await asA.put(keys.policy, 'signed');
await asA.put(`${keys.tokens}1`, 'hash');
await asA.put(keys.meta, '{}');
await asB.put(keys.host(hostB), 'B');
await asB.put(keys.instance(hostB, 'db'), 'B');
await asC.put(keys.instance(hostC, 'web'), 'C');

await t.test('a host writes what is its own, and nothing else', async (t) => {
  await refused(
    "another's instance",
    asB.put(keys.instance(hostC, 'web'), 'B'),
    /^legate: host web-2 may not write instances of web-3; a host writes its own/,
  );
  t.match(conditionOf(hostB), { severity: 'warning', message: 'host web-2 tried to write instances of web-3' });
  await refused('the policy', asB.put(keys.policy, 'x'), /the policy; only the authority's host web-1 may$/);
  await refused(
    'settings',
    asB.call(KV.method.deleteRange, { key: bytes(keys.service('db')) }),
    /changed on the authority's host web-1, or from here with --admin$/,
  );
  const all = { key: bytes(keys.root), rangeEnd: prefixEnd(keys.root) };
  await refused('a range of everything', asB.call(KV.method.deleteRange, all), /may not write/);
  const range = { key: bytes(keys.instances), rangeEnd: prefixEnd(keys.instances) };
  await refused('a range over others', asB.call(KV.method.deleteRange, range), /instances of web-3/);
  const put = (key: string) =>
    ({ request: { case: 'requestPut', value: { key: bytes(key), value: bytes('x') } } }) as const;
  const txn = asB.call(KV.method.txn, { success: [put(keys.userKey('x')), put(keys.host(hostA))] });
  await refused('a transaction with one such write', txn, /the record of web-1/);
  const { kvs } = await asB.call(KV.method.range, { key: bytes(keys.userKey('x')) });
  t.same(kvs, [], 'of which nothing happened');
  t.ok(
    (await asB.call(KV.method.txn, { failure: [put(keys.host(hostA))] })).succeeded,
    'a branch that is not run is no write',
  );
  await refused('history', asB.call(KV.method.compact, { revision: 2n }), /forget history/);

  const own = { key: bytes(keys.instancesOf(hostB)), rangeEnd: prefixEnd(keys.instancesOf(hostB)) };
  t.equal((await asB.call(KV.method.deleteRange, own)).deleted, 1n, 'a range of its own');
  await asB.put(keys.userKey('x'), '1');
  await asC.put(keys.userKey('x'), '2');
  const users = { key: bytes(keys.kv), rangeEnd: prefixEnd(keys.kv) };
  t.equal((await asB.call(KV.method.deleteRange, users)).deleted, 1n, "a range of users' keys");
  t.equal(
    (await asA.call(KV.method.deleteRange, { key: bytes(keys.instance(hostC, 'web')) })).deleted,
    1n,
    'the authority removes',
  );
  t.ok((await offered.metric('legate_store_refused_writes_total{kind="instances"}')) >= 2);
});

await t.test('tokens are seen by the host of the authority only', async (t) => {
  const token = { key: bytes(`${keys.tokens}1`) };
  await refused('one', asB.call(KV.method.range, token), /read join tokens/);
  await refused(
    'all',
    asB.call(KV.method.range, { key: bytes(keys.tokens), rangeEnd: prefixEnd(keys.tokens) }),
    /read join tokens/,
  );
  const compare = { ...token, targetUnion: { case: 'value' as const, value: bytes('x') } };
  await refused('by a condition', asB.call(KV.method.txn, { compare: [compare] }), /read join tokens/);
  const success = [{ request: { case: 'requestRange' as const, value: { key: bytes('/'), rangeEnd: bytes('\0') } } }];
  await refused('in a transaction', asB.call(KV.method.txn, { success }), /read join tokens/);
  await asA.put(keys.userKey('last'), '1');

  const everything = { key: bytes(keys.root), rangeEnd: prefixEnd(keys.root) };
  const list = async (client: RawClient, more = {}): Promise<[string[], bigint]> => {
    const { kvs, count } = await client.call(KV.method.range, { ...everything, ...more });
    return [kvs.map(({ key }) => Buffer.from(key).toString().slice(keys.root.length)), count];
  };
  const [seen, count] = await list(asB);
  const [whole] = await list(asA);
  t.same(
    seen,
    whole.filter((key) => key !== 'tokens/1'),
    'what is read with them leaves them out',
  );
  t.equal(Number(count), seen.length);
  for (let limit = 1; limit <= seen.length; limit += 1) {
    t.same(await list(asB, { limit: BigInt(limit) }), [seen.slice(0, limit), count], `the first ${limit}`);
  }
  t.same(await list(asB, { countOnly: true }), [[], count]);
  t.same(await list(asB, { sortOrder: 2 }), [[...seen].reverse(), count]);

  const watches = asB.watches();
  const said = await watches.create(keys.tokens);
  t.match(said, { canceled: true, cancelReason: /read join tokens/ });
  const from = Number((await asB.call(KV.method.range, { key: bytes('x') })).header?.revision ?? 0n);
  const { watchId } = await watches.create(keys.root);
  await asA.put(`${keys.tokens}2`, 'hash');
  await asA.put(keys.userKey('after'), '1');
  await waitFor('the event', () => watches.events(watchId).length > 0);
  const late = asB.watches();
  await late.create(keys.root, { startRevision: BigInt(from + 1) });
  await waitFor('the event of before', () => late.events().length > 0);
  for (const events of [watches.events(watchId), late.events()]) {
    t.match(events, [/kv\/after/], 'a watch tells nothing of them');
  }
  watches.stream.cancel();
  late.stream.cancel();
});

await t.test("a lease is its host's", async (t) => {
  const { ID } = await asB.call(Lease.method.leaseGrant, { TTL: 60n });
  await asB.put(keys.aliveOf(hostB), '{}', { lease: ID });
  await refused('attached', asC.put(keys.userKey('c'), 'x', { lease: ID }), /a lease which was granted to it/);
  await refused(
    'revoked',
    asC.call(Lease.method.leaseRevoke, { ID }),
    /revoke the lease \w+; it was granted to another host/,
  );
  await refused('for what lasts', asB.put(keys.host(hostB), 'x', { lease: ID }), /lease/);
  await refused('of a chosen id', asB.call(Lease.method.leaseGrant, { TTL: 60n, ID: 7n }), /choose the id/);

  const secondOf = await openTestStore(t, offeredConfig(offered.port, true), undefined, testTrust(b));
  await stateOf(secondOf, 'connected');
  const lease = await secondOf.store.lease(2000);
  await secondOf.store.put(keys.userKey('kept'), bytes('x'), { lease });
  t.match(await asB.call(Lease.method.leaseTimeToLive, { ID: BigInt(`0x${lease.id}`), keys: true }), {
    keys: [bytes(keys.userKey('kept'))],
  });
  await offered.close();
  await offered.start({ address: '127.0.0.1', port: offered.port });
  await stateOf(secondOf, 'connected');
  await secondOf.store.put(keys.userKey('again'), bytes('x'), { lease });
  t.notOk(lease.lost.aborted, 'it is still its own when the store was started again');
  await lease.revoke();
  await asB.call(Lease.method.leaseRevoke, { ID });
});

await t.test("what the sidecar's client makes of it", async (t) => {
  const opened = await openTestStore(t, offeredConfig(offered.port, true), undefined, testTrust(b));
  await stateOf(opened, 'connected');
  const error = {
    code: 'E_DENIED',
    message: 'host web-2 may not write settings of service db',
    hint: "settings are changed on the authority's host web-1, or from here with --admin",
  };
  await asA.put(keys.service('db'), '{"name":"db","port":1}');
  await t.rejects(opened.store.put(keys.service('db'), bytes('{"name":"db","port":2}')), error);
  t.equal(opened.store.status.value.state, 'connected');
  const follower = new Follower(opened.store, keys.root);
  await waitFor('everything', () => follower.entries.has(keys.meta));
  t.notOk([...follower.entries.keys()].some((key) => key.startsWith(keys.tokens)));

  policy.set(testPolicy(hostB, { version: 2 }));
  await waitFor('the rights of the authority', async () => {
    return await opened.store.put(keys.service('db'), bytes('{"name":"db","port":3}')).then(
      () => true,
      () => false,
    );
  });
  await refused('who is the authority no more', asA.put(keys.policy, 'x'), /only the authority's host web-2/);
  policy.set(testPolicy(hostA, { version: 3 }));
  await follower.stop();
});

await t.test('etcdctl', { skip: unless('command:etcdctl') }, async (t) => {
  const folder = temporaryFolder(t);
  const pki = (own: Credentials): string => {
    const file = (name: string, content: string): string => {
      const path = join(folder, `${own.hostId}-${name}`);
      writeFileSync(path, content, { mode: 0o600 });
      chmodSync(path, 0o600);
      return path;
    };
    const [ca, cert, key] = [
      file('roots.pem', own.roots.join('')),
      file('host.crt', own.chain),
      file('host.key', own.key),
    ];
    return `--cacert ${ca} --cert ${cert} --key ${key}`;
  };
  const etcdctl = (own: string, words: string): Promise<Ran> => {
    const env = { ...process.env, ETCDCTL_API: '3' };
    const flags = `--endpoints=https://127.0.0.1:${offered.port} --command-timeout=10s ${own}`;
    return run('sh', ['-c', `etcdctl ${flags} ${words}`], { env });
  };
  const [ofA, ofB] = [pki(a), pki(b)];
  const cases: [own: string, words: string, ok: boolean, said: RegExp][] = [
    [ofA, 'put /legate/legate/kv/etcdctl one', true, /OK/],
    [ofB, 'get /legate/legate/kv/etcdctl --print-value-only', true, /^one$/m],
    [ofB, 'put /legate/legate/kv/etcdctl two', true, /OK/],
    [ofB, 'get /legate/legate/ --prefix --keys-only', true, /^\/legate\/legate\/policy$/m],
    [ofB, 'get /legate/legate/tokens/ --prefix', false, /host web-2 may not read join tokens/],
    [ofA, 'get /legate/legate/tokens/ --prefix --print-value-only', true, /hash/],
    [ofB, 'put /legate/legate/policy x', false, /host web-2 may not write the policy/],
    [ofB, 'del "" --prefix', false, /may not write/],
    [ofB, 'lease grant 60', true, /granted/],
    [ofB, 'endpoint status', true, /legate/],
    [ofB, 'member list', true, /https:\/\/127/],
    [ofB, 'compact 2', false, /forget history/],
    ['--insecure-skip-tls-verify', 'get a', false, /./],
  ];
  for (const [own, words, ok, said] of cases) {
    const { status: code, stdout, stderr } = await etcdctl(own, words);
    t.equal(code === 0, ok, `${words}: ${stderr.slice(0, 300)}`);
    t.match(stdout + stderr, said, words);
  }
  const { stdout } = await etcdctl(ofB, 'get /legate/legate/ --prefix --keys-only');
  t.notMatch(stdout, /tokens/);
});
