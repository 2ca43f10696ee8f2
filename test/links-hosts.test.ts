import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { LinkDocument, ServiceDocument } from '../sidecar/admin/documents.ts';
import { monotonicMs } from './support/monotonic.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';
import type { TestbedHost } from './testbed/host.ts';
import { Testbed, testbedNeeds, testbedTurn } from './testbed/testbed.ts';

/** Links between real hosts: from nothing to a working link, what crosses the wire, and real databases behind it. */

const skip = unless(...testbedNeeds, 'command:tcpdump', 'command:redis-server', 'command:psql');
const file = '/etc/legate/legate.yaml';
/** Debian keeps PostgreSQL's programs apart, by version. */
const postgresRoot = '/usr/lib/postgresql';
/** In what crosses between the hosts this must not be found. */
const marker = 'ONLY-FOR-THE-TWO-ENDS';

if (skip === false) await testbedTurn(t);

t.test('links between hosts', { skip, timeout: 280_000 }, async (t) => {
  const testbed = await Testbed.up(t, { hosts: 3, hasTurn: true });
  await fromNothing(t, testbed);
  await t.test('nothing readable crosses', (t) => nothingReadable(t, testbed));
  t.jobs = 2;
  await Promise.all([t.test('PostgreSQL', (t) => postgres(t, testbed)), t.test('redis', (t) => redis(t, testbed))]);
});

/** As README says: `init` on host 1, `join` on the others, a container that publishes nothing, and it is reached. */
async function fromNothing(t: Test, testbed: Testbed): Promise<void> {
  const [one, two, three] = [testbed.host(1), testbed.host(2), testbed.host(3)];
  for (const host of testbed.hosts) await host.image('busybox');
  const startedMs = monotonicMs();
  let commands = 0;
  const type = async (host: TestbedHost, ...words: string[]): Promise<string> => {
    commands += 1;
    return await host.run(words[0] ?? '', ...words.slice(1));
  };
  one.sidecar.configure({
    store: { kind: 'embedded', listen: `${one.address}:7712` },
    links: [
      { service: 'db', listen: '127.0.0.1:15432' },
      { service: 'cache', listen: '127.0.0.1:16379' },
    ],
  });
  const printed = await type(one, 'legate', 'init', '-c', file);
  const join = printed.split('\n').at(-1) ?? '';
  t.match(join, /^legate join 10\.77\.0\.1 --token \S+ -c /, 'the last line is to be pasted');
  commands += 1;
  await one.startSidecar();
  const token = /--token (\S+)/.exec(join)?.[1] ?? '';
  for (const host of [two, three]) {
    host.sidecar.configure(host === two ? { instances: databases } : {});
    const given = host === two ? token : await type(one, 'legate', 'token');
    await type(host, 'legate', 'join', one.address, '--token', given.trim(), '-c', file);
    commands += 1;
    await host.startSidecar();
  }
  const serve = `mkdir -p /www; echo ${marker} > /www/index.html; exec httpd -f -p 80 -h /www`;
  const labels = ['--label', 'legate.service=web', '--label', 'legate.port=80'];
  await type(two, 'docker', 'run', '-d', ...labels, 'busybox', 'sh', '-c', serve);
  await waitFor('a container on host 3 to reach it by its name', async () => {
    const ask = 'printf "GET / HTTP/1.0\\r\\n\\r\\n" | nc -w 2 web.mesh.internal 80';
    const { stdout } = await three.tryRun('docker', 'run', '--rm', '--dns', '240.77.0.53', 'busybox', 'sh', '-c', ask);
    return stdout.includes(marker);
  }).catch(async (error: unknown) => {
    t.comment((await three.sidecar.legate('why', 'web')).stdout, (await three.sidecar.legate('links')).stdout);
    throw error;
  });
  t.pass(`from nothing to a link between hosts: ${commands} commands, ${Math.round(monotonicMs() - startedMs)} ms`);
  t.comment(`${commands} commands, ${Math.round(monotonicMs() - startedMs)} ms`);
}

const databases = [
  { service: 'db', address: '127.0.0.1', port: 5432, checks: [{ kind: 'tcp', interval: '500ms' }] },
  { service: 'cache', address: '127.0.0.1', port: 6379, checks: [{ kind: 'tcp', interval: '500ms' }] },
];

async function usable(host: TestbedHost, service: string): Promise<void> {
  await waitFor(`${service} to be usable on ${host.name}`, async () => {
    const answer = await host.sidecar.api('GET', `/api/services/${service}`);
    return answer.status === 200 && (JSON.parse(answer.text) as ServiceDocument).usable > 0;
  });
}

/** While a page with the marker is fetched many times, not one packet between the hosts has it. */
async function nothingReadable(t: Test, testbed: Testbed): Promise<void> {
  const [two, three] = [testbed.host(2), testbed.host(3)];
  const capture = join(two.folder, 'capture.pcap');
  const dump = await two.spawn('tcpdump', '-i', 'eth0', '--immediate-mode', '-U', '-s', '0', '-w', capture);
  await waitFor('tcpdump to listen', () => dump.lines.some((line) => line.includes('listening on')));
  const ask = 'for i in 1 2 3 4 5; do printf "GET / HTTP/1.0\\r\\n\\r\\n" | nc -w 2 web.mesh.internal 80; done';
  const pages = await three.run('docker', 'run', '--rm', '--dns', '240.77.0.53', 'busybox', 'sh', '-c', ask);
  t.equal(pages.split(marker).length - 1, 5, 'the pages came');
  await dump.kill('SIGINT');
  const found = async (text: string): Promise<number> =>
    Number((await two.tryRun('grep', '-ac', text, capture)).stdout.trim() || 0);
  t.equal(await found(marker), 0, 'nothing of them is in what was captured');
  t.equal(await found('HTTP/1.0'), 0, 'nor of the requests');
  const tunnel = await two.run('tcpdump', '-r', capture, '-nn', 'tcp port 7711');
  t.ok(tunnel.split('\n').length > 5, 'it went through the tunnel');
  const { stdout } = await two.tryRun('tcpdump', '-r', capture, '-nn', 'tcp port 80');
  t.equal(stdout.trim(), '', 'and nowhere else');
}

function postgresProgram(name: string): string {
  const [version = ''] = existsSync(postgresRoot) ? readdirSync(postgresRoot).sort().reverse() : [];
  return join(postgresRoot, version, 'bin', name);
}

async function postgres(t: Test, testbed: Testbed): Promise<void> {
  const [one, two] = [testbed.host(1), testbed.host(2)];
  const data = '/var/lib/database';
  const asPostgres = ['setpriv', '--reuid', 'postgres', '--regid', 'postgres', '--clear-groups', 'env', 'LC_ALL=C'];
  await two.run('install', '-d', '-o', 'postgres', '-m', '700', data);
  await two.run(asPostgres[0] ?? '', ...asPostgres.slice(1), postgresProgram('initdb'), '-D', data, '-A', 'trust');
  const settings = ['-c', 'listen_addresses=127.0.0.1', '-c', `unix_socket_directories=${data}`];
  const [first = '', ...rest] = asPostgres;
  const server = await two.spawn(first, ...rest, postgresProgram('postgres'), '-D', data, ...settings);
  t.teardown(() => server.kill('SIGQUIT'));
  await usable(one, 'db');
  const psql = ['psql', '-h', '127.0.0.1', '-p', '15432', '-U', 'postgres', '-d', 'postgres', '-X', '-q', '-A', '-t'];
  const query = (text: string): Promise<string> => one.run(psql[0] ?? '', ...psql.slice(1), '-c', text);

  t.equal(await query('select 6 * 7'), '42');
  // A listener that is idle while others work hears the notice at once.
  const told = '/run/news-is-told';
  const listener = await one.spawn(
    'sh',
    '-c',
    `(echo 'listen news;'; while [ ! -e ${told} ]; do sleep 0.1; done; echo 'select 1;'; sleep 1) | ${psql.join(' ')}`,
  );
  const silence = query('select pg_sleep(8)');
  silence.catch(() => undefined);

  // 64 MB in one result, and its digest as the server computed it.
  await query('create table large as select n, repeat(md5(n::text), 32) as text from generate_series(1, 65536) as n');
  const digest = await query("select md5(string_agg(text, E'\\n' order by n)) from large");
  const streamed = `${psql.join(' ')} -c 'select text from large order by n' | head -c -1 | md5sum`;
  t.equal((await one.run('sh', '-c', streamed)).split(' ')[0], digest, 'a result of 64 MB arrives whole');
  const copied = `${psql.join(' ')} -c 'copy large to stdout' | ${psql.join(' ')} -c 'create table copied (like large)' -c 'copy copied from stdin' -c 'select count(*) from copied'`;
  t.equal(await one.run('sh', '-c', copied), '65536', 'and both ways at once');

  await silence;
  await query("notify news, 'after a long silence'");
  await one.run('touch', told);
  await waitFor('the notice', () => listener.lines.some((line) => line.includes('after a long silence')), {
    timeoutMs: 20_000,
  });
  t.equal(await listener.ended(), 0);

  // A client that goes away in the middle leaves nothing behind, once the server has noticed.
  const long = await one.spawn(psql[0] ?? '', ...psql.slice(1), '-c', 'select pg_sleep(4)');
  const link = async (): Promise<LinkDocument | undefined> =>
    (await one.sidecar.json<{ links: readonly LinkDocument[] }>('/api/links')).links.find(
      (each) => each.service === 'db' && each.kind === 'listen',
    );
  await waitFor('its connection', async () => (await link())?.connections.active === 1);
  await long.kill('SIGKILL');
  await waitFor('its end', async () => (await link())?.connections.active === 0);
  t.equal((await link())?.connections.failed, 0, 'no connection failed');
}

async function redis(t: Test, testbed: Testbed): Promise<void> {
  const [one, two] = [testbed.host(1), testbed.host(2)];
  const server = await two.spawn(
    'redis-server',
    '--bind',
    '127.0.0.1',
    '--port',
    '6379',
    '--save',
    '',
    '--dir',
    '/run',
  );
  t.teardown(() => server.kill('SIGTERM'));
  await usable(one, 'cache');
  const cli = (...words: string[]): Promise<string> => one.run('redis-cli', '-p', '16379', ...words);
  t.equal(await cli('ping'), 'PONG');
  const written =
    'head -c 8000000 /dev/urandom | base64 -w0 > /run/value; redis-cli -p 16379 -x set large < /run/value';
  t.match(await one.run('sh', '-c', written), 'OK');
  const same = 'redis-cli -p 16379 --raw get large | head -c -1 | cmp - /run/value && echo same';
  t.equal(await one.run('sh', '-c', same), 'same', 'ten megabytes there and back');

  const subscriber = await one.spawn('redis-cli', '-p', '16379', 'subscribe', 'news');
  await waitFor('the subscription', () => subscriber.lines.some((line) => line.includes('subscribe')));
  for (let count = 0; count < 200; count += 1) await two.run('redis-cli', 'publish', 'news', `number-${count}`);
  await waitFor('every message', () => subscriber.lines.filter((line) => line.startsWith('number-')).length === 200);
  t.same(
    subscriber.lines.filter((line) => line.startsWith('number-')),
    Array.from({ length: 200 }, (_, count) => `number-${count}`),
    'in their order',
  );
  await subscriber.kill('SIGTERM');
  const pipelined = 'for i in $(seq 20000); do echo "SET key$i $i"; done | redis-cli -p 16379 --pipe';
  t.match(await one.run('sh', '-c', pipelined), /errors: 0, replies: 20000/);
}
