import { cpSync, mkdirSync, readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { request, Agent as UndiciAgent } from 'undici';
import type { HostsDocument, InstancesDocument, LinksDocument } from '../sidecar/admin/documents.ts';
import type { GrantChangeDocument, PolicyDocument } from '../sidecar/admin/policy-documents.ts';
import { runCommandLine } from '../sidecar/cli/program.ts';
import { fakeSession } from '../sidecar/cli/test-support.ts';
import { newPolicyKeys, openSealedPolicy, sealPolicy } from '../src/pki/policy-seal.ts';
import { keysOf } from '../src/store/keys.ts';
import { Agent, must, type Ran, type Teardown } from './support/agent.ts';
import { EtcdCluster } from './support/etcd.ts';
import { ask, complaint, echoServer, freePort, noComplaint, sayingServer, statusOf } from './support/faults.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

/** Runs `legate …` in this process: starting one costs more than all the rest. */
async function legate(...args: string[]): Promise<Ran> {
  const { session, stdout, stderr } = fakeSession({ nowMs: Date.now() });
  const status = await runCommandLine(args, session);
  return { status, stdout: stdout.text, stderr: stderr.text };
}

const cli = (agent: Agent, ...args: string[]): Promise<Ran> => legate('--admin', `unix:${agent.socket}`, ...args);

/** What a link says, or `refused`. */
const asked = (port: number): Promise<string> => ask(port).catch(() => 'refused');

/** A sidecar whose data directory `legate init` made that of an authority's host. */
async function authority(t: Teardown, config: Readonly<Record<string, unknown>>): Promise<Agent> {
  const agent = new Agent(t, { tunnel: { listen: `127.0.0.1:${await freePort()}` }, ...config });
  const made = await legate('init', '-c', agent.configFile);
  if (made.status !== 0) throw new Error(made.stderr);
  return agent;
}

t.test('intents are changed by command, hold at once in links, and survive a restart', async (t) => {
  const { port } = await sayingServer(t, 'db');
  const echo = await echoServer(t);
  const [web, host, slow] = [await freePort(), await freePort(), await freePort()];
  const agent = await authority(t, {
    store: { kind: 'embedded', listen: `127.0.0.1:${await freePort()}` },
    instances: [
      { service: 'db', address: '127.0.0.1', port },
      { service: 'echo', address: '127.0.0.1', port: echo },
    ],
    links: [
      { service: 'db', listen: `127.0.0.1:${web}`, consumer: 'web' },
      { service: 'db', listen: `127.0.0.1:${host}` },
      { service: 'echo', listen: `127.0.0.1:${slow}`, consumer: 'web' },
    ],
  });
  await agent.start();
  const say = async (...args: string[]): Promise<string> => {
    const { status, stdout, stderr } = await cli(agent, ...args);
    return `${status}: ${(stdout + stderr).trim()}`;
  };
  await waitFor('the links', async () => (await asked(web)) === 'db' && (await asked(host)) === 'db');
  t.match(
    await say('intent', 'list'),
    /^0: default allow, mode enforce, declared links are permission, set .+ ago\n no intents/,
  );
  t.match(
    await say('intent', 'check', 'web', 'db'),
    /^0: ok web may call db: no intent names web and db, and the default is allow/,
  );
  t.match(
    await say('status'),
    /policy of .+ ago \(default allow\)[\s\S]*policy +0 intents, declared .+, any host may offer any service/,
  );

  const running = connect(slow, '127.0.0.1');
  t.teardown(() => running.destroy());
  const cut = new Promise((resolve) => running.once('error', resolve).once('close', resolve));
  running.write('x');
  await new Promise((resolve) => running.once('data', resolve));
  t.equal(await say('intent', 'deny', 'web', '*'), '0: ok web may not call *');
  await cut;
  t.equal(await asked(web), 'refused');
  t.equal(await asked(host), 'db');
  t.match(
    await say('intent', 'check', 'web', 'db'),
    /^1: x web may not call db: the intent deny web \* forbids .+ \(set .+ ago\)\n fix.+: legate intent allow web db$/,
  );
  const { links } = await agent.json<LinksDocument>('/api/links');
  t.match(
    links.find(({ address }) => address.endsWith(`:${web}`)),
    {
      denied: { total: 1, last: { consumer: 'web', by: 'intent', intent: { consumer: 'web', service: '*' } } },
    },
  );
  t.match(await say('links'), /1 denied by policy, last .+ ago: the intent deny web \*/);

  for (const words of [
    'intent check dbb dbx',
    'intent allow dbb dbx',
    'intent remove dbb dbx',
    'host disallow web-1 dbx',
  ]) {
    const notes = ['no service dbb is known yet; did you mean db?', 'no service dbx is known yet; did you mean db?'];
    const told = words.includes('remove') ? [] : words.startsWith('host') ? notes.slice(1) : notes;
    const { stderr } = await cli(agent, ...words.split(' '));
    t.equal(stderr, told.map((note) => ` - ${note}\n`).join(''), words);
  }
  const doubtful = JSON.parse((await cli(agent, 'intent', 'check', 'web', 'dbx', '--json')).stdout);
  t.strictSame(doubtful.notes, ['no service dbx is known yet; did you mean db?']);

  await say('intent', 'allow', 'web', 'db');
  t.equal(await asked(web), 'db', 'a named service wins over *');
  t.equal(await say('intent', 'default', 'deny'), '0: ok where no intent says, calls are denied');
  t.equal(await asked(host), 'refused');
  await agent.kill('SIGKILL');
  await agent.start();
  await waitFor('the links', async () => (await asked(web)) === 'db');
  t.equal(await asked(host), 'refused', 'a restart forgets nothing');

  t.equal(await say('intent', 'mode', 'learn'), '0: ok nothing is refused, what would be is learned');
  t.equal(await asked(host), 'db');
  t.match(await say('intent', 'list', '--learned'), /legate intent allow host db +1 /);
  t.match(
    await say('intent', 'deny', 'host', 'db'),
    /ok host may not call db\n - the mode is learn, so nothing is refused yet/,
  );
  t.equal(await say('intent', 'remove', 'host', 'db'), '0: ok the intent for host and db is gone');
  t.match(await say('intent', 'remove', 'host', 'db'), /^1: .*no intent names exactly host and db/);
  t.match(await say('intent', 'list'), /mode learn[\s\S]*CONSUMER[\s\S]*web +db +allow[\s\S]*web +\* +deny/);
  t.match(JSON.parse((await cli(agent, 'intent', 'list', '--json')).stdout), {
    default: 'deny',
    stored: true,
    authority: { self: true },
  });

  const bad: readonly (readonly ['GET' | 'PUT' | 'POST' | 'DELETE', string, unknown, number])[] = [
    ['PUT', '/api/policy', {}, 400],
    ['PUT', '/api/policy', { default: 'maybe' }, 400],
    ['PUT', '/api/policy', { version: 1 }, 400],
    ['PUT', '/api/policy', { __proto__: null, roots: [] }, 400],
    ['PUT', '/api/intents/web/db', { action: 'x' }, 400],
    ['PUT', '/api/intents/WEB/db', { action: 'allow' }, 400],
    ['PUT', '/api/intents/web/service', { action: 'allow' }, 400],
    ['GET', '/api/intents/%00/db', undefined, 400],
    ['PUT', '/api/hosts/nobody/grants/db', undefined, 404],
    ['PUT', '/api/hosts/web-1/grants/DB', undefined, 400],
    ['POST', '/api/hosts/web-1/revoke', undefined, 409],
  ];
  for (const [method, path, body, status] of bad) {
    t.equal((await agent.api(method, path, body)).status, status, `${method} ${path} ${JSON.stringify(body)}`);
  }
  for (const words of [
    'intent allow WEB db',
    'intent allow web',
    'intent mode off',
    'host allow WEB db',
    'host allow web-1 DB',
  ]) {
    t.equal((await cli(agent, ...words.split(' '))).status, 2, words);
  }
});

t.test(
  'a policy reaches every host, grants and revocations too, and no other one is believed',
  { skip: unless('command:etcd', 'command:etcdctl') },
  async (t) => {
    const etcd = await EtcdCluster.start(t);
    const endpoints = etcd.endpoints.map(({ text }) => text);
    const store = { kind: 'etcd', endpoints, lease_ttl: '2s' };
    const { port } = await sayingServer(t, 'db');
    const link = await freePort();
    const instances = [{ service: 'db', address: '127.0.0.1', port, reach: 'host' }];
    const one = await authority(t, { host: 'web-1', store, instances });
    const two = new Agent(t, {
      host: 'web-2',
      store,
      instances,
      links: [{ service: 'db', listen: `127.0.0.1:${link}` }],
    });
    // What `legate join` brings, without a certificate.
    const [from, to] = [join(one.folder, 'data', 'pki'), join(two.folder, 'data', 'pki')];
    mkdirSync(to, { recursive: true, mode: 0o700 });
    for (const name of ['policy.pub', 'policy.json']) cpSync(join(from, name), join(to, name));
    await one.start();
    await two.start();
    const shown = async (agent: Agent): Promise<string> =>
      (await agent.json<InstancesDocument>('/api/instances')).instances.map(({ host }) => host).join(' ');
    await waitFor('both see both', async () => `${await shown(one)} ${await shown(two)}` === 'web-1 web-2 web-1 web-2');
    t.equal(await asked(link), 'db');

    const elsewhere = await cli(two, 'intent', 'default', 'deny');
    t.equal(elsewhere.status, 1);
    t.match(elsewhere.stderr, /changed on the authority's host, which is web-1.+--admin HOST:PORT --token-file FILE/);
    t.equal((await cli(one, 'intent', 'deny', 'host', 'db')).status, 0);
    await waitFor('it holds on the other host', async () => (await asked(link)) === 'refused');
    t.equal((await cli(two, 'intent', 'check', 'host', 'db')).status, 1);
    const { version } = await two.json<PolicyDocument>('/api/policy');
    t.equal((await cli(one, 'intent', 'remove', 'host', 'db')).status, 0);
    await waitFor('it is gone there', async () => (await asked(link)) === 'db');

    const granted = await cli(one, 'host', 'allow', 'web-1', 'db');
    t.match(
      granted.stdout,
      /left out from now on: 1 instance of db on web-2\n.+to keep it: legate host allow web-2 db\n.+to undo this: legate host disallow web-1 db\n.+ok web-1 may now offer only db; db may be offered only by web-1/,
    );
    await waitFor('the other one is left out', async () => (await shown(one)) === 'web-1');
    await waitFor('also on its own host', async () => (await shown(two)) === 'web-1');
    for (const agent of [one, two]) {
      t.match((await cli(agent, 'instances', 'db')).stdout, /web-2 offers db without a grant: 1 instance left out/);
    }
    await waitFor('and out of its links', async () => (await asked(link)) === 'refused');
    t.match((await cli(two, 'status')).stdout, /1 instance/, 'it is still told what it has');
    t.equal((await cli(two, 'drain', 'db')).status, 0, 'and may drain it');
    t.equal((await cli(two, 'undrain', 'db')).status, 0);
    await complaint(one, /web-2 offers db without a grant/);
    await complaint(two, /this host has no grant to offer db.+legate host allow web-2 db/);
    const again = await cli(one, 'host', 'disallow', 'web-1', 'db', '--json');
    t.match(JSON.parse(again.stdout) as GrantChangeDocument, {
      changed: true,
      offers: null,
      letIn: [{ host: 'web-2', service: 'db' }],
    });
    await waitFor('it is back', async () => (await shown(one)) === 'web-1 web-2');
    await noComplaint(two, /no grant/);

    const key = keysOf('legate').policy;
    const meshKey = readFileSync(join(to, 'policy.pub'), 'utf8');
    const known = openSealedPolicy(readFileSync(join(to, 'policy.json')), meshKey, { mesh: 'legate' });
    const forged = sealPolicy({ ...known, version: known.version * 2, default: 'deny' }, newPolicyKeys().privateKey);
    await one.kill();
    const put = (value: Uint8Array): Promise<string> => etcd.must('put', key, Buffer.from(value).toString());
    await put(forged);
    await complaint(two, /policy in the store is refused.+signature.+the known one stays/);
    t.equal(await asked(link), 'db');
    t.match((await two.api('GET', '/metrics')).text, /legate_policy_refused_total\{reason="forged"\} [1-9]/);
    t.ok((await two.json<PolicyDocument>('/api/policy')).version > version);
    await one.start();
    await noComplaint(two, /policy in the store/);

    const revoked = await cli(one, 'host', 'revoke', 'web-2');
    t.match(revoked.stdout, /ok web-2 \([0-9a-f]{16}\) is revoked, for ever\n.+to let it in again, as another host/);
    await waitFor('nothing of it is used', async () => (await shown(one)) === 'web-1');
    t.match((await one.json<HostsDocument>('/api/hosts')).hosts, [
      { name: 'web-1' },
      { name: 'web-2', alive: false, revokedAt: /Z$/ },
    ]);
    t.match((await cli(one, 'hosts')).stdout, /web-2 .*revoked/);
    await complaint(two, /this host was revoked/);
    t.match((await cli(one, 'host', 'revoke', 'web-2')).stdout, /had been revoked before/);
    t.match((await cli(one, 'host', 'allow', 'web-2', 'db')).stderr, /web-2 was revoked, which is for ever/);
    t.match((await statusOf(one)).policy, { revoked: 1, grants: 'any', default: 'allow' });
  },
);

const anyName = (): undefined => undefined;

/** An address of this machine that others could reach. */
function outerAddress(): string | undefined {
  const all = Object.values(networkInterfaces()).flatMap((each) => each ?? []);
  return all.find(({ family, internal }) => family === 'IPv4' && !internal)?.address;
}

t.test(
  "beyond loopback the admin API is TLS with the host's certificate, and wants the token",
  { skip: outerAddress() === undefined ? 'needs an address beyond loopback' : false },
  async (t) => {
    const address = outerAddress() ?? '';
    const at = `${address}:${await freePort()}`;
    const agent = new Agent(t, { advertise: address, tunnel: { listen: `127.0.0.1:${await freePort()}` } });
    const store = { kind: 'embedded', listen: `127.0.0.1:${await freePort()}` };
    const admin = { listen: [`unix:${agent.socket}`, at] };
    agent.configure({ advertise: address, tunnel: { listen: `127.0.0.1:${await freePort()}` }, store, admin });
    await agent.start();
    await complaint(
      agent,
      /no admin API on .+ needs this host's certificate, and it has none.+legate init or legate join/,
    );
    await agent.kill();
    t.equal((await legate('init', '-c', agent.configFile)).status, 0);
    await agent.start();
    const data = join(agent.folder, 'data');
    const roots = join(data, 'pki', 'roots.pem');
    const ca = ['--admin', at, '--ca-file', roots];
    const token = ['--token-file', join(data, 'admin.token')];
    const open = await legate(...ca, ...token, 'intent', 'deny', 'a', 'b');
    t.equal(open.status, 0, open.stderr);
    t.match((await legate(...ca, 'hosts')).stderr, /wants a token/);
    t.match(
      (await legate('--admin', at, ...token, '--ca-file', agent.configFile, 'hosts')).stderr,
      /holds no certificate/,
    );
    const other = join(agent.folder, 'other.pem');
    await must(
      'openssl',
      ...'req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1'.split(' '),
      '-subj',
      '/CN=x',
      '-keyout',
      `${other}.key`,
      '-out',
      other,
    );
    const distrusted = await legate('--admin', at, ...token, '--ca-file', other, 'hosts');
    t.match(distrusted.stderr, /is not trusted: its certificate comes from none of the mesh's roots.+--ca-file/);
    const dispatcher = new UndiciAgent({ connect: { ca: readFileSync(roots, 'utf8'), checkServerIdentity: anyName } });
    // Names are what is tried here.
    t.teardown(() => dispatcher.close());
    const get = async (path: string, headers: Record<string, string> = {}): Promise<number> => {
      const { statusCode, body } = await request(`https://${at}${path}`, { dispatcher, headers });
      await body.dump();
      return statusCode;
    };
    t.equal(await get('/healthz'), 200);
    t.equal(await get('/metrics'), 401);
    const authorization = `Bearer ${readFileSync(join(data, 'admin.token'), 'utf8').trim()}`;
    t.equal(await get('/metrics', { authorization }), 200);
    const port = at.split(':')[1];
    t.equal(await get('/metrics', { authorization, host: `web-1:${port}` }), 200);
    t.equal(await get('/healthz', { host: `evil.example:${port}` }), 401);
    await t.rejects(request(`http://${at}/healthz`), 'nothing in the clear');
  },
);
