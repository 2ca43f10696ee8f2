import { once } from 'node:events';
import { connect } from 'node:net';
import { connect as connectTls } from 'node:tls';
import t from 'tap';
import { Latest } from '../../src/base/feed.ts';
import type { Credentials } from '../../src/model/credentials.ts';
import type { Policy } from '../../src/model/policy.ts';
import { limits } from '../../src/store/embedded/server/limits.ts';
import { makeTestAuthority } from '../support/certificates.ts';
import { openTestStore, stateOf } from '../support/etcd.ts';
import { OfferedStore } from '../support/offered-store.ts';
import { testPolicy, testTrust } from '../support/trust.ts';
import { waitFor } from '../support/wait.ts';
import { Follower } from './follower.ts';
import { offeredConfig, offeredHarness } from './offered-harness.ts';
import { storeContract } from './store-contract.ts';

const hostA = 'aaaaaaaaaaaaaaaa';
const hostB = 'bbbbbbbbbbbbbbbb';
const hostC = 'cccccccccccccccc';
const hourMs = 3_600_000;

const authority = await makeTestAuthority();
const policy = new Latest<Policy | undefined>(testPolicy(hostA));
const a = await authority.issue(hostA);
const shared = await OfferedStore.open(t, { trust: testTrust(a, policy) });

storeContract(
  t,
  'embedded over mutual TLS, as the host of the authority',
  offeredHarness(t, shared, testTrust(a, policy)),
  {
    leaseTtlMs: 1000,
    lapseFactor: 1,
    resumes: true,
    propertyRuns: 5,
  },
);

/** Whether a client that says HTTP/2's preface is answered with anything, and whom the server let in with what. */
async function isServed(port: number, own: Partial<Credentials> & { roots: readonly string[] }): Promise<boolean> {
  const socket = connectTls({
    host: '127.0.0.1',
    port,
    ca: [...own.roots],
    ...(own.chain !== undefined && { cert: own.chain, key: own.key }),
    ALPNProtocols: ['h2'],
    checkServerIdentity: () => undefined,
  });
  socket.on('error', () => undefined);
  socket.once('secureConnect', () => socket.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0'));
  const answered = await Promise.race([
    once(socket, 'data').then(() => true),
    once(socket, 'close').then(() => false),
  ]).catch(() => false);
  socket.destroy();
  return answered;
}

t.test('only hosts of the mesh are let in', async (t) => {
  const offered = await OfferedStore.open(t, { trust: testTrust(a, policy) });
  const other = await makeTestAuthority('other');
  const stranger = await makeTestAuthority();
  const past = { notBeforeMs: Date.now() - 2 * hourMs, notAfterMs: Date.now() - 1000 };
  const { roots } = a;
  policy.set(testPolicy(hostA, { revoked: [{ hostId: hostC, name: 'web-3', setAtMs: 1 }] }));
  const cases: [string, Partial<Credentials>, boolean, string][] = [
    ['a host', await authority.issue(hostB), true, ''],
    ['nobody', {}, false, 'no_certificate'],
    ['one that has expired', await authority.issue(hostB, past), false, 'certificate'],
    ['one from an authority that calls itself alike', await stranger.issue(hostB), false, 'certificate'],
    ["another mesh's", await other.issue(hostB, { mesh: 'other' }), false, 'certificate'],
    ["another mesh's name by our authority", await authority.issue(hostB, { mesh: 'other' }), false, 'certificate'],
    ['no name', await authority.issue(hostB, { uris: [] }), false, 'certificate'],
    [
      'two names',
      await authority.issue(hostB, { uris: ['spiffe://legate/host/1', 'spiffe://legate/host/2'] }),
      false,
      'certificate',
    ],
    ['a revoked host', await authority.issue(hostC), false, 'revoked'],
  ];
  for (const [name, own, served, reason] of cases) {
    t.equal(await isServed(offered.port, { ...own, roots }), served, name);
    if (reason !== '') {
      const metric = `legate_store_server_dropped_total{reason="${reason}"}`;
      await waitFor(`${name} to be counted`, async () => (await offered.metric(metric)) > 0);
    }
  }
  const said = offered.conditions.list().map(({ message }) => message);
  t.match(said, [/^the store refuses a client from 127\.0\.0\.1: it shows no certificate$/]);

  const clear = connect(offered.port, '127.0.0.1');
  clear.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
  clear.resume();
  await once(clear, 'close');
  t.pass('nothing is said in the clear');
  const silent = Array.from({ length: limits.handshakesPerAddress + 5 }, () => {
    const socket = connect(offered.port, '127.0.0.1');
    socket.on('error', () => undefined);
    return once(socket, 'close');
  });
  const tooMany = 'legate_store_server_dropped_total{reason="too_many_handshakes"}';
  await waitFor('those beyond the bound to be ended', async () => (await offered.metric(tooMany)) === 5);
  await Promise.all(silent);
  t.pass('those that say nothing lose their connections');
  await waitFor('no handshake', async () => (await offered.metric('legate_store_server_handshakes_count')) === 0);
});

t.test('a host that is revoked loses its connection, and a client leaves a store of a revoked host', async (t) => {
  const offered = await OfferedStore.open(t, { trust: testTrust(a, policy) });
  policy.set(testPolicy(hostA));
  const opened = await openTestStore(
    t,
    offeredConfig(offered.port, true),
    undefined,
    testTrust(await authority.issue(hostB)),
  );
  await stateOf(opened, 'connected');
  policy.set(testPolicy(hostA, { version: 2, revoked: [{ hostId: hostB, name: 'web-2', setAtMs: 1 }] }));
  const text = await stateOf(opened, 'away');
  t.match(text, /closes the connection|ended/);
  policy.set(testPolicy(hostA, { version: 3 }));
  await stateOf(opened, 'connected');

  const own = testTrust(await authority.issue(hostC));
  const wary = await openTestStore(t, offeredConfig(offered.port, true), undefined, own);
  await stateOf(wary, 'connected');
  own.policy.set(testPolicy(hostC, { revoked: [{ hostId: hostA, name: 'web-1', setAtMs: 1 }] }));
  t.match(await stateOf(wary, 'away'), /host aaaaaaaaaaaaaaaa is revoked/);
});

t.test('certificates are renewed and roots replaced, and no watch loses anything', async (t) => {
  const next = await makeTestAuthority();
  const server = testTrust(a, new Latest<Policy | undefined>(testPolicy(hostA)));
  const client = testTrust(await authority.issue(hostA));
  const offered = await OfferedStore.open(t, { trust: server });
  const opened = await openTestStore(t, offeredConfig(offered.port, true), undefined, client);
  await stateOf(opened, 'connected');
  const { store } = opened;
  const follower = new Follower(store, '/test/');
  const connects = async (): Promise<number> => {
    const text = await opened.metrics.exposition();
    return Number(/^legate_store_connects_total (\d+)/m.exec(text)?.[1]);
  };
  let count = 0;
  const writeOn = async (): Promise<void> => {
    for (let index = 0; index < 20; index += 1) {
      count += 1;
      await offered.store.put(`/test/${count}`, Buffer.from(String(count)));
    }
    await waitFor('the watch to follow', () => follower.entries.size === count);
  };
  await writeOn();

  client.credentials.set(await authority.issue(hostA));
  server.credentials.set(await authority.issue(hostA));
  await writeOn();
  t.equal(await connects(), 1, 'a renewed certificate breaks no connection');

  const both = [...a.roots, next.root];
  const withRoots = async (from: typeof authority, roots: readonly string[]): Promise<Credentials> => {
    return { ...(await from.issue(hostA)), roots };
  };
  server.credentials.set(await withRoots(authority, both));
  client.credentials.set(await withRoots(authority, both));
  server.credentials.set(await withRoots(next, both));
  client.credentials.set(await withRoots(next, both));
  await writeOn();
  t.equal(await connects(), 1, 'nor does a further root');
  client.credentials.set(await withRoots(next, [next.root]));
  await waitFor('another connection', async () => (await connects()) === 2);
  await writeOn();
  server.credentials.set(await withRoots(next, [next.root]));
  await writeOn();
  t.equal(await connects(), 2, 'who shows a certificate of the next root stays');
  t.equal(follower.changes.filter(({ kind }) => kind === 'reset').length, 1, 'and its watches went on where they were');

  await follower.stop();
  server.credentials.set(await withRoots(authority, a.roots));
  await new Promise((resolve) => setImmediate(resolve));
  t.equal(await offered.metric('legate_store_server_connections'), 1, 'who is from a root that has gone since stays');
});

t.test(
  'a client goes over to a newer certificate before the old one expires, and the server waits no longer',
  async (t) => {
    const soon = (ms: number) => ({ notBeforeMs: Date.now() - 1000, notAfterMs: Date.now() + ms });
    const offered = await OfferedStore.open(t, {
      trust: testTrust(a, new Latest<Policy | undefined>(testPolicy(hostA))),
    });
    const client = testTrust(await authority.issue(hostB, soon(6000)));
    const opened = await openTestStore(t, offeredConfig(offered.port, true), undefined, client);
    await stateOf(opened, 'connected');
    client.credentials.set(await authority.issue(hostB));
    await waitFor(
      'a second connection',
      () => opened.lines.filter((line) => line.startsWith('store is connected')).length === 2,
    );
    t.match(
      opened.lines.find((line) => line.startsWith('store connection is lost')),
      /made anew with the present certificate/,
    );
    const late = await openTestStore(
      t,
      offeredConfig(offered.port, true),
      undefined,
      testTrust(await authority.issue(hostC, soon(3000))),
    );
    await stateOf(late, 'connected');
    await stateOf(late, 'away');
    t.ok((await offered.metric('legate_store_server_dropped_total{reason="certificate"}')) > 0);
  },
);

t.test('a store that gets credentials serves nobody in the clear any more', async (t) => {
  const trust = { ...testTrust(undefined, policy), clearUnderlay: true };
  const offered = await OfferedStore.open(t, { trust });
  const clear = await openTestStore(t, offeredConfig(offered.port));
  await stateOf(clear, 'connected');
  trust.credentials.set(a);
  t.match(await stateOf(clear, 'away'), /https/, 'and the client is told what to write');
  const secure = await openTestStore(t, offeredConfig(offered.port, true), undefined, testTrust(a));
  await stateOf(secure, 'connected');
});

t.test('on an undeclared underlay a store waits for credentials', async (t) => {
  const trust = testTrust(undefined, policy);
  const offered = await OfferedStore.open(t, { trust, listen: { address: '0.0.0.0', port: 0 } });
  t.match(offered.conditions.list()[0], { id: 'store.listen', hint: /legate init/ });
  trust.credentials.set(a);
  await waitFor('the listener', () => offered.port !== 0);
  t.ok(await isServed(offered.port, await authority.issue(hostB)));
  t.same(offered.conditions.list(), []);
});
