import { readdirSync, readFileSync } from 'node:fs';
import fc from 'fast-check';
import t from 'tap';
import { printable } from '../../src/base/text.ts';
import { instanceDocument, readInstance, recordLimits } from '../../src/catalog/codec.ts';
import { isPort, parseIpv4Range } from '../../src/model/address.ts';
import type { CheckSpec } from '../../src/model/check.ts';
import type { DesiredInstance } from '../../src/model/instance.ts';
import { instanceNameFault, nameFault } from '../../src/model/names.ts';
import type { Topology } from '../../src/model/topology.ts';
import { type Container, parseContainer, parseDeclarations } from './container.ts';
import { type Desired, type DesiredContext, desiredOf } from './desired.ts';
import { type DockerNetwork, parseNetworks } from './network.ts';
import { type RawRecord, rawField, rawRecord, rawText } from './raw.ts';

const folder = new URL('../../../sidecar/docker/fixtures/', import.meta.url);
const read = (name: string): RawRecord => rawRecord(JSON.parse(readFileSync(new URL(`${name}.json`, folder), 'utf8')));
const surroundings = read('surroundings');
const networks = new Map(parseNetworks(rawField(surroundings, 'networks')).map((network) => [network.id, network]));
const images = rawRecord(rawField(surroundings, 'images'));

function container(name: string, change: (document: Record<string, unknown>) => void = () => undefined): Container {
  const document = structuredClone(read(name)) as Record<string, unknown>;
  change(document);
  const parsed = parseContainer(document);
  if (parsed === undefined) throw new Error(`${name} is not an inspect document`);
  return parsed;
}

function desired(subject: Container, context: Partial<DesiredContext> = {}): Desired {
  const config = rawRecord(rawField(rawRecord(rawField(images, subject.imageId)), 'Config'));
  return desiredOf(subject, {
    expose: 'labelled',
    advertise: '10.77.0.1',
    image: parseDeclarations(config),
    networks,
    topology: undefined,
    networkOwner: container('network-owner'),
    ...context,
  });
}

/** One line for each instance, refusal and note; what has its default is left out. */
function lines({ instances, refusals, notes }: Desired, id = ''): string[] {
  return [
    ...instances.map((instance) => line(instance).replace(id, 'ID')),
    ...refusals.map(({ service, reason }) => `refused ${service ?? '-'}: ${reason}`),
    ...notes.map(({ service, reason }) => `note ${service ?? '-'}: ${reason}`),
  ];
}

function line(instance: DesiredInstance): string {
  const { name, service, address, port, published, reach, protocol, tags, meta, weight, checks, reported, suspended } =
    instance;
  const parts = [name, service, `${address}:${port}`, reach, protocol];
  if (published !== undefined) parts.push(`via ${published.address}:${published.port}`);
  if (weight !== 1) parts.push(`weight ${weight}`);
  if (tags.length > 0) parts.push(`tags ${tags.join('|')}`);
  if (Object.keys(meta).length > 0) parts.push(`meta ${JSON.stringify(meta)}`);
  for (const { kind, port: asked, path, method, intervalMs, timeoutMs, rise, fall } of checks) {
    parts.push(
      `check ${[kind, method, asked, path].filter((part) => part !== undefined).join(' ')} ${intervalMs}/${timeoutMs} ${rise}/${fall}`,
    );
  }
  if (reported !== undefined) parts.push(`says ${reported.status} "${reported.output}"`);
  if (suspended !== undefined) parts.push(`suspended "${suspended}"`);
  return parts.join(' ');
}

const ownCheck = 'check docker 2000/1000 1/1';

/** Real documents of a Docker Engine 20.10, and what each of them asks for. */
const table: readonly (readonly [document: string, expected: readonly string[]])[] = [
  ['bad-name', ['refused -: legate.service: "My_App" has characters other than a-z, 0-9 and inner hyphens']],
  ['bad-port', ['refused db: legate.port: "54 32" is not a port (1 to 65535)']],
  ['bad-weight', ['refused db: legate.weight: "-1" is not a weight (0 to 65535)']],
  [
    'baked-overridden',
    [
      'ID-80 mine 172.17.0.50:80 host tcp tags fromimage',
      'note -: SERVICE_NAME=bakedname comes from the image and is ignored',
    ],
  ],
  [
    'baked',
    [
      'refused -: legate.service=baked comes from the image and is ignored',
      'refused -: SERVICE_NAME=bakedname comes from the image and is ignored',
    ],
  ],
  ['check-docker-without', ['refused db: legate.check: the container has no HEALTHCHECK']],
  ['check-http', ['ID-5432 db 172.17.0.28:5432 host tcp check http 8080 /health 5000/250 1/4']],
  ['check-later', ['ID-5432 db 172.17.0.29:5432 host tcp check grpc 2000/1000 2/3']],
  ['check-unknown', ['refused db: legate.check: "htp:/" is not a check']],
  ['chosen-network', ['ID-5432 db 172.31.0.4:5432 host tcp']],
  ['exited', []],
  ['forgotten-service', ['refused -: legate.port without legate.service']],
  ['health-critical', [`ID-5432 db 172.17.0.26:5432 host tcp ${ownCheck} says critical "no\\nbell \\u0007"`]],
  ['health-overridden', ['ID-5432 db 172.17.0.27:5432 host tcp']],
  ['health-passing', [`ID-5432 db 172.17.0.25:5432 host tcp ${ownCheck} says passing "fine"`]],
  ['health-starting', [`ID-5432 db 172.17.0.24:5432 host tcp ${ownCheck} says starting ""`]],
  ['host-network', ['ID-5432 db 10.77.0.1:5432 mesh tcp']],
  ['inner-and-shop', ['ID-5432 db 172.31.0.5:5432 host tcp']],
  ['internal-network', ['ID-5432 db 192.168.0.2:5432 host tcp']],
  ['links-and-consumer', []],
  ['misspelt', ['ID-5432 db 172.17.0.35:5432 host tcp', 'note -: unknown label "legate.tag"']],
  ['network-owner', []],
  ['no-network', ['refused db: the container has no network (none)']],
  ['no-port', ['refused db: db: it exposes no port']],
  ['one-exposed', ['ID-5432 db 172.17.0.4:5432 host tcp']],
  ['one-port', ['ID-5432 db 172.17.0.3:5432 host tcp']],
  ['paused', ['ID-5432 db 172.17.0.32:5432 host tcp check tcp 2000/1000 2/3 suspended "the container is paused"']],
  ['published-address', ['ID-5432 db 172.17.0.12:5432 host tcp']],
  ['published-loopback', ['ID-5432 db 172.17.0.11:5432 host tcp']],
  ['published-twice', ['ID-5432 db 172.17.0.13:5432 host tcp']],
  ['published', ['ID-5432 db 172.17.0.10:5432 mesh tcp via 10.77.0.1:25432']],
  ['registrator-and-legate', ['ID-5432 db 172.17.0.48:5432 host tcp']],
  [
    'registrator-check-http',
    [
      'ID-80 web 172.17.0.45:80 mesh tcp via 10.77.0.1:25453 check http /health 15000/3000 2/3',
      'note web: SERVICE_CHECK_TTL does nothing: SERVICE_CHECK_HTTP is the check',
    ],
  ],
  [
    'registrator-check-ttl',
    [
      'ID-80 web 172.17.0.46:80 mesh tcp via 10.77.0.1:25454 check ttl 30000/1000 1/1',
      'note web: SERVICE_CHECK_TCP does nothing: SERVICE_CHECK_TTL is the check',
    ],
  ],
  [
    'registrator-equal-names',
    [
      'ID-80 my-app 172.17.0.47:80 mesh tcp via 10.77.0.1:25455',
      'refused my-app: SERVICE_NAME: "my.app" and "My_App" both become my-app',
    ],
  ],
  ['registrator-host', ['ID-8081 web 10.77.0.1:8081 mesh tcp']],
  ['registrator-id', ['web:one web 172.17.0.44:80 mesh tcp via 10.77.0.1:25452']],
  ['registrator-ignore-port', ['ID-443 web-443 172.17.0.43:443 mesh tcp via 10.77.0.1:25451']],
  ['registrator-ignore', ['note -: SERVICE_IGNORE=false means yes, as any value does']],
  ['registrator-label-wins', ['ID-80 fromlabel 172.17.0.39:80 mesh tcp via 10.77.0.1:25447 tags x']],
  ['registrator-no-name', ['ID-80 db 172.17.0.40:80 mesh tcp via 10.77.0.1:25448 tags a']],
  ['registrator-one', ['ID-80 web 172.17.0.36:80 mesh tcp via 10.77.0.1:25440 tags a|b,c meta {"region":"eu"}']],
  [
    'registrator-per-port',
    [
      'ID-80 http 172.17.0.38:80 mesh tcp via 10.77.0.1:25444 meta {"sni":"off"}',
      'ID-443 https 172.17.0.38:443 mesh tcp via 10.77.0.1:25445 meta {"sni":"on"}',
    ],
  ],
  [
    'registrator-several',
    [
      'ID-53-udp web-53 172.17.0.37:53 mesh udp via 10.77.0.1:25443 tags udp',
      'ID-80 web-80 172.17.0.37:80 mesh tcp via 10.77.0.1:25441',
      'ID-443 web-443 172.17.0.37:443 mesh tcp via 10.77.0.1:25442',
    ],
  ],
  ['registrator-unpublished', ['refused -: it has SERVICE_ keys and publishes no port']],
  [
    'same-port-twice',
    ['ID-5432 db 172.17.0.15:5432 host tcp', 'refused other: other: port 5432 is already that of db'],
  ],
  ['several-exposed', ['refused db: db: it has several ports (5432/tcp, 9187/tcp)']],
  [
    'several-ports',
    [
      'ID-5432 db 172.17.0.14:5432 host tcp tags primary',
      'ID-9187 db-metrics 172.17.0.14:9187 host tcp tags all check http /metrics 2000/1000 2/3',
    ],
  ],
  ['shared-network', ['ID-5432 db 172.17.0.20:5432 mesh tcp via 10.77.0.1:25437']],
  ['silent-bridge-published', ['ID-5432 db 10.77.0.1:25438 mesh tcp']],
  ['silent-bridge', ['refused db: the host has no address on network "room-silent" (bridge br-611138035d48)']],
  [
    'tags-meta-weight',
    ['ID-5432 db 172.17.0.16:5432 host tcp weight 7 tags a|b|a,c meta {"ZONE":"eu","note":"two\\\\nlines"}'],
  ],
  ['tcp-and-udp', ['ID-53-udp dns-udp 172.17.0.19:53 host udp', 'ID-53 dns 172.17.0.19:53 host tcp']],
  ['two-networks', ['ID-5432 db 172.17.0.21:5432 host tcp']],
  ['two-stacks', ['ID-5432 db 192.168.32.2:5432 host tcp']],
  ['udp-only-port', ['ID-53-udp dns 172.17.0.18:53 host udp']],
  ['udp', ['ID-53-udp dns 172.17.0.17:53 mesh udp via 10.77.0.1:25353']],
  ['unlabelled-published', []],
  ['unlabelled', []],
  ['user-network', ['ID-5432 db 172.31.0.2:5432 host tcp']],
  ['wrong-network', ['refused db: legate.network: the container is not attached to "shop"; it has bridge']],
];

t.test('every captured document is in the table', async (t) => {
  const documents = readdirSync(folder).filter((file) => file.endsWith('.json') && file !== 'surroundings.json');
  t.same(documents.map((file) => file.replace('.json', '')).sort(), table.map(([name]) => name).sort());
  t.ok(documents.length >= 30);
});

t.test('what real containers want registered', async (t) => {
  for (const [name, expected] of table) {
    const subject = container(name);
    t.same(lines(desired(subject), subject.id.slice(0, 12)), expected, name);
  }
});

t.test('a complete instance', async (t) => {
  const subject = container('published');
  t.same(desired(subject).instances, [
    {
      name: `${subject.id.slice(0, 12)}-5432`,
      service: 'db',
      address: '172.17.0.10',
      port: 5432,
      protocol: 'tcp',
      reach: 'mesh',
      published: { address: '10.77.0.1', port: 25432 },
      tags: [],
      meta: {},
      weight: 1,
      draining: false,
      source: 'docker:room-published',
      incarnation: `${subject.startedAt} ${subject.id.slice(0, 12)}`,
      container: subject.id,
      checks: [],
    },
  ]);
  t.match(subject.startedAt, /^2\d{3}-\d\d-\d\dT[\d:.]+Z$/);
  t.equal(subject.stopTimeoutMs, 1000);
  t.equal(subject.stopSignal, 15);
  t.equal(container('baked-overridden').stopSignal, 2);
});

t.test('identity of the image counts when the configuration says so', async (t) => {
  const baked = container('baked');
  t.same(lines(desired(baked, { image: undefined }), baked.id.slice(0, 12)), [
    'ID-80 baked 172.17.0.49:80 mesh tcp via 10.77.0.1:25458 tags fromimage',
  ]);
});

t.test('everything that is published, where that is wanted', async (t) => {
  const published = (name: string): string[] => {
    const subject = container(name);
    return lines(desired(subject, { expose: 'published' }), subject.id.slice(0, 12));
  };
  t.match(published('unlabelled-published'), [/^ID-80 db 172\.17\.0\.\d+:80 mesh tcp via 10\.77\.0\.1:25459$/]);
  t.same(published('unlabelled'), []);
  t.match(published('network-owner'), [/^ID-5432 db .* via 10\.77\.0\.1:25437$/]);
  t.match(published('registrator-several')[1], /^ID-80 web-80 /);
  t.match(
    published('registrator-per-port')[2],
    /^ID-9000 db-9000 /,
    'without explicit names, the image names the rest',
  );
  t.same(published('registrator-ignore'), ['note -: SERVICE_IGNORE=false means yes, as any value does']);
  t.match(published('baked'), [
    /^ID-80 shop-baked|ID-80 room-baked /,
    /^note -: legate.service/,
    /^note -: SERVICE_NAME/,
  ]);
});

t.test('who a container is when it calls', async (t) => {
  t.same(desired(container('links-and-consumer')).consumer, {
    name: 'web',
    links: [
      { alias: 'db', service: 'db', port: undefined },
      { alias: 'cache', service: 'redis', port: 6379 },
    ],
  });
  t.equal(desired(container('one-port')).consumer.name, 'db');
  t.equal(desired(container('several-ports')).consumer.name, undefined, 'of several services');
  t.equal(desired(container('unlabelled')).consumer.name, undefined, 'of none');
});

function driver(name: string): ReadonlyMap<string, DockerNetwork> {
  return new Map([...networks].map(([id, network]) => [id, { ...network, driver: name, interface: undefined }]));
}

function topology(gateway: string | undefined): Topology {
  const subnet = parseIpv4Range('172.17.0.0/16');
  if (subnet === undefined) throw new Error('not a range');
  const bridge = { interface: 'docker0', network: 'bridge', subnet, gateway, internal: false };
  return { addresses: new Set(['172.17.0.1']), bridges: [bridge] };
}

t.test('networks that the host cannot reach', async (t) => {
  for (const kind of ['overlay', 'macvlan', 'ipvlan', 'somebodys-plugin']) {
    const { instances, refusals } = desired(container('one-port'), { networks: driver(kind) });
    t.same(instances, [], kind);
    t.match(refusals, [
      { service: 'db', reason: `this host cannot reach network "bridge" (driver ${kind})`, hint: /bridge network too/ },
    ]);
    t.match(desired(container('published'), { networks: driver(kind) }).instances, [
      { address: '10.77.0.1', port: 25432, reach: 'mesh' },
    ]);
    t.match(desired(container('published-loopback'), { networks: driver(kind) }).instances, [
      { address: '127.0.0.1', port: 25433, reach: 'host' },
    ]);
    const chosen = desired(container('chosen-network'), { networks: driver(kind) });
    t.match(chosen.refusals, [{ reason: /^legate\.network: this host cannot reach network "room-shop"/ }]);
  }
  t.match(desired(container('one-port'), { networks: new Map() }).refusals, [{ reason: /driver unknown/ }]);
  t.equal(
    desired(container('one-port'), { networks: new Map(), topology: topology('172.17.0.1') }).instances.length,
    1,
  );
  t.match(desired(container('one-port'), { topology: topology(undefined) }).refusals, [
    { reason: /the host has no address/ },
  ]);
  t.equal(desired(container('one-port'), { topology: topology('172.17.0.1') }).instances.length, 1);
  t.match(desired(container('shared-network'), { networkOwner: undefined }).refusals, [
    { reason: /whose network it shares .* is not running/ },
  ]);
});

t.test('published on an address of its own', async (t) => {
  const bound =
    (address: string) =>
    (document: Record<string, unknown>): void => {
      const settings = rawRecord(rawField(document, 'NetworkSettings')) as { Ports: unknown };
      settings.Ports = { '5432/tcp': [{ HostIp: address, HostPort: '7' }] };
    };
  for (const [address, expected] of [
    ['::', { address: '10.77.0.1', port: 7 }],
    ['', { address: '10.77.0.1', port: 7 }],
    ['203.0.113.9', { address: '203.0.113.9', port: 7 }],
    ['fd00::9', { address: 'fd00::9', port: 7 }],
    ['::1', undefined],
    ['nonsense', undefined],
  ] as const) {
    const [instance] = desired(container('published', bound(address))).instances;
    t.same(instance?.published, expected, address);
    t.equal(instance?.reach, expected === undefined ? 'host' : 'mesh');
  }
});

t.test('what does not run wants nothing', async (t) => {
  for (const state of [
    { Running: false },
    { Running: true, Restarting: true },
    { Running: true, Dead: true },
    {},
    null,
  ]) {
    t.same(lines(desired(container('one-port', (document) => Object.assign(document, { State: state })))), []);
  }
});

t.test('labels beyond the bounds are refused, the rest of the world goes on', async (t) => {
  const labelled = (labels: Record<string, string>): Desired =>
    desired(
      container('one-port', (document) => {
        document.Config = { Labels: { 'legate.service': 'db', 'legate.port': '80', ...labels } };
      }),
    );
  t.match(labelled({ 'legate.meta.x': 'y'.repeat(70_000) }).refusals, [{ reason: /larger than 64 KiB/ }]);
  t.match(labelled({ 'legate.meta.x': '\u0001'.repeat(1024) }).refusals, [{ reason: /^legate\.meta\.x: too long/ }]);
  const characters = Object.fromEntries(Array.from({ length: 50 }, (_, i) => [`legate.meta.${i}`, '猫'.repeat(1000)]));
  t.match(labelled(characters).refusals, [{ reason: 'legate.meta.…: the metadata is larger than 32 KiB' }]);
  t.match(labelled({ 'legate.meta.x': 'y'.repeat(2000) }).refusals, [
    { service: 'db', reason: /^legate\.meta\.x: too long/ },
  ]);
  t.match(labelled({ 'legate.tags': 'y'.repeat(200) }).refusals, [{ reason: /longer than 128/ }]);
  t.match(labelled({ 'legate.tags': Array.from({ length: 65 }, (_, i) => i).join() }).refusals, [
    { reason: /65 tags/ },
  ]);
  t.match(labelled({ 'legate.check': 'http:no' }).refusals, [{ reason: 'legate.check: "http:no" is not a check' }]);
  t.match(labelled({ 'legate.check': 'http:/a b' }).refusals, [{ reason: /is not a path/ }]);
  t.match(labelled({ 'legate.check': 'tcp:0' }).refusals, [{ reason: /is not a port/ }]);
  t.match(labelled({ 'legate.check': 'tcp', 'legate.check.interval': '1ms' }).refusals, [
    { reason: /legate.check.interval: "1ms"/ },
  ]);
  t.match(labelled({ 'legate.check': 'tcp', 'legate.check.rise': '0' }).refusals, [
    { reason: /legate.check.rise: "0"/ },
  ]);
  t.match(labelled({ 'legate.check': 'tcp', 'legate.protocol': 'udp' }).refusals, [
    { reason: /cannot ask a UDP port/ },
  ]);
  t.match(labelled({ 'legate.protocol': 'sctp' }).refusals, [{ reason: 'legate.protocol: "sctp" is not a protocol' }]);
  t.match(labelled({ 'legate.70000.service': 'x' }), {
    instances: [{ service: 'db' }],
    refusals: [{ reason: 'legate.70000: "70000" is not a port (1 to 65535)' }],
  });
  t.match(labelled({ 'legate.links': 'a=b=c' }), { instances: [{}], refusals: [{ reason: /legate\.links/ }] });
  t.match(labelled({ 'legate.links': 'a,a' }).refusals, [{ reason: /alias a is there twice/ }]);
  t.match(labelled({ 'legate.service': 'host' }).refusals, [{ reason: 'legate.service: "host" is a reserved word' }]);
  t.match(labelled({ 'legate.service': '\u001b[31mred' }).refusals, [{ reason: /"\\u001b\[31mred"/ }]);
  t.same(
    labelled({ 'legate.80.tags': 'a', 'legate.80.weight': '0' }).instances.map(({ tags, weight }) => [tags, weight]),
    [[['a'], 0]],
  );
});

const junkKey = fc.oneof(
  fc.constantFrom(
    'legate.service',
    'legate.port',
    'legate.protocol',
    'legate.tags',
    'legate.weight',
    'legate.check',
    'legate.network',
    'legate.check.interval',
    'legate.check.timeout',
    'legate.check.rise',
    'legate.check.method',
    'legate.check.tls_skip_verify',
    'legate.check.initial_status',
    'legate.check.deregister_after',
    'legate.80.check.interval',
    'legate.links',
    'legate.consumer',
    'legate.80.service',
    'legate.80.check',
    'legate.81.port',
    'legate.meta.',
    'legate.meta.__proto__',
    'legate.constructor',
    'SERVICE_NAME',
    'SERVICE_80_NAME',
    'SERVICE_ID',
    'SERVICE_TAGS',
    'SERVICE_IGNORE',
    'SERVICE_CHECK_HTTP',
    'SERVICE_CHECK_HTTPS',
    'SERVICE_CHECK_CMD',
    'SERVICE_CHECK_SCRIPT',
    'SERVICE_CHECK_TTL',
    'SERVICE_CHECK_TCP',
    'SERVICE_80_CHECK_GRPC',
    'SERVICE_CHECK_GRPC_USE_TLS',
    'SERVICE_CHECK_TLS_SKIP_VERIFY',
    'SERVICE_CHECK_INTERVAL',
    'SERVICE_CHECK_TIMEOUT',
    'SERVICE_CHECK_HTTP_METHOD',
    'SERVICE_CHECK_INITIAL_STATUS',
    'SERVICE_53_CHECK_DEREGISTER_AFTER',
    'SERVICE_99999999999999999999_NAME',
    'SERVICE___PROTO__',
    'SERVICE_',
    'SERVICE_80_',
  ),
  fc.string({ unit: 'binary' }).map((text) => `legate.${text}`),
  fc.string({ unit: 'binary' }).map((text) => `SERVICE_${text}`),
  fc.string(),
);
const junkText = fc.oneof(
  fc.string({ unit: 'binary' }),
  fc.constantFrom(
    'db',
    'web',
    '80',
    '53',
    'tcp',
    'udp',
    'http:/x',
    'none',
    'docker',
    'https:8443/x',
    'grpcs:9000/a.B',
    'ttl:30s',
    'exec:true $SERVICE_IP',
    '5s',
    '1e309',
    '99999999999999999999h',
    'passing',
    'true',
    '\ud800x\udc00',
    'x'.repeat(5000),
    'a,b\\,c',
    'a=b@5,c',
    '\u001b]0;x\u0007',
    '0',
    '',
  ),
);
const junkLabels = fc.dictionary(junkKey, junkText, { maxKeys: 20 });

function isBounded({
  intervalMs,
  timeoutMs,
  rise,
  fall,
  path = '',
  command = '',
  grpcService = '',
  ...more
}: CheckSpec) {
  const { port = 1, method = 'GET', deregisterAfterMs = 1000 } = more;
  const times = [intervalMs, timeoutMs, deregisterAfterMs].every((ms) => ms >= 100 && ms <= 30 * 86_400_000);
  const texts = [path, grpcService, method].every((text) => text === printable(text) && text.length <= 1024);
  const counts = [rise, fall].every((count) => Number.isInteger(count) && count >= 1 && count <= 100);
  return times && texts && counts && isPort(port) && command.length <= 4096 && !/[\u0000\u001b]/.test(command);
}

/** Whether the store would take it and every sidecar read it. */
function isStorable(name: string, { instances }: Desired): boolean {
  const instance = instances.find((candidate) => candidate.name === name);
  if (instance === undefined) return false;
  const text = JSON.stringify(instanceDocument({ ...instance, status: 'passing', output: '' }));
  return Buffer.byteLength(text) <= recordLimits.bytes && readInstance(JSON.parse(text), name).ok;
}

function isSane(result: Desired): boolean {
  for (const { name, service, address, port, tags, meta, weight, incarnation, source, ...more } of result.instances) {
    const { reported, checks } = more;
    if (!checks.every(isBounded) || !isStorable(name, result)) return false;
    if (nameFault(service) !== undefined || instanceNameFault(name) !== undefined || !isPort(port) || address === '')
      return false;
    if (weight < 0 || weight > 65535) return false;
    const texts = [...tags, ...Object.keys(meta), ...Object.values(meta), incarnation, source, reported?.output ?? ''];
    if (texts.some((text) => text !== printable(text))) return false;
  }
  const names = result.instances.map(({ name }) => name);
  if (new Set(names).size !== names.length) return false;
  return [...result.refusals, ...result.notes].every(
    ({ reason, hint, source }) => reason === printable(reason) && hint !== '' && source !== '' && reason.length < 1000,
  );
}

t.test('arbitrary labels never throw and never let anything unprintable through', async (t) => {
  const base = read('udp');
  const property = fc.property(
    junkLabels,
    fc.array(
      fc.tuple(junkKey, junkText).map(([key, value]) => `${key}=${value}`),
      { maxLength: 12 },
    ),
    fc.constantFrom('labelled' as const, 'published' as const),
    (labels, environment, expose) => {
      const config = { Labels: labels, Env: environment, ExposedPorts: { '80/tcp': {}, '53/udp': {} } };
      const subject = parseContainer({ ...base, Config: config });
      return subject !== undefined && isSane(desired(subject, { expose, image: undefined }));
    },
  );
  fc.assert(property, { numRuns: 3000 });
  t.pass('3000 runs');
});

t.test('arbitrary inspect documents never throw', async (t) => {
  const id = 'a'.repeat(64);
  const value = fc.anything({ maxDepth: 3, withNullPrototype: true });
  const shaped = fc.record(
    {
      Id: fc.constantFrom(id, id.slice(1), 5),
      Name: fc.oneof(value, fc.string({ unit: 'binary' })),
      Image: value,
      State: fc.oneof(
        value,
        fc.record({
          Running: fc.constantFrom(true, 'yes'),
          Paused: value,
          StartedAt: value,
          Health: fc.record({ Status: fc.constantFrom('healthy', 'x'), Log: value }),
        }),
      ),
      Config: fc.oneof(
        value,
        fc.record({
          Labels: fc.oneof(value, junkLabels),
          Env: value,
          ExposedPorts: fc.oneof(value, fc.dictionary(fc.constantFrom('80/tcp', '0/tcp', '99999/udp', 'x'), value)),
          StopSignal: value,
          StopTimeout: value,
          Image: value,
        }),
      ),
      HostConfig: fc.oneof(
        value,
        fc.record({ NetworkMode: fc.oneof(value, fc.constantFrom('host', 'container:x', 'none')) }),
      ),
      NetworkSettings: fc.oneof(
        value,
        fc.record({
          Ports: fc.oneof(
            value,
            fc.dictionary(
              fc.constantFrom('80/tcp', '53/udp'),
              fc.array(fc.record({ HostIp: fc.oneof(value, fc.string()), HostPort: fc.oneof(value, fc.string()) })),
            ),
          ),
          Networks: fc.oneof(
            value,
            fc.dictionary(fc.string(), fc.record({ IPAddress: fc.oneof(value, fc.ipV4()), NetworkID: value })),
          ),
        }),
      ),
    },
    { requiredKeys: ['Id'] },
  );
  fc.assert(
    fc.property(fc.oneof(value, shaped), fc.boolean(), (document, shares) => {
      const subject = parseContainer(document);
      if (subject === undefined) return true;
      return isSane(
        desired(subject, { expose: 'published', image: undefined, ...(shares ? {} : { networkOwner: undefined }) }),
      );
    }),
    { numRuns: 3000 },
  );
  fc.assert(
    fc.property(
      value,
      (document) => Array.isArray(parseNetworks(document)) && Array.isArray(parseNetworks([document])),
    ),
  );
  t.equal(rawText(rawField(rawRecord(JSON.parse('{"__proto__": {"a": "b"}}')), 'a')), '');
});
