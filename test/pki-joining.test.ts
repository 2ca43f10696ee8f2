import { once } from 'node:events';
import { createServer } from 'node:net';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { HostsDocument, StatusDocument } from '../sidecar/admin/documents.ts';
import { joinMesh } from '../sidecar/join.ts';
import { systemClock } from '../src/base/clock.ts';
import { describeError } from '../src/base/errors.ts';
import type { Config } from '../src/config/config.ts';
import { loadConfig } from '../src/config/load.ts';
import { type Teardown, temporaryFolder } from './support/agent.ts';
import { TestConsul, unlessConsul } from './support/consul.ts';
import { EtcdCluster } from './support/etcd.ts';
import { ask, freePort } from './support/faults.ts';
import { firstHost, identityOf, joinTo, legate, meshHost, nextToken, tokenOf } from './support/mesh-host.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

/** More than are at the desk at once from one address: the others wait for their turn. */
const hosts = 10;

async function newHost(t: Teardown, name: string): Promise<Config> {
  const text = JSON.stringify({
    host: name,
    advertise: '127.0.0.1',
    data_dir: join(temporaryFolder(t), 'data'),
    tunnel: { listen: `127.0.0.1:${await freePort()}` },
  });
  const defaults = { hostname: name, advertise: () => '127.0.0.1' };
  const loaded = loadConfig({ file: { path: 'f', text }, env: {}, flags: {}, defaults });
  if ('config' in loaded) return loaded.config;
  throw new Error(loaded.faults.map((fault) => fault.text).join());
}

t.test('a token lets in as many hosts as it says, and who fails too often waits', async (t) => {
  const tunnel = await freePort();
  const one = await firstHost(t, { tunnel: { listen: `[::1]:${tunnel}` } });
  await one.agent.start();
  const address = `[::1]:${tunnel}`;
  const { signal } = new AbortController();
  const enter = async (name: string, token: string): Promise<string> => {
    const config = await newHost(t, name);
    const joining = joinMesh(config, { address, token, version: '0', clock: systemClock, signal });
    return joining.then(
      () => 'joined',
      (error: unknown) => describeError(error),
    );
  };
  const all = async (what: string, token: string): Promise<string[]> =>
    (await Promise.all(Array.from({ length: hosts }, (_, n) => enter(`${what}-${n}`, token)))).sort();
  const { ports } = one;
  const misled = await meshHost(t, 'misled-1');
  t.match(await joinTo({ ...one, ports: { ...ports, tunnel: ports.store } }, misled, tokenOf(one.init)), {
    status: 1,
    stderr: new RegExp(
      `^legate join: no host is let in at 127\\.0\\.0\\.1:${ports.store}: something else speaks TLS there; ${ports.store} may be the port of its store; .*legate join 127\\.0\\.0\\.1, with a port only where that is not 7711\n$`,
    ),
  });
  const several = await nextToken(one, '--uses', String(hosts));
  t.same(new Set(await all('many', several)), new Set(['joined']), 'at once');
  const outcomes = await all('db', tokenOf(one.init));
  t.same(
    outcomes.map((outcome) => (/used as often as it may be/.test(outcome) ? 'spent' : outcome)),
    ['joined', ...Array.from({ length: hosts - 1 }, () => 'spent')],
    'one of them, at an address of IPv6',
  );
  const throttled = await all('web', tokenOf(one.init));
  t.ok(
    throttled.some((outcome) => /too many requests from this address failed/.test(outcome)),
    throttled.join(),
  );
  t.match((await one.agent.api('GET', '/metrics')).text, /legate_pki_refusals_total\{reason="throttled"\} [1-9]/);
  t.match(await one.agent.json('/api/ca'), { hosts: { length: hosts + 2 } });
});

/** Two hosts with a store of somebody else's, a link between them, and who is not to become an authority. */
async function joinOn(t: Test, store: Readonly<Record<string, unknown>>, named: RegExp): Promise<void> {
  const server = createServer((socket) => socket.on('error', () => undefined).end('the db')).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => server.close());
  const { port } = server.address() as { port: number };
  const listen = await freePort();
  const one = await meshHost(t, 'web-1', { store, links: [{ service: 'db', listen: `127.0.0.1:${listen}` }] });
  const init = await legate(['init', '-c', one.agent.configFile]);
  t.equal(init.status, 0, init.stderr);
  t.match(init.stdout, named);
  await one.agent.start();
  const two = await meshHost(t, 'db-1', { instances: [{ service: 'db', address: '127.0.0.1', port }] });
  t.match(await joinTo(one, two, tokenOf(init)), { status: 0, stdout: named });
  await two.agent.start();
  const answer = await waitFor('the link', () => ask(listen).catch(() => ''), { timeoutMs: 20_000 });
  t.equal(answer, 'the db');
  t.match(await identityOf(two), { role: 'member', authority: 'web-1', problem: null });
  t.match(await one.agent.json<StatusDocument>('/api/status'), { tunnels: [{ host: 'db-1', state: 'ready' }] });
  const until = new Date(Date.now() + 6 * 86_400_000).toISOString();
  const { hosts: known } = await one.agent.json<HostsDocument>('/api/hosts');
  t.same(
    known.map(({ name, certificateUntil = '' }) => [name, certificateUntil > until]),
    [
      ['db-1', true],
      ['web-1', true],
    ],
  );
  const three = await meshHost(t, 'web-2');
  t.match(await joinTo(one, three, await nextToken(one)), { status: 0 });
  t.match(await legate(['init', '-c', two.agent.configFile]), { status: 1, stderr: /belongs to a host of a mesh/ });
  const other = await meshHost(t, 'web-3', { store });
  t.match(await legate(['init', '-c', other.agent.configFile]), { status: 1, stderr: /has an authority already/ });
}

t.test(
  'a mesh whose store is etcd',
  { skip: unless('command:etcd', 'command:etcdctl', 'command:openssl') },
  async (t) => {
    const { endpoints } = await EtcdCluster.start(t);
    const store = { kind: 'etcd', endpoints: endpoints.map(({ text }) => text) };
    await joinOn(t, store, new RegExp(`etcd at ${endpoints[0]?.text}`));
  },
);

t.test('a mesh whose store is Consul', { skip: unlessConsul() }, async (t) => {
  const { urls } = await TestConsul.start(t);
  const store = { kind: 'consul', endpoints: urls.map(({ text }) => text) };
  await joinOn(t, store, new RegExp(`Consul at ${urls[0]?.text}`, 'i'));
});
