import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { canned, cannedAnswer, fakeAdmin, spawnLegate, temporaryFolder } from './test-support.ts';

// They share nothing, and wait more than they work.
t.jobs = 3;

t.test('the real process: tables in a pipe are plain, exit statuses are those of the contract', async (t) => {
  const { address } = await fakeAdmin(t, cannedAnswer);
  const env = { LEGATE_ADMIN: address };
  const services = await spawnLegate(t, ['services'], { env }).finished;
  t.equal(services.status, 0, services.stderr);
  t.notMatch(services.stdout, /[^\n -~]/);
  t.match(services.stdout, /^ SERVICE {2}PORT/);
  const json = await spawnLegate(t, ['services', '--json'], { env }).finished;
  t.strictSame(JSON.parse(Buffer.from(json.stdout, 'latin1').toString('utf8')), canned.services);
  const cases: [args: string[], status: number][] = [
    [['kv', 'get', 'none'], 1],
    [['status', '--admin', 'unix:/nowhere/admin.sock'], 3],
    [['nonsense'], 2],
    [['-h'], 0],
  ];
  const results = await Promise.all(cases.map(([args]) => spawnLegate(t, args, { env }).finished));
  for (const [index, [args, status]] of cases.entries()) t.equal(results[index]?.status, status, args.join(' '));
});

t.test('kv get writes the very bytes, kv put - reads them', async (t) => {
  const value = Buffer.from(Array.from({ length: 70_000 }, (_, index) => index % 256));
  const admin = await fakeAdmin(t, (request) =>
    request.method === 'GET' ? { body: value, headers: { etag: '"7"' } } : { json: { key: 'blob', revision: '8' } },
  );
  const env = { LEGATE_ADMIN: admin.address };
  const got = await spawnLegate(t, ['kv', 'get', 'blob'], { env }).finished;
  t.ok(Buffer.from(got.stdout, 'latin1').equals(value));
  const put = await spawnLegate(t, ['kv', 'put', 'blob', '-', '--cas', '7'], { env, stdin: value }).finished;
  t.equal(put.stdout, ' ok blob is written, revision 8\n');
  const sent = admin.seen.at(-1);
  t.equal(sent?.url, '/api/kv/blob?cas=7');
  t.ok(sent?.body.equals(value));
  const large = await spawnLegate(t, ['kv', 'put', 'blob', '-'], { env, stdin: Buffer.alloc(1024 * 1024 + 1) })
    .finished;
  t.equal(large.status, 1);
  t.match(large.stderr, /standard input has more than 1048576 bytes/);
});

t.test('Ctrl-C ends --watch cleanly, and a reader that leaves is no fault', async (t) => {
  const { address } = await fakeAdmin(t, cannedAnswer);
  const env = { LEGATE_ADMIN: address };
  const watching = spawnLegate(t, ['links', '--watch'], { env });
  await new Promise((resolve) => watching.child.stdout?.once('data', resolve));
  watching.child.kill('SIGINT');
  t.match(await watching.finished, { status: 0, stderr: '' });

  const many = Array.from({ length: 20_000 }, (_, index) => canned.instance({ name: `db-${index}`, service: 'db' }));
  const large = await fakeAdmin(t, () => ({ json: { instances: many } }));
  const left = spawnLegate(t, ['instances'], { env: { LEGATE_ADMIN: large.address } });
  left.child.stdout?.once('data', () => left.child.stdout?.destroy());
  t.match(await left.finished, { status: 0, stderr: '' });
});

t.test('agent and config check tell all faults at once, and start nothing', async (t) => {
  const folder = temporaryFolder(t);
  const bad = join(folder, 'legate.yaml');
  writeFileSync(bad, 'services:\n  db: {port: "54 32",\n       blance: random}\n');
  const lines = [
    `${bad}:2:14: services.db.port: "54 32" is not a port (1 to 65535)`,
    `${bad}:3:8: unknown key \`blance\`; did you mean \`balance\`? (in services.db)`,
  ];
  t.strictSame(await spawnLegate(t, ['agent', '-c', bad, '--advertise', '127.0.0.1'], {}).finished, {
    status: 2,
    stdout: '',
    stderr: `${[...lines, '2 faults, nothing started.'].join('\n')}\n`,
  });
  t.strictSame(await spawnLegate(t, ['config', 'check', bad]).finished, {
    status: 2,
    stdout: `${[...lines, '2 faults, it would not start.'].join('\n')}\n`,
    stderr: '',
  });
  const json = await spawnLegate(t, ['config', 'check', bad, '--json']).finished;
  t.match(JSON.parse(json.stdout), { count: 2, faults: [{ path: 'services.db.port', place: `${bad}:2:14` }, {}] });
  const others = await spawnLegate(
    t,
    ['agent', '--docker-image-labels', '--vip-mode', 'of', '--advertise', '127.0.0.1'],
    {
      env: { LEGATE_DNS_TTL: '5' },
    },
  ).finished;
  t.strictSame(others, {
    status: 2,
    stdout: '',
    stderr: [
      'LEGATE_DNS_TTL: dns.ttl: 5 is not a duration (such as 250ms, 5s, 2m, 24h)',
      '--vip-mode: vip.mode: "of" is not one of auto, off; did you mean `off`?',
      '2 faults, nothing started.\n',
    ].join('\n'),
  });
  const none = await spawnLegate(t, ['agent', '-c', join(folder, 'none.yaml')]).finished;
  t.equal(none.status, 2);
  t.match(none.stderr, /^legate agent: \S+none\.yaml cannot be read \(ENOENT/);
});

t.test('config check is content with a good file, config options lists every option', async (t) => {
  const good = join(temporaryFolder(t), 'legate.yaml');
  writeFileSync(good, 'mesh: home\nservices: {db: {port: 5432}}\n');
  t.strictSame(await spawnLegate(t, ['config', 'check', good], { env: { LEGATE_MESH: 'not A name' } }).finished, {
    status: 0,
    stdout: `${good}: no faults\n`,
    stderr: '',
  });
  const idle = [
    'services:',
    '  db: {port: 5432, protocol: tcp, timeout: 5s, park: 1s}',
    '  api: {protocol: grpc}',
    '  web:',
    '    protocol: http',
    '    routes:',
    '      - {match: {path: /loop}, redirect: /loop/*}',
    '      - {match: {}, service: api}',
    '      - {match: {path: /x}, service: other}',
  ];
  writeFileSync(good, idle.join('\n'));
  const told = await spawnLegate(t, ['config', 'check', good]).finished;
  t.equal(told.status, 0, told.stderr);
  t.strictSame(told.stdout.split('\n'), [
    `${good}:2:7: warning: services.db: db is of protocol tcp: timeout only concerns HTTP services`,
    `${good}:7:42: warning: services.web.routes[0].redirect: it leads back to itself: a request for /loop/* is redirected again and again`,
    `${good}:8:30: warning: services.web.routes[1].service: a route of web leads to api, which speaks grpc, and not http`,
    `${good}:9:9: warning: services.web.routes[2]: no request gets to it: routes[1] is for all that it is for`,
    `${good}: no faults, 4 warnings`,
    '',
  ]);
  const warned = JSON.parse((await spawnLegate(t, ['config', 'check', good, '--json']).finished).stdout);
  t.match(warned, { count: 0, faults: [], warnings: [{ path: 'services.db', place: `${good}:2:7` }, {}, {}, {}] });
  const files = '{cert: /nowhere/crt, key: /nowhere/key}';
  const door = `links: [{service: a, listen: 127.0.0.1:1, tls: ${files}}]`;
  writeFileSync(good, `tls: {ca: /nowhere/ca, cert: /nowhere/crt, key: /nowhere/key}\n${door}\n`);
  const missing = await spawnLegate(t, ['config', 'check', good]).finished;
  t.equal(missing.status, 2);
  t.match(missing.stdout, /:1:11: tls\.ca: "\/nowhere\/ca" cannot be read: ENOENT/);
  t.match(missing.stdout, /:2:\d+: links\[0\]\.tls: "\/nowhere\/key" cannot be read: ENOENT/);
  t.match(missing.stdout, /5 faults, it would start, and not work as written\.\n$/);
  const text = await spawnLegate(t, ['config', 'options']).finished;
  t.match(text.stdout, /dns\.listen\n {4}where the name server listens, UDP and TCP\n/);
  const json = await spawnLegate(t, ['config', 'options', '--json']).finished;
  t.match(JSON.parse(json.stdout), { options: [{ key: 'mesh', flag: '--mesh', variable: 'LEGATE_MESH' }] });
});

t.test('init with a store that does not answer ends with words, and leaves nothing behind', async (t) => {
  const init = async (store: string, more = '', env: Record<string, string> = {}) => {
    const folder = temporaryFolder(t);
    const [file, dataDir] = [join(folder, 'legate.yaml'), join(folder, 'data')];
    const text = `data_dir: ${dataDir}\nadvertise: 127.0.0.1\nstore: {kind: ${store}, endpoints: ["http://127.0.0.1:1"]}\n`;
    writeFileSync(file, text + more.replace('FOLDER', folder));
    writeFileSync(join(folder, 'open'), 'a passphrase that is long enough\n', { mode: 0o640 });
    const finished = await spawnLegate(t, ['init', '-c', file], { env }).finished;
    return { ...finished, left: existsSync(dataDir) ? readdirSync(dataDir) : [] };
  };
  const words = (store: string): RegExp =>
    new RegExp(
      `^legate init: ${store} .*http://127.0.0.1:1.*ECONNREFUSED.*nothing was made, so run legate init again then\n$`,
    );
  // Without what holds the process the event loop runs empty.
  const unheld = 'data:text/javascript,const%20real=setInterval;globalThis.setInterval=(...a)=>real(...a).unref()';
  const [etcd, consul, none, open, empty] = await Promise.all([
    init('etcd'),
    init('consul'),
    init('etcd', 'authority: {passphrase_file: FOLDER/passphrase}\n'),
    init('etcd', 'authority: {passphrase_file: FOLDER/open}\n'),
    init('etcd', '', { NODE_OPTIONS: `--import ${unheld}` }),
  ]);
  t.match(etcd, { status: 1, stdout: '', stderr: words('etcd'), left: [] });
  t.match(consul, { status: 1, stdout: '', stderr: words('Consul'), left: [] });
  t.strictSame([etcd.left, consul.left], [[], []]);
  t.match(none, { status: 1, stderr: /^legate init: \S+passphrase does not exist/ });
  t.match(open, { status: 1, stderr: /^legate init: \S+open can be read by others.*chmod 600/ });
  t.match(empty, { status: 1, stderr: /^legate: this command had nothing left to wait for/ });
});
