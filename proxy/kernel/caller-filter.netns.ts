import { createServer } from 'node:net';
import t from 'tap';
import { systemClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import { listenTcp } from '../../src/base/sockets.ts';
import { type Ipv4Range, parseIpv4Range } from '../../src/model/address.ts';
import { waitFor } from '../../test/support/wait.ts';
import { Connector, makeNamespace, run } from './test-namespace.ts';
import { openVipTable, type VipTable } from './vip-table.ts';

/** Runs inside a network namespace of its own; `caller-filter.test.ts` makes it and starts this. */
const own = process.env.LEGATE_TEST_NAMESPACE ?? '';
const range = (text: string): Ipv4Range => parseIpv4Range(text) as Ipv4Range;
const vip = '240.77.0.5';

run('ip', 'link', 'add', 'docker0', 'type', 'bridge');
run('ip', 'address', 'add', '10.9.0.1/24', 'dev', 'docker0');
run('ip', 'link', 'set', 'docker0', 'up');

/** A container-like namespace on the bridge, with an address and a MAC address. */
function attach(suffix: string, address: string, mac: string): string {
  const name = `${own}-${suffix}`;
  const made = makeNamespace(name);
  t.teardown(() => made.remove());
  run('ip', 'link', 'add', `veth${suffix}`, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', name);
  run('ip', 'link', 'set', `veth${suffix}`, 'master', 'docker0', 'up');
  become(name, address, mac);
  return name;
}

/** Changes who a namespace says it is. */
function become(name: string, address: string, mac: string): void {
  run('ip', '-n', name, 'address', 'flush', 'dev', 'eth0');
  run('ip', '-n', name, 'link', 'set', 'eth0', 'down');
  run('ip', '-n', name, 'link', 'set', 'eth0', 'address', mac);
  run('ip', '-n', name, 'address', 'add', `${address}/24`, 'dev', 'eth0');
  run('ip', '-n', name, 'link', 'set', 'eth0', 'up');
  run('ip', '-n', name, 'route', 'replace', 'default', 'via', '10.9.0.1');
  run('ip', 'neighbour', 'flush', 'all');
}

const [oneMac, twoMac] = ['02:42:0a:09:00:02', '02:42:0a:09:00:03'];
const one = attach('one', '10.9.0.2', oneMac);
const two = attach('two', '10.9.0.3', twoMac);
const binding = { address: '10.9.0.2', interface: 'vethone', mac: oneMac };

async function openTable(everyMs = 10_000): Promise<{ table: VipTable; conditions: Conditions; metrics: Metrics }> {
  const metrics = new Metrics();
  const conditions = new Conditions(silentLog, systemClock, metrics);
  const options = { range: range('240.77.0.0/16'), clock: systemClock, log: silentLog, metrics, conditions };
  const table = await openVipTable({ ...options, probe: { everyMs } });
  t.teardown(() => table.close());
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.end('hello');
  });
  const privatePort = await listenTcp(server, { address: vip, port: 0 });
  t.teardown(() => server.close());
  await Promise.all([
    table.setClients(['docker0']),
    table.setCallerRanges([range('10.9.0.0/24'), range('10.9.0.0/25')]),
    table.set('links', [{ transport: 'tcp', address: vip, port: 5432, privatePort }]),
  ]);
  return { table, conditions, metrics };
}

const connect = (namespace: string | undefined, address = vip, port = 5432) =>
  new Connector(namespace, address, port).result();
const greeted = { greetings: { hello: 1 } };
const dropped = { greetings: {}, failures: { TIMEOUT: 1 } };
const listed = (set: string): string =>
  /elements = \{ ([^}]*?) \}/.exec(run('nft', 'list', 'set', 'bridge', 'legate', set))?.[1] ?? '';

t.test('a bound address is accepted from one interface and one MAC address only', async (t) => {
  const { table } = await openTable();
  t.equal(table.filterProblem, null);
  t.match(await connect(one), greeted, 'not yet bound');
  const contact = { interface: 'vethone', mac: oneMac, source: { address: '10.9.0.2' }, destination: vip };
  t.match(await table.contacts(), [contact], 'and recorded');
  t.match(await connect(undefined), greeted, 'the host');

  await table.bind([binding], []);
  t.match(await connect(one), greeted, 'bound');
  t.equal((await table.contacts()).length, 2, 'and recorded, for it is fresh');
  await table.settle(['10.9.0.2']);
  t.match(await connect(one), greeted, 'no longer fresh');
  t.equal((await table.contacts()).length, 2, 'and not recorded');

  for (const [what, mac] of [
    ['the address alone', twoMac],
    ['address and MAC address', oneMac],
  ] as const) {
    run('ip', '-n', one, 'link', 'set', 'eth0', 'down');
    become(two, '10.9.0.2', mac);
    t.match(await connect(two), dropped, `${what} of another one`);
  }
  become(two, '10.9.0.3', twoMac);
  t.match(await connect(two), greeted, 'itself');
  become(one, '10.9.0.2', twoMac);
  t.match(await connect(one), dropped, 'its address from another MAC address');
  become(one, '10.9.0.2', oneMac);

  await table.bind([{ ...binding, interface: 'vethtwo' }], []);
  t.match(await connect(one), dropped, 'somebody else is bound to it now');
  await table.bind([], ['10.9.0.2']);
  t.match(await connect(one), greeted, 'nobody is');
  await table.close();
  t.notMatch(run('nft', 'list', 'tables'), /legate/, 'nothing is left');
});

t.test('what a newcomer asks for may come into being while it tries', async (t) => {
  const { table } = await openTable();
  const early = new Connector(one, vip, 6379, 1, 5000);
  await waitFor('its first segment', async () => (await table.contacts()).length === 1);
  const refused = await connect(undefined, vip, 6379);
  t.match(refused, { greetings: {}, failures: { ECONNREFUSED: 1 } }, 'the host is told at once');
  await table.bind([binding], []);
  const server = createServer((socket) => socket.end('hello'));
  const privatePort = await listenTcp(server, { address: vip, port: 0 });
  t.teardown(() => server.close());
  await table.set('late', [{ transport: 'tcp', address: vip, port: 6379, privatePort }]);
  t.match(await early.result(), greeted, 'the first segment came again');
  await table.settle([binding.address]);
  t.match(await connect(one, vip, 6380), { failures: { ECONNREFUSED: 1 } }, 'known for a while: told at once');
  await table.setTelling(false);
  t.match(await connect(two, vip, 6380), { failures: { ECONNREFUSED: 1 } }, 'nobody is waited for');
  await table.close();
});

t.test('endpoints of the host, where they are watched', async (t) => {
  const { table } = await openTable();
  const server = createServer((socket) => socket.end('hello'));
  const port = await listenTcp(server, { address: '10.9.0.1', port: 0 });
  t.teardown(() => server.close());
  await table.bind([{ ...binding, interface: 'vethtwo' }], []);
  t.match(await connect(one, '10.9.0.1', port), greeted, 'not watched');
  for (const watch of ['setWatched', 'setGuards'] as const) {
    await table[watch]([{ address: '10.9.0.1', port }]);
    t.match(await connect(one, '10.9.0.1', port), dropped, watch);
    await table[watch]([]);
  }
  await table.close();
});

t.test('what is dropped is told, and what others remove is built again', async (t) => {
  const { table, conditions, metrics } = await openTable(200);
  await table.bind([binding], []);
  await table.bind([{ address: '10.9.0.3', interface: 'vethone', mac: oneMac }], []);
  const before = run('nft', '-s', 'list', 'table', 'bridge', 'legate');
  const blocked = new Connector(two, vip, 5432, 1000, 300);
  await waitFor('a warning', () => conditions.list().find(({ message }) => message.includes('address of another one')));
  await blocked.stop();
  await waitFor('its end', () => conditions.list().length === 0);
  t.match(await metrics.exposition(), /^legate_callers_spoofed_packets_total [1-9]/m);

  for (const [what, ...command] of [
    ['removed our nftables table', 'nft', 'flush', 'ruleset'],
    ['removed our nftables table', 'nft', 'delete', 'table', 'bridge', 'legate'],
    ['changed our nftables table', 'nft', 'flush', 'chain', 'bridge', 'legate', 'entrance'],
    ['changed our nftables table', 'nft', 'flush', 'set', 'bridge', 'legate', 'bindings'],
    ['changed our nftables table', 'nft', 'flush', 'set', 'bridge', 'legate', 'ranges'],
  ] as const) {
    run(...(command as [string, ...string[]]));
    await waitFor(what, () => conditions.list().find(({ message }) => message.includes(`somebody ${what}`)));
    const text = (listing: string): string => listing.replace(/packets \d+ bytes \d+/g, '');
    t.equal(text(run('nft', '-s', 'list', 'table', 'bridge', 'legate')), text(before), `${command.join(' ')}: exactly`);
    await waitFor('the condition to be over', () => conditions.list().length === 0);
  }
  await table.close();
});

t.test('1,000 bindings and a change among them', async (t) => {
  const { table } = await openTable();
  const many = Array.from({ length: 1000 }, (_, index) => ({
    address: `10.9.${8 + (index >> 8)}.${index & 255}`,
    interface: `veth${index}`,
    mac: `02:42:00:00:${(index >> 8).toString(16).padStart(2, '0')}:${(index & 255).toString(16).padStart(2, '0')}`,
  }));
  await table.bind(many, []);
  const changes: number[] = [];
  for (let round = 0; round < 50; round += 1) {
    const startedMs = performance.now();
    await table.bind(round % 2 === 0 ? [binding] : [], round % 2 === 0 ? [] : [binding.address]);
    changes.push(performance.now() - startedMs);
  }
  changes.sort((a, b) => a - b);
  t.comment(`one change among 1,000 bindings: median ${changes[25]?.toFixed(2)} ms`);
  t.equal(listed('bound').split(',').length, 1000);
  await table.bind(
    [],
    many.map(({ address }) => address),
  );
  t.equal(listed('bound') + listed('bindings') + listed('fresh'), '');
  await table.close();
});
