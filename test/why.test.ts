import { createSocket } from 'node:dgram';
import { createServer } from 'node:net';
import t, { type Test } from 'tap';
import type { ServiceDocument, StatusDocument } from '../sidecar/admin/documents.ts';
import type { WhyDocument } from '../sidecar/admin/why-document.ts';
import { Agent, type Teardown } from './support/agent.ts';
import { sayOn, TestDocker } from './support/docker.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

/** `legate why` on real faults: each is named at its step, with what to do. */
const skip = unless('docker', 'nft', 'busybox', 'command:musl-gcc', 'command:gcc');
const nameServer = '240.180.0.53';
/** Names of this test's own: other tests run containers on the same engine at the same time. */
const named = (name: string): string => `${name}-${process.pid}`;
const offers = (name: string, port: number): string[] => [
  ...['--label', `legate.service=${named(name)}`],
  ...['--label', `legate.port=${port}`],
];
const isCalled = (name: string): string[] => ['--label', `legate.consumer=${named(name)}`];
const asks = ['--dns', nameServer];

class Asker {
  readonly #agent: Agent;

  constructor(agent: Agent) {
    this.#agent = agent;
  }

  why(name: string, consumer?: string): Promise<WhyDocument> {
    const query = new URLSearchParams({ name, ...(consumer !== undefined && { consumer }) });
    return this.#agent.json<WhyDocument>(`/api/why?${query.toString()}`);
  }

  /** Waits until the answer's first bad step, or without one its first note, is told so, and the fix is this. */
  async until(t: Test, asked: readonly [string, string?], told: RegExp, fix: RegExp): Promise<WhyDocument> {
    let last = '';
    let lastFix = '';
    const document = await waitFor(`why ${asked.join(' ')} to tell ${told}`, async () => {
      const found = await this.why(...asked);
      const { steps } = found;
      const step = steps.find(({ verdict }) => verdict === 'bad') ?? steps.find(({ verdict }) => verdict === 'note');
      last = step === undefined ? 'fine' : `${step.verdict} ${step.name}: ${step.text}`;
      lastFix = found.fix ?? '';
      return told.test(last) && fix.test(found.fix ?? '') ? found : undefined;
    }).catch((error: unknown) => {
      throw new Error(`${error instanceof Error ? error.message : ''}; last: ${last}; fix: ${lastFix}`);
    });
    t.pass(`${asked.join(' ')}: ${last}`);
    return document;
  }
}

/** Somebody else's name server at port 53 of an address. */
async function takePort53(t: Teardown, address: string): Promise<void> {
  const socket = createSocket('udp4');
  t.teardown(() => new Promise<void>((resolve) => socket.close(() => resolve())));
  await new Promise<void>((resolve) => socket.bind(53, address, resolve));
}

// They share nothing, and wait more than they work.
t.jobs = 2;

t.test('faults of one host', { skip, timeout: 115_000 }, async (t) => {
  const docker = await TestDocker.open(t);
  const shop = await docker.network('shop');
  const gateway = await docker.docker('network', 'inspect', '-f', '{{(index .IPAM.Config 0).Gateway}}', shop);
  await takePort53(t, gateway);
  const agent = await new Agent(t, {
    docker: { socket: '/var/run/docker.sock', expose: 'labelled' },
    dns: { listen: ['127.0.0.1:0', `${gateway}:53`], bridges: 'off', upstream: 'off' },
    vip: { mode: 'auto', range: '240.180.0.0/16', local_range: '240.181.0.0/16' },
  }).start();
  const { vip: state } = await agent.json<StatusDocument>('/api/status');
  t.equal(state.state, 'on', state.reason ?? '');
  const asker = new Asker(agent);
  const [db, web] = [named('db'), named('web')];
  await docker.start('db-1', offers('db', 5432), sayOn(5432, 'db-1'));
  await docker.start('web', [...asks, ...isCalled('web')], ['sleep', '600']);

  await t.test('nothing is wrong', async (t) => {
    const document = await asker.until(t, [db, web], /^fine$/, /^$/);
    const told = document.steps.map(({ name, verdict }) => `${verdict} ${name}`);
    t.same(told, ['ok consumer', 'ok name', 'ok resolver', 'ok address', 'ok choice', 'ok instance']);
    t.match(document.steps[0]?.text, new RegExp(`^${web} \\(container ${docker.name('web')}, 172\\.`));
    t.match(document.steps[1]?.text, new RegExp(`^${db} → 240\\.180\\.`));
    const { status, stdout } = await agent.cli('why', docker.name('web'), db);
    t.equal(status, 0, stdout);
    t.match(stdout, /nothing is in the way/);
    t.equal((await asker.why(`${db}.mesh.internal`)).fine, true, 'from the host');
  });

  await t.test('no such service, consumer, or network', async (t) => {
    await asker.until(t, [`${db}x`, web], /^bad name: there is no service/, new RegExp(`^ask for ${db}, or register`));
    await asker.until(
      t,
      [db, `${web}x`],
      /^bad consumer: nobody on this host is called/,
      new RegExp(`legate why ${web} ${db}`),
    );
    await docker.start('alone', ['--network', 'none', ...isCalled('alone')], ['sleep', '600']);
    await asker.until(
      t,
      [db, named('alone')],
      /^bad consumer: .*no address on a bridge/,
      /docker network connect bridge/,
    );
    await docker.start('lost', [...offers('lost', 80), '--label', 'legate.network=nowhere'], ['sleep', '600']);
    const refused = await asker.until(t, [named('lost')], /^bad name: there is no service/, /docker network connect/);
    t.match(refused.steps.at(-1)?.details[0]?.text, /refused: .*nowhere/);
    t.equal((await agent.cli('why', web, `${db}x`)).status, 1);
    t.equal((await agent.cli('why')).status, 2);
  });

  await t.test('unhealthy and drained', async (t) => {
    await docker.docker('pause', docker.name('db-1'));
    const name = docker.name('db-1');
    const paused = await asker.until(
      t,
      [db, web],
      /^bad choice: the only instance/,
      new RegExp(`^docker unpause ${name}$`),
    );
    t.match(paused.changes[0]?.text, /began to drain|turned critical/);
    t.match((await agent.cli('why', web, db)).stdout, /x +choice .*since \d\d:\d\d.*fix: +docker unpause/s);
    await docker.docker('unpause', name);
    await asker.until(t, [db, web], /^fine$/, /^$/);
    await agent.cli('drain', db);
    await asker.until(t, [db, web], /^bad choice:/, /^legate undrain web-1\//);
    await agent.cli('undrain', db);
    await asker.until(t, [db, web], /^fine$/, /^$/);
    await docker.start('wrong', offers('wrong', 81), sayOn(80, 'wrong'));
    await asker.until(t, [named('wrong'), web], /^bad instance: .*connection refused/, /listen at 0\.0\.0\.0:81/);
  });

  await t.test('port 53 is taken, and another name server', async (t) => {
    await docker.start('taken', ['--network', shop, '--dns', gateway, ...isCalled('taken')], ['sleep', '600']);
    const held = new RegExp(`^bad resolver: it asks ${gateway}:53, where this sidecar cannot listen: .* held by node`);
    await asker.until(t, [db, named('taken')], held, /^stop node .*--dns 240\.180\.0\.53/);
    await docker.start('strange', ['--dns', '127.0.0.1', ...isCalled('strange')], ['sleep', '600']);
    await asker.until(t, [db, named('strange')], /^bad resolver: .*not this sidecar/, /--dns 240\.180\.0\.53/);
  });

  await t.test("Docker's own names, and what passes by", async (t) => {
    await docker.start('db-2', ['--network', shop, ...offers('db', 5432)], sayOn(5432, 'db-2'));
    await docker.start('near', ['--network', shop, ...asks, ...isCalled('near')], ['sleep', '600']);
    const near = named('near');
    const bypass = await asker.until(t, [db, near], /^note bypass: .* share network /, /network of its own/);
    t.equal(bypass.fine, true);
    await docker.start('other', ['--network', shop, '--network-alias', db], ['sleep', '600']);
    const shadow = new RegExp(`^bad alias: Docker answers ${db} itself in network ${shop}: an alias of container`);
    await asker.until(t, [db, near], shadow, new RegExp(`ask for ${db}\\.mesh\\.internal`));
    t.equal((await asker.why(`${db}.mesh.internal`, near)).fine, true, 'in full it is not hidden');
    t.equal((await asker.why(db, web)).fine, true, 'nor on another network');
  });
});

t.test('a store that is away, and no virtual addresses', { timeout: 60_000 }, async (t) => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => server.close());
  const application = server.address();
  const port = typeof application === 'object' && application !== null ? application.port : 0;
  const free = createServer();
  await new Promise<void>((resolve) => free.listen(0, '127.0.0.1', resolve));
  const place = free.address();
  await new Promise((resolve) => free.close(resolve));
  const listen = `127.0.0.1:${typeof place === 'object' && place !== null ? place.port : 0}`;
  const network = { underlay: 'trusted' };
  const holder = new Agent(t, { host: 'web-2', advertise: '127.0.0.2', store: { kind: 'embedded', listen }, network });
  await holder.start();
  const agent = await new Agent(t, {
    ...{ network, store: { kind: 'etcd', endpoints: [`http://${listen}`] } },
    instances: [{ service: 'db', address: '127.0.0.1', port }],
    links: [{ service: 'db', listen: '127.0.0.1:0', consumer: 'web' }],
  }).start();
  const asker = new Asker(agent);
  await waitFor('the service', async () => (await agent.json<ServiceDocument>('/api/services/db')).usable === 1);
  await asker.until(t, ['db'], /^fine$/, /^$/);
  await holder.kill('SIGKILL');
  const away = await asker.until(t, ['db'], /^note store: the store is away/, /./);
  t.equal(away.fine, true, 'what is known goes on working');
  t.match((await agent.cli('why', 'db')).stdout, /advice: /);
});
