import { Resolver } from 'node:dns/promises';
import { rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import type { StoreCopyDocument } from '../sidecar/admin/documents.ts';
import { Agent, type Teardown } from './support/agent.ts';
import { EtcdCluster } from './support/etcd.ts';
import { ask, complaint, echoServer, freePort, noComplaint, sayingServer, statusOf } from './support/faults.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

/** Moving a mesh from one store to another, with whole sidecars and real etcd. */

const needsEtcd = { skip: unless('command:etcd', 'command:etcdctl'), timeout: 110_000 };

async function resolverOf(agent: Agent): Promise<Resolver> {
  const resolver = new Resolver({ timeout: 2000, tries: 1 });
  resolver.setServers([(await statusOf(agent)).names.find((each) => each.purpose === 'configured')?.listen ?? '']);
  return resolver;
}

/** Asks and connects all the time, and keeps one connection busy; what failed until it is ended. */
async function traffic(t: Teardown, agent: Agent, link: number, echo: number): Promise<() => Promise<string[]>> {
  const resolver = await resolverOf(agent);
  const failures: string[] = [];
  let counted = 0;
  let ended = false;
  t.teardown(() => {
    ended = true;
  });
  const repeat = async (what: string, once: () => Promise<unknown>): Promise<void> => {
    while (!ended) {
      try {
        await once();
        counted += 1;
      } catch (error) {
        failures.push(`${what}: ${String(error)}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  };
  const socket: Socket = connect(echo, '127.0.0.1');
  t.teardown(() => {
    socket.destroy();
  });
  socket.on('error', (error) => failures.push(`the connection: ${String(error)}`));
  socket.on('close', () => ended || failures.push('the connection was closed'));
  const exchange = (): Promise<void> =>
    new Promise((resolve, reject) => {
      const late = setTimeout(() => reject(new Error('no echo')), 5000);
      socket.once('data', () => {
        clearTimeout(late);
        resolve();
      });
      socket.write('x');
    });
  const loops = [
    repeat('a name', async () => {
      const addresses = await resolver.resolve4('db.service.mesh.internal');
      if (addresses[0] !== '127.0.0.1') throw new Error(`resolved to ${addresses.join()}`);
    }),
    repeat('a link', async () => {
      const said = await ask(link);
      if (said !== 'db') throw new Error(`said ${said}`);
    }),
    repeat('the connection', exchange),
  ];
  return async () => {
    ended = true;
    await Promise.all(loops);
    if (counted < 10) failures.push(`only ${counted} succeeded`);
    return failures;
  };
}

interface World {
  readonly agent: Agent;
  readonly etcd: EtcdCluster;
  readonly link: number;
  readonly echo: number;
  /** The configuration beside `store`. */
  readonly config: Record<string, unknown>;
}

async function world(t: Teardown, store: (etcd: EtcdCluster) => unknown): Promise<World> {
  const etcd = await EtcdCluster.start(t);
  const [{ port }, echoes, link, echo] = await Promise.all([
    sayingServer(t, 'db'),
    echoServer(t),
    freePort(),
    freePort(),
  ]);
  const config = {
    instances: [
      { service: 'db', address: '127.0.0.1', port },
      { service: 'echo', address: '127.0.0.1', port: echoes },
    ],
    links: [
      { service: 'db', listen: `127.0.0.1:${link}` },
      { service: 'echo', listen: `127.0.0.1:${echo}` },
    ],
  };
  return { agent: new Agent(t, { ...config, store: store(etcd) }), etcd, link, echo, config };
}

function etcdStore(etcd: EtcdCluster, more: Record<string, unknown> = {}): Record<string, unknown> {
  return { kind: 'etcd', endpoints: etcd.endpoints.map(({ text }) => text), lease_ttl: '3s', ...more };
}

async function used(agent: Agent, kind: string): Promise<void> {
  await waitFor(`the store ${kind} to be used`, async () => {
    const { store } = await statusOf(agent);
    return store.kind === kind && store.state === 'connected' && store.snapshot.origin === 'store';
  });
}

t.test('a mesh grows from embedded to etcd and back, under traffic', needsEtcd, async (t) => {
  const { agent, etcd, link, echo, config } = await world(t, () => ({ kind: 'embedded', lease_ttl: '3s' }));
  const [endpoint] = etcd.endpoints;
  const url = endpoint?.text ?? '';
  await agent.start();
  const binary = Buffer.from([0, 255, 10, 13, 128]);
  t.equal((await agent.api('PUT', '/api/kv/bytes', binary.toString('latin1'))).status, 200);
  t.equal((await agent.api('PUT', '/api/kv/lock?lease_ttl=60s', 'mine')).status, 200);
  t.equal((await agent.cli('service', 'set', 'db', 'balance=random')).status, 0);
  await waitFor('both to be linked', async () => (await ask(link)) === 'db');
  const end = await traffic(t, agent, link, echo);

  // Somebody writes all the time: what is acknowledged must be there in the end.
  const acknowledged: string[] = [];
  let writing = true;
  const refusals = new Set<number>();
  const writer = (async () => {
    for (let index = 0; writing; index += 1) {
      const { status } = await agent.api('PUT', `/api/kv/w/${index}`, `v${index}`);
      if (status === 200) acknowledged.push(`w/${index}`);
      else refusals.add(status);
    }
  })();
  const lost = async (): Promise<string[]> => {
    const { entries } = await agent.json<{ entries: { key: string }[] }>('/api/kv/w/?recurse=1');
    const there = new Set(entries.map(({ key }) => key));
    return acknowledged.filter((key) => !there.has(key));
  };

  const looked = await agent.cli('store', 'copy', '--to', url, '--dry-run');
  t.match(looked.stdout, /would move from the embedded store to etcd/, looked.stderr);
  t.equal(await etcd.must('get', '--prefix', '--keys-only', '/legate/'), '', 'a dry run writes nothing');
  const moved = await agent.cli('store', 'copy', '--to', url);
  t.equal(moved.status, 0, moved.stderr);
  t.match(moved.stdout, /the mesh has moved from the embedded store to etcd at http/);
  t.match(moved.stdout, /uses it now: web-1/);
  t.match(moved.stdout, /1 key with a time to live/);
  await used(agent, 'etcd');
  t.match((await complaint(agent, /the mesh has moved to etcd/)).hint, /store: \{kind: etcd, endpoints: \["http/);
  t.equal(await etcd.must('get', '--print-value-only', '/legate/legate/kv/lock'), 'mine');
  t.match(JSON.parse(await etcd.must('get', '--print-value-only', '/legate/legate/services/db')), {
    balance: 'random',
  });
  t.equal((await agent.api('GET', '/api/kv/bytes')).text, binary.toString('utf8') === '' ? '' : '\0ÿ\n\r\u0080');
  t.equal((await agent.cli('service', 'set', 'db', 'balance=least-connections')).status, 0, 'settings go on');
  t.equal((await agent.api('PUT', '/api/kv/after', 'etcd')).status, 200);

  // The file follows; nothing is opened anew.
  agent.configure({ ...config, store: etcdStore(etcd) });
  process.kill(agent.pid, 'SIGHUP');
  await noComplaint(agent, /the mesh has moved/, 10_000);

  const back = await agent.cli('store', 'copy', '--to', 'embedded', '--json');
  t.equal(back.status, 0, back.stderr);
  t.match(JSON.parse(back.stdout) as StoreCopyDocument, { state: 'done', moved: ['web-1'], waiting: [] });
  await used(agent, 'embedded');
  writing = false;
  await writer;
  t.same(await lost(), [], `none of ${acknowledged.length} acknowledged writes is lost`);
  t.same(
    [...refusals].filter((status) => status !== 503),
    [],
    'while the last keys are copied writes are refused, and nothing else',
  );
  t.equal((await agent.api('GET', '/api/kv/after')).text, 'etcd');
  t.equal((await agent.api('GET', '/api/kv/lock')).text, 'mine');
  t.same(await end(), [], 'no name stopped resolving, no connection failed');

  // A start with the file that still names etcd finds the mesh where it went.
  await agent.kill();
  await agent.start();
  await used(agent, 'embedded');
  t.same(await lost(), []);
  t.match((await complaint(agent, /the mesh has moved to the embedded store/)).hint, /kind: embedded/);
});

t.test('hosts follow a mesh that moves, and a changed file', needsEtcd, async (t) => {
  const { agent, etcd, link, echo, config } = await world(t, (cluster) => etcdStore(cluster));
  const other = new Agent(t, { host: 'web-2', advertise: '127.0.0.2', store: etcdStore(etcd) });
  await Promise.all([agent.start(), other.start()]);
  const hosts = (of: Agent) => of.json<{ hosts: { name: string; alive: boolean }[] }>('/api/hosts');
  const seeEachOther = (): Promise<unknown> =>
    waitFor('both to see both alive', async () => {
      const all = await Promise.all([hosts(agent), hosts(other)]);
      return all.every((each) => each.hosts.length === 2 && each.hosts.every(({ alive }) => alive));
    });
  await seeEachOther();
  const end = await traffic(t, agent, link, echo);
  const url = etcd.endpoints[0]?.text ?? '';
  const taken = await agent.cli('store', 'copy', '--to', url);
  t.match(taken.stderr, /is in etcd at .* already/);
  const moved = await other.cli('store', 'copy', '--to', url, '--prefix', '/elsewhere', '--json');
  t.equal(moved.status, 0, moved.stderr);
  t.match(JSON.parse(moved.stdout) as StoreCopyDocument, { moved: ['web-1', 'web-2'], waiting: [] });
  t.match((await complaint(agent, /the mesh has moved/)).hint, /prefix: \/elsewhere/);
  await seeEachOther();
  t.equal((await other.api('PUT', '/api/kv/a', '1')).status, 200);
  await waitFor('it to be seen there', async () => (await agent.api('GET', '/api/kv/a')).text === '1');

  // A third host comes with the file of before.
  const late = new Agent(t, { host: 'web-3', advertise: '127.0.0.3', store: etcdStore(etcd) });
  await late.start();
  t.equal((await late.api('GET', '/api/kv/a')).text, '1');

  // A file that names a store that nobody answers for, then one with nothing in it.
  agent.configure({ ...config, store: etcdStore(etcd, { endpoints: [`http://127.0.0.1:${await freePort()}`] }) });
  process.kill(agent.pid, 'SIGHUP');
  await complaint(agent, /is used until then/);
  const { store, todo } = await statusOf(agent);
  t.match(store, { kind: 'etcd', where: `etcd at ${url}`, state: 'connected', problem: null });
  t.match(store.wanted, { kind: 'etcd', where: /^etcd at http/, problem: /./ });
  t.equal(todo.filter(({ id }) => id.startsWith('store.') && id !== 'store.moved').length, 1, 'it is told once');
  t.match((await agent.cli('status')).stdout, /is wanted, and not in use yet \(see todo\)/);
  agent.configure({ ...config, store: etcdStore(etcd, { prefix: '/empty' }) });
  process.kill(agent.pid, 'SIGHUP');
  await complaint(agent, /the store had come back empty/);
  t.match(
    await etcd.must('get', '--keys-only', '--prefix', '/empty/'),
    /services\/db/,
    'its settings are written back',
  );
  t.same(await end(), [], 'no name stopped resolving, no connection failed');
});

t.test('from one host to two, to etcd, and back to the first', needsEtcd, async (t) => {
  const { agent, etcd, link, echo, config } = await world(t, () => ({ kind: 'embedded', lease_ttl: '3s' }));
  await agent.start();
  t.equal((await agent.api('PUT', '/api/kv/first', '1')).status, 200);
  await waitFor('both to be linked', async () => (await ask(link)) === 'db');
  const end = await traffic(t, agent, link, echo);

  // The first offers its store, which opens it anew; the second uses it as it would etcd.
  const listen = `127.0.0.1:${await freePort()}`;
  agent.configure({ ...config, store: { kind: 'embedded', listen, lease_ttl: '3s' } });
  process.kill(agent.pid, 'SIGHUP');
  const fromFirst = { kind: 'etcd', endpoints: [`http://${listen}`], lease_ttl: '3s' };
  const second = new Agent(t, { host: 'web-2', advertise: '127.0.0.2', store: fromFirst });
  await second.start();
  t.equal((await second.api('GET', '/api/kv/first')).text, '1');

  const moved = await agent.cli('store', 'copy', '--to', etcd.endpoints[0]?.text ?? '', '--json');
  t.equal(moved.status, 0, moved.stderr);
  t.match(JSON.parse(moved.stdout) as StoreCopyDocument, { moved: ['web-1', 'web-2'], waiting: [] });
  t.match((await complaint(agent, /the file still says the embedded store/)).hint, /kind: etcd/);
  t.match((await complaint(second, /the file still says etcd at/)).hint, /kind: etcd/);
  t.equal((await second.api('PUT', '/api/kv/second', '2')).status, 200);
  await waitFor('it to be seen', async () => (await agent.api('GET', '/api/kv/second')).text === '2');
  // A third that only knows the first store is told there where the mesh is.
  const third = new Agent(t, { host: 'web-3', advertise: '127.0.0.3', store: fromFirst });
  await third.start();
  t.equal((await third.api('GET', '/api/kv/second')).text, '2');
  await third.kill();

  const unreachable = await agent.cli('store', 'copy', '--to', 'embedded');
  t.match(unreachable.stderr, /other hosts could not reach the store in this sidecar: web-2/);
  const back = await agent.cli('store', 'copy', '--to', `embedded://${listen}`, '--json');
  t.equal(back.status, 0, back.stderr);
  t.match(JSON.parse(back.stdout) as StoreCopyDocument, { moved: ['web-1', 'web-2'], waiting: [] });
  t.equal((await second.api('GET', '/api/kv/second')).text, '2');
  await noComplaint(agent, /the mesh has moved/);
  await noComplaint(second, /the mesh has moved/);
  t.same(await end(), [], 'no name stopped resolving, no connection failed');
});

t.test('a first start without its store', needsEtcd, async (t) => {
  const { agent, etcd, link, config } = await world(t, (cluster) => etcdStore(cluster));
  const [member] = etcd.members;
  await member?.kill();
  await agent.start({ ready: false });
  await waitFor('its doors', async () => (await agent.api('GET', '/healthz')).status === 200);
  t.equal((await agent.api('GET', '/readyz')).status, 503);
  t.equal(await waitFor('the link', () => ask(link)), 'db', 'what runs here is linked');
  const resolver = await resolverOf(agent);
  t.same(await resolver.resolve4('db.service.mesh.internal'), ['127.0.0.1'], 'and named');
  await t.rejects(resolver.resolve4('other.mesh.internal'), { code: 'ESERVFAIL' }, 'the rest is not known');
  t.match((await complaint(agent, new RegExp(etcd.endpoints[0]?.text.slice(7) ?? ''))).hint, /./);
  t.equal((await agent.api('PUT', '/api/kv/a', '1')).status, 503);
  member?.start();
  await waitFor('it to be ready', async () => (await agent.api('GET', '/readyz')).status === 200, {
    timeoutMs: 30_000,
  });
  await used(agent, 'etcd');
  t.equal((await agent.api('PUT', '/api/kv/a', '1')).status, 200);
  await noComplaint(agent, /127\.0\.0\.1/, 10_000);
  // The snapshot is on disk a moment later, and with it the next start is ready without the store.
  await agent.kill();
  await member?.kill();
  agent.configure({ ...config, store: etcdStore(etcd) });
  await agent.start();
  t.equal(await ask(link), 'db');
  await t.rejects((await resolverOf(agent)).resolve4('other.mesh.internal'), { code: 'ENOTFOUND' });
});

t.test('a copy that cannot be made leaves the mesh where it is', needsEtcd, async (t) => {
  const { agent, etcd } = await world(t, () => ({ kind: 'embedded', lease_ttl: '3s' }));
  await agent.start();
  const url = etcd.endpoints[0]?.text ?? '';
  const copy = async (to: string): Promise<string> => {
    const begun = await agent.api('POST', '/api/store/copy', { to });
    if (begun.status !== 200) return begun.text;
    const ended = await waitFor(
      'the copy to end',
      async () => {
        const document = await agent.json<StoreCopyDocument>('/api/store/copy');
        return document.state !== 'running' && document;
      },
      { timeoutMs: 20_000 },
    );
    return ended.error?.message ?? ended.state;
  };
  await etcd.must('put', '/legate/legate/kv/foreign', 'x');
  t.match(await copy(url), /the target is not empty: it has kv\/foreign/);
  await etcd.must('del', '/legate/legate/kv/foreign');
  await etcd.must('put', '/legate/legate/meta', `{"v":1,"meshId":"${'0'.repeat(32)}","format":1}`);
  t.match(await copy(url), /the target holds mesh 0{32}/);
  await etcd.must('del', '/legate/legate/meta');
  t.match(await copy('ftp://x'), /http:\/\/host:port/);
  t.match(await copy('embedded'), /is in the embedded store already/);
  t.match(await copy(`http://127.0.0.1:${await freePort()}`), /cannot be reached/);
  t.equal((await statusOf(agent)).store.kind, 'embedded');
  t.equal((await agent.api('PUT', '/api/kv/a', '1')).status, 200, 'writes go on');
  t.equal(await copy(url), 'done', 'once nothing is in the way it goes');
});

t.test('etcd is emptied under two sidecars, in every way in which it keeps its id', needsEtcd, async (t) => {
  const { agent, etcd, link, echo } = await world(t, (cluster) => etcdStore(cluster));
  const other = new Agent(t, { host: 'web-2', advertise: '127.0.0.2', store: etcdStore(etcd) });
  await Promise.all([agent.start(), other.start()]);
  t.equal((await agent.cli('service', 'set', 'db', 'balance=random')).status, 0);
  const lasting = async (): Promise<string> => {
    const listed = await etcd.ctl('get', '--prefix', '--keys-only', '/legate/');
    return listed.stdout
      .split('\n')
      .filter((line) => line !== '')
      .sort()
      .join(' ');
  };
  await waitFor('all that is to be stored', async () => /alive.*alive.*db.*meta.*db.*echo/.test(await lasting()));
  const before = await lasting();
  await waitFor('both to be linked', async () => (await ask(link)) === 'db');
  await used(other, 'etcd');
  const end = await traffic(t, agent, link, echo);
  const [member] = etcd.members;
  const ways: Readonly<Record<string, () => Promise<unknown>>> = {
    'all its keys are deleted': () => etcd.must('del', '--prefix', '/legate'),
    'and once more': () => etcd.must('del', '--prefix', '/legate/'),
    'its data is gone': async () => {
      await member?.kill();
      rmSync(join(etcd.folder, member?.name ?? '-'), { recursive: true });
      member?.start();
      await etcd.healthy();
    },
  };
  for (const [what, empty] of Object.entries(ways)) {
    await empty();
    await waitFor(`everything to be back: ${what}`, async () => (await lasting()) === before, { timeoutMs: 20_000 });
    const stored = JSON.parse(await etcd.must('get', '--print-value-only', '/legate/legate/services/db'));
    t.match(stored, { balance: 'random' }, what);
    for (const each of [agent, other]) await complaint(each, /the store had come back empty/);
  }
  t.same(await end(), [], 'no name stopped resolving, no connection failed');

  // With a backup the users' own keys come back, too.
  t.equal((await agent.api('PUT', '/api/kv/mine', '1')).status, 200);
  const backup = await agent.api('GET', '/api/store/backup');
  await etcd.must('del', '--prefix', '/legate/');
  const restored = await agent.api('POST', '/api/store/restore', backup.text);
  t.equal(restored.status, 200, restored.text);
  t.equal((await agent.api('GET', '/api/kv/mine')).text, '1');
  await waitFor('all', async () => (await lasting()).includes('/legate/legate/meta'));

  await etcd.must('put', '/legate/legate/meta', 'garbage');
  for (const each of [agent, other]) {
    t.match((await complaint(each, /\/legate\/legate\/meta in the store cannot be used/)).hint, /delete the key/);
  }
});
