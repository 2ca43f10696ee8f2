import { spawn } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { systemClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import { describeError, isLegateError } from '../../src/base/errors.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import { bindUdp, listenTcp } from '../../src/base/sockets.ts';
import { type Ipv4Range, parseIpv4Range } from '../../src/model/address.ts';
import { waitFor } from '../../test/support/wait.ts';
import type { PortMapping } from './port-map.ts';
import { Connector, makeNamespace, run } from './test-namespace.ts';
import { openVipTable, type VipTable } from './vip-table.ts';

/** Runs inside a network namespace of its own; `vip-table.test.ts` makes it and starts this. */
const own = process.env.LEGATE_TEST_NAMESPACE ?? '';
const range = parseIpv4Range('240.77.0.0/16') as Ipv4Range;
const vip = '240.77.0.5';

/** Another process that opens the table, maps one port, and then waits to be killed. */
if (process.argv[2] === 'owner') {
  const { table } = await openTable();
  await table.set('test', [tcp(vip, 1000, 2000)]);
  process.stdout.write('open\n');
  setInterval(() => undefined, 1000);
  await new Promise(() => undefined);
}

function tcp(address: string, port: number, privatePort: number): PortMapping {
  return { transport: 'tcp', address, port, privatePort };
}

async function openTable(everyMs = 10_000): Promise<{ table: VipTable; conditions: Conditions }> {
  const metrics = new Metrics();
  const conditions = new Conditions(silentLog, systemClock, metrics);
  const probe = { everyMs };
  const table = await openVipTable({ range, clock: systemClock, log: silentLog, metrics, conditions, probe });
  return { table, conditions };
}

/** A bridge with one container-like namespace behind it: 10.9.0.2 there, 10.9.0.1 here. */
function attach(suffix: string, bridge: string, network: number): string {
  const name = `${own}-${suffix}`;
  const made = makeNamespace(name);
  t.teardown(() => made.remove());
  run('ip', 'link', 'add', bridge, 'type', 'bridge');
  run('ip', 'address', 'add', `10.9.${network}.1/24`, 'dev', bridge);
  run('ip', 'link', 'set', bridge, 'up');
  run('ip', 'link', 'add', `v${suffix}`, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', name);
  run('ip', 'link', 'set', `v${suffix}`, 'master', bridge, 'up');
  run('ip', '-n', name, 'address', 'add', `10.9.${network}.2/24`, 'dev', 'eth0');
  run('ip', '-n', name, 'link', 'set', 'eth0', 'up');
  run('ip', '-n', name, 'route', 'add', 'default', 'via', `10.9.${network}.1`);
  return name;
}

async function greeter(word: string, address = vip): Promise<{ server: Server; port: number }> {
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.end(word);
  });
  const port = await listenTcp(server, { address, port: 0 });
  t.teardown(() => server.close());
  return { server, port };
}

function descendants(pid: string): string[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')
    .split(' ')
    .filter((child) => child !== '');
  return children.flatMap((child) => [child, ...descendants(child)]);
}

function runs(pid: string): boolean {
  try {
    return !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return false;
  }
}

const connect = (namespace: string | undefined, address: string, port: number, count?: number) =>
  new Connector(namespace, address, port, count).result();
const tables = (): string => run('nft', 'list', 'tables');
const routes = (): string => run('ip', 'route', 'show', 'table', 'local');
const once1 = (word: string) => ({ [word]: 1 });

const inside = attach('in', 'docker0', 0);
const outside = attach('out', 'other0', 1);

t.test('virtual addresses are reached from clients only, and only at mapped ports', async (t) => {
  const { table } = await openTable();
  t.teardown(() => table.close());
  const { port } = await greeter('hello');
  await Promise.all([table.setClients(['docker0']), table.set('links', [tcp(vip, 5432, port)])]);
  t.same((await connect(inside, vip, 5432)).greetings, once1('hello'), 'from a container');
  t.same((await connect(undefined, vip, 5432)).greetings, once1('hello'), 'from the host');
  for (const [what, address, wrongPort] of [
    ['an unmapped port', vip, 5433],
    ['the private port itself', vip, port],
    ['an address without mappings', '240.77.200.200', 5432],
  ] as const) {
    const { failures, slowestMs } = await connect(inside, address, wrongPort);
    t.same(failures, once1('ECONNREFUSED'), `${what} is refused`);
    t.ok(slowestMs < 500, `${what} is refused at once (${slowestMs.toFixed(0)} ms)`);
  }
  t.same((await connect(outside, vip, 5432)).failures, once1('TIMEOUT'), 'from elsewhere it is dropped');
  t.match(
    run('ip', 'netns', 'exec', inside, 'busybox', 'ping', '-c1', '-W2', '240.77.9.9'),
    / 0% packet loss/,
    'ping answers',
  );
  await table.set('links', []);
  t.same((await connect(inside, vip, 5432)).failures, once1('ECONNREFUSED'), 'refused once it left the map');
});

t.test('a further range has the same rules, and is looked after and taken back like the first', async (t) => {
  const { table } = await openTable(200);
  t.teardown(() => table.close());
  const local = parseIpv4Range('240.78.0.0/16') as Ipv4Range;
  const there = '240.78.0.7';
  await table.setClients(['docker0']);
  await t.rejects(table.set('links', [tcp(there, 5432, 2000)]), /is not in 240\.77\.0\.0/);
  await table.addRange(local);
  await table.addRange(local);
  const { port } = await greeter('instance', there);
  await table.set('links', [tcp(there, 5432, port)]);
  t.same((await connect(inside, there, 5432)).greetings, once1('instance'), 'from a container');
  t.same((await connect(undefined, there, 5432)).greetings, once1('instance'), 'from the host');
  t.same((await connect(inside, there, 5433)).failures, once1('ECONNREFUSED'));
  t.same((await connect(outside, there, 5432)).failures, once1('TIMEOUT'), 'from elsewhere it is dropped');
  run('ip', 'route', 'del', 'local', local.text, 'dev', 'lo');
  await waitFor('the route is back', () => routes().includes(local.text));
  t.same((await connect(inside, there, 5432)).greetings, once1('instance'));
  await table.close();
  t.notOk(routes().includes('240.7'));
});

t.test('guarded endpoints of the host are closed to others', async (t) => {
  const { table } = await openTable();
  t.teardown(() => table.close());
  const { port } = await greeter('dns', '10.9.0.1');
  t.same((await connect(outside, '10.9.0.1', port)).greetings, once1('dns'), 'open before');
  await Promise.all([table.setClients(['docker0']), table.setGuards([{ address: '10.9.0.1', port }])]);
  t.same((await connect(inside, '10.9.0.1', port)).greetings, once1('dns'), 'open to a container');
  t.same((await connect(undefined, '10.9.0.1', port)).greetings, once1('dns'), 'open to the host');
  t.same((await connect(outside, '10.9.0.1', port)).failures, once1('TIMEOUT'), 'closed to others');
});

t.test('impossible and conflicting changes are refused and change nothing', async (t) => {
  const { table } = await openTable();
  t.teardown(() => table.close());
  await table.set('a', [tcp(vip, 80, 8080)]);
  await t.rejects(table.set('b', [tcp('240.77.0.6', 81, 8081), tcp(vip, 80, 9090)]), { code: 'E_CONFLICT' });
  for (const [what, mapping] of [
    ['outside the range', tcp('10.0.0.1', 80, 8080)],
    ['no address', tcp('240.77.0.5 }; flush ruleset', 80, 8080)],
    ['a port too large', tcp(vip, 70_000, 8080)],
    ['the same port', tcp(vip, 8080, 8080)],
  ] as const) {
    await t.rejects(table.set('b', [mapping]), { code: 'E_INVALID' }, what);
  }
  await t.rejects(table.set('b', [tcp(vip, 1, 2), tcp(vip, 1, 3)]), { code: 'E_INVALID' }, 'twice');
  await t.rejects(table.setClients(['eth"0']), { code: 'E_INVALID' }, 'a name nft would misread');
  t.notMatch(run('nft', 'list', 'map', 'ip', 'legate', 'tcp_vip'), /8081|9090/);
  await Promise.all([table.set('a', []), table.set('b', [tcp(vip, 80, 9090)])]);
  t.match(run('nft', 'list', 'map', 'ip', 'legate', 'tcp_vip'), /\. 9090 }/, 'what one gives up another may take');
});

t.test('a port moves to another listener under load without a failure', async (t) => {
  const { table } = await openTable();
  t.teardown(() => table.close());
  const [one, two] = await Promise.all([greeter('one'), greeter('two')]);
  await Promise.all([table.setClients(['docker0']), table.set('links', [tcp(vip, 5432, one.port)])]);
  const load = [1, 2, 3, 4].map(() => new Connector(inside, vip, 5432, 1_000_000));
  await waitFor('the load', () => load.every((connector) => connector.started));
  for (let round = 1; round <= 40; round += 1) {
    await table.set('links', [tcp(vip, 5432, round % 2 === 0 ? one.port : two.port)]);
    await systemClock.sleep(10);
  }
  const outcomes = await Promise.all(load.map((connector) => connector.stop()));
  const made = outcomes.map(({ greetings }) => (greetings.one ?? 0) + (greetings.two ?? 0));
  t.same(
    outcomes.map(({ failures }) => failures),
    [{}, {}, {}, {}],
    `no failure in ${made.reduce((sum, count) => sum + count, 0)} connections over 40 moves`,
  );
  t.ok(
    outcomes.every(({ greetings }) => (greetings.one ?? 0) > 0 && (greetings.two ?? 0) > 0),
    'both were used',
  );
});

t.test('a running udp flow follows its port to a listener, and to a new one', async (t) => {
  const { table } = await openTable();
  t.teardown(() => table.close());
  const echo = async (word: string) => {
    const socket = createSocket('udp4');
    socket.on('message', (_message, from) => socket.send(word, from.port, from.address));
    const privatePort = await bindUdp(socket, { address: vip, port: 0 });
    return { socket, mapping: { transport: 'udp', address: vip, port: 53, privatePort } as const };
  };
  const client = createSocket('udp4');
  t.teardown(() => client.close());
  client.connect(53, vip);
  await once(client, 'connect');
  let heard = '';
  client.on('message', (message) => {
    heard = message.toString();
  });
  let refused = false;
  client.on('error', () => {
    refused = true;
  });
  const hears = (word: string) =>
    waitFor(`an answer of ${word}`, () => {
      client.send('?');
      return heard === word;
    });
  await waitFor('a refusal while the port leads nowhere', () => {
    client.send('?');
    return refused;
  });
  const first = await echo('first');
  await table.set('dns', [first.mapping]);
  await hears('first');
  const second = await echo('second');
  await table.set('dns', [second.mapping]);
  first.socket.close();
  await hears('second');
  second.socket.close();
});

t.test('what others remove is built again', async (t) => {
  const { table, conditions } = await openTable(300);
  t.teardown(() => table.close());
  const { port } = await greeter('again');
  await Promise.all([table.setClients(['docker0']), table.set('links', [tcp(vip, 5432, port)])]);
  const before = run('nft', '-s', 'list', 'table', 'ip', 'legate');
  for (const [what, ...command] of [
    ['removed our nftables table', 'nft', 'flush', 'ruleset'],
    ['removed our nftables table', 'nft', 'delete', 'table', 'ip', 'legate'],
    ['changed our nftables table', 'nft', 'flush', 'chain', 'ip', 'legate', 'guard'],
    ['changed our nftables table', 'nft', 'flush', 'set', 'ip', 'legate', 'clients'],
    ['removed our route', 'ip', 'route', 'del', 'local', range.text, 'dev', 'lo'],
  ] as const) {
    const startedMs = performance.now();
    run(...(command as [string, ...string[]]));
    await waitFor(what, () => conditions.list().find(({ message }) => message.includes(`somebody ${what}`)));
    const tookMs = performance.now() - startedMs;
    t.ok(tookMs < 1000, `${command.join(' ')}: built again after ${tookMs.toFixed(0)} ms`);
    t.equal(run('nft', '-s', 'list', 'table', 'ip', 'legate'), before, 'exactly');
    t.same((await connect(inside, vip, 5432)).greetings, once1('again'), 'it works');
    await waitFor('the condition to be over', () => conditions.list().length === 0);
  }
  run('nft', 'flush', 'ruleset');
  await table.set('links', [tcp(vip, 5433, port)]);
  t.same((await connect(inside, vip, 5433)).greetings, once1('again'), 'a change right after a flush is not lost');
});

t.test('a dead nft is replaced and loses no change', async (t) => {
  const { table } = await openTable();
  t.teardown(() => table.close());
  await table.set('a', [tcp(vip, 1, 2)]);
  for (let round = 0; round < 3; round += 1) {
    const child = run('pgrep', '-P', String(process.pid), '-x', 'nft').trim();
    process.kill(Number(child), 'SIGKILL');
    await table.set('a', [tcp(vip, 1, 100 + round)]);
    t.match(run('nft', 'list', 'map', 'ip', 'legate', 'tcp_vip'), new RegExp(`\\. ${100 + round} }`));
    await table.set('a', [tcp(vip, 1, 200 + round)]);
  }
});

t.test('a firewall that drops is noticed, and that it no longer does', async (t) => {
  const { table, conditions } = await openTable(200);
  t.teardown(() => table.close());
  const { port } = await greeter('through');
  await Promise.all([table.setClients(['docker0']), table.set('links', [tcp(vip, 5432, port)])]);
  t.same((await connect(inside, vip, 5432)).greetings, once1('through'));
  t.same(await table.counters(), { seen: 1, arrived: 1 });
  run('nft', 'add table ip fw; add chain ip fw c { type filter hook input priority 0; policy drop; }');
  t.teardown(() => run('nft', 'add table ip fw; delete table ip fw'));
  const blocked = new Connector(inside, vip, 5432, 1_000_000, 300);
  const found = await waitFor('the condition', () => conditions.list()[0]);
  t.match(found, {
    severity: 'error',
    message: /^a firewall of this host drops/,
    hint: /iptables -I INPUT -d 240\.77/,
  });
  run('nft', 'delete table ip fw');
  await waitFor('its end', () => conditions.list().length === 0);
  t.ok(((await blocked.stop()).greetings.through ?? 0) > 0);
});

t.test('one owner at a time; a crash leaves a table that the next one replaces; close leaves nothing', async (t) => {
  const clean = { tables: tables(), routes: routes() };
  const file = fileURLToPath(import.meta.url);
  const owner = spawn(process.execPath, [file, 'owner'], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(() => owner.kill('SIGKILL'));
  await once(owner.stdout, 'data');
  const refusal = await openTable().catch((error) => error);
  t.ok(isLegateError(refusal, 'E_IN_USE'));
  t.match(refusal.message, `another sidecar (pid ${owner.pid}) owns table ip legate`);
  t.equal(describeError(refusal), refusal.message, 'in one line, without control characters');
  const children = descendants(String(owner.pid));
  t.equal(children.length, 5, 'nft -i, and two monitors with their shells');
  owner.kill('SIGKILL');
  await once(owner, 'exit');
  await waitFor('its children to end', () => children.every((pid) => !runs(pid)));
  t.match(tables(), /legate/, 'the crash left the table');
  const { table } = await openTable();
  t.notMatch(run('nft', 'list', 'table', 'ip', 'legate'), /1000 :/, 'without the old mappings');
  const closing = table.set('test', [tcp(vip, 1, 2)]).catch((error) => t.ok(isLegateError(error, 'E_CLOSED')));
  await table.close();
  await closing;
  await t.rejects(table.set('test', []), { code: 'E_CLOSED' });
  t.same({ tables: tables(), routes: routes() }, clean, 'nothing is left');
  t.equal(table.state.value.state, 'off');
});

t.test('without the right to change the network it says so', async (t) => {
  const node = [process.execPath, fileURLToPath(import.meta.url), 'owner'];
  const plain = spawn('setpriv', ['--reuid=65534', '--regid=65534', '--clear-groups', ...node], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let text = '';
  plain.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
  });
  await once(plain, 'close');
  t.match(text, /E_PERMISSION/);
  t.match(text, /capability NET_ADMIN/);
});

t.test('what it costs', async (t) => {
  const { table } = await openTable();
  t.teardown(() => table.close());
  const many = Array.from({ length: 10_000 }, (_, index) =>
    tcp(`240.77.${10 + (index >> 8)}.${index & 255}`, 80, 2000),
  );
  const figures: string[] = [];
  const timed = async (work: () => Promise<void>): Promise<number> => {
    const startedMs = performance.now();
    await work();
    return performance.now() - startedMs;
  };
  for (const size of [0, 10_000]) {
    const filledMs = await timed(() => table.set('many', many.slice(0, size)));
    const changes: number[] = [];
    for (let round = 0; round < 100; round += 1) {
      changes.push(await timed(() => table.set('one', round % 2 === 0 ? [tcp(vip, 1, 2)] : [])));
    }
    changes.sort((a, b) => a - b);
    const [median = 0, p95 = 0] = [changes[50], changes[95]];
    figures.push(
      `${size} elements in ${filledMs.toFixed(0)} ms, one change ${median.toFixed(2)} ms (p95 ${p95.toFixed(2)})`,
    );
    t.ok(median < 15, 'a change is quicker than a process for each would be');
  }
  t.comment(figures.join('; '));
});
