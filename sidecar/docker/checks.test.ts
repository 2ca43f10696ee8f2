import { readFileSync } from 'node:fs';
import t from 'tap';
import type { CheckSpec } from '../../src/model/check.ts';
import { parseContainer } from './container.ts';
import { type Desired, desiredOf } from './desired.ts';
import { parseNetworks } from './network.ts';
import { rawField, rawRecord } from './raw.ts';

/** What labels and environment make of checks; the container is at 172.17.0.10, and publishes 5432. */
const folder = new URL('../../../sidecar/docker/fixtures/', import.meta.url);
const read = (name: string): unknown => JSON.parse(readFileSync(new URL(`${name}.json`, folder), 'utf8'));
const networks = new Map(
  parseNetworks(rawField(rawRecord(read('surroundings')), 'networks')).map((network) => [network.id, network]),
);

interface Said {
  readonly labels?: Readonly<Record<string, string>>;
  readonly env?: readonly string[];
  readonly health?: boolean;
  readonly ports?: readonly string[];
}

function desired({ labels = {}, env = [], health = false, ports = ['5432/tcp'] }: Said): Desired {
  const document = structuredClone(read('published')) as Record<string, unknown>;
  const exposed = Object.fromEntries(ports.map((port) => [port, {}]));
  document.Config = { Labels: labels, Env: env, ExposedPorts: exposed, Image: 'shop' };
  const settings = rawRecord(document.NetworkSettings) as { Ports: unknown };
  settings.Ports = Object.fromEntries(ports.map((port) => [port, [{ HostIp: '', HostPort: '25432' }]]));
  if (health) Object.assign(document.State as object, { Health: { Status: 'healthy', Log: [] } });
  const container = parseContainer(document);
  if (container === undefined) throw new Error('not an inspect document');
  const context = { advertise: '10.77.0.1', image: undefined, networks, topology: undefined, networkOwner: undefined };
  return desiredOf(container, { expose: 'labelled', ...context });
}

/** The checks of the only instance, or what was said instead, with the notes. */
function lines(said: Said): string[] {
  const { instances, refusals, notes } = desired(said);
  const many = instances.length > 1;
  return [
    ...instances.flatMap(({ service, checks }) => checks.map((check) => `${many ? `${service}: ` : ''}${line(check)}`)),
    ...refusals.map(({ reason, hint }) => `refused ${reason} | ${hint}`),
    ...notes.map(({ reason, hint }) => `note ${reason} | ${hint}`),
  ];
}

function line({ kind, intervalMs, timeoutMs, rise, fall, ...more }: CheckSpec): string {
  const rest = Object.entries(more).map(([key, value]) => `${key}=${value}`);
  return [kind, `${intervalMs}/${timeoutMs}`, `${rise}/${fall}`, ...rest].join(' ');
}

type Case = readonly [labels: string, ...expected: string[]];

/** `check` and modifiers as they follow `legate.`, separated by ` & `. */
const legateTable: readonly Case[] = [
  ['check=http', 'http 2000/1000 2/3 path=/'],
  ['check=http:/health', 'http 2000/1000 2/3 path=/health'],
  ['check=http/health', 'http 2000/1000 2/3 path=/health'],
  ['check=http:8081', 'http 2000/1000 2/3 port=8081 path=/'],
  ['check=http:8081/health?full=1', 'http 2000/1000 2/3 port=8081 path=/health?full=1'],
  ['check= HTTP:/health ', 'http 2000/1000 2/3 path=/health'],
  ['check=http:/health & check.method=head', 'http 2000/1000 2/3 path=/health method=HEAD'],
  ['check=https:8443/health', 'http 2000/1000 2/3 port=8443 tls=verify path=/health'],
  ['check=https:/x & check.tls_skip_verify=true', 'http 2000/1000 2/3 tls=any-certificate path=/x'],
  ['check=https & check.tls_skip_verify=false', 'http 2000/1000 2/3 tls=verify path=/'],
  ['check=tcp', 'tcp 2000/1000 2/3'],
  ['check=tcp:9000', 'tcp 2000/1000 2/3 port=9000'],
  ['check=grpc', 'grpc 2000/1000 2/3'],
  ['check=grpc:9000', 'grpc 2000/1000 2/3 port=9000'],
  ['check=grpc/shop.v1.Orders', 'grpc 2000/1000 2/3 grpcService=shop.v1.Orders'],
  ['check=grpc:9000/shop.Orders', 'grpc 2000/1000 2/3 port=9000 grpcService=shop.Orders'],
  ['check=grpc:9000/', 'grpc 2000/1000 2/3 port=9000'],
  ['check=grpcs:9000', 'grpc 2000/1000 2/3 port=9000 tls=verify'],
  ['check=grpcs & check.tls_skip_verify=true', 'grpc 2000/1000 2/3 tls=any-certificate'],
  ['check=ttl:30s', 'ttl 30000/1000 1/1'],
  ['check=ttl:1m30s & check.initial_status=passing', 'ttl 90000/1000 1/1 initialStatus=passing'],
  ['check=exec:pg_isready -q', 'exec 2000/1000 2/3 command=pg_isready -q'],
  [
    'check=exec:test -f /up && echo "$SERVICE_IP:$SERVICE_PORT"',
    'exec 2000/1000 2/3 command=test -f /up && echo "$SERVICE_IP:$SERVICE_PORT"',
  ],
  [
    'check=tcp & check.interval=1.5h & check.timeout=300ms & check.rise=1 & check.fall=9 & check.deregister_after=72h',
    'tcp 5400000/300 1/9 deregisterAfterMs=259200000',
  ],
  ['check=tcp & check.interval=', 'tcp 2000/1000 2/3'],
  ['check=none'],
  // One port's words beat those of the whole container, each by itself.
  ['check=tcp & 5432.check=http:/a & check.interval=5s & 5432.check.interval=7s', 'http 7000/1000 2/3 path=/a'],
  ['check.interval=5s & 5432.check=http:/a & check.rise=1', 'http 5000/1000 1/3 path=/a'],
  ['5432.check.fall=1 & check=grpc', 'grpc 2000/1000 2/1'],
  // What does nothing is told, and the check stands.
  [
    'check=tcp & check.method=HEAD',
    'tcp 2000/1000 2/3',
    'note legate.check.method does nothing with a check of kind tcp | Leave legate.check.method out.',
  ],
  ['5432.check=tcp & check.method=HEAD', 'tcp 2000/1000 2/3'],
  [
    '5432.check=tcp & 5432.check.method=HEAD',
    'tcp 2000/1000 2/3',
    'note legate.5432.check.method does nothing with a check of kind tcp | Leave legate.5432.check.method out.',
  ],
  [
    'check=exec:true & check.tls_skip_verify=true',
    'exec 2000/1000 2/3 command=true',
    'note legate.check.tls_skip_verify does nothing with a check of kind exec | Leave legate.check.tls_skip_verify out.',
  ],
  [
    'check=ttl:30s & check.timeout=1s',
    'ttl 30000/1000 1/1',
    'note legate.check.timeout does nothing with a check of kind ttl | Leave legate.check.timeout out.',
  ],
  [
    'check=none & check.interval=1s',
    'note legate.check.interval does nothing with the check none | Leave legate.check.interval out.',
  ],
  [
    'check.interval=1s',
    'note legate.check.interval does nothing without a check | Name one: legate.check=http:/path, or another kind.',
  ],
  ['5433.check=tcp & 5433.service=other & check.interval=1s', 'other: tcp 1000/1000 2/3'],
  [
    'check=tcp & check.intervall=1s',
    'tcp 2000/1000 2/3',
    'note unknown label "legate.check.intervall" | Did you mean legate.check.interval?',
  ],
  // What leaves in doubt what is meant is refused.
  [
    'check=ttl:30s & check.interval=10s',
    'refused legate.check.interval: a check of kind ttl has its duration already | Leave it out, and write ttl:DURATION.',
  ],
  [
    'check=http & check.tls_skip_verify=true',
    'refused legate.check.tls_skip_verify: a check of kind http speaks no TLS | Use https, or leave it out.',
  ],
  [
    'check=grpc & check.tls_skip_verify=true',
    'refused legate.check.tls_skip_verify: a check of kind grpc speaks no TLS | Use grpcs, or leave it out.',
  ],
  [
    'check=docker',
    'refused legate.check: the container has no HEALTHCHECK | Add one (docker run --health-cmd), or use http:/path or tcp.',
  ],
  // What is malformed.
  [
    'check=',
    'refused legate.check: "" is not a check | Use http:/path, https:/path, tcp, grpc, grpcs, ttl:30s, exec:COMMAND, docker or none.',
  ],
  [
    'check=htps:/x',
    'refused legate.check: "htps:/x" is not a check | Use http:/path, https:/path, tcp, grpc, grpcs, ttl:30s, exec:COMMAND, docker or none. Did you mean https?',
  ],
  ['check=http:', 'refused legate.check: "http:" is not a check | Use http, http:/path or http:PORT/path.'],
  ['check=http-x', 'refused legate.check: "http-x" is not a check | Use http, http:/path or http:PORT/path.'],
  [
    'check=http:/a b',
    'refused legate.check: "/a b" is not a path | Give a path with a leading slash and no blanks, up to 1024 characters.',
  ],
  ['check=tcp:/x', 'refused legate.check: "tcp:/x" is not a check | Use tcp or tcp:PORT.'],
  [
    'check=tcp:0',
    'refused legate.check: "0" is not a port (1 to 65535) | Give the port inside the container, as a number.',
  ],
  [
    'check=tcp:99999999999999999999',
    'refused legate.check: "99999999999999999999" is not a port (1 to 65535) | Give the port inside the container, as a number.',
  ],
  ['check=grpc:/a b', 'refused legate.check: "a b" is not the name of a gRPC service | Write it as package.Service.'],
  ['check=ttl', 'refused legate.check: "ttl" is not a check | Use ttl:DURATION, as in ttl:30s.'],
  [
    'check=ttl:soon',
    'refused legate.check: "soon" is not a duration of 100ms to 24h | Write it as 250ms, 5s or 1m30s.',
  ],
  ['check=exec', 'refused legate.check: "exec" is not a check | Use exec:COMMAND, as in exec:pg_isready.'],
  ['check=exec: ', 'refused legate.check: the command is empty | Name what to run inside the container.'],
  [
    'check=exec:a\u0000b',
    'refused legate.check: "a\\u0000b" has control characters | Only tabs and line ends may be in a command.',
  ],
  [
    `check=exec:${'x'.repeat(4097)}`,
    'refused legate.check: the command is longer than 4096 characters | Put it into a script in the image and name that.',
  ],
  ['check=docker:x', 'refused legate.check: "docker:x" is not a check | Use docker, without more.'],
  ['check=none:x', 'refused legate.check: "none:x" is not a check | Use none, without more.'],
  [
    'check=http & check.method=CONNECT',
    'refused legate.check.method: "CONNECT" is not a method | Use one of GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE.',
  ],
  [
    'check=https & check.tls_skip_verify=maybe',
    'refused legate.check.tls_skip_verify: "maybe" is neither true nor false | Write true, or leave it out.',
  ],
  [
    'check=tcp & check.initial_status=fine',
    'refused legate.check.initial_status: "fine" is not a status | Use one of passing, warning, critical.',
  ],
  [
    'check=tcp & check.interval=1e9s',
    'refused legate.check.interval: "1e9s" is not a duration of 100ms to 24h | Write it as 250ms, 5s or 1m30s.',
  ],
  [
    'check=tcp & check.interval=25h',
    'refused legate.check.interval: "25h" is not a duration of 100ms to 24h | Write it as 250ms, 5s or 1m30s.',
  ],
  [
    'check=tcp & check.deregister_after=1ms',
    'refused legate.check.deregister_after: "1ms" is not a duration of 1s to 720h | Write it as 250ms, 5s or 1m30s.',
  ],
  ['check=tcp & check.fall=101', 'refused legate.check.fall: "101" is not a count of 1 to 100 | Give a whole number.'],
];

function labelsOf(text: string): Record<string, string> {
  const pairs = text.split(' & ');
  return Object.fromEntries(
    pairs.map((pair) => [`legate.${pair.split('=', 1)[0]}`, pair.slice(pair.indexOf('=') + 1)]),
  );
}

t.test('legate.check and what modifies it', async (t) => {
  for (const [text, ...expected] of legateTable) {
    const labels = { 'legate.service': 'db', 'legate.port': '5432', ...labelsOf(text) };
    t.same(lines({ labels }), expected, text.slice(0, 100));
  }
});

t.test('a container with a HEALTHCHECK of its own', async (t) => {
  const table: readonly Case[] = [
    ['', 'docker 2000/1000 1/1'],
    ['check=docker', 'docker 2000/1000 1/1'],
    ['check=tcp', 'tcp 2000/1000 2/3'],
    ['check=none'],
    ['check.fall=2 & check.deregister_after=10m', 'docker 2000/1000 1/2 deregisterAfterMs=600000'],
    [
      'check.interval=5s',
      'docker 2000/1000 1/1',
      'note legate.check.interval does nothing with the check of the container itself (HEALTHCHECK) | A HEALTHCHECK has its own: docker run --health-interval.',
    ],
    [
      'check=docker & check.timeout=5s & check.initial_status=passing',
      'docker 2000/1000 1/1',
      'note legate.check.timeout does nothing with a check of kind docker | A HEALTHCHECK has its own: docker run --health-timeout.',
      'note legate.check.initial_status does nothing with a check of kind docker | Docker itself says starting until its first result.',
    ],
  ];
  for (const [text, ...expected] of table) {
    const labels = { 'legate.service': 'db', ...(text === '' ? {} : labelsOf(text)) };
    t.same(lines({ labels, health: true }), expected, text);
  }
  t.same(lines({ env: ['SERVICE_NAME=db'], health: true }), ['docker 2000/1000 1/1'], 'without a word of registrator');
  t.same(lines({ env: ['SERVICE_CHECK_TCP=1'], health: true }), ['tcp 10000/10000 2/3'], 'with one');
});

t.test('what a UDP port can be asked', async (t) => {
  const udp = (check: string): string[] => {
    const labels = { 'legate.service': 'dns', 'legate.protocol': 'udp', 'legate.check': check };
    return lines({ labels, ports: ['53/udp'] });
  };
  for (const kind of ['tcp', 'http', 'grpc']) {
    t.same(udp(kind), [`refused legate.check: a ${kind} check cannot ask a UDP port | Name a TCP port: ${kind}:PORT.`]);
    t.match(udp(`${kind}:8080`), [new RegExp(`^${kind} .* port=8080`)]);
  }
  t.same(udp('exec:true'), ['exec 2000/1000 2/3 command=true']);
  t.same(udp('ttl:5s'), ['ttl 5000/1000 1/1']);
  t.same(lines({ env: ['SERVICE_CHECK_TCP=true'], ports: ['53/tcp', '53/udp'] }), [
    'shop-53: tcp 10000/10000 2/3',
    'shop-53: tcp 10000/10000 2/3 port=53',
  ]);
  t.same(lines({ env: ['SERVICE_CHECK_TCP=true'], ports: ['53/udp'] }), [
    'refused SERVICE_CHECK_TCP: a tcp check cannot ask a UDP port | Say it for the TCP port only: SERVICE_<port>_CHECK_…',
  ]);
});

/** Keys as they follow `SERVICE_`, separated by ` & `; of a container that publishes 5432, named db. */
const registratorTable: readonly Case[] = [
  ['CHECK_HTTP=/health', 'http 10000/10000 2/3 path=/health'],
  ['CHECK_HTTP=health', 'http 10000/10000 2/3 path=/health'],
  ['CHECK_HTTP=/health & CHECK_HTTP_METHOD=head', 'http 10000/10000 2/3 path=/health method=HEAD'],
  [
    'CHECK_HTTP=/h & CHECK_INTERVAL=1m30s & CHECK_TIMEOUT=1.5s & CHECK_INITIAL_STATUS=passing & CHECK_DEREGISTER_AFTER=1.5h',
    'http 90000/1500 2/3 path=/h initialStatus=passing deregisterAfterMs=5400000',
  ],
  ['CHECK_HTTPS=/health', 'http 10000/10000 2/3 path=/health tls=verify'],
  ['CHECK_HTTPS=/health & CHECK_HTTPS_METHOD=PUT', 'http 10000/10000 2/3 path=/health tls=verify method=PUT'],
  ['CHECK_CMD=/check.sh $SERVICE_IP', 'exec 10000/30000 2/3 command=/check.sh 172.17.0.10 warningExit=1'],
  [
    'CHECK_SCRIPT=nc -z $SERVICE_IP $SERVICE_PORT && echo $SERVICE_PORTS & CHECK_TIMEOUT=300ms',
    'exec 10000/300 2/3 command=nc -z 172.17.0.10 5432 && echo 5432S warningExit=1',
  ],
  ['CHECK_TTL=30s', 'ttl 30000/1000 1/1'],
  ['CHECK_TTL=1m & CHECK_INITIAL_STATUS=warning', 'ttl 60000/1000 1/1 initialStatus=warning'],
  ['CHECK_TCP=true', 'tcp 10000/10000 2/3'],
  ['CHECK_TCP=yes & CHECK_INTERVAL=15s & CHECK_TIMEOUT=3s', 'tcp 15000/3000 2/3'],
  [
    'CHECK_TCP=false',
    'tcp 10000/10000 2/3',
    'note SERVICE_CHECK_TCP=false means yes, as any value does | Leave SERVICE_CHECK_TCP out, or empty.',
  ],
  ['CHECK_GRPC=true', 'grpc 10000/10000 2/3'],
  ['CHECK_GRPC=shop.Orders', 'grpc 10000/10000 2/3'],
  ['CHECK_GRPC=1 & CHECK_GRPC_USE_TLS=1', 'grpc 10000/10000 2/3 tls=verify'],
  ['CHECK_GRPC=1 & CHECK_GRPC_USE_TLS=1 & CHECK_TLS_SKIP_VERIFY=1', 'grpc 10000/10000 2/3 tls=any-certificate'],
  // The first of registrator's order is the check.
  [
    'CHECK_GRPC=1 & CHECK_TCP=1 & CHECK_HTTP=/x',
    'http 10000/10000 2/3 path=/x',
    'note SERVICE_CHECK_GRPC does nothing: SERVICE_CHECK_HTTP is the check | Leave out one of the two.',
    'note SERVICE_CHECK_TCP does nothing: SERVICE_CHECK_HTTP is the check | Leave out one of the two.',
  ],
  [
    'CHECK_SCRIPT=b & CHECK_CMD=a',
    'exec 10000/30000 2/3 command=a warningExit=1',
    'note SERVICE_CHECK_SCRIPT does nothing: SERVICE_CHECK_CMD is the check | Leave out one of the two.',
  ],
  [
    'CHECK_TTL=5s & CHECK_SCRIPT=true',
    'exec 10000/30000 2/3 command=true warningExit=1',
    'note SERVICE_CHECK_TTL does nothing: SERVICE_CHECK_SCRIPT is the check | Leave out one of the two.',
  ],
  // A port's own keys, also where they take back what was said for all.
  ['CHECK_HTTP=/a & 5432_CHECK_HTTP=/b & 80_CHECK_HTTP=/c', 'http 10000/10000 2/3 path=/b'],
  ['CHECK_HTTP=/a & 5432_CHECK_HTTP= & 5432_CHECK_TCP=1', 'tcp 10000/10000 2/3'],
  ['CHECK_HTTP=/a & 5432_CHECK_HTTP='],
  ['CHECK_INTERVAL=5s & 80_CHECK_HTTP=/c'],
  // Modifiers that do nothing.
  [
    'CHECK_INTERVAL=5s',
    'note SERVICE_CHECK_INTERVAL does nothing without a check | Name one: SERVICE_CHECK_HTTP=/path.',
  ],
  [
    'CHECK_TTL=30s & CHECK_INTERVAL=5s',
    'ttl 30000/1000 1/1',
    'note SERVICE_CHECK_INTERVAL does nothing with SERVICE_CHECK_TTL | SERVICE_CHECK_TTL itself says how long a refresh holds.',
  ],
  [
    'CHECK_HTTPS=/x & CHECK_HTTP_METHOD=PUT',
    'http 10000/10000 2/3 path=/x tls=verify',
    'note SERVICE_CHECK_HTTP_METHOD does nothing with SERVICE_CHECK_HTTPS | It is for SERVICE_CHECK_HTTP.',
  ],
  [
    'CHECK_HTTPS=/x & CHECK_TLS_SKIP_VERIFY=true',
    'http 10000/10000 2/3 path=/x tls=verify',
    'note SERVICE_CHECK_TLS_SKIP_VERIFY does nothing with SERVICE_CHECK_HTTPS | It is for SERVICE_CHECK_GRPC with SERVICE_CHECK_GRPC_USE_TLS.',
  ],
  [
    'CHECK_GRPC=1 & CHECK_TLS_SKIP_VERIFY=true',
    'grpc 10000/10000 2/3',
    'note SERVICE_CHECK_TLS_SKIP_VERIFY does nothing with SERVICE_CHECK_GRPC | It is for SERVICE_CHECK_GRPC with SERVICE_CHECK_GRPC_USE_TLS.',
  ],
  ['CHECK_HTP=/x', 'note SERVICE_CHECK_HTP is not known | Did you mean SERVICE_CHECK_HTTP?'],
  // What registrator would hand to Consul, which would refuse it.
  [
    'CHECK_TCP=1 & CHECK_INTERVAL=15',
    'refused SERVICE_CHECK_INTERVAL: "15" is not a duration of 100ms to 24h | Write it as 250ms, 5s or 1m30s.',
  ],
  [
    'CHECK_TTL=true',
    'refused SERVICE_CHECK_TTL: "true" is not a duration of 100ms to 24h | Write it as 250ms, 5s or 1m30s.',
  ],
  [
    '5432_CHECK_TCP=1 & 5432_CHECK_INITIAL_STATUS=up',
    'refused SERVICE_5432_CHECK_INITIAL_STATUS: "up" is not a status | Use one of passing, warning, critical.',
  ],
  [
    'CHECK_HTTP=/a b',
    'refused SERVICE_CHECK_HTTP: "/a b" is not a path | Give a path with a leading slash and no blanks, up to 1024 characters.',
  ],
];

t.test("registrator's checks, from environment and labels", async (t) => {
  for (const [text, ...expected] of registratorTable) {
    const pairs = text.split(' & ').map((pair) => `SERVICE_${pair}`);
    t.same(lines({ env: ['SERVICE_NAME=db', ...pairs] }), expected, `environment ${text}`);
    const labels = Object.fromEntries(
      pairs.map((pair) => [pair.split('=', 1)[0] ?? '', pair.slice(pair.indexOf('=') + 1)]),
    );
    t.same(lines({ labels: { SERVICE_NAME: 'db', ...labels } }), expected, `labels ${text}`);
  }
  const both = { env: ['SERVICE_CHECK_HTTP=/env'], labels: { SERVICE_CHECK_HTTP: '/label' } };
  t.same(lines(both), ['http 10000/10000 2/3 path=/label'], 'a label wins');
  const port = { env: ['SERVICE_5432_CHECK_HTTP=/env'], labels: { SERVICE_CHECK_HTTP: '/label' } };
  t.same(lines(port), ['http 10000/10000 2/3 path=/env'], 'a port of its own wins more');
});
