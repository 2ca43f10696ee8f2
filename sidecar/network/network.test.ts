import { fileURLToPath } from 'node:url';
import t from 'tap';
import { makeNamespace } from '../../proxy/kernel/test-namespace.ts';
import { ManualClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import { Latest } from '../../src/base/feed.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import { explainListenError } from '../../src/base/sockets.ts';
import { type Endpoint, formatEndpoint, type Ipv4Range, parseIpv4Range } from '../../src/model/address.ts';
import { type Bridge, emptyTopology, type Topology } from '../../src/model/topology.ts';
import { unless } from '../../test/support/needs.ts';
import { waitFor } from '../../test/support/wait.ts';
import type { DockerNetwork } from '../docker/network.ts';
import { BridgeNameServers, type NameServer } from './bridge-name-servers.ts';
import { defaultInterface, sourceOfRoute } from './default-address.ts';
import { parseInterfaces, rangeAround } from './interfaces.ts';
import { topologyOf } from './topology.ts';

t.test('interfaces are read from what ip prints', async (t) => {
  const text = JSON.stringify([
    {
      ifname: 'lo',
      addr_info: [
        { local: '127.0.0.1', prefixlen: 8 },
        { local: '::1', prefixlen: 128 },
      ],
    },
    { ifname: 'docker0', linkinfo: { info_kind: 'bridge' }, addr_info: [{ local: '172.17.0.1', prefixlen: 16 }] },
    { ifname: 'veth1', linkinfo: { info_kind: 'veth', info_slave_kind: 'bridge' } },
    { addr_info: [{}] },
    null,
  ]);
  t.same(parseInterfaces(text), [
    {
      name: 'lo',
      bridge: false,
      addresses: [
        { address: '127.0.0.1', prefixLength: 8 },
        { address: '::1', prefixLength: 128 },
      ],
    },
    { name: 'docker0', bridge: true, addresses: [{ address: '172.17.0.1', prefixLength: 16 }] },
    { name: 'veth1', bridge: false, addresses: [] },
  ]);
  t.throws(() => parseInterfaces('{}'));
  t.equal(rangeAround('172.17.3.4', 16)?.text, '172.17.0.0/16');
  t.equal(rangeAround('::1', 64), undefined);
});

t.test('the default route is found', async (t) => {
  t.equal(sourceOfRoute('192.0.2.1 via 10.0.0.1 dev eth0 src 10.0.0.2 uid 0 \n    cache'), '10.0.0.2');
  t.equal(sourceOfRoute('RTNETLINK answers: Network is unreachable'), undefined);
  t.equal(sourceOfRoute('local 192.0.2.1 dev lo src 127.0.0.1'), undefined);
  const table = [
    'Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT',
    'wlan0\t00000000\t0100000A\t0003\t0\t0\t600\t00000000\t0\t0\t0',
    'eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0',
    'eth1\t00000000\t0100000A\t0002\t0\t0\t1\t00000000\t0\t0\t0',
    'docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0',
  ];
  t.equal(defaultInterface(table.join('\n')), 'eth0', 'the lowest metric of those that are up');
  t.equal(defaultInterface(''), undefined);
});

t.test('the picture follows what Docker says of its networks', async (t) => {
  const entry = (name: string, ...addresses: string[]) => ({
    name,
    bridge: true,
    addresses: addresses.map((address) => ({ address, prefixLength: 24 })),
  });
  const interfaces = [
    entry('docker0', '10.8.0.1'),
    entry('mine', 'fd00::1', '10.8.1.9', '10.8.1.1'),
    entry('br-x', '10.8.5.1'),
  ];
  const network = (name: string, more: Partial<DockerNetwork>): DockerNetwork => ({
    id: name,
    name,
    driver: 'bridge',
    internal: false,
    interface: name,
    subnets: ['10.8.1.0/24'],
    gateway: undefined,
    hostReachable: true,
    ...more,
  });
  const pictured = (networks: DockerNetwork[]) =>
    topologyOf(interfaces, networks).bridges.map((bridge) => [bridge.interface, bridge.subnet.text, bridge.gateway]);
  for (const [what, networks, expected] of [
    ['the stated gateway', [network('mine', { gateway: '10.8.1.1' })], [['mine', '10.8.1.0/24', '10.8.1.1']]],
    ['without one, an own address', [network('mine', {})], [['mine', '10.8.1.0/24', '10.8.1.9']]],
    ['a gateway elsewhere', [network('mine', { gateway: '10.8.1.254' })], [['mine', '10.8.1.0/24', '10.8.1.9']]],
    ['no address there', [network('docker0', {})], [['docker0', '10.8.1.0/24', undefined]]],
    ['IPv6 first', [network('mine', { subnets: ['fd00::/64', '10.8.1.0/24'] })], [['mine', '10.8.1.0/24', '10.8.1.9']]],
    ['only IPv6', [network('mine', { subnets: ['fd00::/64'] })], []],
    ['not a bridge', [network('mine', { driver: 'macvlan' })], []],
    ['an interface that is not there', [network('br-gone', {})], []],
    ['no Docker', [], [['docker0', '10.8.0.0/24', '10.8.0.1']]],
  ] as const) {
    t.same(pictured([...networks]), expected, what);
  }
});

function world() {
  const clock = new ManualClock();
  const conditions = new Conditions(silentLog, clock, new Metrics());
  const topology = new Latest<Topology>(emptyTopology);
  const open = new Set<string>();
  const faults = new Map<string, { code: string; syscall: string }>();
  let tries = 0;
  const listen = async (endpoint: Endpoint, purpose: string): Promise<NameServer> => {
    tries += 1;
    const fault = faults.get(endpoint.address);
    if (fault !== undefined) throw Object.assign(new Error(`${fault.syscall} ${fault.code}`), fault);
    const name = `${formatEndpoint(endpoint)} ${purpose}`;
    if (open.has(name)) throw new Error(`${name} twice`);
    open.add(name);
    return { endpoint, close: async () => void open.delete(name) };
  };
  const bridges = (...entries: [name: string, gateway: string | undefined][]) => {
    topology.set({
      addresses: new Set(),
      bridges: entries.map(
        ([name, gateway]): Bridge => ({
          interface: name,
          network: name,
          subnet: parseIpv4Range('10.8.0.0/16') as Ipv4Range,
          gateway,
          internal: false,
        }),
      ),
    });
  };
  const asked: string[] = [];
  const servers = new BridgeNameServers({
    topology,
    listen,
    explain: (error, endpoint, transport) => {
      asked.push(transport);
      return explainListenError(error, endpoint, transport);
    },
    conditions,
    clock,
    log: silentLog,
  });
  const stop = new AbortController();
  return { clock, conditions, open, faults, bridges, servers, stop, asked, tries: () => tries };
}

t.test('name servers follow the bridges', async (t) => {
  const { clock, open, bridges, servers, stop } = world();
  bridges(['docker0', '10.8.0.1'], ['no-address', undefined]);
  const following = servers.follow(stop.signal);
  await clock.advance(0);
  t.same([...open], ['10.8.0.1:53 bridge docker0']);
  bridges(['docker0', '10.8.0.1'], ['br-a', '10.8.1.1']);
  await clock.advance(0);
  t.same([...open], ['10.8.0.1:53 bridge docker0', '10.8.1.1:53 bridge br-a']);
  bridges(['docker0', '10.8.0.1']);
  await clock.advance(0);
  t.same([...open], ['10.8.0.1:53 bridge docker0']);
  bridges(['docker0', '10.8.0.1'], ['br-b', '10.8.1.1']);
  await clock.advance(0);
  t.same([...open], ['10.8.0.1:53 bridge docker0', '10.8.1.1:53 bridge br-b'], 'the same address on another bridge');
  stop.abort();
  await following;
  t.same([...open], [], 'all closed at the end');
});

t.test('a taken port is reported and tried again', async (t) => {
  const { clock, conditions, open, faults, bridges, servers, stop, asked, tries } = world();
  faults.set('10.8.0.1', { code: 'EADDRINUSE', syscall: 'listen' });
  bridges(['docker0', '10.8.0.1']);
  const following = servers.follow(stop.signal);
  await waitFor('the condition', () => conditions.list()[0]);
  t.match(conditions.list(), [
    {
      id: 'dns.listen.10.8.0.1:53',
      severity: 'warning',
      message: 'no name server for containers on docker0: 10.8.0.1:53/tcp is held by another process',
      hint: /^set dns\.bridges: off, or /,
    },
  ]);
  t.same(asked, ['tcp'], 'the transport that failed is looked into');
  await waitFor('a long time of failure', async () => {
    await clock.advance(1000);
    return tries() > 8;
  });
  const before = tries();
  for (let second = 0; second < 120; second += 1) await clock.advance(1000);
  t.ok(tries() - before <= 6, `tries are rare after a while (${tries() - before} in two minutes)`);
  faults.clear();
  await waitFor('it to listen', async () => {
    await clock.advance(1000);
    return open.size === 1;
  });
  t.same(conditions.list(), []);
  stop.abort();
  await following;
});

t.test('an address that is not up yet is no fault at first', async (t) => {
  const { clock, conditions, faults, bridges, servers, stop, tries } = world();
  faults.set('10.8.0.1', { code: 'EADDRNOTAVAIL', syscall: 'bind' });
  bridges(['docker0', '10.8.0.1']);
  const following = servers.follow(stop.signal);
  await clock.advance(1000);
  t.ok(tries() >= 2);
  t.same(conditions.list(), []);
  await waitFor('the condition', async () => {
    await clock.advance(1000);
    return conditions.list().length === 1;
  });
  t.match(conditions.list()[0]?.message, /10\.8\.0\.1 is not an address of this host/);
  bridges();
  await waitFor('the condition to go with its bridge', async () => {
    await clock.advance(1);
    return conditions.list().length === 0;
  });
  stop.abort();
  await following;
});

t.test('in a network namespace of its own', { skip: unless('netns') }, async (t) => {
  const namespace = makeNamespace(`legate-test-net-${process.pid}`);
  t.teardown(() => namespace.remove());
  const child = fileURLToPath(new URL('network.netns.js', import.meta.url));
  await t.spawn('ip', ['netns', 'exec', namespace.name, process.execPath, child], {}, 'network.netns');
});
