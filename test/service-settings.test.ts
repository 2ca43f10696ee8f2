import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { Agent as Connections, createServer, request } from 'node:http';
import type { AddressInfo } from 'node:net';
import t from 'tap';
import type { LinkDocument, ServiceDocument } from '../sidecar/admin/documents.ts';
import { Agent, must, run, type Teardown } from './support/agent.ts';
import { ask, freePort, sayingServer, statusOf } from './support/faults.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

const service = (agent: Agent, name: string): Promise<ServiceDocument> =>
  agent.json<ServiceDocument>(`/api/services/${name}`);

const settled = (agent: Agent): Promise<unknown> =>
  waitFor('the store', async () => (await statusOf(agent)).store.snapshot.origin === 'store');

// They share nothing, and wait more than they work.
t.jobs = 3;

t.test('settings of the file reach a service that exists, and what somebody chose is told', async (t) => {
  const { port } = await sayingServer(t, 'db');
  const instances = [{ service: 'db', address: '127.0.0.1', port }];
  const agent = await new Agent(t, { instances }).start();
  await settled(agent);
  t.match(await service(agent, 'db'), { port, balance: 'round-robin' });

  await agent.kill();
  agent.configure({ instances, services: { db: { port: 5432, balance: 'least-connections' } } });
  await agent.start();
  await waitFor('the settings', async () => (await service(agent, 'db')).port === 5432);
  t.match(await service(agent, 'db'), { port: 5432, balance: 'least-connections' });
  t.same((await statusOf(agent)).todo, []);

  await agent.kill();
  agent.configure({ instances, services: { db: { port: 5433, balance: 'least-connections' } } });
  await agent.start();
  const told = await waitFor('the difference', async () =>
    (await statusOf(agent)).todo.find(({ id }) => id === 'services.settings.db'),
  );
  t.match(told, { severity: 'note', message: 'services.db.port is 5433 in the configuration and 5432 in the mesh' });
  t.equal((await service(agent, 'db')).port, 5432);
  const [, words = ''] = /run legate (.+) for the whole mesh/.exec(told.hint) ?? [];
  const done = await agent.cli(...words.split(' '));
  t.equal(done.status, 0, done.stderr);
  t.equal(done.stdout, ' ok db is set: port 5433/tcp, least-connections\n');
  await waitFor('the note to go', async () => (await statusOf(agent)).todo.length === 0);
});

t.test('set takes effect in a running link, forget removes what nobody needs', async (t) => {
  const { port } = await sayingServer(t, 'db');
  const link = await freePort();
  const agent = await new Agent(t, {
    instances: [{ service: 'db', address: '127.0.0.1', port }],
    links: [{ service: 'db', listen: `127.0.0.1:${link}` }],
    services: { idle: { port: 1 } },
  }).start();
  await settled(agent);
  t.equal(await ask(link), 'db');
  const set = await agent.cli('service', 'set', 'db', 'balance=random', '--json');
  t.equal(set.status, 0, set.stderr);
  t.match(JSON.parse(set.stdout), { name: 'db', port, balance: 'random', usable: 1 });
  const { links } = await agent.json<{ links: LinkDocument[] }>('/api/links');
  t.match(links, [{ service: 'db', balance: 'random' }]);
  t.equal(await ask(link), 'db');

  for (const [words, text] of [
    [
      'port=5433 protocol=http balance=least-connections prefer=any park=10s proxy_protocol=v2',
      /5433\/http, least-connections, prefer any, park 10s, proxy_protocol v2/,
    ],
    [
      `port=${port} protocol=tcp balance=random prefer=near park=1500ms`,
      /tcp, random, park 1500ms, proxy_protocol v2$/,
    ],
    ['park=0 proxy_protocol=off', /tcp, random$/],
  ] as const) {
    const { status, stdout, stderr } = await agent.cli('service', 'set', 'db', ...words.split(' '));
    t.equal(status, 0, stderr);
    t.match(stdout.trimEnd(), text);
  }

  const bad: readonly (readonly [string, unknown, number, RegExp])[] = [
    ['db', { port: 65536 }, 400, /service\.port/],
    ['db', { port: '54 32', blance: 'random' }, 400, /blance.*54 32/],
    ['db', { balance: 'hashed' }, 400, /is not one of .*did you mean `hash`/],
    ['db', {}, 400, /nothing to set/],
    ['db', '[]', 400, /object/],
    ['db', { external: ['a:1'] }, 400, /configuration file/],
    ['new', { balance: 'random' }, 400, /needs a port/],
    ['DB', { port: 1 }, 400, /name/],
    ['a%00b', { port: 1 }, 400, /name/],
  ];
  for (const [name, body, status, reason] of bad) {
    const answer = await agent.api('PUT', `/api/services/${name}`, body);
    t.equal(answer.status, status, `${name} ${JSON.stringify(body)}`);
    t.match(answer.text, reason);
  }

  const refusals: readonly (readonly [string, RegExp])[] = [
    ['db', /^legate service forget: db has instances: web-1\/db-\d+ \(passing\); stop the containers, or/],
    ['idle', /the configuration of web-1 names idle: services\.idle; remove it there/],
    ['absent', /there is no service absent; legate services lists them/],
  ];
  for (const [name, reason] of refusals) {
    const refused = await agent.cli('service', 'forget', name);
    t.equal(refused.status, 1);
    t.match(refused.stderr, reason);
  }
  t.equal((await agent.api('DELETE', '/api/services/db')).status, 409);

  t.equal((await agent.cli('service', 'set', 'new', 'port=80', 'protocol=http')).status, 0);
  t.match(await service(agent, 'new'), { port: 80, protocol: 'http', instances: [] });
  const forgotten = await agent.cli('service', 'forget', 'new');
  t.match(forgotten, { status: 0, stdout: ' ok new is forgotten\n' });
  t.equal((await agent.api('GET', '/api/services/new')).status, 404);
  await agent.kill();
  await agent.start();
  await settled(agent);
  t.equal((await agent.api('GET', '/api/services/new')).status, 404, 'it stays forgotten');
  t.match(await service(agent, 'db'), { balance: 'random' }, 'and what was set stays set');
});

t.test('settings of requests hold from the next request of a running connection on', { timeout: 60_000 }, async (t) => {
  const slowMs = 300;
  const server = createServer((_request, response) => {
    setTimeout(() => response.end('web'), slowMs);
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  const link = await freePort();
  const agent = await new Agent(t, {
    instances: [{ service: 'web', address: '127.0.0.1', port, protocol: 'http' }],
    links: [{ service: 'web', listen: `127.0.0.1:${link}` }],
  }).start();
  await settled(agent);
  const connections = new Connections({ keepAlive: true, maxSockets: 1 });
  t.teardown(() => connections.destroy());
  const post = async (): Promise<string> => {
    const asked = request({ port: link, host: '127.0.0.1', method: 'POST', agent: connections });
    asked.end('12345');
    const [response] = await once(asked, 'response');
    let text = '';
    for await (const chunk of response) text += String(chunk);
    return `${response.statusCode} ${text.trimEnd()}`;
  };
  t.equal(await post(), '200 web');
  for (const guard of [0.5, -1, '0.99', 101]) {
    const refused = await agent.api('PUT', '/api/services/web', { split_guard: guard });
    t.equal(refused.status, 400);
    t.match(
      refused.text,
      /split_guard: .* is not a whole number \(0 to 100; .* 1, the least: .*; 0 or off: no guard\)/,
      `${guard}`,
    );
  }
  for (const [words, expected] of [
    ['timeout=50ms', /^504 legate: the request has taken longer than 50ms$/],
    ['timeout=0 max_body=4', /^413 legate: the body of the request is larger than 4$/],
    ['max_body=0 try_timeout=20ms', /^504 legate: no response within 20ms$/],
    ['try_timeout=60s max_requests=1', /^200 web$/],
  ] as const) {
    const { status, stderr } = await agent.cli('service', 'set', 'web', ...words.split(' '));
    t.equal(status, 0, stderr);
    await waitFor(words, async () => expected.test(await post()));
  }
  const both = await Promise.all([fetch(`http://127.0.0.1:${link}`), fetch(`http://127.0.0.1:${link}`)]);
  t.same(
    both.map(({ status }) => status),
    [200, 200],
    'who has to wait for its turn gets it',
  );
});

/** A network namespace of the test's own, with loopback up. */
async function namespace(t: Teardown): Promise<string> {
  const name = `legate-settings-${process.pid}`;
  t.teardown(async () => void (await run('ip', ['netns', 'del', name])));
  await must('ip', 'netns', 'add', name);
  await must('ip', '-n', name, 'link', 'set', 'lo', 'up');
  return name;
}

/** A server in the namespace that answers `db` on a port of its choice. */
async function serverIn(t: Teardown, inside: readonly string[]): Promise<number> {
  const code = `require('net').createServer((s) => s.on('error', () => 0).end('db'))
    .listen(0, '127.0.0.1', function () { console.log(this.address().port) })`;
  const [command = '', ...prefix] = inside;
  const child: ChildProcess = spawn(command, [...prefix, process.execPath, '-e', code]);
  t.teardown(() => void child.kill('SIGKILL'));
  if (child.stdout === null) throw new Error('a server without output');
  const [line] = await once(child.stdout, 'data');
  return Number(String(line));
}

t.test('virtual addresses follow', { skip: unless('nft', 'netns'), timeout: 60_000 }, async (t) => {
  const inside = ['ip', 'netns', 'exec', await namespace(t)];
  const port = await serverIn(t, inside);
  const agent = await new Agent(t, {
    instances: [],
    vip: { mode: 'auto', range: '240.96.0.0/16', local_range: '240.97.0.0/16' },
  }).start({ prefix: inside });
  await settled(agent);
  t.equal((await statusOf(agent)).vip.state, 'on');
  const exchange = async (address: string, at: number): Promise<string> => {
    const code = `require('net').connect(${at}, '${address}').on('error', (e) => console.log(e.code)).pipe(process.stdout)`;
    return (await must(...(inside as [string]), process.execPath, '-e', code)).trim();
  };
  const body = { service: 'db', address: '127.0.0.1', port };
  const register = async (): Promise<void> => {
    t.equal((await agent.api('PUT', '/api/instances/web-1/db', body)).status, 200);
  };
  await register();
  const vip = await waitFor('the address', async () => (await service(agent, 'db')).vip);
  await waitFor('it to be served', async () => (await exchange(vip, port)) === 'db');

  const set = await agent.cli('service', 'set', 'db', 'port=5432');
  t.equal(set.stdout, ` ok db is set: port 5432/tcp, round-robin, at ${vip}\n`);
  await waitFor('the new port', async () => (await exchange(vip, 5432)) === 'db');
  t.match(await exchange(vip, port), /^E/, 'the old one is closed');
  t.match((await agent.cli('resolve', 'db.mesh.internal')).stdout, vip);

  t.equal((await agent.api('DELETE', '/api/instances/web-1/db')).status, 200);
  const forgotten = await agent.cli('service', 'forget', 'db');
  t.match(forgotten, { status: 0, stdout: ` ok db is forgotten; ${vip} may go to another service\n` });
  t.match((await agent.cli('resolve', 'db.mesh.internal', '--json')).stdout, /NXDOMAIN/);
  t.same((await agent.json<{ links: unknown[] }>('/api/links')).links, []);
  t.match(await exchange(vip, 5432), /^E/);

  const made = await agent.cli('service', 'set', 'early', 'port=25', '--json');
  t.match(JSON.parse(made.stdout), { port: 25, vip: /^240\.96\./ }, 'one without instances has an address too');
  await register();
  await waitFor('its address again', async () => (await service(agent, 'db')).vip === vip);
  t.match(await service(agent, 'db'), { port }, 'it begins anew');
});
