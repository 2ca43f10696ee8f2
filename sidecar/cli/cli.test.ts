import { chmodSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { stripVTControlCharacters } from 'node:util';
import fc from 'fast-check';
import t from 'tap';
import { parseSettingsValue } from '../../src/config/settings-value.ts';
import { serviceFields, settingWord } from '../../src/model/service.ts';
import { furtherDefault, furtherFields, furtherText } from '../../src/model/service-settings.ts';
import { waitFor } from '../../test/support/wait.ts';
import type { InstanceDocument } from '../admin/documents.ts';
import { parseAdminAddress } from './admin-client.ts';
import { defaultAddress } from './machine.ts';
import { runCommandLine } from './program.ts';
import { cutText, displayWidth, renderTable, wrap } from './table.ts';
import { Terminal } from './terminal.ts';
import {
  type Answer,
  canned,
  cannedAnswer,
  FakeStream,
  fakeAdmin,
  fakeSession,
  temporaryFolder,
} from './test-support.ts';
import { Screen } from './watch.ts';
import { bytes, grouped, safeJson, since, span } from './words.ts';

type SessionOptions = NonNullable<Parameters<typeof fakeSession>[0]>;

async function run(args: readonly string[], options: SessionOptions = {}) {
  const fake = fakeSession(options);
  const status = await runCommandLine(args, fake.session);
  return { status, stdout: fake.stdout.text, stderr: fake.stderr.text };
}

/** Anything that a terminal would obey, line ends aside. */
const hostileBytes = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/;

/** A terminal of 100 columns without colours and symbols. */
const plainTerminal = { tty: true, columns: 100, env: { NO_COLOR: '1' } };

t.test('tables and status: aligned, within 100 columns, what is wrong on top', async (t) => {
  const { address } = await fakeAdmin(t, cannedAnswer);
  const expected: Record<string, string> = {
    status: `
 web-1   up 3 d 4 h   legate 0.1.0   mesh home   10.77.0.1
 store    embedded ok, revision 81 204, snapshot 0.2 s old
 here     14 containers, 14 instances, 9 services, 11 links, Docker 20.10.24 ok
 names    x 172.18.0.1:53 (bridge br-shop): port 53 is held by dnsmasq (pid 812),
          240.77.0.53:53 (virtual address) ok, 127.0.0.1:7753 ok
 links    virtual addresses in 240.77.0.0/16 ok
 callers  12 addresses of containers bound ok
 todo     1: containers on br-shop get no answers from 172.18.0.1:53: it is held by dnsmasq (pid
          812) (for 4 min, 12 times) -> set dns.bridges to off, or stop that program`,
    hosts: `
 HOST   ADDRESS    STATE      INSTANCES  VERSION  ID
 web-2  10.77.0.2  lost               2  0.1.0    8899aabbccddeeff
 web-1  10.77.0.1  this host         14  0.1.0    0011223344556677
 1 host lost: is the sidecar there running?`,
    services: `
 SERVICE  PORT      ADDRESS       USABLE  BALANCE            STATE
 mail     25/tcp    -             0 of 1  round-robin        nothing usable: 1 lost
 db       5432/tcp  240.77.118.4  1 of 3  least-connections  1 critical, 1 draining
   x web-1/abc-53-udp speaks udp, the service tcp
 cache    6379/tcp  240.77.3.9    1 of 1  round-robin        all passing
 web      80/tcp    -             0 of 0  random             no instances

 refused on this host: 1
 x docker:shop-7f3 (shop): legate.port "54 32" is not a port (1 to 65535); correct the label and
     run the container anew`,
    'instances db': `
 STATUS             ID                       ADDRESS          SINCE  SOURCE                 TAGS
 critical           web-1/9c1f00112233-5432  172.17.0.5:5432  4 min  docker:a-c..generated
   - connect ECONNREFUSED 172.17.0.5:5432, and then a long tail of words that nobody can read on
     one line
 passing, draining  web-1/db-5432            127.0.0.1:5432          file                   weight=5
 passing            web-1/77ab00112233-5432  172.17.0.4:5432         docker:db-1            primary`,
    links: `
 SERVICE  ADDRESS            STATE     INSTANCES      OPEN      TOTAL  FAILED  RETRIED      RATE
 db       127.0.0.1:15432    down      0                 0          0       0        0         -
   x 127.0.0.1:15432 is held by postgres (pid 812)
 mail     240.77.9.9:25      refusing  0                 0          5       5        0         -
   x nothing usable behind it: legate instances mail says why
 db       240.77.118.4:5432  open      2 here, 1 far    64        400       2        7  1.6 MB/s
   x the tunnel to db-2 is connecting: connection refused at 10.77.0.2:7711
   x web-1/9c1f00112233-5432 at 172.17.0.5:5432 is avoided for 7 s more: connects kept failing
   - last failure 3 s ago: 172.17.0.5:5432: connection refused
 cache    240.77.3.9:6379    open      1 here           12  1 234 567       0        3         -
 web      240.77.9.8:80      refusing  0                 0          0       0        0         -
   - no instances

 CONTAINER  ALIAS  SERVICE  ADDRESS          STATE
 on-host    kv     cache    -                down
   x its address is not known
 shop       post   mail     240.77.9.9:25    refusing
   x nothing usable behind it: legate instances mail says why
 shop       later  search   -                waiting
   - search has no instances: waiting for 1 min
 shop       cache  cache    240.77.3.9:6379  open`,
  };
  for (const [command, text] of Object.entries(expected)) {
    const { status, stdout, stderr } = await run([...command.split(' '), '--admin', address], plainTerminal);
    t.equal(stdout, `${text.slice(1)}\n`, command);
    t.equal(status, 0);
    t.equal(stderr, '');
  }
});

t.test('in a pipe nothing is cut or wrapped: one row, one line', async (t) => {
  const long = 'long-'.repeat(60);
  const words = 'a problem of many words '.repeat(20).trim();
  const [mail] = canned.links.filter((link) => link.state === 'down');
  const documents: Record<string, unknown> = {
    '/api/status': { ...canned.status, todo: canned.status.todo.map((one) => ({ ...one, message: words })) },
    '/api/hosts': { hosts: canned.hosts.map((host) => ({ ...host, name: `${long}${host.name}`, version: long })) },
    '/api/services': {
      services: canned.services.services.map((one) => ({ ...one, name: `${long}${one.name}`, faults: [words] })),
      refused: canned.services.refused.map((one) => ({ ...one, reason: words })),
    },
    '/api/instances': {
      instances: canned.instances.map((one) => ({ ...one, source: `docker:${long}`, tags: [long], output: words })),
    },
    '/api/links': { links: [{ ...mail, service: long, problem: words }] },
    '/api/resolve': {
      ...{ name: long, type: 'A', status: 'NOERROR', server: '127.0.0.1:53', origin: words, additionals: [] },
      ...{ answers: [{ name: long, type: 'TXT', ttl: 5, data: long }], leftOut: [{ id: long, reason: words }] },
    },
    '/api/kv/': {
      revision: '1',
      entries: [{ key: long, revision: '1', value: Buffer.from(`${words}€`).toString('base64') }],
    },
  };
  const { address } = await fakeAdmin(t, ({ url }) => ({ json: documents[url.split('?', 1)[0] ?? ''] ?? {} }));
  const expected: [command: string, lines: number, whole: readonly string[]][] = [
    ['status', 7, [words]],
    ['hosts', 4, [`${long}web-1`, `${long}web-2`]],
    ['services', 12, [`${long}db`, words]],
    ['instances', 7, [`docker:${long}`, words]],
    ['links', 3, [long, words]],
    ['resolve x', 6, [long, words]],
    ['kv list', 2, [long, `${words}€`]],
  ];
  for (const [command, lines, whole] of expected) {
    for (const env of [{}, { COLUMNS: '60' }]) {
      const { stdout, stderr } = await run([...command.split(' '), '--admin', address], { env });
      t.equal(stderr, '');
      t.equal(stdout.split('\n').length - 1, lines, `${command}: the number of lines`);
      for (const text of whole) t.ok(stdout.includes(text), `${command} has ${text.slice(0, 20)} whole`);
    }
  }
});

t.test('COLUMNS counts on a terminal, when it is a number', async (t) => {
  const { address } = await fakeAdmin(t, cannedAnswer);
  const widest = async (COLUMNS: string): Promise<number> => {
    const { stdout } = await run(['instances', '--admin', address], { tty: true, columns: 90, env: { COLUMNS } });
    return Math.max(...stripVTControlCharacters(stdout).split('\n').map(displayWidth));
  };
  const usual = await widest('');
  t.ok(usual > 72 && usual <= 90, `${usual} of 90`);
  t.ok((await widest('72')) <= 72);
  t.ok((await widest('5')) <= 40, 'never below 40');
  for (const odd of ['0', '-1', 'wide', '1e9', '99999']) t.equal(await widest(odd), usual, odd);
});

t.test('services and links without any instance are no trouble', async (t) => {
  const { address } = await fakeAdmin(t, cannedAnswer);
  for (const [command, text] of [
    ['services', /\n \u001b\[2m·\u001b\[0m {2}web .*\u001b\[2mno instances\u001b\[0m\n\n/],
    [
      'links',
      /\n \u001b\[2m·\u001b\[0m {2}web .*\u001b\[2mrefusing\u001b\[0m.*\n\u001b\[2m {3}· no instances\u001b\[0m\n\n/,
    ],
  ] as const) {
    t.match((await run([command, '--admin', address], { tty: true, columns: 100 })).stdout, text);
  }
  const services = canned.services.services.map((one) => ({ ...one, faults: ['no address is left'] }));
  const faulty = await fakeAdmin(t, () => ({ json: { services, refused: [] } }));
  const { stdout } = await run(['services', '--admin', faulty.address], { tty: true, columns: 100 });
  t.match(stdout, /✘\u001b\[0m {2}web .*no instances/, 'one with a fault is');
});

t.test('on a terminal: colours, symbols, and never wider than it', async (t) => {
  const { address } = await fakeAdmin(t, cannedAnswer);
  for (const command of ['status', 'hosts', 'services', 'instances', 'instances db', 'links']) {
    for (const columns of [200, 100, 90, 72, 55, 40]) {
      const { stdout } = await run([...command.split(' '), '--admin', address], { tty: true, columns });
      t.match(stdout, /\u001b\[3[13]m/, `${command} has red or yellow`);
      const widest = Math.max(...stripVTControlCharacters(stdout).split('\n').map(displayWidth));
      t.ok(widest <= Math.min(100, columns), `${command} takes ${widest} of ${columns}`);
    }
    for (const env of [{ NO_COLOR: '1' }, { TERM: 'dumb' }]) {
      const { stdout } = await run([...command.split(' '), '--admin', address], { tty: true, columns: 100, env });
      t.notMatch(stdout, /[^\n -~]/, `${command} is plain with ${JSON.stringify(env)}`);
    }
  }
});

t.test('status says what is wrong with the store, Docker and virtual addresses, and that all is well', async (t) => {
  let document: object = {};
  const { address } = await fakeAdmin(t, () => ({ json: document }));
  const { store, docker, vip, callers } = canned.status;
  const server = (listen: string, purpose: string) => ({ listen, purpose, state: 'up', problem: null, queries: 0 });
  const bridges = [0, 1, 2, 3, 4, 5].map((n) => server(`172.24.${n}.1:53`, `bridge br-92e80129357f${n}`));
  const condition = (id: string, message: string) => ({
    ...{ id, message, severity: 'warning', hint: 'run as root', count: 1 },
    since: new Date(canned.nowMs - 4 * 60_000).toISOString(),
  });
  const cases: [change: object, expected: RegExp][] = [
    [{ todo: [] }, / todo {5}nothing, all is well\n$/],
    [
      {
        store: {
          ...store,
          state: 'away',
          since: '2030-01-02T03:00:05Z',
          problem: 'disk full',
          snapshot: { origin: 'disk', ageMs: 61_000 },
        },
      },
      / store {4}x embedded away for 4 min: disk full; snapshot 1 min old, from disk; names and links go on\n {10}from it\n/,
    ],
    [{ docker: { ...docker, state: 'away', problem: 'no such socket' } }, /x Docker 20\.10\.24 away: no such socket\n/],
    [
      {
        store: {
          ...{ ...store, kind: 'etcd', where: 'etcd at http://10.77.0.1:2379' },
          wanted: { kind: 'etcd', where: 'etcd at http://10.77.0.9:2379', problem: 'etcd cannot be used: refused' },
        },
        todo: [
          condition('store.open', 'etcd cannot be used: refused; etcd at http://10.77.0.1:2379 is used until then'),
        ],
      },
      / store {4}etcd at http:\/\/10\.77\.0\.1:2379 ok, revision 81 204, snapshot 0\.2 s old,\n {10}x etcd at http:\/\/10\.77\.0\.9:2379 is wanted, and not in use yet \(see todo\)\n/,
    ],
    [
      { todo: [2, 3].map((n) => condition(`host.lost.${n}`, `host web-${n} is lost`)) },
      /1: host web-2 is lost \(for 4 min\) -> run as root\n {10}2: host web-3 is lost/,
    ],
    [
      { todo: [2, 3, 4, 5, 6].map((n) => condition(`host.lost.${n}`, `host web-${n} is lost`)) },
      /1: host web-2 is lost \(for 4 min\), and 4 more like it -> run as root\n$/,
    ],
    [{ callers: { ...callers, bound: 1 } }, / callers {2}1 address of containers bound ok\n/],
    [{ docker: { ...docker, state: 'off', version: null } }, /11 links, Docker off\n/],
    [
      { vip: { ...vip, state: 'off', reason: 'no right to change nftables' } },
      / links {4}- no virtual addresses: no right to change nftables; consumers need `listen` addresses\n/,
    ],
    [
      {
        vip: { ...vip, state: 'off', reason: 'nft: no right' },
        todo: [condition('vip.open', 'no addresses: nft: no right')],
      },
      / links {4}- no virtual addresses \(see todo\); consumers need `listen` addresses\n/,
    ],
    [
      { callers: { state: 'off', reason: 'docker.expose is off', bound: 0 } },
      / callers {2}- all but the host are anonymous: docker\.expose is off\n/,
    ],
    [
      {
        identity: {
          ...{
            role: 'member',
            authority: 'web-9',
            serial: '1f',
            roots: ['9adbc40b', 'c0ffee00'],
            problem: 'no answer',
          },
          certificateUntil: '2030-01-08T03:04:05.000Z',
        },
      },
      /\n identity member \(authority: web-9\), certificate until 2030-01-08T03:04:05Z\s+\(in [^)]+\),\s+roots 9adbc40b and c0ffee00,\s+x not renewed \(see todo\)\n/,
    ],
    [{ names: [] }, / names {4}no name server is configured\n/],
    [
      { names: [server('127.0.0.1:53', 'configured'), ...bridges.slice(0, 4)] },
      / names {4}127\.0\.0\.1:53 ok, 172\.24\.0\.1:53 \(bridge br-92e80129357f0\) ok,\n {10}172\.24\.1\.1:53 \(bridge br-92e80129357f1\) ok, 172\.24\.2\.1:53 \(bridge br-92e80129357f2\) ok,\n {10}172/,
    ],
    [{ names: [...bridges, server('127.0.0.1:53', 'configured')] }, / names {4}127\.0\.0\.1:53 ok, 6 bridges ok\n/],
    [
      {
        names: bridges.map((one) => ({ ...one, state: 'down', problem: `cannot listen on ${one.listen}: no right` })),
        todo: [
          condition('vip.open', 'no right to change nftables'),
          ...bridges.map(({ listen }) => condition(`dns.listen.${listen}`, `cannot listen on ${listen}: no right`)),
        ],
      },
      /: cannot listen on 172\.24\.0\.1:53: no right \(and 5\n? *more alike\)\n links[\s\S]*1: no right to[\s\S]*2: cannot listen on 172\.24\.0\.1:53: no right \(for 4 min\), and 5 more like it -> run as root\n$/,
    ],
  ];
  for (const [change, expected] of cases) {
    document = { ...canned.status, ...change };
    t.match((await run(['status', '--admin', address], plainTerminal)).stdout, expected);
  }
  document = { host: 5 };
  const { status, stderr } = await run(['status', '--admin', address]);
  t.equal(status, 1);
  t.match(stderr, /^legate status: the sidecar's answer has another form than this version knows/);
});

t.test('what this host cannot dial, and how old the tables are while the store is away', async (t) => {
  const [one] = canned.instances;
  const why = 'its address is known only to its own host';
  const documents: Record<string, unknown> = {
    hosts: { hosts: canned.hosts.slice(0, 1), picture: { store: 'away', ageMs: 32_000 } },
    instances: {
      instances: [
        { ...one, host: 'web-2', id: 'web-2/a', dial: '10.77.0.2:8080', unreachable: null },
        { ...one, host: 'web-3', id: 'web-3/b', dial: null, unreachable: why },
      ],
      picture: { store: 'connecting', ageMs: null },
    },
    services: {
      services: [
        { ...canned.services.services[0], usableHere: 0, instances: [{ ...one, dial: null, unreachable: why }] },
        { ...canned.services.services[0], name: 'more', usable: 2, instances: [one, one], usableHere: 1 },
      ],
      refused: [],
    },
  };
  const { address } = await fakeAdmin(t, ({ url }) => ({ json: documents[url.slice('/api/'.length)] }));
  const expected = {
    hosts: `
 HOST   ADDRESS    STATE      INSTANCES  VERSION  ID
 web-1  10.77.0.1  this host         14  0.1.0    0011223344556677
 x as of 32 s ago: the store is away`,
    instances: `
 SERVICE  STATUS   ID       ADDRESS          SOURCE       TAGS
 db       passing  web-2/a  10.77.0.2:8080   docker:db-1  primary
 db       passing  web-3/b  172.17.0.4:5432  docker:db-1  primary
   - not from this host: its address is known only to its own host
 x not confirmed by the store: the store has not answered yet`,
    services: `
 SERVICE  PORT      ADDRESS     USABLE  BALANCE      STATE
 cache    6379/tcp  240.77.3.9  1 of 1  round-robin  none usable from here
   - not from this host: its address is known only to its own host
 more     6379/tcp  240.77.3.9  2 of 2  round-robin  all passing; usable from here: 1`,
  };
  for (const [command, text] of Object.entries(expected)) {
    const { stdout } = await run([command, '--admin', address], plainTerminal);
    t.equal(stdout, `${text.slice(1)}\n`, command);
  }
  const { stdout } = await run(['hosts', '--admin', address, '--json']);
  t.same(JSON.parse(stdout), documents.hosts);
});

t.test('certificates of hosts, as far as they are known', async (t) => {
  const [first, second] = canned.hosts;
  const at = (ms: number): string => new Date(canned.nowMs + ms).toISOString();
  const hosts = [
    { ...first, certificateUntil: at(6 * 86_400_000) },
    { ...second, certificateUntil: at(-7_200_000), certificateLate: true },
    { ...first, self: false, name: 'web-3', certificateUntil: at(3_600_000), certificateLate: true },
    { ...first, self: false, name: 'web-4' },
  ];
  const { address } = await fakeAdmin(t, () => ({ json: { hosts, picture: { store: 'connected', ageMs: 0 } } }));
  const { stdout } = await run(['hosts', '--admin', address], plainTerminal);
  t.match(
    stdout,
    ` HOST   ADDRESS    STATE      INSTANCES  CERTIFICATE    VERSION  ID
 web-2  10.77.0.2  lost               2  ended 2 h ago  0.1.0    8899aabbccddeeff
 web-1  10.77.0.1  this host         14  for 6 d        0.1.0    0011223344556677
 web-3  10.77.0.1  alive             14  for 1 h        0.1.0    0011223344556677
 web-4  10.77.0.1  alive             14  -              0.1.0    0011223344556677
`,
  );
  const coloured = await run(['hosts', '--admin', address], { tty: true, columns: 100 });
  t.match(coloured.stdout, '\u001b[31mended 2 h ago');
  t.match(coloured.stdout, '\u001b[33mfor 1 h');
});

t.test('commands find the sidecar by its configuration', async (t) => {
  const { address } = await fakeAdmin(t, cannedAnswer);
  const file = join(temporaryFolder(t), 'legate.yaml');
  writeFileSync(file, `advertise: 127.0.0.1\nadmin: { listen: ["${address}"] }\n`);
  for (const command of [['status'], ['hosts'], ['services', '--json']])
    t.match(await run([...command, '-c', file]), { status: 0, stdout: /web-1|cache/ }, command.join(' '));
  const nobody = ['token', '-c', file, '--admin', 'unix:/nowhere/admin.sock'];
  t.match(await run(nobody), { status: 3 }, '--admin wins');
  for (const args of ['token', 'ca status', 'ca rotate', 'intent list', 'host revoke web-3', 'kv list', 'why db']) {
    const { status, stderr } = await run([...args.split(' '), '-c', '/nowhere.yaml']);
    t.match({ status, stderr }, { status: 2, stderr: /\/nowhere\.yaml cannot be read/ }, args);
  }
  writeFileSync(file, 'nonsense: 1\n');
  t.match(await run(['token', '-c', file]), { status: 2, stderr: /unknown key `nonsense`.*nothing was asked/s });
});

t.test('--json prints the document of the API, harmless and unchanged', async (t) => {
  const hostile = { hosts: [{ name: '\u001b]0;x\u0007\u202e', list: ['\u009b31m', 'ü'] }] };
  const { address } = await fakeAdmin(t, () => ({ json: hostile }));
  const { stdout } = await run(['hosts', '--json', '--admin', address]);
  t.notMatch(stdout, hostileBytes);
  t.strictSame(JSON.parse(stdout), hostile);
  t.strictSame(JSON.parse((await run(['--json', '--admin', address, 'hosts'])).stdout), hostile, 'wherever it stands');
});

t.test('nothing from strangers reaches the terminal raw', async (t) => {
  const evil = '\u001b[2J\u001b]0;own\u0007\u009b31m\r\n\u202eabc\u0000\u007f';
  const poison = (value: unknown): unknown => {
    if (typeof value === 'string') return /^\d{4}-/.test(value) || value === 'passing' ? value : `${value}${evil}`;
    if (Array.isArray(value)) return value.map(poison);
    if (typeof value !== 'object' || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, poison(item)]));
  };
  const resolve = {
    name: 'db',
    type: 'A',
    server: 's',
    status: 'NOERROR',
    origin: 'o',
    additionals: [],
    answers: [{ name: 'n', type: 'TXT', ttl: 5, data: 'd' }],
    leftOut: [{ id: 'i', reason: 'r' }],
  };
  const { address } = await fakeAdmin(t, (request): Answer => {
    if (request.method === 'POST') return { json: { instances: [`web-1/${evil}`], connections: 0 } };
    if (request.method === 'PUT') return { json: poison(canned.instances[0]) };
    if (request.url.includes('recurse')) {
      const value = Buffer.from(evil).toString('base64');
      return { json: { revision: evil, entries: [{ key: evil, revision: evil, value }] } };
    }
    if (request.url.startsWith('/api/kv')) return { body: evil, headers: { etag: '"5"' } };
    if (request.url.startsWith('/api/resolve')) return { json: poison(resolve) };
    if (request.url.startsWith('/api/instances/')) {
      return { status: 409, json: { error: { code: 'E_CONFLICT', message: evil, hint: evil } } };
    }
    if (request.url === '/api/status')
      return { json: { ...(poison(canned.status) as object), host: canned.status.host } };
    const answer = cannedAnswer(request);
    return 'json' in answer ? { json: poison(answer.json) } : answer;
  });
  const commands = [
    ['status'],
    ['hosts'],
    ['services'],
    ['instances'],
    ['links'],
    ['resolve', 'db'],
    ['drain', 'db'],
    ['undrain', 'db'],
    ['kv', 'get', 'a'],
    ['kv', 'list'],
    ['kv', 'put', evil.replaceAll('\u0000', ''), 'x'],
    ['deregister', 'web-1/x'],
    ['deregister', `web-1/${evil}/x`],
    [evil],
    ['instances', `--${evil}`],
    ['register', '-f', evil.replaceAll('\u0000', '')],
  ];
  for (const command of commands) {
    const { stdout, stderr } = await run([...command, '--admin', address], {
      tty: true,
      columns: 100,
      env: { NO_COLOR: '1' },
    });
    // Progress on standard error clears its own line.
    const text = stdout + stderr.replaceAll('\r\u001b[K', '');
    t.ok(text.length > 0, `${command[0]} says something`);
    t.notMatch(text, hostileBytes, `legate ${command[0]}: ${JSON.stringify(text.slice(0, 300))}`);
  }
});

t.test('exit statuses, and one line that says what, where, why and what to do', async (t) => {
  const { address } = await fakeAdmin(t, cannedAnswer);
  const folder = temporaryFolder(t);
  const notHttp = await fakeAdmin(t, () => ({ body: '<html>', status: 502 }), { tcp: true });
  const locked = await fakeAdmin(
    t,
    (request) =>
      request.headers.authorization === 'Bearer right' ? { json: { hosts: [] } } : { status: 401, json: { error: {} } },
    { tcp: true },
  );
  writeFileSync(join(folder, 'token'), 'right\n');
  writeFileSync(join(folder, 'empty'), '');
  const cases: [args: string[], status: number, stderr: RegExp][] = [
    [
      ['status', '--admin', `unix:${folder}/none.sock`],
      3,
      /^legate status: no sidecar at unix:\S+: there is no such socket; is it running\? Start it with legate agent -c FILE, or name its address with --admin\n$/,
    ],
    [
      ['kv', 'get', 'a', '--admin', `${folder}/token`],
      3,
      /^legate kv get: no sidecar at unix:\S+: nobody listens there any more; is it running/,
    ],
    [['status', '--admin', '127.0.0.1:1'], 3, /^legate status: no sidecar at 127\.0\.0\.1:1: nobody listens/],
    [
      ['instances', 'nope', '--admin', notHttp.address],
      1,
      /does not speak as a sidecar does: it answered with status 502/,
    ],
    [
      ['services', '--admin', '10.0.0.1:7710'],
      2,
      /^legate services: --admin 10\.0\.0\.1:7710 is beyond loopback, where it takes the mesh's roots: .+--ca-file/,
    ],
    [['services', '--admin', '127.x.example:7710'], 2, /is beyond loopback/],
    [['services', '--admin', 'nonsense'], 2, /is neither unix:\/path nor host:port/],
    [['hosts', '--admin', locked.address], 1, /wants a token; name its file with --token-file/],
    [['hosts', '--admin', locked.address, '--token-file', join(folder, 'empty')], 1, /does not hold a token/],
    [
      ['hosts', '--admin', locked.address, '--token-file', join(folder, 'none')],
      1,
      /cannot be read \(ENOENT.*admin\.token in the data_dir/,
    ],
    [['hosts', '--admin', locked.address, '--token-file', join(folder, 'token')], 0, /^$/],
    [
      ['kv', 'get', 'a', '--admin', address],
      1,
      /^legate kv get: there is no \/api\/kv\/a; legate services lists them\n$/,
    ],
    [['statu'], 2, /^legate: unknown command 'statu'; did you mean status\?; legate -h shows how it is used\n$/],
    [['kv', 'gte', 'a'], 2, /^legate kv: unknown command 'gte'; did you mean get\?/],
    [['status', '--jsn'], 2, /^legate status: unknown option '--jsn'; did you mean --json\?; legate status -h/],
    [['resolve'], 2, /^legate resolve: missing required argument 'name'/],
    [['scan', 'db', 'a=1'], 2, /^legate scan: this command is not yet in this version/],
    [['drain'], 2, /name an instance or a service, or give --host/],
    [['drain', 'db', '--host'], 2, /and not both/],
    [['drain', 'db', '--timeout', 'soon'], 2, /--timeout "soon" is not a duration/],
    [['kv', 'get', '../x'], 2, /is not a key/],
    [['service', 'set', 'db'], 2, /^legate service set: missing required argument 'settings'/],
    [['service', 'set', 'db', 'port'], 2, /^legate service set: "port" is not key=value; such as port=5432\n$/],
    [['service', 'set', 'db', 'port=1', 'port=2'], 2, /port is given twice/],
    [
      ['service', 'set', 'db', 'port=54 32', 'balance=hsah'],
      2,
      /service.port: "54 32" is not a port .*; service.balance/,
    ],
    [['service', 'set', 'db', 'blance=random'], 2, /unknown key `blance`; did you mean `balance`/],
    [
      ['service', 'set', 'db', 'split_guard=on'],
      2,
      /service\.split_guard: "on" is not a whole number \(0 to 100; .*or off: no guard\)/,
    ],
    [['service', 'set', 'DB', 'port=1'], 2, /the service's name "DB" has characters/],
    [['service', 'forget', '..'], 2, /the service's name "\.\." has characters/],
    [['service', 'forget', 'db', '--admin', address], 1, /^legate service forget: there is no \/api\/services\/db/],
    [['service'], 2, /^Usage: legate service/],
    [['deregister', '../x', '--admin', address], 2, /is not an id/],
    [['kv'], 2, /^Usage: legate kv/],
    [[], 2, /^Usage: legate/],
    [['--version'], 0, /^$/],
    [['drain', '-h'], 0, /^$/],
  ];
  for (const [args, expected, line] of cases) {
    const { status, stderr } = await run(args);
    t.equal(status, expected, args.join(' '));
    t.match(stderr, line, args.join(' '));
    if (!/^Usage/.test(stderr)) t.ok(stderr.trimEnd().split('\n').length === 1, 'one line');
  }
  const json = await run(['status', '--json', '--admin', `unix:${folder}/none.sock`]);
  t.match(JSON.parse(json.stderr), { error: { code: 'E_UNREACHABLE', hint: /legate agent/ } });
  const debug = await run(['status', '--admin', `unix:${folder}/none.sock`], { env: { LEGATE_LOG_LEVEL: 'debug' } });
  t.match(debug.stderr, /\n {4}at /, 'the stack only at log level debug');
  const byVariable = await run(['hosts'], {
    env: { LEGATE_ADMIN: locked.address, LEGATE_TOKEN_FILE: join(folder, 'token') },
  });
  t.equal(byVariable.status, 0, byVariable.stderr);
});

t.test('a sidecar that goes away in the middle of an answer is not taken for an answer', async (t) => {
  const admin = await fakeAdmin(t, async () => {
    void admin.close();
    return new Promise<Answer>(() => undefined);
  });
  const { status, stderr } = await run(['status', '--admin', admin.address]);
  t.equal(status, 3);
  t.match(stderr, /went away before it answered/);
});

t.test('every command has help with two or three examples', async (t) => {
  const names = ['', 'agent', 'hosts', 'services', 'instances', 'links', 'status', 'resolve', 'register', 'deregister'];
  names.push(
    'drain',
    'undrain',
    'service',
    'service set',
    'service forget',
    'split',
    'kv',
    'kv get',
    'kv put',
    'kv delete',
    'kv list',
    'kv watch',
    'config',
    'config check',
    'config options',
  );
  for (const name of names) {
    const { status, stdout } = await run([...name.split(' ').filter((word) => word !== ''), '-h']);
    t.equal(status, 0, name);
    const [, list = ''] = stdout.split('\nExamples:\n');
    const lines = list.trimEnd().split('\n');
    t.ok(lines.length >= 2 && lines.length <= 3, `${name}: ${lines.length} examples`);
    for (const line of lines) t.match(line, /legate/, line);
    t.ok(Math.max(...stdout.split('\n').map((line) => line.length)) <= 100, `${name} fits 100 columns`);
  }
});

t.test('help of service set tells what each setting may be, and what it is where nobody chose', async (t) => {
  const { stdout } = await run(['service', 'set', '-h']);
  const lines = stdout.split('\n');
  for (const field of serviceFields) {
    const word = settingWord(field);
    t.equal(lines.filter((line) => line.startsWith(`  ${word} `)).length, 1, word);
  }
  for (const field of furtherFields) {
    const usual = furtherDefault(field);
    if (usual === undefined) continue;
    const result = parseSettingsValue({ [settingWord(field)]: furtherText(field, usual) });
    t.match(result, { settings: { [field]: usual } }, `the default of ${field} is one that may be set`);
  }
  t.match(stdout, /\n {2}balance {9}round-robin, .*, hash \(default: round-robin\)\n/);
  t.match(stdout, /\n {2}try_timeout {5}10ms to 24h \(default: 1m\)\n/);
  t.match(stdout, /\n {2}max_body {8}0 to 1024GiB; 0: any number of bytes \(default: 0\)\n/);
  t.match(stdout, /\n {2}sticky {10}off, cookie, cookie:NAME or header:NAME \(default: off\)\n/);
});

t.test('resolve shows the answer, its origin and what was left out', async (t) => {
  const record = { name: 'db.service.mesh.internal', type: 'A', ttl: 5, data: '172.17.0.4' };
  let document: object = {};
  const admin = await fakeAdmin(t, () => ({ json: document }));
  const base = {
    name: record.name,
    type: 'A',
    server: '127.0.0.1:7753',
    origin: 'the snapshot, confirmed by the store 0.3 s ago',
    additionals: [],
    leftOut: [],
  };
  const cases: [change: object, status: number, lines: string[]][] = [
    [
      { status: 'NOERROR', answers: [record], leftOut: [{ id: 'web-1/db-2', reason: 'critical' }] },
      0,
      [
        ' NAME                      TYPE  TTL  ANSWER',
        ' db.service.mesh.internal  A     5 s  172.17.0.4',
        ' answered by 127.0.0.1:7753 (the snapshot, confirmed by the store 0.3 s ago)',
        ' left out: 1 instance',
        ' ID          WHY',
        ' web-1/db-2  critical',
      ],
    ],
    [{ status: 'NOERROR', answers: [] }, 0, [` - ${record.name} exists, and has no A record now (NODATA)`]],
    [
      { status: 'NOERROR', answers: [], hint: 'ports are at _db._tcp.mesh.internal' },
      0,
      [` - ${record.name} exists, and has no A record now (NODATA); ports are at _db._tcp.mesh.internal`],
    ],
    [
      { status: 'SERVFAIL', answers: [], hint: 'names of the mesh are asked in full: web.service.mesh.internal' },
      1,
      [
        ` x ${record.name} A: SERVFAIL, the name server could not tell: nothing is known yet, or no upstream answered`,
        '   names of the mesh are asked in full: web.service.mesh.internal',
        ` answered by ${base.server} (${base.origin})`,
      ],
    ],
    [
      { status: 'NOERROR', answers: [], note: 'waits for the service unborn' },
      0,
      [
        ` - ${record.name} exists, and has no A record now (NODATA)`,
        ' - waits for the service unborn',
        ` answered by ${base.server} (${base.origin})`,
      ],
    ],
    [
      { status: 'NOERROR', answers: [record], note: 'of old news' },
      0,
      [
        ' NAME                      TYPE  TTL  ANSWER',
        ' db.service.mesh.internal  A     5 s  172.17.0.4',
        ' - of old news',
      ],
    ],
    [{ status: 'NXDOMAIN', answers: [] }, 1, [` x ${record.name} A: NXDOMAIN, there is no such name`]],
  ];
  for (const [change, status, lines] of cases) {
    document = { ...base, ...change };
    const result = await run(['resolve', record.name, '--type', 'a', '--admin', admin.address]);
    t.equal(result.status, status);
    t.strictSame(result.stdout.split('\n').slice(0, lines.length), lines);
  }
  t.equal(admin.seen[0]?.url, '/api/resolve?name=db.service.mesh.internal&type=A');
  for (const [args, query] of [
    [['db'], 'name=db&type=A'],
    [['172.17.0.2'], 'name=172.17.0.2&type=PTR'],
    [['fd00::2'], 'name=fd00%3A%3A2&type=PTR'],
    [['172.17.0.2', '--type', 'A'], 'name=172.17.0.2&type=A'],
  ] as const) {
    await run(['resolve', ...args, '--admin', admin.address]);
    t.equal(admin.seen.at(-1)?.url, `/api/resolve?${query}`);
  }
});

t.test('register sends each entry as the file has it, and says what became of each', async (t) => {
  const folder = temporaryFolder(t);
  const file = join(folder, 'some.yaml');
  writeFileSync(
    file,
    `instances:
  - {service: db, address: 127.0.0.1, port: 5432, tags: [a], checks: [{kind: http, path: /h, interval: 1500ms}]}
  - {service: bad, address: 10.0.0.1, port: 1, name: "x:1"}`,
  );
  const admin = await fakeAdmin(t, (request) => {
    if (request.url.endsWith('/x%3A1')) {
      return {
        status: 409,
        json: { error: { code: 'E_CONFLICT', message: 'it exists already', hint: 'choose another name' } },
      };
    }
    return request.method === 'PUT'
      ? { json: { ...canned.instance(JSON.parse(String(request.body))) } }
      : cannedAnswer(request);
  });
  const { status, stdout, stderr } = await run(['register', '-f', file, '--admin', admin.address]);
  t.equal(status, 1);
  t.equal(stdout, ' ok web-1/db-5432 is registered: db at 127.0.0.1:5432, passing\n');
  t.equal(stderr, ' x web-1/x:1: it exists already; choose another name\n');
  const put = admin.seen.find((request) => request.method === 'PUT');
  t.equal(put?.url, '/api/instances/web-1/db-5432');
  t.strictSame(JSON.parse(String(put?.body)), {
    name: 'db-5432',
    service: 'db',
    address: '127.0.0.1',
    port: 5432,
    protocol: 'tcp',
    reach: 'host',
    tags: ['a'],
    meta: {},
    weight: 1,
    checks: [{ kind: 'http', path: '/h', rise: 2, fall: 3, interval: '1500ms', timeout: '1s' }],
  });
  const json = await run(['register', '-f', '-', '--json', '--admin', admin.address], {
    stdin: '[{service: db, address: 127.0.0.1, port: 5432}]',
  });
  t.equal(json.status, 0);
  t.match(JSON.parse(json.stdout), { registered: [{ id: 'web-1/db-5432' }], failed: [] });

  const faulty = await run(['register', '-f', '-'], { stdin: '- {service: db, address: 127.0.0.1, port: x}' });
  t.equal(faulty.status, 2);
  t.equal(
    faulty.stderr,
    'standard input:1:43: instances[0].port: "x" is not a port (1 to 65535)\n1 fault, nothing registered.\n',
  );
  t.equal((await run(['register', '-f', join(folder, 'none')])).status, 2);

  for (const id of ['web-1/db-5432', 'db-5432']) {
    const result = await run(['deregister', id, '--admin', admin.address]);
    t.equal(admin.seen.at(-1)?.url, '/api/instances/web-1/db-5432', result.stderr);
    t.equal(admin.seen.at(-1)?.method, 'DELETE');
  }
});

t.test('service set and forget say what holds now', async (t) => {
  const [, db] = canned.services.services;
  const admin = await fakeAdmin(t, ({ method }): Answer => {
    if (method === 'DELETE') return { json: { forgotten: 'db', vips: ['240.77.118.4'] } };
    return { json: db };
  });
  const go = (...args: string[]) => run(['service', ...args, '--admin', admin.address]);
  const set = await go('set', 'db', 'port=5432', 'balance=least-connections');
  t.match(set, { status: 0, stdout: ' ok db is set: port 5432/tcp, least-connections, at 240.77.118.4\n' });
  t.match(admin.seen[0], { method: 'PUT', url: '/api/services/db' });
  t.strictSame(JSON.parse(String(admin.seen[0]?.body)), { port: 5432, balance: 'least-connections' });
  t.strictSame(JSON.parse((await go('set', 'db', 'protocol=http', '--json')).stdout), db);
  await go('set', 'db', 'timeout=5s', 'max_body=2MiB', 'retries=default', 'split={a: 1}');
  const mixed = { timeout: '5s', max_body: '2MiB', retries: null, split: { a: 1 } };
  t.strictSame(JSON.parse(String(admin.seen.at(-1)?.body)), mixed, 'null takes one back');
  await go('set', 'db', 'balance=default', 'port=default', 'split=default', 'split_guard=off', 'sticky=off');
  const taken = { balance: null, port: null, split: {}, split_guard: '0', sticky: 'off' };
  t.strictSame(JSON.parse(String(admin.seen.at(-1)?.body)), taken);
  const idle = await go('set', 'db', 'timeout=5s', 'park=1s', 'routes=[]');
  t.match(idle, { status: 0, stderr: ' - db is of protocol tcp: timeout, routes only concern HTTP services\n' });
  const split = { ...db, timeoutMs: 5000, split: {}, sticky: 'off', splitGuard: 0 };
  const splits = await fakeAdmin(t, (): Answer => ({ json: split }));
  const said = async (...words: string[]): Promise<string> =>
    (await run(['service', 'set', 'db', ...words, '--admin', splits.address])).stdout;
  t.match(await said('retries=default'), /least-connections, timeout 5s, at /, 'what only a split needs is not told');
  t.match(
    await said('split={}', 'split_guard=off'),
    /, timeout 5s, split none, split_guard 0, at /,
    'if not asked for',
  );
  Object.assign(split, { split: { a: 1 } });
  t.match(await said('retries=default'), /, timeout 5s, split a=1, sticky off, split_guard 0, at /);
  const routes = [{ match: {}, service: 'b' }, { match: { path: '/x' } }];
  Object.assign(split, { protocol: 'http', routes });
  const noted = await run(['service', 'set', 'db', `routes=${JSON.stringify(routes)}`, '--admin', splits.address]);
  t.equal(noted.stderr, ' - routes[1]: no request gets to it: routes[0] is for all that it is for\n');
  const forgotten = await go('forget', 'db');
  t.match(forgotten, { status: 0, stdout: ' ok db is forgotten; 240.77.118.4 may go to another service\n' });
  t.match(admin.seen.at(-1), { method: 'DELETE', url: '/api/services/db' });
  t.strictSame(JSON.parse((await go('forget', 'db', '--json')).stdout), { forgotten: 'db', vips: ['240.77.118.4'] });
});

t.test('to drain a service that is not on this host tells where it is', async (t) => {
  let instances: readonly object[] = [
    { ...canned.instances[0], host: 'web-3' },
    { ...canned.instances[0], host: 'web-2' },
  ];
  const admin = await fakeAdmin(t, (request): Answer => {
    return { json: request.url === '/api/drain' ? { instances: [], connections: 0 } : { instances } };
  });
  for (const command of ['drain', 'undrain']) {
    const { status, stderr } = await run([command, 'db', '--admin', admin.address]);
    t.equal(status, 1);
    t.match(stderr, /no instance of db is on this host: 2 instances on web-2, web-3.+run it there/s);
  }
  t.match(admin.seen.at(-1), { method: 'GET', url: '/api/instances?service=db' });
  instances = [];
  t.match((await run(['drain', 'db', '--admin', admin.address])).stderr, /it has none anywhere/);
  t.match(await run(['drain', '--host', '--admin', admin.address]), {
    status: 0,
    stdout: /nothing to drain on this host/,
  });
});

t.test('drain waits until the last connection has ended, and knows when it does not', async (t) => {
  let left = 2;
  let draining = true;
  const admin = await fakeAdmin(t, (request): Answer => {
    if (request.url === '/api/instances')
      return { json: { instances: canned.instances.map((one) => ({ ...one, draining })) } };
    return { json: { instances: ['web-1/db-5432'], connections: Math.max(0, left--) } };
  });
  const go = (args: string[], options: SessionOptions = {}) => run([...args, '--admin', admin.address], options);
  const done = await go(['drain', 'db']);
  t.equal(done.status, 0);
  t.match(
    done.stdout,
    /^ ok web-1\/db-5432 takes no new connections\n ok the last connection has ended, after 0\.\d s\n$/,
  );
  t.strictSame(JSON.parse(String(admin.seen[0]?.body)), { service: 'db' });

  left = 1e9;
  const late = await go(['drain', 'web-1/db-5432', '--timeout', '0s']);
  t.equal(late.status, 1);
  t.match(late.stdout, /x 1 000 000 000 connections still run after 0 s; the draining goes on\n$/);
  t.strictSame(JSON.parse(String(admin.seen.at(-1)?.body)), { id: 'web-1/db-5432' });

  draining = false;
  const ordersBefore = admin.seen.filter((request) => request.method === 'POST').length;
  t.match(await go(['drain', '--host', '--json']), { status: 1, stdout: /"connections"/ });
  t.equal(
    admin.seen.filter((request) => request.method === 'POST').length,
    ordersBefore + 1,
    'an undrain is not overridden',
  );

  left = 0;
  t.match(await go(['undrain', '--host']), { status: 0, stdout: ' ok web-1/db-5432 takes new connections again\n' });
  t.strictSame(JSON.parse(String(admin.seen.at(-1)?.body)), { host: true, undrain: true });

  left = 1e9;
  draining = true;
  const fake = fakeSession({ tty: true, columns: 100 });
  t.teardown(fake.interrupt);
  const waiting = runCommandLine(['drain', 'db', '--admin', admin.address], fake.session);
  await waitFor('progress', () => /\r\u001b\[K {1}[\d ]+ connections left after 1(\.\d)? s/.test(fake.stderr.text));
  fake.interrupt();
  t.equal(await waiting, 1);
  t.match(fake.stdout.text, /not waited for: [\d ]+ connections still run/);
});

t.test('kv: bytes are bytes, revisions are compared by the sidecar', async (t) => {
  const store = new Map<string, Buffer>();
  const admin = await fakeAdmin(t, (request): Answer => {
    const url = new URL(request.url, 'http://x');
    const key = decodeURIComponent(url.pathname.slice('/api/kv/'.length));
    if (url.searchParams.has('watch')) {
      // The stream breaks off each time; what was told already is not told again.
      const value = store.get(key);
      const told =
        value === undefined ? { key, deleted: true } : { key, value: value.toString('base64'), revision: '9' };
      return { body: Buffer.from(`event: change\ndata: ${JSON.stringify(told)}\n\n`) };
    }
    if (url.searchParams.has('recurse')) {
      const entries = [...store].map(([name, value]) => ({
        key: name,
        value: value.toString('base64'),
        revision: '9',
      }));
      return { json: { revision: '9', entries } };
    }
    if (url.searchParams.get('cas') === '41') {
      return {
        status: 409,
        json: { error: { code: 'E_CONFLICT', message: 'it is not at that revision any more', hint: 'read it again' } },
      };
    }
    if (request.method === 'PUT') store.set(key, request.body);
    if (request.method === 'DELETE') store.delete(key);
    if (request.method !== 'GET') return { json: { key, revision: '9' } };
    const value = store.get(key);
    if (value === undefined)
      return { status: 404, json: { error: { code: 'E_NOT_FOUND', message: 'there is no such key', hint: '' } } };
    return { body: value, headers: { etag: '"9"' } };
  });
  const go = (args: string[], options: SessionOptions = {}) => run(['kv', ...args, '--admin', admin.address], options);
  t.match(await go(['put', 'app/a b?ü#%', '-'], { stdin: 'line\n' }), {
    status: 0,
    stdout: ' ok app/a b?ü#% is written, revision 9\n',
  });
  t.equal(admin.seen.at(-1)?.url, '/api/kv/app/a%20b%3F%C3%BC%23%25');
  t.match(await go(['get', 'app/a b?ü#%']), { status: 0, stdout: 'line\n' });
  const binary = Buffer.from([0, 255, 27, 10]);
  store.set('blob', binary);
  t.equal((await go(['get', 'blob'])).stdout, binary.toString('latin1'), 'a pipe gets the very bytes');
  t.match(await go(['get', 'blob'], { tty: true }), {
    status: 1,
    stdout: '',
    stderr: /4 B that are no text; send it to a file/,
  });
  t.strictSame(JSON.parse((await go(['get', 'blob', '--json'])).stdout), {
    key: 'blob',
    value: binary.toString('base64'),
    revision: '9',
  });
  t.match(await go(['list']), {
    stdout:
      ' KEY          REVISION  SIZE  VALUE\n app/a b?ü#%         9   5 B  line\\n\n blob                9   4 B  (no text)\n',
  });
  t.match(await go(['put', 'x', 'y', '--cas', '41']), {
    status: 1,
    stderr: /^legate kv put: it is not at that revision any more; read it again\n$/,
  });
  t.match(await go(['delete', 'blob', '--json']), { status: 0 });
  t.match(await go(['get', 'blob']), { status: 1, stderr: /there is no such key/ });

  const fake = fakeSession();
  t.teardown(fake.interrupt);
  const watching = runCommandLine(['kv', 'watch', 'blob', '--admin', admin.address], fake.session);
  await waitFor('absence', () => fake.stdout.text === ' blob  is absent\n');
  store.set('blob', Buffer.from('new'));
  await waitFor('the new value', () => fake.stdout.text.endsWith(' blob  revision 9, 3 B: new\n'));
  fake.interrupt();
  t.equal(await watching, 0);
});

t.test(
  '--watch redraws in place after a change, survives the sidecar, and leaves the terminal as it was',
  async (t) => {
    let instances: readonly InstanceDocument[] = canned.instances.slice(0, 1);
    const socketPath = join(temporaryFolder(t), 'admin.sock');
    const answer = (): Answer => ({ json: { instances } });
    const admin = await fakeAdmin(t, answer, { socketPath });
    const fake = fakeSession({ tty: true, columns: 100, rows: 6 });
    t.teardown(fake.interrupt);
    const watching = runCommandLine(['instances', 'db', '--watch', '--admin', admin.address], fake.session);
    const since = (from: number): string => fake.stdout.text.slice(from);
    await waitFor('the first frame', () => fake.stdout.text.includes('77ab00112233'));
    const first = fake.stdout.text.length;
    instances = canned.instances;
    admin.change();
    await waitFor('the second frame', () => since(first).includes('9c1f00112233'));
    t.match(since(first), /^\u001b\[2A\r/, 'goes up by the lines of the frame before');
    t.notMatch(since(first), '\u001b[2J', 'never clears the screen');
    t.match(since(first), ' 2 more lines\u001b[K\n', 'what does not fit is counted');
    const second = fake.stdout.text.length;
    await admin.close();
    await waitFor('the fault to be shown', () => /not current: .*(no sidecar at|went away)/.test(since(second)), {
      timeoutMs: 20_000,
    });
    const third = fake.stdout.text.length;
    await fakeAdmin(t, answer, { socketPath });
    await waitFor('recovery', () => since(third).includes('9c1f00112233'), { timeoutMs: 20_000 });
    fake.interrupt();
    t.equal(await watching, 0);
    t.ok(fake.stdout.text.endsWith('\u001b[?7h\u001b[?25h'), 'the cursor is back');
  },
);

/** What a terminal shows after this output, whose cursor was on the last row, and how many rows have left it at the top. */
function shownOn(output: string, rows: number, columns: number): { readonly lines: string[]; readonly left: number } {
  const lines = new Array<string>(rows).fill('');
  let [row, column, left, wraps] = [rows - 1, 0, 0, true];
  const newLine = (): void => {
    column = 0;
    if (row < rows - 1) row += 1;
    else {
      lines.push('');
      lines.shift();
      left += 1;
    }
  };
  for (const [token, mode, count, letter] of output.matchAll(/\u001b\[(?:\?(25[lh]|7[lh])|(\d*)([AKJ]))|[\s\S]/g)) {
    if (mode === '7l' || mode === '7h') wraps = mode === '7h';
    else if (letter === 'A') row = Math.max(0, row - Number(count));
    else if (letter !== undefined) {
      lines[row] = (lines[row] ?? '').slice(0, column);
      if (letter === 'J') lines.fill('', row + 1);
    } else if (token === '\n') newLine();
    else if (token === '\r') column = 0;
    else if (mode === undefined) {
      if (column === columns && wraps) newLine();
      const at = Math.min(column, columns - 1);
      lines[row] = `${(lines[row] ?? '').slice(0, at).padEnd(at)}${token}${(lines[row] ?? '').slice(at + 1)}`;
      column = at + 1;
    }
  }
  return { lines: lines.map((line) => line.trimEnd()), left };
}

t.test('--watch on terminals with few rows and columns, or none that they know of', async (t) => {
  const frames = [3, 1, 12, 2, 30, 1].map((count) =>
    Array.from({ length: count }, (_, index) => ` line ${index} of ${count} with more behind`),
  );
  for (const rows of [0, 1, 2, 3, 6]) {
    for (const columns of [0, 1, 20, 100]) {
      const stdout = new FakeStream({ tty: true, columns, rows });
      const terminal = new Terminal({ stdout, stderr: stdout, env: { TERM: 'xterm' }, nowMs: () => 0 });
      const screen = new Screen(terminal);
      const [real, wide] = [rows || 24, columns || 80];
      const what = `${rows} rows, ${columns} columns`;
      const cut = (line: string | undefined): string =>
        (line ?? '').length <= wide ? (line ?? '') : `${line?.slice(0, wide - 1)}${line?.at(-1)}`.trimEnd();
      screen.open();
      for (const frame of frames) {
        screen.draw(frame);
        const { lines } = shownOn(stdout.text, real, wide);
        const first = lines.indexOf(cut(frame[0]));
        t.ok(first >= 0, `${what}: the frame's first line is seen: ${lines.join('|')}`);
        const room = Math.max(1, real - 1);
        const last =
          frame.length <= room ? frame.at(-1) : room === 1 ? frame[0] : ` ${frame.length - room + 1} more lines`;
        t.equal(lines[first + Math.min(room, frame.length) - 1], cut(last), `${what}: and its last`);
        if (real > 1)
          t.same(lines.slice(first + Math.min(room, frame.length)).join(''), '', `${what}: and nothing below`);
      }
      const { left } = shownOn(stdout.text, real, wide);
      t.ok(left <= real, `${what}: ${left} rows have been pushed out`);
      screen.close();
      t.equal(shownOn(stdout.text, real, wide).lines.at(-1), '', `${what}: the prompt has a line of its own`);
      t.ok(terminal.view().width >= 40, 'a view has room for a table');
    }
  }
});

t.test('--watch in a pipe prints a frame a change; with --json one line a document', async (t) => {
  let count = 1;
  const admin = await fakeAdmin(t, () => ({ json: { hosts: canned.hosts.slice(0, count) } }));
  const fake = fakeSession();
  t.teardown(fake.interrupt);
  const watching = runCommandLine(['hosts', '--json', '--watch', '--admin', admin.address], fake.session);
  await waitFor('the first line', () => fake.stdout.text.endsWith('\n'));
  count = 2;
  await waitFor('the second line', () => {
    admin.change();
    return fake.stdout.text.split('\n').length === 3;
  });
  fake.interrupt();
  t.equal(await watching, 0);
  const documents = fake.stdout.text
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as { hosts: unknown[] });
  t.strictSame(
    documents.map((document) => document.hosts.length),
    [1, 2],
  );
  t.equal((await run(['status', '--watch', '--admin', 'unix:/nope'])).status, 3, 'the first failure ends it');
});

t.test('words for people', async (t) => {
  const spans: [ms: number, text: string][] = [
    [-5, '0 s'],
    [210, '0.2 s'],
    [9999, '10 s'],
    [59_999, '59 s'],
    [60_000, '1 min'],
    [12_000_000, '3 h 20 min'],
    [86_400_000, '1 d'],
    [273_600_000, '3 d 4 h'],
    [Number.NaN, '?'],
  ];
  for (const [ms, text] of spans) t.equal(span(ms), text);
  t.equal(since('garbage', 0), '?');
  for (const [count, text] of [
    [0, '0 B'],
    [999, '999 B'],
    [999_999, '1.0 MB'],
    [123_456_789, '123 MB'],
    [4321, '4.3 KB'],
  ] as const) {
    t.equal(bytes(count), text);
  }
  t.equal(grouped('81204'), '81 204');
  t.equal(grouped('1234'), '1234');
  t.equal(grouped('9f8c12345'), '9f8c12345');
  t.equal(safeJson({ a: '\u009b\u001b' }, 0), '{"a":"\\u009b\\u001b"}');
});

t.test('tables never exceed their width, whatever is in them', async (t) => {
  const { style } = new Terminal({
    stdout: new FakeStream({ tty: true }),
    stderr: new FakeStream(),
    env: {},
    nowMs: () => 0,
  });
  t.equal(displayWidth('日本🎉é'), 7);
  t.equal(cutText('abcdefghij', 5, 'middle', style), 'ab…ij');
  t.equal(cutText('日本語日本語', 6, 'end', style), '日本…');
  t.strictSame(wrap('aaa bbb cccccccccc', 5), ['aaa', 'bbb', 'ccccc', 'ccccc']);
  const text = fc.oneof(
    fc.string(),
    fc.string({ unit: 'grapheme' }),
    fc.constantFrom('a'.repeat(200), '日'.repeat(80), ''),
  );
  const run = fc.property(
    fc.array(fc.tuple(text, text, text), { maxLength: 5 }),
    fc.integer({ min: 40, max: 100 }),
    (rows, width) => {
      const lines = renderTable(
        [{ title: 'A', cut: 'middle', least: 30 }, { title: 'B' }, { title: 'LONG TITLE', optional: true }],
        rows.map((cells) => ({ cells, below: [cells[0]] })),
        { style: { ...style, paint: (painted) => painted }, width, nowMs: 0 },
      );
      for (const line of lines)
        if (displayWidth(line) > width) throw new Error(`${displayWidth(line)} > ${width}: ${line}`);
    },
  );
  t.doesNotThrow(() => fc.assert(run, { numRuns: 500 }));
});

t.test('addresses', async (t) => {
  t.match(parseAdminAddress('unix:/run/x.sock'), { socketPath: '/run/x.sock', text: 'unix:/run/x.sock' });
  t.match(parseAdminAddress('/run/x.sock'), { socketPath: '/run/x.sock' });
  t.match(parseAdminAddress('localhost:7710'), { socketPath: undefined, origin: 'http://localhost:7710' });
  t.match(parseAdminAddress('[::1]:7710'), { origin: 'http://[::1]:7710' });
  for (const bad of ['', 'unix:', 'x', '127.0.0.1', '127.0.0.1:0', '127.0.0.1:70000', '[x]:1', 'http://127.0.0.1:1']) {
    t.throws(() => parseAdminAddress(bad), { code: 'E_USAGE' }, bad);
  }
  const routes = `Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask
eth1\t00000000\t0100000A\t0003\t0\t0\t200\t00000000\t0\t0\t0
eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0`;
  const info = (address: string, internal = false) => ({
    address,
    family: 'IPv4' as const,
    internal,
    netmask: '',
    mac: '',
    cidr: null,
  });
  const interfaces = {
    lo: [info('127.0.0.1', true)],
    docker0: [info('172.17.0.1')],
    eth1: [info('10.0.1.1')],
    eth0: [info('10.0.0.1')],
  };
  t.equal(defaultAddress(routes, interfaces), '10.0.0.1', 'the lower metric');
  t.equal(defaultAddress('', interfaces), '10.0.1.1', 'without a route the first that is not virtual');
  t.throws(() => defaultAddress('', { lo: interfaces.lo, docker0: interfaces.docker0 }), { code: 'E_CONFIG' });
});

t.test('a socket of another user says so', async (t) => {
  const { address } = await fakeAdmin(t, cannedAnswer);
  chmodSync(address.slice('unix:'.length), 0o000);
  // Root may open any socket: for a moment this process is nobody.
  const root = process.geteuid?.() === 0;
  if (root) process.seteuid?.(65534);
  const { status, stderr } = await run(['status', '--admin', address]).finally(() => {
    if (root) process.seteuid?.(0);
  });
  t.equal(status, 3);
  t.match(stderr, /no right to open unix:\S+ \(user id \d+\); the socket is for the user.*use sudo/);
});
