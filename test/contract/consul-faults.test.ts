import { chmodSync, writeFileSync } from 'node:fs';
import { createServer, type RequestListener } from 'node:http';
import { type AddressInfo, createServer as createTcpServer, type Server } from 'node:net';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { Log, LogFields } from '../../src/base/log.ts';
import type { ConsulStoreConfig, StoreUrl } from '../../src/config/config.ts';
import type { Store } from '../../src/store/store.ts';
import { must, temporaryFolder } from '../support/agent.ts';
import { TestConsul, unlessConsul } from '../support/consul.ts';
import { openConsul } from '../support/consul-client.ts';
import { unless } from '../support/needs.ts';
import { waitFor } from '../support/wait.ts';
import { Follower } from './follower.ts';

const skip = unlessConsul();
const text = (value: string): Uint8Array => Buffer.from(value);

async function listen(t: Test, server: Server): Promise<StoreUrl> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    if ('closeAllConnections' in server) (server as ReturnType<typeof createServer>).closeAllConnections();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  return { secure: false, host: '127.0.0.1', port, text: `http://127.0.0.1:${port}` };
}

async function open(t: Test, ...args: Parameters<typeof openConsul>): ReturnType<typeof openConsul> {
  const opened = await openConsul(...args);
  t.teardown(() => opened.store.close());
  return opened;
}

async function isAway(store: Store): Promise<{ problem: string; hint: string }> {
  const { problem = '', hint = '' } = await waitFor(
    'away',
    () => store.status.value.state === 'away' && store.status.value,
  );
  return { problem, hint };
}

// They share nothing, and wait more than they work.
t.jobs = 3;

t.test('what answers at the endpoint is at fault', async (t) => {
  const says =
    (status: number, body: string, headers: Record<string, string> = {}): RequestListener =>
    (_request, response) => {
      response.writeHead(status, headers).end(body);
    };
  const json = { 'content-type': 'application/json' };
  /** A server that seems to be Consul until it is asked for keys. */
  const thenSays =
    (then: RequestListener): RequestListener =>
    (request, response) => {
      if (request.url?.startsWith('/v1/status/leader')) says(200, '"10.0.0.1:8300"', json)(request, response);
      else then(request, response);
    };
  const cases: [what: string, listener: RequestListener, problem: RegExp, hint: RegExp][] = [
    ['a page', says(200, '<html>hello</html>', { 'content-type': 'text/html' }), /is no Consul/, /store\.endpoints/],
    ['nothing there', says(404, 'not found'), /is no Consul/, /store\.endpoints/],
    ['a redirection', says(302, '', { location: 'http://127.0.0.1:1/' }), /is no Consul/, /store\.endpoints/],
    ['not JSON', says(200, '{"', json), /is no Consul/, /store\.endpoints/],
    ['other JSON', says(200, '{"a": 1}', json), /is no Consul/, /store\.endpoints/],
    ['no leader', says(200, '""', json), /has no cluster leader/, /more than half/],
    ['too many requests', says(429, 'slow down'), /limits requests \(429: slow down\)/, /limits/],
    ['an error', says(500, 'rpc error\u001b[31m'), /fails \(500: rpc error\\u001b\[31m\)/, /log/],
    ['no leader later', thenSays(says(500, 'No cluster leader')), /No cluster leader/, /more than half/],
    ['keys of another form', thenSays(says(200, '{"Results":[{"KV":{"Key":1}}]}', json)), /another form/, /endpoints/],
    [
      'an answer that breaks off',
      thenSays((_request, response) => {
        response.writeHead(200, { ...json, 'content-length': '1000' });
        response.write('{"Results"', () => response.destroy());
      }),
      /is not reached/,
      /Consul runs/,
    ],
  ];
  for (const [what, listener, problem, hint] of cases) {
    const { store } = await open(t, [await listen(t, createServer(listener))]);
    const status = await isAway(store);
    t.match(status.problem, problem, what);
    t.match(status.hint, hint, what);
    await t.rejects(store.put('/k', text('1')), { code: 'E_STORE_AWAY', message: problem }, what);
    await store.close();
  }
  const garbage = createTcpServer((socket) => {
    socket.on('error', () => undefined).end('SSH-2.0-OpenSSH_9.2\r\n');
  });
  t.match((await isAway((await open(t, [await listen(t, garbage)])).store)).problem, /is no Consul/);
  const silent = createTcpServer((socket) => void socket.on('error', () => undefined));
  const { store } = await open(t, [await listen(t, silent)]);
  t.equal(store.status.value.state, 'connecting');
  t.match((await isAway(store)).problem, /is not reached: .*timed out/);
});

t.test('files with secrets', async (t) => {
  const folder = temporaryFolder(t);
  const file = (name: string, content: string, mode: number): string => {
    const path = join(folder, name);
    writeFileSync(path, content);
    chmodSync(path, mode);
    return path;
  };
  const urls: StoreUrl[] = [{ secure: false, host: '127.0.0.1', port: 1, text: 'http://127.0.0.1:1' }];
  const cases: [Partial<ConsulStoreConfig>, string, RegExp][] = [
    [{ credentialsFile: join(folder, 'none') }, 'E_CONFIG', /does not exist/],
    [{ credentialsFile: file('open', 'token\n', 0o644) }, 'E_PERMISSION', /can be read by others/],
    [{ credentialsFile: file('empty', '\n', 0o600) }, 'E_CONFIG', /does not hold a token/],
    [{ tls: { ca: folder } }, 'E_PERMISSION', /cannot be read/],
    [{ tls: { key: file('key', 'x', 0o640) } }, 'E_PERMISSION', /can be read by others/],
  ];
  for (const [config, code, message] of cases) await t.rejects(openConsul(urls, config), { code, message });
});

t.test('a warning where it goes in the clear', async (t) => {
  const far: StoreUrl = { secure: false, host: '127.0.0.1.example', port: 1, text: 'http://127.0.0.1.example:1' };
  const { store, conditions } = await open(t, [far]);
  t.match(conditions.list(), [{ id: /^store\.clear\./, severity: 'warning', message: /127\.0\.0\.1\.example/ }]);
  await store.close();
  t.same(conditions.list(), []);
});

t.test('tokens', { skip, timeout: 90_000 }, async (t) => {
  const managementToken = '00000000-1111-2222-3333-444444444444';
  const config = {
    acl: {
      enabled: true,
      default_policy: 'deny',
      token_ttl: '1s',
      policy_ttl: '1s',
      tokens: { master: managementToken },
    },
  };
  const consul = await TestConsul.start(t, { managementToken, config });
  const manage = async (path: string, body: object): Promise<string> => {
    const headers = { 'x-consul-token': managementToken };
    const response = await consul.first.ask(path, { method: 'PUT', headers, body: JSON.stringify(body) });
    if (!response.ok) throw new Error(await response.text());
    return ((await response.json()) as { SecretID: string }).SecretID;
  };
  // As the README shows them.
  const rules = 'key_prefix "legate/" { policy = "write" }\nsession_prefix "" { policy = "write" }';
  await manage('/acl/policy', { Name: 'legate-host', Rules: rules });
  await manage('/acl/policy', { Name: 'reader', Rules: 'key_prefix "legate/" { policy = "read" }' });
  const token = await manage('/acl/token', { Policies: [{ Name: 'legate-host' }] });
  const reader = await manage('/acl/token', { Policies: [{ Name: 'reader' }] });
  const path = join(temporaryFolder(t), 'token');
  const write = (content: string): void => writeFileSync(path, `${content}\n`, { mode: 0o600 });

  const lines: string[] = [];
  const line = (message: string, fields?: LogFields): void => void lines.push(JSON.stringify({ message, ...fields }));
  const log: Log = { debug: line, info: line, warn: line, error: line, child: () => log };
  const wrong = '99999999-1111-2222-3333-444444444444';
  write(wrong);
  const { store, conditions } = await open(t, consul.urls, { credentialsFile: path }, log);
  const refused = await isAway(store);
  t.match(refused.problem, /refuses the token/);
  t.match(refused.hint, path);
  await t.rejects(store.get('/legate/m/k'), { code: 'E_STORE_AWAY', message: /refuses the token/ });
  write(token);
  await waitFor('connected with the right one', () => store.status.value.state === 'connected');
  const follower = new Follower(store, '/legate/m/');
  const lease = await store.lease(10_000);
  await store.put('/legate/m/k', text('1'), { lease });
  await follower.has(new Map([['/legate/m/k', '1']]));
  await t.rejects(store.put('/elsewhere/k', text('1')), { code: 'E_UNAUTHORIZED', message: /refuses the token/ });
  t.equal(store.status.value.state, 'connected', 'one right that is lacking is no reason to be away');
  t.equal(`${(await store.get('/legate/m/k'))?.value}`, '1');
  write(reader);
  await consul.stop();
  await isAway(store);
  consul.startAll();
  await waitFor('read only', () => store.status.value.state === 'connected');
  await t.rejects(store.put('/legate/m/k', text('2')), { code: 'E_UNAUTHORIZED' });
  write(wrong);
  await t.rejects(
    waitFor('a read that is refused', async () => {
      await store.get('/legate/m/k');
      return false;
    }),
  );
  await follower.stop();
  const said = JSON.stringify([lines, conditions.list(), store.status.value]);
  for (const secret of [token, reader, wrong]) t.notMatch(said, secret, 'no token is ever told');
  await store.close();
});

t.test('what others do below the prefix', { skip, timeout: 90_000 }, async (t) => {
  const consul = await TestConsul.start(t);
  const { store, conditions } = await open(t, consul.urls);
  const kv = async (method: string, path: string, body: string | null = null): Promise<void> => {
    const response = await consul.first.ask(`/kv/${path}`, { method, body });
    if (!response.ok) throw new Error(await response.text());
  };

  // Keys of every form are kept apart, and found again.
  const odd = [
    'x',
    '/x',
    '//x',
    '///x',
    '/',
    '/legate/m/a//b',
    '/legate/m/a/../b',
    '/legate/m/./b',
    '/legate/m/ü\u0001"\\',
  ];
  for (const key of odd) await store.put(key, text(key));
  for (const key of odd) t.equal(`${(await store.get(key))?.value}`, key);
  const all = (await store.range('')).entries.map(({ key }) => key);
  t.same(
    odd.filter((key) => !all.includes(key)),
    [],
    'all of them are in the range of everything',
  );
  t.notOk(
    all.some((key) => key.includes('.consul')),
    'and none of ours',
  );
  t.ok((await store.range('/')).entries.every(({ key }) => key.startsWith('/')));
  for (const prefix of ['/legate/m/a//', '/legate/m/a/..', '/legate/m/./', '//', 'x']) {
    const follower = new Follower(store, prefix);
    const wanted = odd.filter((key) => key.startsWith(prefix));
    await follower.has(new Map(wanted.map((key) => [key, key])));
    await follower.stop();
  }

  // Keys that no client of ours can have written.
  const follower = new Follower(store, '/legate/f/');
  await store.put('/legate/f/own', text('1'));
  await kv('PUT', `legate/f/${'k'.repeat(2000)}`, 'long');
  await kv('PUT', 'legate/f/bytes%FF%FE', 'not UTF-8');
  await kv('PUT', 'legate/f/huge', 'h'.repeat(512 * 1024));
  await waitFor('the large value', () => follower.texts().get('/legate/f/huge')?.length === 512 * 1024);
  t.equal((await store.range('/legate/f/')).entries.length, 3, 'what is too long is left out');
  t.match(conditions.list(), [{ id: 'store.foreign', message: /kkk… in Consul is longer than 1024 bytes/ }]);
  t.equal(`${(await store.get('/legate/f/own'))?.value}`, '1');

  // A key that another tool holds locked, and one on which it has left its lock's delay.
  const put = async (path: string, body = ''): Promise<Response> =>
    await consul.first.ask(path, { method: 'PUT', body });
  const created = await put('/session/create', '{"TTL":"60s"}');
  const { ID } = (await created.json()) as { ID: string };
  await put(`/kv/legate/f/locked?acquire=${ID}`, 'theirs');
  await store.put('/legate/f/locked', text('ours'));
  t.equal(`${(await store.get('/legate/f/locked'))?.value}`, 'ours', 'locks of others hold nobody back');
  await put(`/kv/legate/f/locked?acquire=${ID}`, 'theirs');
  await put(`/session/destroy/${ID}`);
  const [first, second] = [await store.lease(10_000), await store.lease(10_000)];
  await t.rejects(store.put('/legate/f/locked', text('1'), { lease: first }), {
    code: 'E_CONFLICT',
    message: /lock delay/,
  });

  // A key that moves from one lease to another belongs to that one alone.
  await store.put('/legate/f/moved', text('1'), { lease: first });
  await store.put('/legate/f/moved', text('2'), { lease: second });
  await first.revoke();
  t.equal(`${(await store.get('/legate/f/moved'))?.value}`, '2');
  await second.revoke();
  t.equal(await store.get('/legate/f/moved'), undefined);
  const stranger = { ...second, lost: new AbortController().signal };
  for (const id of [second.id, 'nonsense', '']) {
    const lease = { ...stranger, id };
    await t.rejects(store.put('/legate/f/moved', text('3'), { lease }), { code: 'E_NOT_FOUND' }, `lease ${id}`);
  }

  // Somebody deletes everything: that is another store, not a mesh without instances.
  const { storeId } = store.status.value;
  await kv('DELETE', 'legate/?recurse');
  await waitFor('another store', () => store.status.value.storeId !== storeId);
  await waitFor('an empty picture', () => follower.entries.size === 0);
  t.equal(follower.changes.at(-1)?.kind, 'reset');
  await follower.stop();
});

t.test(
  'https, with certificates on both sides',
  { skip: skip || unless('command:openssl'), timeout: 60_000 },
  async (t) => {
    const folder = temporaryFolder(t);
    const at = (name: string): string => join(folder, name);
    const openssl = (...args: string[]): Promise<string> => must('openssl', ...args);
    const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
    await openssl(
      'req',
      '-x509',
      ...key,
      '-keyout',
      at('ca.key'),
      '-out',
      at('ca.pem'),
      '-subj',
      '/CN=test',
      '-days',
      '2',
    );
    await openssl('req', ...key, '-keyout', at('key.pem'), '-out', at('csr.pem'), '-subj', '/CN=server.dc1.consul');
    writeFileSync(at('ext'), 'subjectAltName=IP:127.0.0.1,DNS:server.dc1.consul\n');
    const sign = ['-CA', at('ca.pem'), '-CAkey', at('ca.key'), '-CAcreateserial', '-days', '2', '-extfile', at('ext')];
    await openssl('x509', '-req', '-in', at('csr.pem'), ...sign, '-out', at('cert.pem'));
    const files = { ca: at('ca.pem'), cert: at('cert.pem'), key: at('key.pem') };
    chmodSync(files.key, 0o600);
    const consul = await TestConsul.start(t, { tls: files, config: { verify_incoming: true } });
    const { store, conditions } = await open(t, consul.urls, { tls: files });
    await store.put('/legate/m/k', text('1'));
    t.equal(`${(await store.get('/legate/m/k'))?.value}`, '1');
    t.same(conditions.list(), []);
    const { store: nameless } = await open(t, consul.urls, { tls: { ca: files.ca } });
    t.match((await isAway(nameless)).problem, /is not reached: .*certificate|bad certificate|alert/i);
    const { store: distrusting } = await open(t, consul.urls, { tls: { cert: files.cert, key: files.key } });
    t.match((await isAway(distrusting)).problem, /is not reached: .*certificate/i);
  },
);
