import { Resolver } from 'node:dns/promises';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import type {
  ConditionDocument,
  InstanceDocument,
  ServiceDocument,
  StatusDocument,
} from '../sidecar/admin/documents.ts';
import { Agent, legateMain, run, type Teardown } from './support/agent.ts';
import { waitFor } from './support/wait.ts';

/** A server on loopback that answers each connection with its name, and ends with the test. */
async function namedServer(t: Teardown, name: string, port = 0): Promise<{ server: Server; port: number }> {
  const server = createServer((socket) => {
    socket.on('error', () => socket.destroy());
    socket.end(`${name}\n`);
  }).listen(port, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    server.close();
  });
  const address = server.address();
  return { server, port: typeof address === 'object' && address !== null ? address.port : 0 };
}

async function freePort(t: Teardown): Promise<number> {
  const { server, port } = await namedServer(t, 'probe');
  server.close();
  await once(server, 'close');
  return port;
}

/** What a connection to a local port is answered with. */
async function ask(port: number): Promise<string> {
  const { connect } = await import('node:net');
  return new Promise((resolve, reject) => {
    let text = '';
    connect(port, '127.0.0.1')
      .on('data', (chunk) => {
        text += chunk.toString();
      })
      .on('error', reject)
      .on('close', () => resolve(text.trim()));
  });
}

async function resolverOf(agent: Agent): Promise<Resolver> {
  const status = await agent.json<StatusDocument>('/api/status');
  const resolver = new Resolver({ timeout: 2000, tries: 1 });
  resolver.setServers([status.names.find((each) => each.purpose === 'configured')?.listen ?? '']);
  return resolver;
}

function instance(
  service: string,
  port: number,
  more: Readonly<Record<string, unknown>> = {},
): Record<string, unknown> {
  return { service, address: '127.0.0.1', port, ...more };
}

t.test('a service from the file is registered, resolved and linked; its failure is seen', async (t) => {
  const one = await namedServer(t, 'one');
  const two = await namedServer(t, 'two');
  const link = await freePort(t);
  const check = { checks: [{ kind: 'tcp', interval: '200ms', timeout: '200ms', fall: 1 }] };
  const agent = await new Agent(t, {
    instances: [instance('db', one.port, { ...check, tags: ['primary'] }), instance('db', two.port, check)],
    links: [{ service: 'db', listen: `127.0.0.1:${link}` }],
  }).start();
  await waitFor(
    'both instances to pass',
    async () => (await agent.json<ServiceDocument>('/api/services/db')).usable === 2,
  );

  const resolver = await resolverOf(agent);
  t.same(await resolver.resolve4('db.mesh.internal'), ['127.0.0.1']);
  t.same(
    await resolver.resolve4('db.service.mesh.internal'),
    ['127.0.0.1'],
    'two instances on one address are one record',
  );
  const targets = await resolver.resolveSrv('_db._tcp.mesh.internal');
  t.same(targets.map((target) => target.port).sort(), [one.port, two.port].sort());
  t.equal((await resolver.resolveSrv('_primary._db._tcp.mesh.internal'))[0]?.port, one.port);
  await t.rejects(resolver.resolve4('absent.mesh.internal'), { code: 'ENOTFOUND' });
  await t.rejects(resolver.resolve4('example.com'), { code: 'EREFUSED' });
  const answers = new Set<string>();
  for (let index = 0; index < 4; index += 1) answers.add(await ask(link));
  t.same([...answers].sort(), ['one', 'two']);

  one.server.close();
  await waitFor(
    'the first to be left out',
    async () => (await agent.json<ServiceDocument>('/api/services/db')).usable === 1,
  );
  t.equal(await ask(link), 'two');
  t.equal((await resolver.resolveSrv('_db._tcp.mesh.internal')).length, 1);
  two.server.close();
  const todo = await waitFor(
    'the service to be reported',
    async () => (await agent.json<StatusDocument>('/api/status')).todo[0],
  );
  t.match(todo, {
    id: 'service.db.brake',
    message: /^db: 2 of 2 instances turned critical within 30 s; all are still used/,
  });
  const shown = await agent.cli('instances', 'db');
  t.match(shown.stdout, /critical/);
  t.match(shown.stdout, /refused/i, 'the output of the check is shown');
});

t.test('registered instances survive restarts until they are deregistered; identity is durable', async (t) => {
  const { port } = await namedServer(t, 'mail');
  const agent = await new Agent(t).start();
  const file = join(agent.folder, 'mail.yaml');
  writeFileSync(file, `instances:\n  - {service: mail, address: 127.0.0.1, port: ${port}, meta: {zone: a}}\n`);
  const registered = await agent.cli('register', '-f', file);
  t.equal(registered.status, 0, registered.stderr);
  const shown = async (): Promise<InstanceDocument[]> => {
    const { instances } = await agent.json<{ instances: InstanceDocument[] }>('/api/instances');
    // What only this run of the sidecar has seen is not the record's.
    return instances.map(({ since: _since, history: _history, ...instance }) => instance);
  };
  const before = await shown();
  t.match(before, [{ id: `web-1/mail-${port}`, status: 'passing', source: 'api', meta: { zone: 'a' }, reach: 'host' }]);
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    await agent.kill(signal);
    await agent.start();
    await waitFor(
      'the store to confirm',
      async () => (await agent.json<StatusDocument>('/api/status')).store.snapshot.origin === 'store',
    );
    const after = await shown();
    t.same(after, before, `unchanged after ${signal}, the revision of its record included`);
  }
  const gone = await agent.cli('deregister', `web-1/mail-${port}`);
  t.equal(gone.status, 0, gone.stderr);
  t.same((await agent.json<{ instances: unknown[] }>('/api/instances')).instances, []);
  t.equal((await agent.cli('deregister', `web-1/mail-${port}`)).status, 1);
  process.kill(agent.pid, 'SIGINT');
  t.equal(await agent.kill(), 0, 'a clean stop, also when it is asked for twice at once');
  t.notOk(existsSync(agent.socket), 'the socket is gone');
});

t.test('the users own keys', async (t) => {
  const agent = await new Agent(t).start();
  t.equal((await agent.cli('kv', 'put', 'app/colour', 'blue')).status, 0);
  t.equal((await agent.cli('kv', 'get', 'app/colour')).stdout.trim(), 'blue');
  const answer = await agent.api('GET', '/api/kv/app/colour');
  const revision = String(answer.headers.etag).replaceAll('"', '');
  t.equal((await agent.cli('kv', 'put', 'app/colour', 'red', '--cas', '0')).status, 1, 'exists already');
  t.equal((await agent.cli('kv', 'put', 'app/colour', 'red', '--cas', revision)).status, 0);
  t.equal((await agent.cli('kv', 'put', 'app/colour', 'green', '--cas', revision)).status, 1, 'changed meanwhile');
  t.match((await agent.cli('kv', 'list', 'app/')).stdout, /app\/colour/);
  t.equal((await agent.cli('kv', 'delete', 'app/colour')).status, 0);
  t.equal((await agent.cli('kv', 'get', 'app/colour')).status, 1);
  t.equal((await agent.api('GET', '/api/kv/..%2f..%2fmeta')).status, 404, 'only below kv/');
  for (let index = 0; index < 150; index += 1) await agent.api('PUT', `/api/kv/many/${index}`, 'x');
  await agent.api('PUT', '/api/kv/more', 'x');
  t.match((await agent.api('DELETE', '/api/kv/many/?recurse=1')).text, '{"deleted":150}');
  t.equal((await agent.api('GET', '/api/kv/more')).status, 200, 'what only begins alike stays');
});

t.test('doors: the socket is private, TCP needs the token and the right Host', async (t) => {
  const port = await freePort(t);
  const agent = new Agent(t);
  agent.configure({ admin: { listen: [`unix:${agent.socket}`, `127.0.0.1:${port}`] } });
  await agent.start();
  t.equal(statSync(agent.socket).mode & 0o777, 0o600);
  const tokenFile = join(agent.folder, 'data', 'admin.token');
  t.equal(statSync(tokenFile).mode & 0o777, 0o600);
  const token = readFileSync(tokenFile, 'utf8').trim();
  const status = async (path: string, headers: Record<string, string> = {}): Promise<number> => {
    const { request } = await import('node:http');
    return new Promise((resolve, reject) => {
      request({ host: '127.0.0.1', port, path, headers }, (response) => {
        response.resume();
        resolve(response.statusCode ?? 0);
      })
        .on('error', reject)
        .end();
    });
  };
  t.equal(await status('/healthz'), 200);
  t.equal(await status('/readyz'), 200);
  t.equal(await status('/api/status'), 401);
  t.equal(await status('/metrics'), 401);
  t.equal(await status('/api/status', { authorization: 'Bearer wrong-wrong-wrong-wrong' }), 401);
  t.equal(await status('/api/status', { authorization: `Bearer ${token}` }), 200);
  t.equal(await status('/healthz', { host: `evil.example:${port}` }), 401);
  t.equal(
    (await run(process.execPath, [legateMain, '--admin', `127.0.0.1:${port}`, '--token-file', tokenFile, 'status']))
      .status,
    0,
  );
  const metrics = await agent.api('GET', '/metrics');
  t.match(metrics.text, /^legate_admin_requests_total \d+$/m);
  for (const file of ['host.json', 'admin.token'])
    t.equal(statSync(join(agent.folder, 'data', file)).mode & 0o077, 0, file);
  t.notMatch(agent.log.join('\n') + metrics.text, token, 'the token is nowhere');
});

t.test('a busy admin port harms nothing, and a removed socket comes back', async (t) => {
  const { server, port } = await namedServer(t, 'busy');
  const agent = new Agent(t);
  agent.configure({ admin: { listen: [`unix:${agent.socket}`, `127.0.0.1:${port}`] } });
  await agent.start();
  await waitFor('the busy port to be told', async () => {
    const [first] = (await agent.json<StatusDocument>('/api/status')).todo;
    return /no admin API on 127\.0\.0\.1:\d+.*held by node/.test(first?.message ?? '');
  });
  server.close();
  rmSync(agent.socket);
  await waitFor('both doors', async () => (await agent.json<StatusDocument>('/api/status')).todo.length === 0);
});

t.test('bad input is answered and harms nothing', async (t) => {
  const agent = await new Agent(t).start();
  const put = (id: string, body: unknown): Promise<{ status: number; text: string }> =>
    agent.api('PUT', `/api/instances/${id}`, body);
  const bad: readonly (readonly [string, unknown, RegExp])[] = [
    ['web-1/a', { service: 'DB', address: '127.0.0.1', port: 1 }, /service/],
    ['web-1/a', { service: 'db', address: '127.0.0.1', port: 65536 }, /port/],
    ['web-1/a', { service: 'db', address: 'nowhere', port: 1 }, /address/],
    ['web-1/a', { service: 'db', address: '127.0.0.1', port: 1, colour: 'red' }, /colour/],
    ['web-1/a', '{"service":', /JSON/],
    ['web-1/a', '[]', /object/],
    ['web-2/a', { service: 'db', address: '127.0.0.1', port: 1 }, /not an instance of this host/],
    ['web-1/a%00b', { service: 'db', address: '127.0.0.1', port: 1 }, /name/],
  ];
  for (const [id, body, reason] of bad) {
    const answer = await put(id, body);
    t.ok(answer.status >= 400 && answer.status < 500, `${id} ${JSON.stringify(body)}: ${answer.status}`);
    t.match(answer.text, reason);
    t.match(JSON.parse(answer.text), { error: { code: String, message: String, hint: String } });
  }
  t.equal((await agent.api('POST', '/api/drain', {})).status, 400);
  t.equal((await agent.api('POST', '/api/drain', { id: 'nope' })).status, 404);
  t.equal((await agent.api('GET', '/api/absent')).status, 404);
  t.equal((await agent.api('GET', '/api/services/absent')).status, 404);
  t.equal((await agent.api('PUT', '/api/kv/big', 'x'.repeat(1024 * 1024 + 5000))).status, 413);
  t.match(await agent.json('/api/status'), { todo: [] });
});

t.test('what cannot be had is said in one line, and everything else goes on', async (t) => {
  const { port: taken } = await namedServer(t, 'taken');
  const { port: alsoTaken } = await namedServer(t, 'also taken');
  const agent = await new Agent(t, {
    docker: { socket: '/nonexistent/docker.sock' },
    dns: { listen: ['127.0.0.1:0', `127.0.0.1:${taken}`], bridges: 'off', upstream: 'off' },
    instances: [instance('db', taken)],
    links: [{ service: 'db', listen: `127.0.0.1:${alsoTaken}` }],
  }).start();
  await waitFor('three conditions', async () => (await agent.json<StatusDocument>('/api/status')).todo.length >= 3);
  const status = await agent.json<StatusDocument>('/api/status');
  const words = status.todo.map((each) => `${each.message} → ${each.hint}`).join('\n');
  t.match(words, /no Docker socket at \/nonexistent\/docker\.sock/i);
  t.match(words, new RegExp(`127\\.0\\.0\\.1:${taken}.*held by node \\(pid ${process.pid}\\)`));
  t.match(words, new RegExp(`127\\.0\\.0\\.1:${alsoTaken}.*held by node`));
  for (const each of status.todo) t.ok(each.hint.length > 5, `${each.message} has a hint`);
  t.equal((await (await resolverOf(agent)).resolve4('db.service.mesh.internal'))[0], '127.0.0.1');
  const screen = await agent.cli('status');
  t.equal(screen.status, 0);
  t.match(screen.stdout, /held by node/);
  t.notMatch(screen.stdout, /\u001b/, 'no colours into a pipe');
});

t.test('a second sidecar on the same data directory refuses, and names the first', async (t) => {
  const agent = await new Agent(t).start();
  const second = new Agent(t, { data_dir: join(agent.folder, 'data') });
  await second.start({ ready: false });
  t.equal(await second.ended(), 1);
  t.match(second.log.join('\n'), new RegExp(`in use by another sidecar \\(pid ${agent.pid}\\)`));
  t.equal((await agent.api('GET', '/readyz')).status, 200);
});

t.test('a damaged store: names and links go on from the snapshot on disk', async (t) => {
  const { port } = await namedServer(t, 'db');
  const link = await freePort(t);
  const agent = await new Agent(t, {
    instances: [instance('db', port)],
    links: [{ service: 'db', listen: `127.0.0.1:${link}` }],
  }).start();
  await waitFor('the snapshot on disk', () => existsSync(join(agent.folder, 'data', 'snapshot.json')));
  await agent.kill('SIGTERM');
  const store = join(agent.folder, 'data', 'store');
  for (const file of readdirSync(store)) writeFileSync(join(store, file), 'garbage '.repeat(64));
  await agent.start();
  t.equal(await ask(link), 'db');
  t.equal((await (await resolverOf(agent)).resolve4('db.service.mesh.internal'))[0], '127.0.0.1');
  const status = await agent.json<StatusDocument>('/api/status');
  t.equal(status.store.snapshot.origin, 'disk');
  t.match(status.todo, [{ severity: 'error', message: /store/, hint: /move/ }]);
  t.equal((await agent.api('GET', '/api/kv/a')).status, 503);
});

t.test('garbage where the store should be, from the first start on: this host is served all the same', async (t) => {
  const { port } = await namedServer(t, 'db');
  const link = await freePort(t);
  const agent = new Agent(t, {
    instances: [instance('db', port)],
    links: [{ service: 'db', listen: `127.0.0.1:${link}` }],
  });
  const store = join(agent.folder, 'data', 'store');
  mkdirSync(store, { recursive: true });
  for (const file of ['CURRENT', 'MANIFEST-000001', '000003.ldb']) writeFileSync(join(store, file), 'garbage');
  await agent.start();
  t.equal(await ask(link), 'db');
  t.same(await (await resolverOf(agent)).resolve4('db.service.mesh.internal'), ['127.0.0.1']);
  t.match((await agent.json<StatusDocument>('/api/status')).todo, [{ severity: 'error', message: /store/ }]);
});

t.test('a store that was emptied gets everything back, with the same virtual address', async (t) => {
  const { port } = await namedServer(t, 'db');
  const agent = await new Agent(t, {
    instances: [instance('db', port)],
    services: { db: { port: 5432, balance: 'random' } },
  }).start();
  const settled = async (): Promise<boolean> =>
    (await agent.json<StatusDocument>('/api/status')).store.snapshot.origin === 'store';
  await waitFor('the store', settled);
  const before = await agent.json<ServiceDocument>('/api/services/db');
  await agent.kill('SIGTERM');
  rmSync(join(agent.folder, 'data', 'store'), { recursive: true });
  await agent.start();
  await waitFor('the store', settled);
  const after = await agent.json<ServiceDocument>('/api/services/db');
  t.match(after, { port: 5432, balance: 'random', vip: before.vip, usable: 1 });
});

t.test('configuration faults start nothing and are told together', async (t) => {
  const agent = new Agent(t);
  writeFileSync(agent.configFile, 'services:\n  db: {port: "54 32", blance: random}\n');
  await agent.start({ ready: false });
  t.equal(await agent.ended(), 2);
  const text = agent.log.join('\n');
  t.match(text, /legate\.yaml:2:\d+: services\.db\.port: "54 32" is not a port/);
  t.match(text, /did you mean `balance`/);
  t.match(text, /2 faults, nothing started\./);
  const none = await run(process.execPath, [legateMain, '--admin', `unix:${agent.socket}`, 'status']);
  t.equal(none.status, 3);
  t.match(none.stderr, agent.socket);
});

t.test('drain takes an instance out, reports, and holds over a restart', async (t) => {
  const one = await namedServer(t, 'one');
  const two = await namedServer(t, 'two');
  const agent = await new Agent(t, { instances: [instance('db', one.port), instance('db', two.port)] }).start();
  const drained = await agent.cli('drain', `web-1/db-${one.port}`);
  t.equal(drained.status, 0, drained.stderr);
  t.match(await agent.json('/api/services/db'), { usable: 1 });
  await agent.kill('SIGTERM');
  await agent.start();
  t.match(await agent.json('/api/services/db'), { usable: 1 });
  t.equal((await agent.cli('undrain', `web-1/db-${one.port}`)).status, 0);
  t.match(await agent.json('/api/services/db'), { usable: 2 });
  t.same((await agent.json<StatusDocument>('/api/status')).todo, []);
  t.equal((await agent.cli('drain', '--host')).status, 0);
  await agent.kill('SIGTERM');
  await agent.start();
  const later = await agent.api('PUT', '/api/instances/web-1/later', instance('later', one.port));
  t.equal(later.status, 200, later.text);
  await waitFor('what is registered later to be drained too', async () => {
    return (await agent.api('GET', '/api/services/later')).text.includes('"draining":true');
  });
  t.match(
    (await agent.json<StatusDocument>('/api/status')).todo.find((each) => each.id === 'drain.operator'),
    {
      severity: 'note',
      message: 'this host is drained by hand: 3 instances, and whatever is registered later',
    },
  );
  t.equal((await agent.cli('undrain', '--host')).status, 0);
  await waitFor('all to be usable', async () => (await agent.json<StatusDocument>('/api/status')).todo.length === 0);
});

t.test('SIGHUP takes new instances from the file; a faulty file changes nothing', async (t) => {
  const one = await namedServer(t, 'one');
  const agent = await new Agent(t, { instances: [instance('db', one.port)] }).start();
  writeFileSync(agent.configFile, readFileSync(agent.configFile, 'utf8').replace('service: db', 'service: web'));
  process.kill(agent.pid, 'SIGHUP');
  await waitFor('the new service', async () =>
    (await agent.api('GET', '/api/services/web')).text.includes('"usable":1'),
  );
  writeFileSync(agent.configFile, 'nonsense: true\nmesh: A\n');
  process.kill(agent.pid, 'SIGHUP');
  const todo = async (id: string): Promise<ConditionDocument | undefined> =>
    (await agent.json<StatusDocument>('/api/status')).todo.find((each) => each.id === id);
  const fault = await waitFor('the fault to be told', () => todo('config.reload'));
  t.match(fault, {
    severity: 'error',
    message: `the configuration file has 2 faults, the running configuration stays: ${agent.configFile}:1:1: unknown key`,
    hint: `legate config check ${agent.configFile}`,
  });
  t.match(await agent.json('/api/services/web'), { usable: 1 });
  rmSync(agent.configFile);
  process.kill(agent.pid, 'SIGHUP');
  await waitFor('the missing file to be told', async () =>
    /cannot be read/.test((await todo('config.reload'))?.message ?? ''),
  );

  agent.configure({ instances: [instance('web', one.port)], domain: 'other.internal', drain: { timeout: '1s' } });
  process.kill(agent.pid, 'SIGHUP');
  t.match(await waitFor('what waits to be told', () => todo('config.restart')), {
    severity: 'note',
    message: 'changes of domain, drain.timeout take effect at the next start',
    hint: 'restart the sidecar',
  });
  t.equal(await todo('config.reload'), undefined, 'the fault is over');
  agent.configure({ instances: [instance('web', one.port)] });
  process.kill(agent.pid, 'SIGHUP');
  await waitFor('nothing to wait any more', async () => (await todo('config.restart')) === undefined);
  t.match(await agent.json('/api/services/web'), { usable: 1 });
  for (const line of agent.log) t.doesNotThrow(() => JSON.parse(line), `the log is JSON: ${line}`);
});
