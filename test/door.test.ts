import { chmodSync, copyFileSync, writeFileSync } from 'node:fs';
import { createServer, request } from 'node:http';
import { createServer as createHttp2Server } from 'node:http2';
import { request as requestTls } from 'node:https';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import { makeNamespace } from '../proxy/kernel/test-namespace.ts';
import type { LinkDocument, LinksDocument } from '../sidecar/admin/documents.ts';
import type { CertificateFiles } from '../src/model/link.ts';
import { Agent, must, type Ran, run } from './support/agent.ts';
import { makeTestAuthority, writeDoorFiles } from './support/certificates.ts';
import { freePort } from './support/faults.ts';
import { legate } from './support/mesh-host.ts';
import { unless } from './support/needs.ts';
import { isWorker, workersOf } from './support/planes.ts';
import { waitFor } from './support/wait.ts';

/** A whole sidecar with two workers and doors, and a stranger on a network of the host. */

const slow = { timeoutMs: 30_000, everyMs: 100 };
const dayMs = 86_400_000;
const range = 204;
const [here, there] = ['198.18.204.1', '198.18.204.2'] as const;
const needs = { skip: unless('nft', 'netns', 'command:curl', 'command:openssl'), timeout: 110_000 };

t.test('a door for the outside, with two workers', needs, async (t) => {
  const table = `legate_240_${range}_0_0_16`;
  const device = `door${process.pid}`;
  const namespace = makeNamespace(device);
  const pids = new Set<number>();
  t.teardown(async () => {
    for (const pid of pids) if (isWorker(pid)) process.kill(pid, 'SIGKILL');
    namespace.remove();
    await run('nft', ['delete', 'table', 'ip', table]);
    await run('nft', ['delete', 'table', 'bridge', table]);
    await run('ip', ['route', 'del', 'local', `240.${range}.0.0/16`, 'dev', 'lo']);
    await run('ip', ['link', 'del', device]);
  });
  await must('ip', 'link', 'add', device, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', namespace.name);
  await must('ip', 'addr', 'add', `${here}/30`, 'dev', device);
  await must('ip', 'link', 'set', device, 'up');
  await must('ip', '-n', namespace.name, 'addr', 'add', `${there}/30`, 'dev', 'eth0');
  await must('ip', '-n', namespace.name, 'link', 'set', 'eth0', 'up');
  await must('ip', '-n', namespace.name, 'route', 'add', `240.${range}.0.0/16`, 'via', here);

  const http = createServer((asked, answer) => answer.end(JSON.stringify(asked.headers)));
  const http2 = createHttp2Server((asked, answer) => answer.end(JSON.stringify(asked.headers)));
  const ports = await Promise.all(
    [http, http2].map(async (server) => {
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      t.teardown(() => {
        http.closeAllConnections();
        server.close();
      });
      return (server.address() as AddressInfo).port;
    }),
  );
  const [door, door2, tunnel, store] = [await freePort(), await freePort(), await freePort(), await freePort()];

  const agent = new Agent(t);
  const authority = await makeTestAuthority();
  const issue = (name: string, domain: string): Promise<CertificateFiles> =>
    writeDoorFiles(authority, agent.folder, name, { names: [domain], notAfterMs: Date.now() + 90 * dayMs });
  const one = await issue('one', 'one.example');
  const two = await issue('two', 'two.example');
  const next = await issue('next', 'one.example');
  const roots = join(agent.folder, 'roots.pem');
  writeFileSync(roots, authority.root);
  agent.configure({
    vip: { range: `240.${range}.0.0/16`, local_range: `240.${range + 1}.0.0/16` },
    workers: 2,
    drain: { timeout: '2s' },
    tunnel: { listen: `127.0.0.1:${tunnel}` },
    store: { kind: 'embedded', listen: `127.0.0.1:${store}` },
    services: { web: { protocol: 'http' }, two: { protocol: 'http2' } },
    instances: [
      { service: 'web', address: '127.0.0.1', port: ports[0], protocol: 'http' },
      { service: 'two', address: '127.0.0.1', port: ports[1], protocol: 'http2' },
    ],
    links: [
      { service: 'web', listen: `0.0.0.0:${door}`, tls: [one, two] },
      { service: 'two', listen: `0.0.0.0:${door2}`, tls: two },
    ],
  });
  t.equal((await legate(['init', '-c', agent.configFile])).status, 0);
  await agent.start();
  const workers = (): number[] => {
    const found = workersOf(agent);
    for (const pid of found) pids.add(pid);
    return found;
  };
  const links = async (): Promise<LinkDocument[]> => [...(await agent.json<LinksDocument>('/api/links')).links];
  const doorOf = async (service = 'web'): Promise<LinkDocument | undefined> =>
    (await links()).find((link) => link.kind === 'listen' && link.service === service);
  const metric = async (name: string): Promise<number> => {
    const { text } = await agent.api('GET', '/metrics');
    return Number(
      text
        .split('\n')
        .find((line) => line.startsWith(name))
        ?.split(' ')
        .pop() ?? 0,
    );
  };
  const curl = (...args: string[]): Promise<Ran> => {
    const names = [`one.example:${door}:${here}`, `two.example:${door}:${here}`, `two.example:${door2}:${here}`];
    const fixed = ['-sS', '--max-time', '5', '--cacert', roots, ...names.flatMap((name) => ['--resolve', name])];
    return run('ip', ['netns', 'exec', namespace.name, 'curl', ...fixed, ...args]);
  };
  await waitFor(
    'the doors',
    async () => (await doorOf())?.state === 'open' && (await doorOf('two'))?.state === 'open',
    slow,
  );
  t.equal(workers().length, 2);

  const answer = await curl('-H', 'X-Forwarded-For: 10.1.1.1', `https://one.example:${door}/`);
  t.match(
    JSON.parse(answer.stdout || '{}'),
    {
      host: `one.example:${door}`,
      'x-forwarded-for': there,
      'x-forwarded-proto': 'https',
    },
    answer.stderr,
  );
  const spoken = (await curl('-o', '/dev/null', '-w', '%{http_version}', `https://two.example:${door}/`)).stdout;
  t.equal(spoken, '1.1', 'another certificate by name, and HTTP/1.1');
  const second = await curl('--http2', '-w', '\n%{http_version}', `https://two.example:${door2}/`);
  t.match(second.stdout, /"x-forwarded-for":"198\.18\.204\.2".*\n2$/, second.stderr);
  t.match(await curl('--http1.1', `https://two.example:${door2}/`), { status: 35 }, 'HTTP/2 alone is spoken there');
  for (let count = 0; count < 6; count += 1) await curl(`https://one.example:${door}/`);
  t.match(await doorOf(), {
    tls: { names: ['one.example', 'two.example'] },
    consumers: [{ name: 'anonymous', total: 8, active: 0 }],
    connections: { failed: 0 },
  });
  t.match((await agent.cli('links')).stdout, new RegExp(`web +https://0\\.0\\.0\\.0:${door} +open`));

  const vip = (await links()).find(({ kind, service }) => kind === 'vip' && service === 'web')?.address ?? '';
  t.match(await askClear(vip), /"x-forwarded-proto":"http"/, 'the virtual address works here');
  t.match(await curl('--max-time', '2', `http://${vip}/`), { status: 28 }, 'and lets no stranger in');

  // What is no TLS, or none that is taken.
  t.match(
    (await curl('-i', `http://one.example:${door}/`)).stdout,
    /^HTTP\/1\.1 400 Bad Request[\s\S]*this port speaks HTTPS/,
  );
  const openssl = (input: string, ...args: string[]): Promise<Ran> =>
    run('timeout', ['10', 'openssl', 's_client', '-connect', `${here}:${door}`, '-CAfile', roots, ...args], { input });
  t.match(`${(await openssl('', '-tls1_1', '-cipher', 'ALL:@SECLEVEL=0')).stdout}`, /no peer certificate available/);
  t.match(
    (await openssl('', '-servername', 'nobody.example')).stdout,
    /subject=CN = one/,
    'the first one for a name of nobody',
  );
  t.match((await openssl('R\n', '-tls1_2', '-servername', 'one.example')).stderr, /no renegotiation/i);
  t.match((await openssl('', '-alpn', 'spdy/3')).stderr, /alert no application protocol/);
  const failures = 'legate_link_tls_handshake_failures_total';
  t.equal(await metric(`${failures}{reason="clear"}`), 1);
  t.equal(await metric(`${failures}{reason="protocol"}`), 2);
  t.equal(await metric(`${failures}{reason="version"}`), 1);

  // Whoever comes from outside is anonymous to policy.
  t.equal((await agent.cli('intent', 'deny', 'anonymous', 'web')).status, 0);
  await waitFor('the intent', async () => (await curl(`https://one.example:${door}/`)).status !== 0, slow);
  t.match(await doorOf(), { denied: { last: { consumer: 'anonymous' } } });
  t.equal((await curl(`https://two.example:${door2}/`)).status, 0);
  t.equal((await agent.cli('intent', 'remove', 'anonymous', 'web')).status, 0);
  await waitFor('its end', async () => (await curl(`https://one.example:${door}/`)).status === 0, slow);

  // Replaced under load: nobody is refused, and no handshake is lost.
  const problems: string[] = [];
  let done = 0;
  const loading = new AbortController();
  const load = async (): Promise<void> => {
    while (!loading.signal.aborted) {
      await askTls(door, authority.root).catch((error: Error) => problems.push(error.message));
      done += 1;
    }
  };
  const loads = Promise.all([load(), load(), load()]);
  t.teardown(() => loading.abort());
  await waitFor('some load', () => done > 20, slow);
  t.match(await agent.replace(), { former: 0 });
  workers();
  const replacedAt = done;
  await waitFor('load through the new one', () => done > replacedAt + 50, slow);

  // The files are written anew while it runs.
  copyFileSync(next.cert, one.cert);
  copyFileSync(next.key, one.key);
  chmodSync(two.key, 0o644);
  const subject = async (): Promise<string> => (await openssl('', '-servername', 'one.example')).stdout;
  let fresh = 0;
  await waitFor(
    'both workers show it',
    async () => {
      fresh = (await subject()).includes('subject=CN = next') ? fresh + 1 : 0;
      return fresh === 8;
    },
    slow,
  );
  loading.abort();
  await loads;
  await waitFor(
    'what is wrong with the other',
    async () => (await agent.cli('why', 'web')).stdout.includes(two.key),
    slow,
  );
  const why = await agent.cli('why', 'web');
  t.match(why, { status: 0, stdout: /door .*cannot be used.*the certificate of before stays/ });
  t.match(why.stdout, /advice: .*chmod/);
  t.strictSame(problems, [], `of ${done} requests`);
  workers();
  t.equal(await agent.kill('SIGTERM'), 0);
});

/** A request in the clear from this host. */
function askClear(address: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const asked = request(`http://${address}/`, { agent: false, timeout: 5000 }, (answer) => {
      let text = '';
      answer.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk;
      });
      answer.on('end', () => resolve(text));
    });
    asked
      .on('error', reject)
      .on('timeout', () => asked.destroy(new Error('no answer')))
      .end();
  });
}

/** A request over a connection of its own. */
function askTls(port: number, ca: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const options = { host: '127.0.0.1', port, ca, servername: 'one.example', agent: false, timeout: 5000 };
    const asked = requestTls(options, (answer) => {
      answer.resume().on('end', resolve);
      if (answer.statusCode !== 200) reject(new Error(`status ${answer.statusCode}`));
    });
    asked
      .on('error', reject)
      .on('timeout', () => asked.destroy(new Error('no answer')))
      .end();
  });
}
