import t from 'tap';
import { hostId, shownInstance } from '../../test/support/records.ts';
import {
  type Endpoint,
  formatEndpoint,
  inRange,
  ipv4ToNumber,
  isLoopback,
  numberToIpv4,
  parseEndpoint,
  parseIpv4Range,
  unmapped,
} from './address.ts';
import { dialOf, formatDial } from './dial.ts';
import { hostNameOf, instanceNameFault, nameFault, normaliseName } from './names.ts';
import { askerOf, type Bridge, type Topology, undialable } from './topology.ts';

t.test('names follow the grammar', async (t) => {
  for (const name of ['db', 'a', '0', 'web-1', 'x'.repeat(63)]) t.equal(nameFault(name), undefined, name);
  for (const name of ['', '-a', 'a-', 'A', 'a_b', 'a.b', 'x'.repeat(64), 'service', 'tcp', 'anonymous', 'ä']) {
    t.type(nameFault(name), 'string', JSON.stringify(name));
  }
  t.equal(normaliseName('My_App.v2'), 'my-app-v2');
  t.equal(normaliseName('__'), undefined);
  t.equal(normaliseName('TCP'), undefined);
  t.equal(hostNameOf('Web-1.example.com'), 'web-1');
  t.equal(instanceNameFault('0123456789ab-5432-udp'), undefined);
  t.type(instanceNameFault('a/b'), 'string');
});

t.test('addresses', async (t) => {
  t.equal(numberToIpv4(ipv4ToNumber('240.77.255.1')), '240.77.255.1');
  t.match(parseIpv4Range('240.77.0.0/16'), { size: 65536, prefixLength: 16 });
  for (const text of ['240.77.0.1/16', '240.77.0.0/33', '240.77.0.0', '1.2.3/8', 'x/8'])
    t.equal(parseIpv4Range(text), undefined);
  const range = parseIpv4Range('10.1.2.0/24');
  t.ok(range !== undefined && inRange(range, '10.1.2.255') && !inRange(range, '10.1.3.0') && !inRange(range, '::1'));
  t.same(parseEndpoint('127.0.0.1:53'), { address: '127.0.0.1', port: 53 });
  t.same(parseEndpoint('[::1]:53'), { address: '::1', port: 53 });
  for (const text of ['127.0.0.1', '127.0.0.1:65536', 'localhost:53', '::1:53', '256.1.1.1:5']) {
    t.equal(parseEndpoint(text), undefined, text);
  }
  t.equal(formatEndpoint({ address: '::1', port: 1 }), '[::1]:1');
  t.equal(unmapped('::ffff:10.0.0.1'), '10.0.0.1');
  t.ok(isLoopback('127.9.9.9') && !isLoopback('10.0.0.1'));
});

t.test('who asks, and what may be dialled from there', async (t) => {
  const bridge = (name: string, subnet: string, gateway: string): Bridge => {
    const range = parseIpv4Range(subnet);
    if (range === undefined) throw new Error(subnet);
    return { interface: name, network: name, subnet: range, gateway, internal: false };
  };
  const topology: Topology = {
    addresses: new Set(['127.0.0.1', '192.0.2.2', '172.17.0.1', '172.18.0.1']),
    bridges: [bridge('docker0', '172.17.0.0/16', '172.17.0.1'), bridge('br-shop', '172.18.0.0/16', '172.18.0.1')],
  };
  const vips = parseIpv4Range('240.77.0.0/16');
  const kind = (address: string): string => askerOf(topology, address, vips).kind;
  t.equal(kind('127.0.0.1'), 'host');
  t.equal(kind('172.17.0.1'), 'host');
  t.equal(kind('240.77.0.53'), 'host');
  t.equal(kind('172.17.0.9'), 'container');
  t.equal(kind('203.0.113.9'), 'elsewhere');
  const host = askerOf(topology, '127.0.0.1');
  const docker0 = askerOf(topology, '172.17.0.9');
  const own = { own: true, clearUnderlay: false } as const;
  const cases = [
    [host, { ...own, address: '172.18.0.5', reach: 'host' }, true],
    [host, { ...own, address: '127.0.0.1', reach: 'host' }, true],
    [docker0, { ...own, address: '172.17.0.5', reach: 'host' }, true],
    [docker0, { ...own, address: '172.18.0.5', reach: 'host' }, false],
    [docker0, { ...own, address: '127.0.0.1', reach: 'host' }, false],
    [docker0, { ...own, address: '192.0.2.2', reach: 'mesh' }, true],
    [host, { own: false, clearUnderlay: false, address: '10.0.0.9', reach: 'mesh' }, false],
    [host, { own: false, clearUnderlay: true, address: '10.0.0.9', reach: 'mesh' }, true],
    [host, { own: false, clearUnderlay: true, address: '172.17.0.9', reach: 'host' }, false],
    [askerOf(topology, '203.0.113.9'), { ...own, address: '172.17.0.5', reach: 'host' }, false],
    [askerOf(topology, '203.0.113.9'), { ...own, address: '192.0.2.2', reach: 'mesh' }, true],
  ] as const;
  for (const [asker, place, dialable] of cases) {
    t.equal(
      undialable(asker, topology, place) === undefined,
      dialable,
      `${asker.kind} → ${place.address} (${place.reach})`,
    );
  }
});

t.test('what a host dials for an instance', async (t) => {
  const here = { hostId: hostId(1), clearUnderlay: true, tunnels: false };
  const at = (endpoint: Endpoint) => ({ via: 'direct', endpoint });
  const published = { address: '10.77.0.2', port: 8080 };
  const own = shownInstance({ name: 'a', address: '172.17.0.2', published });
  t.same(dialOf(own, here), at({ address: '172.17.0.2', port: 5432 }), 'its own one itself');
  const there = { ...own, hostId: hostId(2) };
  t.equal(dialOf(there, here), 'its address is known only to its own host');
  t.same(dialOf({ ...there, reach: 'mesh' }, here), at(published));
  t.match(dialOf({ ...there, reach: 'mesh' }, { ...here, clearUnderlay: false }), /underlay is not declared/);
  t.equal(dialOf({ ...own, address: 'db.example' }, here), 'it has no IP address');
  const joined = { ...here, tunnels: true };
  t.same(dialOf(own, joined), at({ address: '172.17.0.2', port: 5432 }));
  t.same(dialOf({ ...there, reach: 'mesh' }, joined), at(published), 'directly where that may be');
  t.same(dialOf({ ...there, reach: 'mesh' }, { ...joined, clearUnderlay: false }), { via: 'tunnel' });
  t.same(dialOf(there, joined), { via: 'tunnel' });
  t.equal(formatDial({ via: 'tunnel' }, there), `${there.host} via tunnel`);
  t.equal(
    dialOf({ ...own, address: 'db.example' }, joined),
    'it has no IP address',
    'of this host nothing is tunnelled',
  );
});
