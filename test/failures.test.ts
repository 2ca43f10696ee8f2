import { Resolver } from 'node:dns/promises';
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import type { ServiceDocument } from '../sidecar/admin/documents.ts';
import { systemClock } from '../src/base/clock.ts';
import { silentLog } from '../src/base/log.ts';
import { Metrics } from '../src/base/metrics.ts';
import { openEmbeddedStore } from '../src/store/embedded/embedded-store.ts';
import { keysOf } from '../src/store/keys.ts';
import { Agent } from './support/agent.ts';
import {
  ask,
  complaint,
  cpuMsOf,
  descendantsOf,
  descriptorsOf,
  echoServer,
  freePort,
  instancesOf,
  metricOf,
  mountSmallDisk,
  noComplaint,
  type ProcessEntry,
  sayingServer,
  statusOf,
} from './support/faults.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

/** What may fail on one machine below a sidecar: its disk, its limits, its rights, its stored data. */

const register = (agent: Agent, name: string, port: number): Promise<{ status: number; text: string }> =>
  agent.api('PUT', `/api/instances/web-1/${name}`, { service: 'db', address: '127.0.0.1', port });

async function resolverOf(agent: Agent): Promise<Resolver> {
  const resolver = new Resolver({ timeout: 2000, tries: 1 });
  resolver.setServers([(await statusOf(agent)).names.find((each) => each.purpose === 'configured')?.listen ?? '']);
  return resolver;
}

/** Takes all the space of the file system that holds `folder`, down to the last bytes. */
function fill(folder: string): string {
  const file = join(folder, 'filler');
  const { bavail, bsize } = statfsSync(folder);
  writeFileSync(file, '');
  for (let size = bavail * bsize; size >= 4096; size = Math.floor(size / 2)) {
    try {
      writeFileSync(file, Buffer.alloc(size), { flag: 'a' });
    } catch {
      // It takes what fits; what remains is filled in smaller steps.
    }
  }
  return file;
}

// They share nothing, and wait more than they work.
t.jobs = 2;

t.test('a full disk below the data directory', { skip: unless('root', 'netns'), timeout: 60_000 }, async (t) => {
  const { port } = await sayingServer(t, 'db');
  const link = await freePort();
  const agent = new Agent(t, { links: [{ service: 'db', listen: `127.0.0.1:${link}` }] });
  const data = join(agent.folder, 'data');
  mkdirSync(data, { mode: 0o700 });
  mountSmallDisk(t, data, 16);
  await agent.start();
  t.equal((await register(agent, 'first', port)).status, 200);
  const acknowledged = { instances: new Set(['first']), keys: new Map<string, string>() };
  for (let index = 0; index < 20; index += 1) {
    t.equal((await agent.api('PUT', `/api/kv/before/${index}`, `value ${index}`)).status, 200);
    acknowledged.keys.set(`before/${index}`, `value ${index}`);
  }
  const attempts = async (round: string): Promise<number> => {
    let refused = 0;
    for (let index = 0; index < 30; index += 1) {
      const value = `${round} ${index} ${'x'.repeat(4000)}`;
      const put = await agent.api('PUT', `/api/kv/${round}/${index}`, value);
      if (put.status === 200) acknowledged.keys.set(`${round}/${index}`, value);
      else {
        refused += 1;
        t.match(JSON.parse(put.text), { error: { code: String, message: String, hint: /space|status/ } });
      }
      const made = await register(agent, `${round}-${index}`, port);
      if (made.status === 200) acknowledged.instances.add(`${round}-${index}`);
      else refused += 1;
    }
    return refused;
  };
  const kept = async (what: string): Promise<void> => {
    const names = new Set((await instancesOf(agent)).map((each) => each.name));
    t.same(
      [...acknowledged.instances].filter((name) => !names.has(name)),
      [],
      `${what}: every acknowledged instance is there`,
    );
    const lost: string[] = [];
    for (const [key, value] of acknowledged.keys)
      if ((await agent.api('GET', `/api/kv/${key}`)).text !== value) lost.push(key);
    t.same(lost, [], `${what}: every acknowledged key is there`);
  };

  let filler = fill(data);
  t.ok((await attempts('full')) > 0, 'what cannot be kept is not acknowledged');
  const said = await complaint(agent, /space/);
  t.match(said.hint, /free (some )?space/);
  t.equal((await agent.api('GET', '/readyz')).status, 200);
  t.equal(await ask(link), 'db', 'links go on');
  t.same(await (await resolverOf(agent)).resolve4('db.service.mesh.internal'), ['127.0.0.1'], 'names go on');
  const drained = await agent.cli('drain', 'web-1/first');
  t.equal(drained.status, 1, 'a drain that would not hold over a restart is refused');
  t.match(drained.stderr, /space|ENOSPC/);

  rmSync(filler);
  await noComplaint(agent, /space/, 20_000);
  await waitFor('the store', async () => (await agent.api('PUT', '/api/kv/after', 'after')).status === 200, {
    timeoutMs: 20_000,
  });
  await kept('with space again');
  t.equal(await attempts('freed'), 0);

  filler = fill(data);
  await attempts('full-again');
  await agent.kill('SIGKILL');
  await agent.start({ ready: false });
  const outcome = await Promise.race([
    agent.ended(),
    waitFor('an answer', async () => (await agent.api('GET', '/healthz')).status === 200, { timeoutMs: 20_000 }).catch(
      () => 'no answer',
    ),
  ]);
  if (typeof outcome === 'number') {
    t.equal(outcome, 1);
    t.match(
      agent.log.at(-1),
      /^legate agent: .*(space|ENOSPC)/,
      'a start on a full disk that is refused says why in one line',
    );
  } else {
    t.equal(await ask(link), 'db', 'a start on a full disk: links go on from what is known');
    await complaint(agent, /space/);
  }
  rmSync(filler);
  if (!agent.running) await agent.start();
  await waitFor('the store', async () => (await agent.api('PUT', '/api/kv/after', 'after')).status === 200, {
    timeoutMs: 20_000,
  });
  await kept('after a start on the full disk');
  await waitFor(
    'nothing of it to be left in status',
    async () => !(await statusOf(agent)).todo.some((each) => /space/.test(each.message)),
    { timeoutMs: 30_000 },
  );
  t.notMatch(agent.log.join('\n'), /unhandled|TypeError| {4}at /, 'no stack in the log');
  t.equal(await agent.kill(), 0);
});

/** Sends a word and gives what comes back. */
function exchange(port: number, address = '127.0.0.1'): Promise<string> {
  return ask(port, address, 'again').catch((error: unknown) => String(error));
}

const helpersOf = (agent: Agent): ProcessEntry[] =>
  descendantsOf(agent.pid).filter((each) => /^(ip|nft) /.test(each.command) && each.state !== 'Z');

t.test('descriptors run out', { skip: unless('nft', 'command:prlimit'), timeout: 60_000 }, async (t) => {
  const echo = await echoServer(t);
  const link = await freePort();
  const config = {
    instances: [{ service: 'db', address: '127.0.0.1', port: echo }],
    links: [{ service: 'db', listen: `127.0.0.1:${link}` }],
    services: { db: { port: 5432 } },
    docker: { socket: '/nonexistent/docker.sock' },
    vip: { mode: 'auto', range: '240.122.0.0/16', local_range: '240.123.0.0/16' },
  };
  const agent = await new Agent(t, config).start({ prefix: ['prlimit', '--nofile=128:128', '--'] });
  await waitFor('the link', async () => (await agent.json<ServiceDocument>('/api/services/db')).usable === 1);
  const { vip } = await waitFor('the address', async () => {
    const found = await agent.json<ServiceDocument>('/api/services/db');
    return found.vip === null ? undefined : found;
  });
  await waitFor('the address to be served', async () => (await exchange(5432, vip ?? '')) === 'again');
  const before = descriptorsOf(agent.pid);
  t.ok(before < 80, `${before} descriptors before`);
  const nameServer = (await statusOf(agent)).names.find((each) => each.purpose === 'configured')?.listen ?? '';
  const namePort = Number(nameServer.split(':').at(-1));
  const held: Socket[] = [];
  t.teardown(() => {
    for (const socket of held) socket.destroy();
  });
  const hold = (to: { port: number; host: string } | { path: string }): void => {
    const socket = connect(to);
    socket.on('error', () => undefined);
    held.push(socket);
  };
  // Links are bounded by what the limit allows; connections to its other doors take the rest.
  for (const port of [link, namePort]) for (let index = 0; index < 100; index += 1) hold({ port, host: '127.0.0.1' });
  const full = (): boolean => descriptorsOf(agent.pid) >= 127;
  await waitFor('the limit to be reached', () => {
    if (!full()) hold({ path: agent.socket });
    return full();
  });
  // Helpers that end now cannot be started again at once.
  t.equal(helpersOf(agent).length, 4, 'monitors of links and addresses, routes, and nftables, and one nft for changes');
  for (const helper of helpersOf(agent)) process.kill(helper.pid, 'SIGKILL');
  const cpuBefore = cpuMsOf(agent.pid);
  const beganAt = performance.now();
  // Its own admin socket may have no descriptor left either, so what it says is read in its log.
  await waitFor('the log to name the limit', () => agent.log.some((line) => /ulimit -n|LimitNOFILE/.test(line)));
  await waitFor('two seconds of it', () => performance.now() - beganAt > 2000);
  const cpu = cpuMsOf(agent.pid) - cpuBefore;
  t.ok(cpu < 1000, `no busy loop: ${cpu} ms of CPU time in 2 s`);
  t.ok(agent.running);
  t.ok(agent.log.length < 400, `the log is no flood: ${agent.log.length} lines`);
  for (const socket of held) socket.destroy();
  await waitFor('the descriptors to return', () => descriptorsOf(agent.pid) <= before + 6);
  t.equal(await exchange(link), 'again', 'the link works');
  await waitFor('virtual addresses to be on', async () => (await statusOf(agent)).vip.state === 'on');
  t.equal(await exchange(5432, vip ?? ''), 'again');
  t.same(await (await resolverOf(agent)).resolve4('db.service.mesh.internal'), ['127.0.0.1']);
  await waitFor(
    'the monitors to run again',
    () => helpersOf(agent).filter((each) => /monitor/.test(each.command)).length === 3,
  );
  await noComplaint(agent, /ulimit -n|open files/, 20_000);
  t.equal((await agent.api('PUT', '/api/kv/a', 'b')).status, 200);
  t.equal(await agent.kill(), 0);
});

const asNobody = [
  'setpriv',
  '--reuid=65534',
  '--regid=65534',
  '--clear-groups',
  '--no-new-privs',
  '--inh-caps=-all',
  '--ambient-caps=-all',
  '--',
];

function giveToNobody(...paths: string[]): void {
  for (const path of paths) chownSync(path, 65_534, 65_534);
}

t.test('without any right', { skip: unless('root', 'command:setpriv'), timeout: 60_000 }, async (t) => {
  const { port } = await sayingServer(t, 'db');
  const link = await freePort();
  const config = {
    instances: [{ service: 'db', address: '127.0.0.1', port }],
    links: [{ service: 'db', listen: `127.0.0.1:${link}` }],
    vip: { mode: 'auto', range: '240.92.0.0/16', local_range: '240.93.0.0/16' },
    dns: { listen: ['127.0.0.1:0', '127.0.0.2:53'], bridges: 'auto', upstream: 'off' },
    docker: { socket: '/var/run/docker.sock', expose: 'labelled' },
  };

  await t.test('everything that needs none works, and the rest is said', async (t) => {
    const agent = new Agent(t, config);
    giveToNobody(agent.folder, agent.configFile);
    await agent.start({ prefix: asNobody });
    const status = await statusOf(agent);
    t.match(status.vip, { state: 'off', reason: /right|permi/ });
    const words = status.todo.map((each) => `${each.severity}: ${each.message} → ${each.hint}`).join('\n');
    t.match(words, /no virtual addresses: .*→ .*NET_ADMIN/);
    t.match(words, /no right to bind port 53 .*→ .*CAP_NET_BIND_SERVICE/);
    for (const each of status.todo) {
      t.notMatch(each.message, /\n/);
      t.ok(each.hint.length > 5, `${each.message} has a hint`);
    }
    t.equal(await ask(link), 'db', 'a link by listen works');
    t.same(await (await resolverOf(agent)).resolve4('db.mesh.internal'), ['127.0.0.1']);
    t.equal((await register(agent, 'more', port)).status, 200);
    t.equal(await agent.kill(), 0);
  });

  await t.test('a data directory that it may not write', async (t) => {
    const refusals: readonly (readonly [string, (agent: Agent, data: string) => void])[] = [
      ['of another user', (_agent, data) => mkdirSync(data, { mode: 0o755 })],
      [
        'below a folder of another user',
        (agent, data) => {
          mkdirSync(join(agent.folder, 'locked'), { mode: 0o755 });
          agent.configure({ ...config, data_dir: join(agent.folder, 'locked', 'data') });
          rmSync(data, { force: true, recursive: true });
        },
      ],
      [
        'that is a file',
        (_agent, data) => {
          writeFileSync(data, '');
          giveToNobody(data);
        },
      ],
    ];
    for (const [what, prepare] of refusals) {
      const agent = new Agent(t, config);
      prepare(agent, join(agent.folder, 'data'));
      giveToNobody(agent.folder, agent.configFile);
      await agent.start({ prefix: asNobody, ready: false });
      t.equal(await agent.ended(), 1, what);
      t.equal(agent.log.length, 1, `one line: ${agent.log.join(' | ')}`);
      t.match(agent.log[0], /^legate agent: cannot .*data.*(EACCES|ENOTDIR|EEXIST).*; .*(data_dir|owns)/, what);
    }
  });
  await t.test('a store whose files belong to another user', async (t) => {
    const agent = new Agent(t, config);
    giveToNobody(agent.folder, agent.configFile);
    await agent.start();
    await waitFor('the snapshot', () => existsSync(join(agent.folder, 'data', 'snapshot.json')));
    t.equal(await agent.kill(), 0);
    const data = join(agent.folder, 'data');
    giveToNobody(
      data,
      ...readdirSync(data)
        .filter((name) => name !== 'store')
        .map((name) => join(data, name)),
    );
    chmodSync(join(data, 'store'), 0o700);
    await agent.start({ prefix: asNobody });
    await complaint(agent, /no permission for the store.*run the sidecar as the owner/);
    t.equal(await ask(link), 'db');
    t.equal((await agent.api('GET', '/api/kv/a')).status, 503);
  });
});

t.test('garbage under the mesh in the store', { timeout: 60_000 }, async (t) => {
  const { port } = await sayingServer(t, 'db');
  const link = await freePort();
  const agent = await new Agent(t, {
    instances: [{ service: 'db', address: '127.0.0.1', port }],
    links: [{ service: 'db', listen: `127.0.0.1:${link}` }],
  }).start();
  await waitFor('the store', async () => (await statusOf(agent)).store.snapshot.origin === 'store');
  t.equal((await agent.api('PUT', '/api/kv/mine', 'mine')).status, 200);
  const { host, mesh } = await statusOf(agent);
  await agent.kill();
  const keys = keysOf(mesh);
  const ofOther = 'f'.repeat(16);
  const long = 'n'.repeat(300);
  const garbage: readonly (readonly [string, string | Buffer])[] = [
    [keys.host(ofOther), Buffer.from([0, 255, 254, 1, 2])],
    [keys.host('nope'), '{"v":1}'],
    [keys.instance(ofOther, 'db-1'), '{"v":1,"service":"DB; rm -rf /","port":"x"}'],
    [keys.instance(ofOther, long), '{}'],
    [`${keys.instances}${ofOther}`, 'no slash'],
    [keys.instance(host.id, `db-${port}`), 'our own, damaged'],
    [keys.service('db'), '[]'],
    [keys.service('\u001b[31mred'), '{"v":1}'],
    [keys.vip('240.77.0.9'), '{"v":1,"service":{}}'],
    [keys.vip('not-an-address'), '{"v":1,"service":"db"}'],
    [keys.aliveOf('x'), 'null'],
    [`${keys.root}future/thing`, 'unknown table'],
    [keys.instance(ofOther, 'deep'), `${'['.repeat(20_000)}`],
    [keys.instance(ofOther, 'newer'), '{"v":999}'],
  ];
  await inStore(agent, async (store) => {
    for (const [key, value] of garbage) await store.put(key, Buffer.from(value as string));
  });
  await agent.start();
  await waitFor('the store', async () => (await statusOf(agent)).store.snapshot.origin === 'store');
  await waitFor(
    'our own damaged record to be written anew',
    async () => !(await statusOf(agent)).todo.some((each) => each.message.includes(`${host.id}/db-${port}`)),
  );
  const quarantined = await metricOf(agent, 'legate_catalog_quarantined_count');
  t.ok(quarantined >= 8, `${quarantined} are quarantined`);
  t.ok((await metricOf(agent, 'legate_catalog_refused_total')) >= quarantined);
  const { todo } = await statusOf(agent);
  t.ok(
    todo.some((each) => each.message.includes(`${ofOther}/db-1`)),
    'status names the entry',
  );
  for (const each of todo) t.notMatch(each.message, /[\u0000-\u001f]/, 'printable');
  t.equal(await ask(link), 'db');
  t.same(await (await resolverOf(agent)).resolve4('db.service.mesh.internal'), ['127.0.0.1']);
  t.equal((await agent.api('GET', '/api/kv/mine')).text, 'mine');
  t.equal((await agent.json<ServiceDocument>('/api/services/db')).instances.length, 1);
  t.equal((await agent.cli('status')).status, 0);
  await agent.kill();
  await inStore(agent, async (store) => {
    for (const [key] of garbage) if (key !== keys.instance(host.id, `db-${port}`)) await store.delete(key);
  });
  await agent.start();
  await waitFor(
    'nothing to be wrong',
    async () =>
      (await metricOf(agent, 'legate_catalog_quarantined_count')) === 0 && (await statusOf(agent)).todo.length === 0,
  );
});

async function inStore(
  agent: Agent,
  run: (store: Awaited<ReturnType<typeof openEmbeddedStore>>) => Promise<void>,
): Promise<void> {
  const store = await openEmbeddedStore({
    path: join(agent.folder, 'data', 'store'),
    clock: systemClock,
    log: silentLog,
    metrics: new Metrics(),
  });
  await run(store);
  await store.close();
}

t.test('a reboot: names before Docker runs, then they converge', { timeout: 60_000 }, async (t) => {
  const { port } = await sayingServer(t, 'db');
  const link = await freePort();
  const agent = new Agent(t);
  const runFolder = join(agent.folder, 'run');
  mkdirSync(runFolder);
  const { FakeEngine } = await import('./support/fake-engine.ts');
  const engine = new FakeEngine(t, join(runFolder, 'docker.sock'));
  const id = 'c'.repeat(64);
  engine.containers.set(id, engine.container(id, 'db-1', { 'legate.service': 'db', 'legate.port': String(port) }));
  await engine.listen();
  agent.configure({
    docker: { socket: engine.socket, expose: 'labelled' },
    links: [{ service: 'db', listen: `127.0.0.1:${link}` }],
  });
  await agent.start();
  const usable = async (): Promise<ServiceDocument | undefined> => {
    const found = await agent.json<ServiceDocument>('/api/services/db').catch(() => undefined);
    return found?.usable === 1 ? found : undefined;
  };
  const before = await waitFor('the container', usable);
  await waitFor('the snapshot', () => existsSync(join(agent.folder, 'data', 'snapshot.json')));
  await waitFor('the container in the snapshot', async () =>
    (await import('node:fs'))
      .readFileSync(join(agent.folder, 'data', 'snapshot.json'), 'utf8')
      .includes(id.slice(0, 12)),
  );
  await agent.kill('SIGKILL');
  await engine.close();
  rmSync(runFolder, { recursive: true });
  rmSync(agent.socket, { force: true });

  await agent.start({ ready: false });
  await waitFor('the admin door', async () => (await agent.api('GET', '/healthz')).status === 200, {
    timeoutMs: 20_000,
  });
  t.same(
    await (await resolverOf(agent)).resolve4('db.service.mesh.internal'),
    ['127.0.0.1'],
    'names answer before Docker runs',
  );
  t.equal(await ask(link), 'db', 'and links connect');
  await complaint(agent, /no Docker socket/);

  mkdirSync(runFolder);
  engine.containers.clear();
  const next = 'd'.repeat(64);
  engine.containers.set(next, engine.container(next, 'db-2', { 'legate.service': 'db', 'legate.port': String(port) }));
  await engine.listen();
  const after = await waitFor('what runs now', async () => {
    const found = await usable();
    return found?.instances.length === 1 && found.instances[0]?.source.includes('db-2') ? found : undefined;
  });
  t.not(after.instances[0]?.id, before.instances[0]?.id);
  t.equal(after.vip, before.vip, 'the address stays');
  await noComplaint(agent, /Docker/);
  t.equal((await agent.api('GET', '/readyz')).status, 200);
  t.equal(await agent.kill(), 0);
});
