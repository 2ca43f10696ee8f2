import t from 'tap';
import { formerStays } from '../../proxy/door/certificates.ts';
import type { LinkDocument } from '../../proxy/link-document.ts';
import type { TunnelDocument } from '../../proxy/tunnel/tunnel-document.ts';
import type { Condition } from '../../src/base/conditions.ts';
import { PersistentMap } from '../../src/base/persistent-map.ts';
import { emptySnapshot, type Service } from '../../src/catalog/snapshot.ts';
import { comeBackHint, decide, lockedPolicy, type Policy } from '../../src/model/policy.ts';
import { hostId as id, shownInstance } from '../../test/support/records.ts';
import type { WhyDocument } from '../admin/why-document.ts';
import { explain } from './explain.ts';
import type { ContainerFacts, InstanceFacts, TargetFacts, WhyFacts } from './facts.ts';
import { findTarget } from './find-target.ts';
import { serversIn } from './resolver.ts';

const nowMs = Date.parse('2030-01-02T12:00:00Z');
const vip = '240.77.118.4';
const beforeMs = nowMs - 4 * 60_000;

const local = shownInstance({ name: '77ab-5432', address: '172.17.0.3', source: 'docker:db-1' });
const remote = shownInstance({ name: '9c1f-5432', host: 'db-2', hostId: id(2), address: '172.17.0.9', reach: 'host' });
const db: Service = {
  ...{ name: 'db', port: 5432, protocol: 'tcp', balance: 'least-connections', vip, faults: [] },
  ...{ instances: [local], usable: [local] },
};
const web: ContainerFacts = {
  ...{ kind: 'container', container: 'web-7f3', shortId: '7f3000000000', others: [], identity: 'web', bound: true },
  ...{ inHostNetwork: false, address: '172.17.0.4', callersOff: undefined },
  networks: [
    {
      ...{ id: 'n1', name: 'bridge', address: '172.17.0.4', interface: 'docker0' },
      ...{ internal: false, hasGateway: true, isUsers: false },
    },
  ],
};
const target: TargetFacts = {
  ...{ asked: 'db', form: 'link', service: 'db', link: undefined, view: db, near: undefined, refusals: [] },
};
const own: InstanceFacts = {
  ...{ instance: local, own: true, usable: true, sinceMs: beforeMs, distance: 0 },
  ...{
    ejectedUntilMs: undefined,
    ejectedFor: undefined,
    suspect: false,
    path: { kind: 'dial', address: '172.17.0.3', port: 5432 },
  },
};
const afar: InstanceFacts = { ...own, instance: remote, own: false, distance: 2, path: { kind: 'tunnel' } };
const link: LinkDocument = {
  ...{ service: 'db', kind: 'vip', address: `${vip}:5432`, tls: null, state: 'open' },
  ...{ problem: null, balance: 'round-robin' },
  ...{ instances: 1, consumers: [], bytes: { received: 0, sent: 0 }, backends: [], lastError: null },
  connections: { active: 1, total: 400, failed: 212, retried: 0, held: 0 },
  denied: { total: 0, last: null },
  rates: { received: 0, sent: 0, connections: 0 },
};
const tunnel: TunnelDocument = {
  ...{ hostId: id(2), host: 'db-2', address: '10.77.0.2:7711', state: 'ready', since: '2030-01-02T09:00:00.000Z' },
  ...{ problem: null, connections: { dialled: 2, accepted: 0 }, streams: { active: 0, opened: 0, accepted: 0 } },
  ...{ bytes: { received: 0, sent: 0 }, roundTripMs: 0.4, peerCertificateUntil: null },
};
const fine: WhyFacts = {
  ...{
    nowMs,
    self: { hostId: id(1), hostName: 'web-1' },
    domain: 'mesh.internal',
    conditions: [],
    consumer: web,
    target,
  },
  store: { store: 'connected', ageMs: 300, origin: 'store', sinceMs: beforeMs, problem: undefined, hint: undefined },
  answer: { status: 'NOERROR', addresses: [vip], note: null, leftOut: [] },
  shadows: [],
  resolver: { servers: [{ address: '240.77.0.53', answer: undefined }] },
  nameServers: [
    { listen: '240.77.0.53:53', purpose: 'virtual address', state: 'up', problem: null, queries: 0 },
    {
      listen: '172.18.0.1:53',
      purpose: 'bridge br-shop',
      state: 'down',
      problem: 'held by dnsmasq (pid 812)',
      queries: 0,
    },
  ],
  ...{
    vip: { on: true, reason: null },
    links: [link],
    bypasses: [],
    policy: undefined,
    instances: [own],
    ungranted: [],
    revokedHosts: [],
  },
  hosts: new Map([
    [id(2), { id: id(2), name: 'db-2', address: '10.77.0.2', version: '0.4.1', alive: true, revision: '' }],
  ]),
  tunnels: new Map(),
  credentials: undefined,
  probes: new Map([[local.id, { ok: true, elapsedMs: 0.42 }]]),
};

const across: WhyFacts = {
  ...fine,
  target: { ...target, view: { ...db, instances: [remote], usable: [remote] } },
  ...{ instances: [afar], tunnels: new Map([[id(2), tunnel]]), credentials: { notAfterMs: nowMs + 1e8 } },
  probes: new Map([[remote.id, { ok: true, elapsedMs: 1.2 }]]),
};
const policy: Policy = {
  ...{ mesh: 'legate', meshId: 'aa', version: 12, authority: id(1), roots: [], default: 'deny', mode: 'enforce' },
  ...{ fromLinks: true, intents: [], grants: [], external: [], revoked: [] },
};

function ruled(over: Partial<Policy>, maySpeak = true): WhyFacts {
  const changed = { ...policy, ...over };
  const decision = decide(changed, { consumer: 'web', service: 'db', declared: false });
  return { ...fine, policy: { policy: changed, consumer: 'web', decision, maySpeak } };
}

function instanceIs(over: Partial<typeof local>, more: Partial<InstanceFacts> = {}): WhyFacts {
  const instance = { ...local, ...over };
  const view = { ...db, instances: [instance], usable: [] };
  return { ...fine, target: { ...target, view }, instances: [{ ...own, usable: false, ...more, instance }] };
}

function condition(conditionId: string, message: string, hint: string): Condition[] {
  return [{ id: conditionId, severity: 'error', message, hint, sinceMs: beforeMs, count: 1 }];
}

function tunnelled(over: Partial<TunnelDocument>): WhyFacts {
  const tunnels = new Map([[id(2), { ...tunnel, ...over }]]);
  return { ...across, tunnels, probes: new Map() };
}

const asked = { name: 'db', consumer: 'web', changes: [] };

function worst({ steps }: WhyDocument): string {
  const step = steps.find(({ verdict }) => verdict === 'bad') ?? steps.find(({ verdict }) => verdict === 'note');
  return step === undefined ? 'fine' : `${step.verdict} ${step.name}: ${step.text}`;
}

t.test('faults: the step that names each, and what to do', async (t) => {
  const noDb = { ...target, view: undefined };
  const ofFile = { ...own, instance: { ...local, source: 'file' } };
  const refusing = new Map([[local.id, { ok: false, code: 'ECONNREFUSED', problem: 'connection refused' } as const]]);
  const gone = new Map<string, never>();
  const refusal = {
    source: 'docker:db-1',
    service: 'db',
    reason: 'it is not on network nowhere',
    hint: 'name another',
  };
  const internal = {
    ...web,
    networks: web.networks.map((network) => ({ ...network, name: 'shop', hasGateway: false })),
  };
  const asks = (address: string, answer: string[] | string): WhyFacts['resolver'] => ({
    servers: [{ address, answer: typeof answer === 'string' ? { problem: answer } : { addresses: answer } }],
  });
  const shadow = { what: 'container other', network: 'shop', address: '172.18.0.3', isInstance: false };
  const empty = {
    ...fine,
    target: { ...target, view: { ...db, instances: [], usable: [] } },
    instances: [],
    probes: gone,
  };
  const none: WhyFacts = { ...fine, vip: { on: false, reason: 'nft is not installed' }, links: [] };
  const noAddress = { status: 'NOERROR', addresses: [], note: null, leftOut: [] };
  const down = { ...link, state: 'down', problem: 'held by postgres (pid 8)' } as const;
  const cases: readonly (readonly [string, WhyFacts, RegExp, RegExp | null])[] = [
    ['fine', fine, /^fine$/, null],
    ['fine across hosts', across, /^fine$/, null],
    [
      'no such service',
      { ...fine, target: { ...noDb, near: 'dbs' } },
      /^bad name: there is no service db: .*did you mean dbs\?/,
      /ask for dbs, or register it/,
    ],
    [
      'a refused registration',
      { ...fine, target: { ...noDb, refusals: [refusal] } },
      /^bad name: there is no service db/,
      /^name another$/,
    ],
    [
      'a foreign name',
      { ...fine, target: { ...noDb, form: 'foreign', asked: 'x.org' } },
      /^bad name: x.org is no name of the mesh/,
      /services/,
    ],
    [
      'an address that nobody has',
      { ...fine, target: { ...noDb, form: 'address', service: undefined, asked: '240.77.200.200' } },
      /^bad name: no service has the address 240\.77\.200\.200$/,
      /^legate services/,
    ],
    [
      'a host that was revoked itself, with the store away',
      {
        ...fine,
        store: { ...fine.store, store: 'away', problem: 'refused', hint: 'legate status on the host of the store' },
        conditions: condition('policy.revoked', 'this host was revoked', comeBackHint),
      },
      /^note store: the store is away/,
      /^to let web-1 in again: legate token on .*, then on web-1, its sidecar stopped: legate join ADDRESS --again/,
    ],
    [
      'an instance of the file that does not listen',
      { ...fine, instances: [ofFile], probes: refusing },
      /^bad instance: web-1\/77ab-5432 at 172\.17\.0\.3:5432: connection refused$/,
      /^start what listens at port 5432; give it a check \(checks: \[\{kind: tcp\}\]\), so that/,
    ],
    [
      'a container that does not listen',
      { ...fine, probes: refusing },
      /^bad instance: .*connection refused$/,
      /give it a check \(legate\.check=tcp\)/,
    ],
    [
      'an unknown consumer',
      { ...fine, consumer: { kind: 'unknown', name: 'wbe', near: 'web', dockerProblem: undefined, dockerOff: false } },
      /^bad consumer: .* called wbe.*mean web/,
      /^legate why web db; or it may be on another host: run legate why wbe db there$/,
    ],
    [
      'a consumer of another host where Docker is not wanted',
      {
        ...fine,
        consumer: {
          kind: 'unknown',
          name: 'front',
          near: undefined,
          dockerProblem: 'docker.expose is off',
          dockerOff: true,
        },
      },
      /^bad consumer: nobody on this host is called front: no container, service or link$/,
      /^it may be on another host: run legate why front db there$/,
    ],
    [
      'Docker away',
      {
        ...fine,
        consumer: { kind: 'unknown', name: 'web', near: undefined, dockerProblem: 'refused', dockerOff: false },
      },
      /^bad consumer: .*not known \(refused\)/,
      /start Docker/,
    ],
    [
      'a consumer elsewhere',
      { ...fine, consumer: { kind: 'elsewhere', name: 'web', hosts: ['web-3'] } },
      /^bad consumer: web does not run on this host: it is on web-3/,
      /^on web-3: legate why web db$/,
    ],
    [
      'a consumer without network',
      { ...fine, consumer: { ...web, address: undefined, networks: [] } },
      /^bad consumer: .*no address on a bridge.*no network/,
      /docker network connect bridge web-7f3/,
    ],
    [
      'an interface that is not found',
      { ...fine, conditions: condition('callers.7f3000000000.unseen', 'it is reset', 'restart it') },
      /^bad consumer: .*it is reset/,
      /^restart it$/,
    ],
    [
      'wrong network',
      { ...fine, consumer: internal },
      /^bad address: web-7f3 has no route to 240.77.118.4:5432: shop is without/,
      /docker network connect bridge web-7f3/,
    ],
    [
      'nothing known yet',
      { ...fine, store: { ...fine.store, origin: 'none', problem: 'refused', hint: 'start etcd' } },
      /^bad store: nothing is known yet.*refused/,
      /^start etcd$/,
    ],
    [
      'stale store',
      { ...fine, store: { ...fine.store, store: 'away', ageMs: 300_000, problem: 'etcd is away', hint: 'start etcd' } },
      /^note store: the store is away: etcd is away; what is known is 5 min old/,
      /^start etcd$/,
    ],
    [
      'a Docker alias',
      { ...fine, shadows: [shadow] },
      /^bad alias: Docker answers db itself in network shop: container other, 172.18.0.3, which is no instance of db/,
      /ask for db.mesh.internal/,
    ],
    [
      'an alias of an instance',
      { ...fine, shadows: [{ ...shadow, isInstance: true }] },
      /^note alias:/,
      /ask for db.mesh.internal/,
    ],
    [
      'port 53 taken',
      {
        ...fine,
        resolver: asks('172.18.0.1', 'nothing'),
        conditions: condition('dns.listen.172.18.0.1:53', 'x', 'stop dnsmasq'),
      },
      /^bad resolver: it asks 172.18.0.1:53, where this sidecar cannot listen: held by dnsmasq \(pid 812\)/,
      /^stop dnsmasq; or run web-7f3 with --dns 240.77.0.53/,
    ],
    [
      'another name server',
      { ...fine, resolver: asks('10.0.0.2', 'there is no such name') },
      /^bad resolver: it asks 10.0.0.2, not this sidecar/,
      /--dns 240.77.0.53/,
    ],
    ['another one that asks us', { ...fine, resolver: asks('10.0.0.2', [vip]) }, /^fine$/, null],
    ['no virtual addresses', none, /^note address: no virtual addresses here \(nft is not installed\)/, /links:/],
    [
      'none, and nothing to dial',
      { ...none, answer: noAddress },
      /^bad name: db has no address for it now/,
      /links: \[\{service: db/,
    ],
    [
      'a listener that is down',
      { ...fine, links: [down], conditions: condition('link.listen.db.x', 'm', 'stop postgres') },
      /^bad address: .*held by postgres/,
      /^stop postgres$/,
    ],
    [
      'a firewall',
      { ...fine, conditions: condition('vip.t.firewall', 'a firewall drops it', 'let it in') },
      /^bad address: a firewall drops it/,
      /^let it in$/,
    ],
    ['a denial', ruled({}), /^bad policy: web may not call db \(deny is the default\)/, /legate intent allow web db$/],
    [
      'an intent that denies',
      ruled({ intents: [{ consumer: 'web', service: 'db', action: 'deny', setAtMs: beforeMs }] }),
      /^bad policy: web may not call db \(intent deny web db, set 4 min ago/,
      /legate intent allow web db/,
    ],
    ['learning', ruled({ mode: 'learn' }), /^note policy: web would be refused db/, /legate intent allow web db/],
    [
      'a grant that is missing here',
      ruled({ default: 'allow' }, false),
      /^bad policy: this host may not speak for web/,
      /legate host allow web-1 web/,
    ],
    [
      'no instances',
      { ...fine, target: { ...target, view: { ...db, instances: [], usable: [] } }, instances: [], probes: gone },
      /^bad choice: db has no instances/,
      /register one/,
    ],
    [
      'unhealthy',
      instanceIs({ status: 'critical', output: 'connection refused' }),
      /^bad choice: the only instance of db cannot be used/,
      /^docker logs db-1; it is back/,
    ],
    [
      'paused',
      instanceIs({ status: 'critical', draining: true, output: 'the container is paused' }),
      /^bad choice:/,
      /^docker unpause db-1$/,
    ],
    ['drained', instanceIs({ draining: true }), /^bad choice:/, /^legate undrain web-1\/77ab-5432$/],
    [
      'a drained host',
      {
        ...instanceIs({ draining: true }),
        conditions: condition('drain.operator', 'm', 'legate undrain --host ends it'),
      },
      /^bad choice:/,
      /^legate undrain --host$/,
    ],
    [
      'an instance that left',
      {
        ...fine,
        instances: [],
        lastDeparture: { id: 'db-2/9c1f-5432', host: 'db-2', atMs: nowMs - 20_000 },
      },
      /^bad choice: db has no instances: db-2\/9c1f-5432 left 20 s ago$/,
      /^look why its container ended on db-2: docker ps -a and docker logs there$/,
    ],
    ['starting', instanceIs({ status: 'starting' }), /^bad choice:/, /^wait for its first check/],
    [
      'a lost host',
      { ...instanceIs({ status: 'lost', host: 'db-2' }, { own: false }), tunnels: new Map() },
      /^bad choice:/,
      /^is db-2 up, its sidecar running/,
    ],
    [
      'a lost host whose certificate ended',
      {
        ...tunnelled({ state: 'connecting', problem: '10.77.0.2:7711: its certificate ended 3 h ago' }),
        instances: [{ ...afar, usable: false, instance: { ...remote, status: 'lost' } }],
      },
      /^bad choice:/,
      /^unless the clock of web-1 is ahead: legate token on .* legate join \S+ --again --token TOKEN$/,
    ],
    ['another protocol', instanceIs({ protocol: 'udp' }), /^bad choice:/, /legate service set db protocol=udp/],
    [
      'no grant',
      { ...empty, ungranted: [{ id: 'db-2/9c1f-5432', host: 'db-2' }] },
      /^bad choice: db has no instances/,
      /legate host allow db-2 db/,
    ],
    [
      'no grant, where one alone would take something from others',
      {
        ...empty,
        ungranted: [{ id: 'db-2/9c1f-5432', host: 'db-2' }],
        grantAdvice: 'legate host allow db-2 db && legate host allow web-1 db',
      },
      /^bad choice: db has no instances/,
      /^legate host allow db-2 db && legate host allow web-1 db$/,
    ],
    [
      'a revoked host',
      { ...empty, revokedHosts: ['db-2'] },
      /^bad choice: db has no instances/,
      /then on db-2, its sidecar stopped: legate join ADDRESS --again/,
    ],
    [
      'no way to another host',
      instanceIs(
        { host: 'db-2' },
        { own: false, usable: true, path: { kind: 'none', reason: 'its address is known only to its own host' } },
      ),
      /^bad choice:/,
      /legate init, legate join/,
    ],
    [
      'blocked 7711',
      tunnelled({ state: 'connecting', problem: 'no answer from 10.77.0.2:7711' }),
      /^bad tunnel: db-2: no answer from 10.77.0.2:7711/,
      /firewall.* let 7711\/tcp in\? nc -vz 10.77.0.2 7711/,
    ],
    [
      'nobody at 7711',
      tunnelled({ state: 'connecting', problem: 'connection refused at 10.77.0.2:7711' }),
      /^bad tunnel: db-2: connection refused at 10.77.0.2:7711/,
      /on db-2: is its sidecar running/,
    ],
    [
      'an expired certificate',
      tunnelled({ state: 'connecting', problem: '10.77.0.2:7711: its certificate ended 3 h ago' }),
      /^bad tunnel: db-2: 10.77.0.2:7711: its certificate ended 3 h ago$/,
      /^unless the clock of web-1 is ahead: legate token on .* legate join \S+ --again --token TOKEN$/,
    ],
    [
      'a clock that is ahead over there',
      tunnelled({ state: 'connecting', problem: '10.77.0.2:7711 refuses this host: our certificate has ended' }),
      /^bad tunnel:/,
      /^on db-2: set its clock, which is ahead/,
    ],
    [
      'our own certificate',
      {
        ...tunnelled({ state: 'connecting', problem: 'refused' }),
        conditions: condition('pki.certificate', 'this host has a certificate that ended', 'legate ca status'),
      },
      /^bad tunnel: this host has a certificate that ended/,
      /^legate ca status$/,
    ],
    [
      'another authority',
      tunnelled({ state: 'connecting', problem: 'its certificate comes from another authority than this mesh trusts' }),
      /^bad tunnel:/,
      /on the one that is wrong, .* legate join ADDRESS --again/,
    ],
    [
      'a silent host',
      tunnelled({ state: 'suspect', problem: 'it does not answer just now' }),
      /^bad tunnel: db-2: it does not answer just now at/,
      /^is db-2 up, and does a firewall there or on the way let 7711\/tcp in\? nc -vz 10\.77\.0\.2 7711$/,
    ],
    [
      'a policy that cannot be read',
      {
        ...ruled(lockedPolicy('legate')),
        conditions: condition('policy.locked', 'the policy is broken', 'restore it'),
      },
      /^bad policy: the policy is broken$/,
      /^restore it$/,
    ],
    [
      'nothing listens',
      { ...fine, probes: new Map([[local.id, { ok: false, code: 'ECONNREFUSED', problem: 'connection refused' }]]) },
      /^bad instance: web-1\/77ab-5432 at 172.17.0.3:5432: connection refused/,
      /let db-1 listen at 0.0.0.0:5432/,
    ],
    [
      'refused over there',
      { ...across, probes: new Map([[remote.id, { ok: false, code: 'denied', problem: 'policy v3' }]]) },
      /^bad instance: .* through the tunnel: policy v3/,
      /another policy/,
    ],
    [
      'a shared network',
      { ...fine, bypasses: [{ network: 'shop', instance: local.id }] },
      /^note bypass: web and web-1\/77ab-5432 share network shop/,
      /network of its own/,
    ],
  ];
  for (const [what, facts, step, fix] of cases) {
    const document = explain(facts, asked);
    t.match(worst(document), step, what);
    if (fix === null) t.equal(document.fix, null, what);
    else t.match(document.fix, fix, what);
    t.equal(document.fine, !/^bad/.test(worst(document)), what);
  }
});

t.test('what happens to connections while nothing is usable', async (t) => {
  const refusing = { ...fine, links: [{ ...link, state: 'refusing' }] } as const;
  const textOf = (facts: WhyFacts) => explain(facts, asked).steps.find(({ name }) => name === 'address')?.text;
  t.match(textOf(refusing), /refused while nothing usable is behind it$/);
  const parked = { ...refusing, target: { ...target, view: { ...db, parkMs: 10_000 } } };
  t.match(textOf(parked), /connections wait up to 10 s while nothing usable is behind it$/);
});

t.test('what a door shows is in the way of those who come by it', async (t) => {
  const at = '0.0.0.0:443';
  const tls = { names: ['db.example'], notAfter: '2030-06-01T00:00:00.000Z' };
  const door = { ...link, kind: 'listen', address: at, tls } as const;
  const shut = { ...door, state: 'refusing', problem: 'no certificate can be used' } as const;
  const byDoor = { kind: 'listener', name: 'outside', listens: [{ service: 'db', at }] } as const;
  const said = (message: string, severity: Condition['severity'], where = `${at}.certificate.0`): Condition[] =>
    condition(`link.tls.db.${where}`, message, 'replace it').map((each) => ({ ...each, severity }));
  const ended = said('the certificate has ended', 'error');
  const cases: readonly (readonly [string, Partial<WhyFacts>, RegExp, RegExp | null, boolean])[] = [
    ['a sound one', { links: [link, door] }, /^$/, null, true],
    [
      'a sound one, asked for',
      { links: [link, door], consumer: byDoor },
      /^ok https:\/\/0\.0\.0\.0:443 shows certificates for db\.example, until 2030-06-01T00:00:00\.000Z$/,
      null,
      true,
    ],
    ['ended', { links: [link, door], conditions: ended }, /^note the certificate has ended$/, /^replace it$/, true],
    [
      'ended, for those outside',
      { links: [link, door], conditions: ended, consumer: byDoor },
      /^bad the certificate has ended$/,
      /^replace it$/,
      false,
    ],
    [
      'ended, where there are no virtual addresses',
      { links: [door], conditions: ended, vip: { on: false, reason: null } },
      /^bad the certificate has ended$/,
      /^replace it$/,
      false,
    ],
    [
      'soon to end',
      { links: [door], conditions: said('it ends at', 'warning'), consumer: byDoor },
      /^note it ends at$/,
      /^replace it$/,
      true,
    ],
    [
      'a faulty file beside the former',
      { links: [door], conditions: said(`no such file; ${formerStays}, until x`, 'error'), consumer: byDoor },
      /^note no such file/,
      /^replace it$/,
      true,
    ],
    [
      'a faulty file alone',
      { links: [shut], conditions: said('no such file', 'error'), consumer: byDoor },
      /^bad no such file$/,
      /^replace it$/,
      false,
    ],
    [
      'one of two',
      {
        links: [door],
        conditions: [...said('it ends at', 'warning'), ...said('no such key', 'error', `${at}.certificate.1`)],
        consumer: byDoor,
      },
      /^bad no such key \(it ends at\)$/,
      /^replace it$/,
      false,
    ],
    [
      'a service that is not HTTP',
      { links: [shut], conditions: said('TLS leads to HTTP only', 'error', `${at}.protocol`), consumer: byDoor },
      /^bad TLS leads to HTTP only$/,
      /^replace it$/,
      false,
    ],
    [
      'nothing said',
      { links: [shut], consumer: byDoor },
      /^bad nobody gets in to db at 0\.0\.0\.0:443: no certificate/,
      /^legate status/,
      false,
    ],
    [
      'another door',
      { links: [door], conditions: said('ended', 'error', '0.0.0.0:8443.certificate.0'), consumer: byDoor },
      /^ok /,
      null,
      true,
    ],
    ['a listener in the clear', { links: [link, { ...door, tls: null }], conditions: ended }, /^$/, null, true],
  ];
  for (const [what, over, told, fix, isFine] of cases) {
    const document = explain({ ...fine, ...over }, asked);
    const step = document.steps.find(({ name }) => name === 'door');
    const details = step?.details.map(({ text }) => ` (${text})`).join('') ?? '';
    t.match(step === undefined ? '' : `${step.verdict} ${step.text}${details}`, told, what);
    if (fix === null) t.equal(document.fix, null, what);
    else t.match(document.fix, fix, what);
    t.equal(document.fine, isFine, what);
  }
});

t.test('what policy forbids is not tried', async (t) => {
  const intents = [{ consumer: 'web', service: 'db', action: 'deny', setAtMs: beforeMs }] as const;
  for (const instances of [[own], [afar], [own, afar]]) {
    const { steps } = explain({ ...ruled({ intents }), instances }, asked);
    t.match(
      steps.find(({ name }) => name === 'instance'),
      { verdict: 'unknown', text: 'not tried' },
    );
  }
});

t.test('what is told beside a fault', async (t) => {
  const sick = { ...own, usable: false, instance: { ...local, status: 'critical', output: 'x'.repeat(400) } as const };
  const both = { ...fine, instances: [sick, afar], tunnels: across.tunnels, credentials: across.credentials };
  const document = explain(both, {
    ...asked,
    changes: [{ at: '2030-01-02T11:56:00.000Z', text: 'it turned critical' }],
  });
  const choice = document.steps.find(({ name }) => name === 'choice');
  t.match(choice, { verdict: 'ok', text: 'db-2/9c1f-5432 on host db-2' });
  t.match(choice?.details[0]?.text, /^web-1\/77ab-5432 is critical, "x+…"$/);
  t.equal(choice?.details[0]?.since, '2030-01-02T11:56:00.000Z');
  t.match(document.steps.find(({ name }) => name === 'host')?.text, 'db-2 (legate 0.4.1): alive');
  t.same(document.traffic, { active: 1, total: 400, failed: 212, denied: 0, lastError: null });
  t.equal(document.changes.length, 1);
  // A tunnel that is broken is not in the way while an instance of this host serves.
  const mixed = {
    ...tunnelled({ state: 'suspect', problem: 'silent for 2 s' }),
    instances: [own, afar],
    probes: fine.probes,
  };
  t.match(
    explain(mixed, asked).steps.find(({ name }) => name === 'tunnel'),
    { verdict: 'note', text: /silent for 2 s/ },
  );
  t.equal(explain(mixed, asked).fine, true);
  const many = Array.from({ length: 50 }, (_, index) => ({
    ...sick,
    instance: { ...sick.instance, id: `web-1/${index}` },
  }));
  const listed = explain({ ...fine, instances: many }, asked).steps.find(({ name }) => name === 'choice');
  t.equal(listed?.details.length, 13);
  t.equal(listed?.details.at(-1)?.text, 'and 38 more');
});

t.test('what a name means', async (t) => {
  const services = PersistentMap.from([
    ['db', db],
    ['redis', { ...db, name: 'redis' }],
  ] as const);
  const snapshot = { ...emptySnapshot, services, vips: PersistentMap.from([[vip, 'db']] as const) };
  const links = [{ alias: 'cache', service: 'redis', port: 6379 }];
  const cases = [
    ['db', 'link', 'db'],
    ['DB.Mesh.Internal.', 'link', 'db'],
    ['cache', 'link', 'redis'],
    ['db.service.mesh.internal', 'instances', 'db'],
    ['primary.db.service.mesh.internal', 'instances', 'db'],
    ['_db._tcp.mesh.internal', 'instances', 'db'],
    [vip, 'address', 'db'],
    [`${vip}:5432`, 'address', 'db'],
    ['240.77.9.9', 'address', undefined],
    ['db.example.org', 'foreign', undefined],
    ['a.b.c.d.mesh.internal', 'foreign', undefined],
  ] as const;
  for (const [name, form, service] of cases) {
    const found = findTarget(name, { snapshot, domain: 'mesh.internal', links, refusals: [] });
    t.match(found, { form, service }, name);
    t.equal(found.view?.name, service, name);
  }
  t.equal(findTarget('rediss', { snapshot, domain: 'mesh.internal', links, refusals: [] }).near, 'redis');
});

t.test('whom a container asks for names', async (t) => {
  const cases: readonly (readonly [string, readonly string[], readonly string[] | undefined])[] = [
    ['nameserver 240.77.0.53\nsearch mesh.internal\n', [], ['240.77.0.53']],
    ['nameserver 127.0.0.11\n', ['240.77.0.53'], ['240.77.0.53']],
    ['nameserver 127.0.0.11\n', [], undefined],
    ['nameserver 127.0.0.11\n# ExtServers: [10.0.0.2 host(127.0.0.53)]\n', [], ['10.0.0.2', '127.0.0.53']],
    [
      'nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4\n',
      [],
      ['1.1.1.1', '1.1.1.2', '1.1.1.3'],
    ],
    ['nameserver not-an-address\n', [], []],
    ['', [], []],
  ];
  for (const [text, dns, expected] of cases) {
    t.same(
      serversIn(text, dns)?.map(({ address }) => address),
      expected,
      text,
    );
  }
  t.match(serversIn('nameserver 127.0.0.1\n', [])?.[0]?.answer, { problem: /in the container/ });
});
