import fc from 'fast-check';
import t from 'tap';
import { checkEntry } from './check-type.ts';
import type { Config } from './config.ts';
import { parseInstancesFile, parseInstanceValue } from './instances-file.ts';
import { type ConfigSources, loadConfig } from './load.ts';
import { flagOf, isOptionKey, optionKeys, variableOf } from './options.ts';
import { optionDocuments, optionsMarkdown, optionsText } from './options-document.ts';

const defaults = { hostname: 'Web-1.example.com', advertise: () => '10.77.0.1' };

function load(text: string | undefined, more: Partial<ConfigSources> = {}): ReturnType<typeof loadConfig> {
  const file = text === undefined ? {} : { file: { path: 'legate.yaml', text } };
  return loadConfig({ ...file, env: {}, flags: {}, defaults, ...more });
}

function configOf(text: string | undefined, more: Partial<ConfigSources> = {}): Config {
  const result = load(text, more);
  if ('config' in result) return result.config;
  throw new Error(result.faults.map((fault) => fault.text).join('\n'));
}

function faultsOf(text: string | undefined, more: Partial<ConfigSources> = {}): string[] {
  const result = load(text, more);
  return 'faults' in result ? result.faults.map((fault) => fault.text) : [];
}

/** The file of CONTRACT.md, without what is not yet in this version. */
const contractExample = `
mesh: legate                      # trust domain and store prefix
host: web-1                       # default: hostname
advertise: 10.77.0.1              # default: address of the default route
data_dir: /var/lib/legate
domain: mesh.internal
store: {kind: embedded, listen: "", lease_ttl: 10s}
docker: {socket: /var/run/docker.sock, expose: labelled}
dns: {listen: ["127.0.0.1:7753"], bridges: auto, upstream: auto, ttl: 5s, zones: []}
admin: {listen: ["unix:/run/legate/admin.sock"], token_file: ""}
tunnel: {listen: "0.0.0.0:7711"}
network: {underlay: untrusted, mode: "off"}
vip: {mode: auto, range: 240.77.0.0/16, local_range: 240.78.0.0/16}
instances:
  - {service: db, address: 127.0.0.1, port: 5432, reach: host, tags: [primary], meta: {zone: a}, weight: 1,
     checks: [{kind: tcp, interval: 2s, timeout: 1s, rise: 2, fall: 3}]}
services:
  db: {port: 5432, protocol: tcp, balance: least-connections}
links:
  - {service: db, listen: 127.0.0.1:15432, consumer: web}
log: {level: info, pretty: auto}
`;

/** Options that contradict each other. */
const contradictoryChecks: [check: string, ...faults: string[]][] = [
  ['kind: https', '1:70: instances[0].checks[0].kind: "https" is kind http with `tls: true`'],
  ['kind: tcp, path: /x', '1:81: instances[0].checks[0].path: belongs to checks of kind http, not tcp'],
  ['kind: tcp, tls: true', '1:80: instances[0].checks[0].tls: belongs to checks of kind http, grpc, not tcp'],
  ['kind: grpc, path: /x', '1:82: instances[0].checks[0].path: belongs to checks of kind http, not grpc'],
  ['kind: http, service: a', '1:85: instances[0].checks[0].service: belongs to checks of kind grpc, not http'],
  ['kind: http, command: ls', '1:85: instances[0].checks[0].command: belongs to checks of kind exec, not http'],
  ['kind: http, ttl: 5s', '1:81: instances[0].checks[0].ttl: belongs to checks of kind ttl, not http'],
  [
    'kind: ttl, timeout: 1s',
    '1:84: instances[0].checks[0].timeout: belongs to checks of kind tcp, http, grpc, not ttl',
  ],
  [
    'kind: ttl, interval: 1s',
    '1:85: instances[0].checks[0].interval: belongs to checks of kind tcp, http, grpc, not ttl; how long a refresh holds',
  ],
  ['kind: http, tls_skip_verify: true', '1:93: instances[0].checks[0].tls_skip_verify: says how to take certificates'],
  ['kind: tcp, initial_status: lost', '1:91: instances[0].checks[0].initial_status: "lost" is not one of passing'],
  ['kind: tcp, deregister_after: 5', '1:93: instances[0].checks[0].deregister_after: 5 is not a duration'],
];

t.test('defaults are those of the contract, and an empty file is one', async (t) => {
  const config = configOf(undefined);
  t.match(config, {
    mesh: 'legate',
    host: 'web-1',
    advertise: '10.77.0.1',
    dataDir: '/var/lib/legate',
    domain: 'mesh.internal',
    store: { kind: 'embedded', leaseTtlMs: 10_000, listen: undefined },
    docker: { socket: '/var/run/docker.sock', expose: 'labelled', imageLabels: false },
    dns: { listen: [{ address: '127.0.0.1', port: 7753 }], bridges: 'auto', upstream: 'auto', ttlMs: 5000, zones: [] },
    admin: { listen: [{ kind: 'unix', path: '/run/legate/admin.sock' }], tokenFile: '/var/lib/legate/admin.token' },
    network: { underlay: 'untrusted', mode: 'off' },
    vip: { mode: 'auto', range: { text: '240.77.0.0/16' }, localRange: { text: '240.78.0.0/16' } },
    drainTimeoutMs: 5000,
    log: { level: 'info', pretty: 'auto' },
  });
  for (const text of ['', '\n# nothing\n', 'dns:\ninstances:\nservices:\n', '{}', '---\n...\n']) {
    t.strictSame(configOf(text), config, JSON.stringify(text));
  }
});

t.test('the example of the contract is read as it is meant', async (t) => {
  const config = configOf(contractExample);
  t.strictSame(config.instances, [
    {
      name: 'db-5432',
      service: 'db',
      address: '127.0.0.1',
      port: 5432,
      protocol: 'tcp',
      reach: 'host',
      tags: ['primary'],
      meta: { zone: 'a' },
      weight: 1,
      checks: [{ kind: 'tcp', intervalMs: 2000, timeoutMs: 1000, rise: 2, fall: 3 }],
    },
  ]);
  t.strictSame([...config.services], [['db', { port: 5432, protocol: 'tcp', balance: 'least-connections' }]]);
  t.strictSame(config.links, [{ service: 'db', listen: { address: '127.0.0.1', port: 15432 }, consumer: 'web' }]);
});

t.test('what an entry leaves out follows from the rest', async (t) => {
  const { instances } = configOf(`
services: {dns: {protocol: udp}, db: }
instances:
  - {service: dns, address: 10.0.0.1, port: 53}
  - {service: db, address: "::1", port: 5432, checks: [{kind: http}, {kind: tcp, port: 99}]}
  - {service: db, address: 10.0.0.9, port: 5432, name: second, weight: 0}`);
  t.match(instances, [
    { name: 'dns-53-udp', protocol: 'udp', reach: 'mesh', weight: 1, tags: [], checks: [] },
    { name: 'db-5432', reach: 'host', checks: [{ kind: 'http', path: '/', intervalMs: 2000 }, { port: 99 }] },
    { name: 'second', reach: 'mesh', weight: 0 },
  ]);
});

t.test('a flag wins over a variable, that over the file, that over the default', async (t) => {
  const file = 'dns: {ttl: 1s, zones: [consul]}\nlog: {level: warn}\nmesh: home\n';
  const env = { LEGATE_DNS_TTL: '2s', LEGATE_LOG_LEVEL: 'error', LEGATE_MESH: '', PATH: '/bin' };
  const config = configOf(file, { env, flags: { 'dns.ttl': '3s', 'dns.listen': '' } });
  t.equal(config.dns.ttlMs, 3000);
  t.equal(config.log.level, 'error');
  t.equal(config.mesh, 'home', 'a variable set to nothing counts as not set');
  t.strictSame(config.dns.zones, ['consul']);
  t.strictSame(config.dns.listen, [], 'a flag with nothing is an empty list');
});

t.test('flags and variables hold lists with commas, and maps as YAML or JSON', async (t) => {
  const config = configOf(undefined, {
    env: {
      LEGATE_DNS_LISTEN: '127.0.0.1:53, [::1]:53',
      LEGATE_DNS_UPSTREAM: '10.0.0.2,[fd00::1]:5353',
      LEGATE_SERVICES: '{"db": {"port": 5432}}',
    },
    flags: { links: '- {service: db, listen: "127.0.0.1:0"}', 'docker.image_labels': 'true', data_dir: 'x/../y' },
  });
  t.strictSame(config.dns.listen[1], { address: '::1', port: 53 });
  t.strictSame(config.dns.upstream, [
    { address: '10.0.0.2', port: 53 },
    { address: 'fd00::1', port: 5353 },
  ]);
  t.strictSame(config.services.get('db'), { port: 5432 });
  t.strictSame(config.links, [{ service: 'db', listen: { address: '127.0.0.1', port: 0 } }]);
  const door = (tls: string) => configOf(`links: [{service: a, listen: "0.0.0.0:443", tls: ${tls}}]`).links[0]?.tls;
  t.strictSame(door('{cert: /c, key: /k}'), [{ cert: '/c', key: '/k' }]);
  t.strictSame(door('[{cert: /c, key: /k}, {cert: /d, key: /l}]')?.length, 2);
  t.equal(config.docker.imageLabels, true);
  t.equal(config.dataDir, `${process.cwd()}/y`);
});

t.test('each fault names its place, path, value and what was expected', async (t) => {
  const cases: [yaml: string, ...faults: string[]][] = [
    ['services:\n  db: {port: "54 32"}', '2:14: services.db.port: "54 32" is not a port (1 to 65535)'],
    ['services:\n  db:\n    blance: random', '3:5: unknown key `blance`; did you mean `balance`? (in services.db)'],
    ['dnss: {}', '1:1: unknown key `dnss`; did you mean `dns`?'],
    ['mesh: a\nmesh: b', '2:1: mesh: is written twice (first at legate.yaml:1:1)'],
    ['services: {db: , db: }', '1:18: services.db: is written twice (first at legate.yaml:1:12)'],
    ['host: web_1', '1:7: host: "web_1" has characters other than a-z, 0-9 and inner hyphens; `web-1` would do'],
    ['services: {node: {}}', '1:12: services.node: "node" is a reserved word'],
    ['services: {db: {port: 0}}', '1:23: services.db.port: 0 is not a port (1 to 65535)'],
    ['services: {db: {port: [1]}}', '1:23: services.db.port: a list is not a port'],
    ['services: [db]', /1:11: services: a list is not a map/.source],
    ['instances: {a: 1}', '1:12: instances: a map is not a list of instances'],
    ['instances: [{service: a, address: 10.0.0.1}]', '1:13: instances[0]: `port` is missing (port)'],
    [
      'instances: [{service: a, address: 0.0.0.0, port: 1}]',
      '1:35: instances[0].address: "0.0.0.0" is not an address that can be dialled',
    ],
    [
      'instances:\n- {service: a, address: 10.0.0.1, port: 1}\n- {service: a, address: 10.0.0.2, port: 1}',
      '3:3: instances[1]: "a-1" is also the name of instances[0]; give one of them another `name`',
    ],
    [
      'services: {a: {protocol: udp}}\ninstances: [{service: a, address: 10.0.0.1, port: 1, protocol: tcp}]',
      '2:64: instances[0].protocol: tcp contradicts it: "a" has protocol udp in services.a at legate.yaml:1:26; a service has one',
    ],
    [
      'links: [{service: a, listen: 127.0.0.1:80}, {service: b, listen: 0.0.0.0:80}]',
      '1:66: links[1].listen: "0.0.0.0:80" is already taken by links[0].listen at legate.yaml:1:30',
    ],
    [
      'links: [{service: a, listen: 127.0.0.1:7753}]',
      '1:30: links[0].listen: "127.0.0.1:7753" is already taken by dns.listen (its default)',
    ],
    [
      'services: {a: {protocol: udp}}\nlinks: [{service: a, listen: 127.0.0.1:80}]',
      '2:19: links[0].service: links to udp services are not yet in this version',
    ],
    [
      'services: {a: {protocol: tcp}}\nlinks: [{service: a, listen: 127.0.0.1:80, tls: {cert: /c, key: /k}}]',
      '2:49: links[0].tls: TLS here leads to services of protocol http, http2 or grpc, and "a" is tcp',
    ],
    ['links: [{service: a, listen: 127.0.0.1:80, tls: {cert: /c}}]', '1:49: links[0].tls: `key` is missing (path)'],
    [
      'links: [{service: a, listen: 127.0.0.1:80, tls: [{cert: /c, key: /k}, {cert: "", key: /k}]}]',
      '1:78: links[0].tls[1].cert: "" is not a path',
    ],
    ['links: [{service: a, listen: 127.0.0.1:80, tls: []}]', '1:49: links[0].tls: an empty list has no certificate'],
    ['vip: {range: 240.78.0.0/15}', '1:14: vip.range: "240.78.0.0/15" overlaps vip.local_range, 240.78.0.0/16'],
    ['vip: {range: 127.0.0.0/8}', '1:14: vip.range: "127.0.0.0/8" holds 127.0.0.1 (loopback)'],
    ['vip: {range: 10.77.0.0/16}', '1:14: vip.range: "10.77.0.0/16" holds 10.77.0.1 (`advertise`)'],
    [
      'vip: {range: 240.77.0.1/16}',
      '1:14: vip.range: "240.77.0.1/16" is not an IPv4 range (such as 240.77.0.0/16, its host bits zero)',
    ],
    ['dns: {ttl: 5}', '1:12: dns.ttl: 5 is not a duration (such as 250ms, 5s, 2m, 24h)'],
    ['dns: {ttl: 48h}', '1:12: dns.ttl: "48h" is out of range (0s to 24h)'],
    ['dns: {zones: [Mesh.Internal.]}', '1:15: dns.zones: "mesh.internal" is already the domain or a zone'],
    [
      'dns: {listen: 127.0.0.1:70000}',
      '1:15: dns.listen: "127.0.0.1:70000" is not an address:port: 70000 is not a port (1 to 65535)',
    ],
    [
      'docker: {expose: labeled}',
      '1:18: docker.expose: "labeled" is not one of labelled, published, off; did you mean `labelled`?',
    ],
    ['docker: true', '1:9: docker: "true" is not a map (of socket, expose, image_labels)'],
    ['docker: {image_labels: maybe}', '1:24: docker.image_labels: "maybe" is not true or false'],
    ['store: {kind: etcdd}', '1:15: store.kind: "etcdd" is not one of embedded, etcd, consul; did you mean `etcd`?'],
    [
      'dns: {listen: ["0.0.0.0:53", "[::]:53", "[0:0::0]:53", "127.0.0.1:53"]}',
      '1:16: dns.listen[0]: "0.0.0.0:53" is a wildcard address: an answer must come from the address that was asked; name concrete ones (containers are served by dns.bridges and the virtual address anyway)',
      '1:30: dns.listen[1]: "[::]:53" is a wildcard address',
      '1:41: dns.listen[2]: "[0:0::0]:53" is a wildcard address',
    ],
    ['dns: {listen: "0.0.0.0:53"}', '1:15: dns.listen: "0.0.0.0:53" is a wildcard address'],
    ['dns: {listen: ["0.0.0.0:53"]}', '1:16: dns.listen[0]: "0.0.0.0:53" is a wildcard address'],
    [
      'instances: [{service: a, address: 10.0.0.1, port: 1, checks: [{kind: tcpp}]}]',
      '1:70: instances[0].checks[0].kind: "tcpp" is not one of tcp, http, grpc, ttl; did you mean `tcp`?',
    ],
    [
      'services: {a: {balance: hsah}}',
      '1:25: services.a.balance: "hsah" is not one of round-robin, least-connections, p2c-latency, random, hash; did you mean `hash`?',
    ],
    [
      'store: {kind: consul, endpoints: ["http://127.0.0.1:8500"], lease_ttl: 3s}',
      '1:72: store.lease_ttl: is below 10s, the shortest that Consul has',
    ],
    ['store: {kind: consul}', '1:15: store.endpoints: is needed with store.kind consul'],
    ['store: {tls: {ca: /x}}', '1:19: store.tls.ca: means nothing with store.kind embedded: it is for etcd and consul'],
    [
      'store: {kind: etcd, endpoints: ["http://a:2379", "https://b:2379"], listen: "127.0.0.1:1"}',
      '1:50: store.endpoints: http and https are mixed',
      '1:77: store.listen: means nothing with store.kind etcd: it is for embedded',
    ],
    [
      'store: {kind: etcd, endpoints: ["http://u:secret@a:2379", "etcd:1", "http://a:0", "http://[::1]:1/x"]}',
      '1:33: store.endpoints[0]: what is written there is not of the form http://host:port or https://host:port: user and password belong into store.credentials_file',
      '1:59: store.endpoints[1]: "etcd:1" is not of the form',
      '1:69: store.endpoints[2]: "http://a:0" is not of the form',
      '1:83: store.endpoints[3]: "http://[::1]:1/x" is not of the form',
    ],
    [
      'store: {kind: etcd, endpoints: ["http://10.77.0.1:2379"], tls: {cert: /c}, credentials_file: /x}',
      '1:33: store.endpoints: credentials would go to http://10.77.0.1:2379 in the clear',
      '1:71: store.tls.cert: is for https endpoints, and these are http',
      '1:71: store.tls.cert: needs store.tls.key, too',
    ],
    [
      'store: {kind: etcd, endpoints: ["http://127.0.0.1:2379"], prefix: "a//b"}',
      '1:67: store.prefix: "a//b" is not a prefix of keys',
    ],
    ['tls: {ca: /a, key: /b}', '1:11: tls.cert: is missing'],
    [
      'services:\n  a: {max_body: 10MB, try_timeout: 1ms, hash_on: path, sticky: x}',
      '2:17: services.a.max_body: "10MB" is not a size (such as 64KiB, 10MiB, 1GiB)',
      '2:36: services.a.try_timeout: "1ms" is out of range (10ms to 24h)',
      '2:50: services.a.hash_on: "path" must be "source", "header:NAME" or "cookie:NAME"',
      '2:64: services.a.sticky: "x" must be "off", "cookie", "cookie:NAME" or "header:NAME"',
    ],
    [
      'services:\n  a: {split_guard: 0.5, retries: -1, eject_slow: 101}',
      '2:20: services.a.split_guard: 0.5 is not a whole number (0 to 100; so many times the error rate of the heaviest side; 1, the least: any rate that is clearly higher; 0 or off: no guard)',
      '2:34: services.a.retries: -1 is not a whole number (0 to 10)',
      '2:50: services.a.eject_slow: 101 is not a whole number (0 to 100; so many times as slow as the others; 0 or off: never)',
    ],
    ['services: {a: {split: {x: -1}}}', '1:27: services.a.split.x: "-1" is not a whole number from 0 to 1000000'],
    ['services: {a: {split: {x: 0}}}', '1:23: services.a.split: has no weight above 0: requests would go nowhere'],
    ['services: {a: {routes: {}}}', '1:24: services.a.routes: a map is not a list'],
    [
      'services: {a: {routes: [{match: {pth: /x}}]}}',
      '1:33: services.a.routes[0].match: unknown key `pth`; did you mean `path`?',
    ],
    [
      'services:\n  a:\n    routes:\n      - {match: {host: "a b", method: get}, service: A, set: {Host: x}}\n      - {redirect: /x, add: y}',
      '4:24: services.a.routes[0].match.host: "a b" is not a host (a name without port, or *.example.com)',
      '4:39: services.a.routes[0].match.method: "get" is not a method (GET, POST …, in capitals)',
      '4:54: services.a.routes[0].service: "A" has characters other than a-z, 0-9 and inner hyphens',
      '4:62: services.a.routes[0].set: host is not to be changed: it says how the message is carried',
      '5:9: services.a.routes[1]: a redirect goes nowhere else: add would have no effect beside it',
      '5:29: services.a.routes[1].add: "y" is not a path such as /api',
    ],
    [
      'services: {a: {routes: [{mirror: {percent: 0}, response: {set: {x: "\\u0001"}}}]}}',
      '1:34: services.a.routes[0].mirror: names neither service nor tag',
      '1:44: services.a.routes[0].mirror.percent: "0" is not a whole number from 1 to 100',
      '1:68: services.a.routes[0].response.set.x: has characters other than visible ASCII',
    ],
    [
      'services: {a: {routes: [{match: {path: /a/../b}}, {match: {path: /x}, strip: /y}, {redirect: "/a/*/b"}]}}',
      '1:40: services.a.routes[0].match.path: "/a/../b" has a segment . or .., which no request may have',
      '1:78: services.a.routes[1].strip: no path that matches begins with "/y"',
      '1:94: services.a.routes[2].redirect.to: "/a/*/b" has a * that is not at its end',
    ],
    [
      'services: {a: {routes: [{redirect: {to: "ftp://x/", status: 200}}]}}',
      '1:61: services.a.routes[0].redirect.status: "200" is not a whole number from 300 to 399',
    ],
    ['network: {mode: flat}', '1:17: network.mode: "flat" is not yet in this version; leave it at "off"'],
    [
      'services: {a: {external: ["x:1", "x", "x:0"]}}',
      '1:34: services.a.external[1]: "x" is not host:port',
      '1:39: services.a.external[2]: "x:0" has a port that is not one from 1 to 65535',
    ],
    [
      'services: {a: {protocol: udp, external: ["x:1"]}}',
      '1:41: services.a.external: targets outside the mesh are reached over TCP only',
    ],
    [
      'instances: [{service: a, address: 10.0.0.1, port: 1, checks: [{kind: exec, command: x}, {kind: docker}]}]',
      '1:70: instances[0].checks[0].kind: "exec" is for containers only',
      '1:96: instances[0].checks[1].kind: "docker" is for containers only',
    ],
    ...contradictoryChecks.map(([check, ...faults]): [string, ...string[]] => [
      `instances: [{service: a, address: 10.0.0.1, port: 1, checks: [{${check}}]}]`,
      ...faults,
    ]),
    ['a: [b', '1:6: not valid YAML: Flow sequence in block collection must be sufficiently indented and end with a ]'],
    ['mesh: *x', '1:7: the alias "*x" has no anchor before it'],
    ['[1]: 2', '1:1: a key must be plain text'],
    [
      'mesh: "a\\x1b[31m"',
      '1:7: mesh: "a\\u001b[31m" has characters other than a-z, 0-9 and inner hyphens; `a--31m` would do',
    ],
    // All at once, in the order in which they were written.
    [
      'mesh: A\nhost: B\ndns: {ttl: x, what: 1}',
      '1:7: mesh: "A" has characters other than a-z, 0-9 and inner hyphens; `a` would do',
      '2:7: host: "B" has characters other than a-z, 0-9 and inner hyphens; `b` would do',
      '3:12: dns.ttl: "x" is not a duration (such as 250ms, 5s, 2m, 24h)',
      '3:15: unknown key `what`; known are listen, bridges, upstream, ttl, zones (in dns)',
    ],
  ];
  for (const [yaml, ...expected] of cases) {
    const faults = faultsOf(yaml);
    t.equal(faults.length, expected.length, `${yaml} → ${faults.join(' | ')}`);
    for (const [index, fault] of expected.entries()) {
      const found = faults[index] ?? '';
      t.ok(found.startsWith(`legate.yaml:${fault}`), `${yaml} → ${found}`);
    }
  }
});

t.test('every check can be written, and what is written back is the same check', (t) => {
  const times = { intervalMs: 2000, timeoutMs: 1000, rise: 2, fall: 3 };
  const cases: [entry: string, expected: object][] = [
    ['kind: http, tls: true', { kind: 'http', path: '/', tls: 'verify', ...times }],
    ['kind: http, tls: true, tls_skip_verify: true, port: 443', { tls: 'any-certificate', port: 443 }],
    ['kind: http, tls: false, path: /a', { kind: 'http', path: '/a', ...times }],
    ['kind: grpc', { kind: 'grpc', ...times }],
    [
      'kind: grpc, service: db.v1.Db, tls: yes, timeout: 3s',
      { grpcService: 'db.v1.Db', tls: 'verify', timeoutMs: 3000 },
    ],
    ['kind: ttl', { kind: 'ttl', intervalMs: 30_000 }],
    ['kind: ttl, ttl: 5s, initial_status: passing', { kind: 'ttl', intervalMs: 5000, initialStatus: 'passing' }],
    [
      'kind: tcp, initial_status: critical, deregister_after: 5m',
      { initialStatus: 'critical', deregisterAfterMs: 300_000 },
    ],
  ];
  for (const [entry, expected] of cases) {
    const result = parseInstancesFile(`- {service: a, address: 10.0.0.1, port: 1, checks: [{${entry}}]}`, 'x');
    if ('faults' in result) return t.fail(JSON.stringify(result));
    const [check] = result.instances[0]?.checks ?? [];
    t.match(check, expected, entry);
    t.equal(check?.tls, (expected as { tls?: string }).tls);
    if (check === undefined) continue;
    const again = parseInstanceValue({ service: 'a', address: '10.0.0.1', port: 1, checks: [checkEntry(check)] });
    t.strictSame('instances' in again && again.instances[0]?.checks, [check], entry);
  }
  t.end();
});

t.test('faults outside the file name the variable, the flag, or what is missing', async (t) => {
  const faults = faultsOf('mesh: A', {
    env: { LEGATE_DNS_TTL: 'soon', LEGATE_DNS_LISTN: 'x', LEGATE_ADMIN: 'x', LEGATE_SOMETHING_ELSE: 'x' },
    flags: { 'dns.listen': '1', links: '[{service: a}]', nothing: '1' },
    defaults: {
      hostname: '_._',
      advertise: () => {
        throw new Error('this machine has no default route');
      },
    },
  });
  t.strictSame(
    faults.map((fault) => fault.replace(/;? known are.*/, '')),
    [
      'legate.yaml:1:7: mesh: "A" has characters other than a-z, 0-9 and inner hyphens; `a` would do',
      'LEGATE_DNS_TTL: dns.ttl: "soon" is not a duration (such as 250ms, 5s, 2m, 24h)',
      'LEGATE_DNS_LISTN: unknown variable; did you mean `LEGATE_DNS_LISTEN`?',
      '--dns-listen: dns.listen: 1 is not an address:port (such as 127.0.0.1:7753 or [::1]:7753; an address, not a name)',
      '--links: links[0]: `listen` is missing (address:port)',
      'unknown key `nothing`',
      'host: the hostname "_._" gives no name; set `host`',
      'advertise: this machine has no default route; set `advertise` to an address of this host',
    ],
  );
});

t.test('hostile files are refused in bounded time', async (t) => {
  const bomb = `a: &a [x,x,x,x,x,x,x,x,x,x]\n${[...'bcdefghi']
    .map((letter, index) => `${letter}: &${letter} [${Array(10).fill(`*${'abcdefgh'[index]}`).join(',')}]`)
    .join('\n')}`;
  const cases: [what: string, text: string, expected: RegExp][] = [
    ['an alias bomb', bomb, /more than 200000 values|nested more than/],
    ['an alias of itself', 'instances: &a [*a]', /nested more than 16 deep/],
    ['depth', '['.repeat(50_000), /nested too deeply|not valid YAML/],
    ['size', `mesh: ${'a'.repeat(1024 * 1024)}`, /^legate\.yaml: 1048582 bytes are over the limit of 1048576$/],
    ['many equal keys', 'a: 1\n'.repeat(50_000), /unknown key `a`/],
    ['many aliases', `mesh: &a b\ndata_dir: [${'*a,'.repeat(150_000)}]`, /data_dir: a list is not a path/],
    ['many errors', '}\n'.repeat(10_000), /not valid YAML/],
  ];
  for (const [what, text, expected] of cases) {
    const before = process.cpuUsage();
    const result = load(text);
    const { user } = process.cpuUsage(before);
    const faults = 'faults' in result ? result.faults : [];
    t.ok(faults.length > 0 && faults.length <= 200, `${what}: ${faults.length} faults`);
    t.ok(
      faults.some((fault) => expected.test(fault.text)),
      `${what}: ${faults[0]?.text.slice(0, 200)}`,
    );
    t.ok(user < 10_000_000, `${what}: in ${user} µs of CPU`);
  }
});

t.test('nothing that is read ever throws, and faults are always one printable line', async (t) => {
  const words = fc.constantFrom(...optionKeys.flatMap((key) => key.split('.')), '__proto__', 'constructor', '<<', '');
  const value = fc.letrec((tie) => ({
    any: fc.oneof(
      { maxDepth: 4 },
      fc.string(),
      fc.integer(),
      fc.boolean(),
      fc.constant(null),
      fc.constantFrom('127.0.0.1:53', '5s', 'db', '240.77.0.0/16', 'off', 'auto', '10.0.0.1', '5432'),
      fc.array(tie('any'), { maxLength: 4 }),
      fc.dictionary(
        fc.oneof(words, fc.constantFrom('service', 'address', 'port', 'checks', 'kind', 'meta')),
        tie('any'),
      ),
    ),
  })).any;
  const document = fc.oneof(
    fc.string({ unit: 'binary' }),
    fc.dictionary(words, value).map((object) => JSON.stringify(object)),
    fc
      .array(
        fc.constantFrom(
          'a: ',
          '- ',
          '&x ',
          '*x',
          '[',
          '{',
          '}',
          ']',
          '\n',
          '  ',
          '"',
          '|',
          '? ',
          '!!t ',
          '%YAML 1.1\n',
        ),
      )
      .map((parts) => parts.join('')),
  );
  const settings = fc.dictionary(fc.constantFrom(...optionKeys, 'toString', '__proto__', 'x'), fc.string());
  const run = fc.property(document, settings, (text, raw) => {
    const env = Object.fromEntries(
      Object.entries(raw).map(([key, content]) => [isOptionKey(key) ? variableOf(key) : `LEGATE_${key}`, content]),
    );
    const result = loadConfig({ file: { path: 'f', text }, env, flags: raw, defaults });
    const lines = 'faults' in result ? result.faults.map((fault) => fault.text) : [];
    const bad = lines.filter((line) => /[\u0000-\u001f\u007f-\u009f]/.test(line) || line.length > 2000);
    if (bad.length > 0) throw new Error(JSON.stringify(bad));
    parseInstancesFile(text, 'f');
    parseInstanceValue(raw);
    parseInstanceValue(text);
  });
  t.doesNotThrow(() => fc.assert(run, { numRuns: 1500 }));
});

t.test('the table of options is sound', async (t) => {
  const documents = optionDocuments();
  t.equal(new Set(documents.map((option) => option.flag)).size, documents.length, 'no two options share a flag');
  t.equal(new Set(documents.map((option) => option.variable)).size, documents.length);
  for (const option of documents) {
    t.match(option.doc, /^\S.*[^.]$/, `${option.key} is documented in a sentence without its full stop`);
    t.equal(option.flag, `--${flagOf(option.key)}`);
    // Each default can be written as a flag: it gives the same configuration.
    if (option.computed) continue;
    const written = configOf(undefined, { flags: { [option.key]: option.default } });
    t.strictSame({ ...written, storeNamed: false }, configOf(''));
  }
  t.match(optionsMarkdown(), '| `dns.ttl` | duration (ms, s, m, h, d) | `5s` | how long others may keep an answer |');
  t.match(optionsText(), '--docker-image-labels  LEGATE_DOCKER_IMAGE_LABELS');
  for (const key of optionKeys) t.ok(optionsMarkdown().includes(`\`${key}\``));
});

t.test('the file of legate register and the body of the admin API follow the same rules', async (t) => {
  const entry = '{service: db, address: 127.0.0.1, port: 5432}';
  for (const text of [`instances:\n- ${entry}`, `- ${entry}`]) {
    const result = parseInstancesFile(text, 'db.yaml');
    t.match(result, { instances: [{ name: 'db-5432', reach: 'host' }] });
  }
  const cases: [text: string, fault: string][] = [
    ['', 'db.yaml: instances: there is none in it'],
    ['instances: []', 'db.yaml: instances: there is none in it'],
    [`- ${entry}\n- ${entry}`, 'db.yaml:2:3: instances[1]: "db-5432" is also the name of instances[0]; give one'],
    ['links: []', 'db.yaml:1:1: unknown key `links`; known are instances'],
    ['- 5', 'db.yaml:1:3: instances[0]: 5 is not a map'],
  ];
  for (const [text, fault] of cases) {
    const result = parseInstancesFile(text, 'db.yaml');
    t.ok('faults' in result && result.faults[0]?.text.startsWith(fault), JSON.stringify(result));
  }
  t.match(parseInstanceValue({ service: 'db', address: '10.0.0.1', port: 5432, tags: ['a'] }), {
    instances: [{ name: 'db-5432', tags: ['a'], reach: 'mesh' }],
  });
  t.match(parseInstanceValue({ service: 'db', address: '10.0.0.1', port: '54 32', blance: 1 }), {
    faults: [
      {
        text: 'unknown key `blance`; known are service, address, port, name, protocol, reach, tags, meta, weight, checks (in instance)',
      },
      { text: 'instance.port: "54 32" is not a port (1 to 65535)' },
    ],
  });
});

t.test(
  'what would start and not work is told on demand: files that are missing, a tunnel that nobody reaches',
  async (t) => {
    const text = `
advertise: 10.0.0.1
tunnel: {listen: "127.0.0.1:7711"}
tls: {ca: /a, cert: /b, key: /there}
store: {kind: etcd, endpoints: ["https://10.0.0.1:2379"], credentials_file: /c}
authority: {passphrase_file: /d}
`;
    t.ok(configOf(text), 'it starts');
    const fileFault = (path: string): string | undefined => (path === '/there' ? undefined : 'it is not there');
    t.strictSame(faultsOf(text, { fileFault }), [
      'legate.yaml:3:18: tunnel.listen: "127.0.0.1:7711" is loopback: no other host reaches it at 10.0.0.1 (advertise)',
      'legate.yaml:4:11: tls.ca: "/a" cannot be read: it is not there',
      'legate.yaml:4:21: tls.cert: "/b" cannot be read: it is not there',
      'legate.yaml:5:77: store.credentials_file: "/c" cannot be read: it is not there',
      'legate.yaml:6:30: authority.passphrase_file: "/d" cannot be read: it is not there',
    ]);
    for (const fine of [
      'tunnel: {listen: "127.0.0.1:7711"}',
      'advertise: 127.0.0.2\ntunnel: {listen: "127.0.0.1:7711"}',
      '',
    ]) {
      t.strictSame(faultsOf(fine, { fileFault }), []);
    }
  },
);
