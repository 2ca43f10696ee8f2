import { createServer, type Server } from 'node:net';
import t, { type Test } from 'tap';
import type { ServiceDocument } from '../sidecar/admin/documents.ts';
import type { WhyDocument } from '../sidecar/admin/why-document.ts';
import { Agent, legateMain, run } from './support/agent.ts';
import { waitFor } from './support/wait.ts';

/** `legate why` across two hosts of one mesh, on two addresses of loopback. */

async function listening(address: string): Promise<{ readonly server: Server; readonly port: number }> {
  const server = createServer((socket) => socket.on('error', () => undefined).end());
  await new Promise<void>((resolve) => server.listen(0, address, resolve));
  const bound = server.address();
  return { server, port: typeof bound === 'object' && bound !== null ? bound.port : 0 };
}

async function freePort(address: string): Promise<number> {
  const { server, port } = await listening(address);
  await new Promise((resolve) => server.close(resolve));
  return port;
}

async function legate(...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await run(process.execPath, [legateMain, ...args]);
  if (status !== 0) throw new Error(`legate ${args.join(' ')}: ${status} ${stderr}${stdout}`);
  return stdout;
}

interface Hosts {
  readonly here: Agent;
  readonly there: Agent;
  /** The application on the other host. */
  readonly application: Server;
}

/** Two hosts from nothing; `db` is on the second, and the first has a listener for it that stands for `web`. */
async function twoHosts(t: Test): Promise<Hosts> {
  const { server: application, port } = await listening('127.0.0.2');
  t.teardown(() => application.close());
  const [storePort, tunnelPort, otherPort] = [
    await freePort('127.0.0.1'),
    await freePort('127.0.0.1'),
    await freePort('127.0.0.2'),
  ];
  const here = new Agent(t, {
    store: { kind: 'embedded', listen: `127.0.0.1:${storePort}`, lease_ttl: '2s' },
    tunnel: { listen: `127.0.0.1:${tunnelPort}` },
    links: [{ service: 'db', listen: '127.0.0.1:0', consumer: 'web' }],
  });
  const there = new Agent(t, {
    ...{ host: 'web-2', advertise: '127.0.0.2', tunnel: { listen: `127.0.0.2:${otherPort}` } },
    instances: [{ service: 'db', address: '127.0.0.2', port, reach: 'host' }],
  });
  const line = (await legate('init', '-c', here.configFile)).trim().split('\n').at(-1) ?? '';
  const [, address = '', token = ''] = /^legate join (\S+) --token (\S+)/.exec(line) ?? [];
  await here.start();
  await legate('join', address, '--token', token, '-c', there.configFile);
  await there.start();
  await waitFor('the service', async () => (await here.json<ServiceDocument>('/api/services/db')).usable === 1, {
    timeoutMs: 20_000,
  });
  return { here, there, application };
}

/** Waits until the first bad step, or without one the first note, is told so with this fix. */
async function until(agent: Agent, told: RegExp, fix: RegExp, consumer = 'web'): Promise<WhyDocument> {
  let last = '';
  return waitFor(
    `why to tell ${told}`,
    async () => {
      const document = await agent.json<WhyDocument>(`/api/why?name=db&consumer=${consumer}`);
      const { steps } = document;
      const step = steps.find(({ verdict }) => verdict === 'bad') ?? steps.find(({ verdict }) => verdict === 'note');
      last = step === undefined ? 'fine' : `${step.verdict} ${step.name}: ${step.text}`;
      last += `; fix: ${document.fix ?? ''}`;
      return told.test(last) && fix.test(document.fix ?? '') ? document : undefined;
    },
    { timeoutMs: 20_000, everyMs: 100 },
  ).catch((error: unknown) => {
    throw new Error(`${error instanceof Error ? error.message : ''}; last: ${last}`);
  });
}

t.test('faults across hosts', { timeout: 115_000 }, async (t) => {
  const { here, there, application } = await twoHosts(t);

  await t.test('nothing is wrong', async (t) => {
    const { steps } = await until(here, /^fine/, /^$/);
    const told = steps.map(({ name, verdict }) => `${verdict} ${name}`);
    t.same(
      told,
      ['consumer', 'name', 'address', 'policy', 'choice', 'tunnel', 'host', 'instance'].map((name) => `ok ${name}`),
    );
    t.match(steps.at(-1)?.text, /^web-2\/db-\d+ through the tunnel in .* ms: connected$/);
  });

  await t.test('policy, drain, grants', async (t) => {
    t.equal((await here.cli('intent', 'deny', 'web', 'db')).status, 0);
    const denied = await until(
      here,
      /^bad policy: web may not call db \(intent deny web db/,
      /legate intent allow web db$/,
    );
    t.match(denied.changes[0]?.text, /set the intent deny web db/);
    t.equal((await here.cli('why', 'web', 'db')).status, 1);
    await here.cli('intent', 'allow', 'web', 'db');
    await until(here, /^fine/, /^$/);
    await there.cli('drain', 'db');
    await until(here, /^bad choice:/, /^on web-2: legate undrain web-2\/db-/);
    await there.cli('undrain', 'db');
    await until(here, /^fine/, /^$/);
    t.equal((await here.cli('host', 'allow', 'web-2', 'other')).status, 0);
    await until(here, /^bad (choice|name): /, /legate host allow web-2 db$/);
    t.equal((await here.cli('host', 'allow', 'web-2', 'db')).status, 0);
    await until(here, /^fine/, /^$/);
  });

  await t.test('the application ends, then the sidecar', async (t) => {
    const { port } = application.address() as { port: number };
    await new Promise((resolve) => application.close(resolve));
    await until(
      here,
      /^bad instance: web-2\/db-\d+ through the tunnel: .*ECONNREFUSED/,
      /^on web-2: start what listens at port/,
    );
    await new Promise<void>((resolve) => application.listen(port, '127.0.0.2', resolve));
    await until(here, /^fine/, /^$/);
    await there.kill('SIGKILL');
    await until(
      here,
      /^bad tunnel: web-2: connection refused at 127\.0\.0\.2:\d+/,
      /^on web-2: is its sidecar running/,
    );
    t.match((await here.cli('why', 'web', 'db')).stdout, /x +tunnel .*fix: +on web-2/s);
    await there.start();
    await until(here, /^fine/, /^$/);
  });

  await t.test('a host that falls silent', async (t) => {
    // The first answer, too: the tunnel was well until it was tried.
    process.kill(there.pid, 'SIGSTOP');
    t.teardown(() => process.kill(there.pid, 'SIGCONT'));
    const first = await here.json<WhyDocument>('/api/why?name=db&consumer=web');
    const bad = first.steps.find(({ verdict }) => verdict === 'bad');
    t.match(bad, { name: 'tunnel', text: /^web-2: it does not answer just now at 127\.0\.0\.2:\d+$/ });
    process.kill(there.pid, 'SIGCONT');
    await until(here, /^fine/, /^$/);
  });

  await t.test('a revoked host', async (t) => {
    t.equal((await here.cli('host', 'revoke', 'web-2')).status, 0);
    const gone = await until(
      here,
      /^bad (choice|name): /,
      /then on web-2, its sidecar stopped: legate join \S+ --again --token TOKEN$/,
    );
    t.match(gone.changes.map(({ text }) => text).join('\n'), /revoked web-2/);
    const again = /^to let web-2 in again: legate token on .* --again --token TOKEN$/;
    await waitFor(
      'that host to say it, too',
      async () => again.test((await there.json<WhyDocument>('/api/why?name=db')).fix ?? ''),
      { timeoutMs: 30_000 },
    );

    await there.kill('SIGTERM');
    const { stdout, stderr } = await here.cli('token');
    const [, address = '', file = ''] = /: legate join (\S+) --token \S+ -c (\S+)\n$/.exec(stderr) ?? [];
    t.equal(file, here.configFile, 'the line names the file as it is here');
    await legate('join', address, '--again', '--token', stdout.trim(), '-c', there.configFile);
    await there.start();
    const back = await until(here, /^fine/, /^$/);
    t.notMatch(JSON.stringify(back.steps), /revoked/, 'the old one of that name is past');
  });
});
