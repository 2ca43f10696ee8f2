import { once } from 'node:events';
import t from 'tap';
import type { ServiceDocument } from '../sidecar/admin/documents.ts';
import { Agent, type Teardown } from './support/agent.ts';
import {
  complaint,
  descendantsOf,
  descriptorsOf,
  isRunning,
  metricOf,
  noComplaint,
  rssOf,
  statusOf,
} from './support/faults.ts';
import { unless } from './support/needs.ts';
import { SmallNetwork } from './support/small-network.ts';
import { waitFor } from './support/wait.ts';

/** What others do to the network below a sidecar: in network namespaces of the test's own. */
const skip = unless('nft', 'netns');
const range = '240.96.0.0/16';
const table = 'legate_240_96_0_0_16';

/** Sends back, in a line, what it gets; on `flood` it sends without end. */
const server = `
const net = require('node:net');
net.createServer({ allowHalfOpen: true }, (socket) => {
  socket.on('error', () => socket.destroy()).on('end', () => socket.end());
  socket.once('data', (chunk) => {
    if (!chunk.toString().startsWith('flood')) return socket.end(chunk);
    const more = () => { while (socket.write(Buffer.alloc(65536))); };
    socket.on('drain', more);
    more();
  });
}).listen(0, '127.0.0.1', function () { console.log(this.address().port); });
`;
/** Says \`hello\` to an address and prints the answer, or the error's code, or TIMEOUT after a second. */
const greeting = `
const [, address, port] = process.argv;
const socket = require('node:net').connect(Number(port), address);
let text = '';
socket.setTimeout(1000, () => { console.log('TIMEOUT'); process.exit(0); });
socket.on('connect', () => socket.end('hello')).on('data', (chunk) => { text += chunk; });
socket.on('error', (error) => { text = error.code; }).on('close', () => console.log(text));
`;

interface Scene {
  readonly net: SmallNetwork;
  readonly agent: Agent;
  readonly vip: string;
  readonly greet: () => Promise<string>;
}

const vipConfig = { mode: 'auto', range, local_range: '240.97.0.0/16' };

async function serviceWithVip(agent: Agent): Promise<string> {
  return waitFor(
    'the virtual address',
    async () => (await agent.json<ServiceDocument>('/api/services/db')).vip ?? undefined,
  );
}

async function scene(t: Teardown, more: Readonly<Record<string, unknown>> = {}): Promise<Scene> {
  const net = await SmallNetwork.open(t);
  const { first: port } = await net.start('host', process.execPath, '-e', server);
  const agent = new Agent(t, {
    instances: [{ service: 'db', address: '127.0.0.1', port: Number(port) }],
    services: { db: { port: 5432 } },
    vip: vipConfig,
    dns: { listen: ['127.0.0.1:0'], bridges: 'off', upstream: 'off' },
    ...more,
  });
  await agent.start({ prefix: net.inside('host') });
  const vip = await serviceWithVip(agent);
  const say = (): Promise<string> => net.script('client', greeting, vip, '5432');
  await waitFor('a container to reach it', async () => (await say()) === 'hello', { everyMs: 50 });
  return { net, agent, vip, greet: say };
}

// They share nothing, and wait more than they work.
t.jobs = 3;

t.test('what others remove is built again', { skip, timeout: 120_000 }, async (t) => {
  const { net, agent, greet } = await scene(t);
  const listing = async (): Promise<string> =>
    (await net.onHost('nft', 'list', 'table', 'ip', table)).replace(/packets \d+ bytes \d+/g, '');
  const route = (): Promise<string> => net.onHost('ip', '-4', 'route', 'show', 'table', 'local', 'exact', range);
  const before = { rules: await listing(), route: await route() };
  t.match(before.rules, net.bridge);
  const deeds: readonly (readonly [string, readonly string[], RegExp])[] = [
    ['the table', ['nft', 'flush', 'ruleset'], /removed our nftables table|changed our nftables table/],
    ['the route', ['ip', 'route', 'del', 'local', range, 'dev', 'lo'], /removed our route/],
    ['the bridges', ['nft', 'flush', 'set', 'ip', table, 'clients'], /changed our nftables table/],
    ['a mapping', ['nft', 'flush', 'map', 'ip', table, 'tcp_vip'], /changed our nftables table/],
    ['a chain', ['nft', 'flush', 'chain', 'ip', table, 'guard'], /changed our nftables table/],
  ];
  for (const [index, [what, command, said]] of deeds.entries()) {
    await net.onHost(...command);
    await waitFor(
      `${what} to be back`,
      async () => (await listing()) === before.rules && (await route()) === before.route,
    );
    t.equal(await greet(), 'hello', `after the removal of ${what} containers get through`);
    await complaint(agent, said);
    t.equal(await metricOf(agent, 'legate_vip_rebuilds_total'), index + 1, 'built again once');
  }
  const helpers = descendantsOf(agent.pid);
  t.ok(helpers.some((each) => /^nft /.test(each.command)) && helpers.some((each) => /^ip /.test(each.command)));
  await agent.kill('SIGKILL');
  await waitFor('its helpers to end with it', () => helpers.every((each) => !isRunning(each.pid)));
  t.equal(await listing(), before.rules, 'a crash leaves the table');
  await agent.start({ prefix: net.inside('host') });
  const ports = /(: 240[\d.]+ \. )\d+/g;
  await waitFor(
    'the table to be exact again',
    async () => (await listing()).replaceAll(ports, '$1') === before.rules.replaceAll(ports, '$1'),
  );
  t.equal(await greet(), 'hello');
  t.equal(await agent.kill(), 0);
  t.equal(await net.onHost('nft', 'list', 'tables'), '', 'a clean stop takes the table back');
  t.equal(await route(), '', 'and the route');
});

t.test(
  'a firewall of the host drops what containers send to virtual addresses',
  { skip, timeout: 120_000 },
  async (t) => {
    const { net, agent, vip, greet } = await scene(t);
    await net.onHost(
      'nft',
      'add table ip hostfw; add chain ip hostfw input { type filter hook input priority 0; policy drop; }; add rule ip hostfw input iifname lo accept; add rule ip hostfw input ct state established accept',
    );
    t.equal(await greet(), 'TIMEOUT');
    t.equal(await net.script('host', greeting, vip, '5432'), 'hello', 'the host itself gets through');
    const said = await waitFor(
      'status to name it',
      async () => {
        await greet();
        return (await statusOf(agent)).todo.find((each) => /a firewall of this host drops/.test(each.message));
      },
      { timeoutMs: 30_000 },
    );
    t.match(said, { severity: 'error', hint: new RegExp(`iptables -I INPUT -d ${range} -j ACCEPT`) });
    await net.onHost('nft', 'insert', 'rule', 'ip', 'hostfw', 'input', 'ip', 'daddr', range, 'accept');
    t.equal(await greet(), 'hello', 'the rule that the hint names helps');
    await waitFor(
      'status no longer to name it',
      async () => {
        await greet();
        return !(await statusOf(agent)).todo.some((each) => /firewall/.test(each.message));
      },
      { timeoutMs: 40_000 },
    );
    t.equal(await agent.kill(), 0);
  },
);

t.test('two sidecars of one host', { skip, timeout: 120_000 }, async (t) => {
  const { net, agent, greet } = await scene(t, { dns: { listen: ['127.0.0.1:0'], bridges: 'auto', upstream: 'off' } });
  const second = new Agent(t, {
    host: 'web-2',
    vip: vipConfig,
    dns: { listen: ['127.0.0.1:0'], bridges: 'auto', upstream: 'off' },
  });
  await second.start({ prefix: net.inside('host') });
  const status = await statusOf(second);
  t.match(status.vip, { state: 'off', reason: new RegExp(`another sidecar \\(pid ${agent.pid}\\) owns table`) });
  t.match(await complaint(second, /no virtual addresses/), { hint: /stop it, give this one another vip.range/ });
  await complaint(second, new RegExp(`10\\.214\\.0\\.1:53/udp is held by node \\(pid ${agent.pid}\\)`));
  t.equal(await greet(), 'hello', 'the first is not disturbed');
  t.equal(await second.kill(), 0);
  t.equal(await greet(), 'hello', 'nor by the end of the second');
  await second.start({ prefix: net.inside('host') });
  t.equal(await agent.kill(), 0);
  t.not(await greet(), 'hello', 'without the first nobody answers at its addresses');
  t.match((await statusOf(second)).vip, { state: 'off' }, 'the second goes on as it began');
  await noComplaint(second, /10\.214\.0\.1:53/, 40_000);
  await second.kill();
  await second.start({ prefix: net.inside('host') });
  t.match((await statusOf(second)).vip, { state: 'on', reason: null }, 'restarted, it takes over');
  await waitFor('nothing to be left in status', async () => (await statusOf(second)).todo.length === 0, {
    timeoutMs: 30_000,
  });
  t.equal(await second.kill(), 0);
});

t.test('port 53 of a bridge is taken', { skip, timeout: 120_000 }, async (t) => {
  const net = await SmallNetwork.open(t);
  const holdUdp = `require('node:dgram').createSocket('udp4').bind(53, '${net.gateway}', () => console.log(process.pid))`;
  const holdTcp = `require('node:net').createServer().listen(53, '0.0.0.0', () => console.log(process.pid))`;
  const agent = new Agent(t, {
    dns: { listen: ['127.0.0.1:0'], bridges: 'auto', upstream: 'off' },
    instances: [{ service: 'db', address: '127.0.0.1', port: 1 }],
  });
  const names = async (): Promise<boolean> =>
    (await statusOf(agent)).names.some((each) => each.listen === `${net.gateway}:53` && each.problem === null);
  const asks = `
const { Resolver } = require('node:dns/promises');
const resolver = new Resolver({ timeout: 1000, tries: 1 });
resolver.setServers(['${net.gateway}']);
resolver.resolveTxt('db.service.mesh.internal').then((records) => console.log('answered', records.length), (error) => console.log(error.code));`;
  for (const [transport, hold] of [
    ['udp', holdUdp],
    ['tcp', holdTcp],
  ] as const) {
    const { child, first: pid } = await net.start('host', process.execPath, '-e', hold);
    if (!agent.running) await agent.start({ prefix: net.inside('host') });
    const said = await complaint(
      agent,
      new RegExp(`${net.gateway.replaceAll('.', '\\.')}:53/${transport} is held by node \\(pid ${pid}\\)`),
    );
    t.match(said, { message: new RegExp(net.bridge), hint: /set dns\.bridges: off, or stop node/ });
    t.notOk(await names());
    process.kill(Number(pid), 'SIGKILL');
    await once(child, 'exit');
    await waitFor('the sidecar to take over', names, { timeoutMs: 40_000 });
    t.match(await net.script('client', asks), /answered 1/);
    await waitFor('nothing to be left in status', async () => (await statusOf(agent)).todo.length === 0, {
      timeoutMs: 30_000,
    });
    t.equal(await agent.kill(), 0);
  }
});

t.test('clients that vanish at once and clients that never read', { skip, timeout: 120_000 }, async (t) => {
  const { net, agent, vip, greet } = await scene(t);
  const before = { descriptors: descriptorsOf(agent.pid), rss: rssOf(agent.pid) };
  const vanish = `
const net = require('node:net');
const [, address, port] = process.argv;
let made = 0, open = 0, ended = 0;
const one = () => {
  if (made >= 2000) return;
  made += 1;
  const socket = net.connect(Number(port), address);
  socket.on('error', () => undefined);
  socket.on('connect', () => [() => socket.destroy(), () => socket.resetAndDestroy(), () => { socket.write('hello'); socket.destroy(); }, () => { socket.end(); socket.destroy(); }][made % 4]());
  socket.on('close', () => { ended += 1; if (ended === 2000) console.log('2000'); one(); });
};
for (let each = 0; each < 32; each += 1) one();
`;
  t.equal(await net.script('client', vanish, vip, '5432'), '2000');
  await waitFor('their descriptors to return', () => descriptorsOf(agent.pid) <= before.descriptors + 2);
  t.equal(await greet(), 'hello');
  t.equal(await metricOf(agent, 'legate_link_active_connections'), 0);

  const stall = `
const net = require('node:net');
const [, address, port] = process.argv;
let connected = 0;
for (let each = 0; each < 50; each += 1) {
  const socket = net.connect(Number(port), address, () => { socket.write('flood'); socket.pause(); connected += 1; if (connected === 50) console.log('stalled'); });
  socket.on('error', () => undefined).pause();
}
setTimeout(() => undefined, 60000);
`;
  const { child } = await net.start('client', process.execPath, '-e', stall, vip, '5432');
  let steady = 0;
  let last = -1;
  const carried = async (): Promise<number> => {
    const { text } = await agent.api('GET', '/metrics');
    return [...text.matchAll(/^legate_link_sent_bytes_total\{[^}]*\} (\d+)$/gm)].reduce(
      (sum, [, value]) => sum + Number(value),
      0,
    );
  };
  await waitFor(
    'the flood to stand still',
    async () => {
      const now = await carried();
      steady = now === last && now > 0 ? steady + 1 : 0;
      last = now;
      return steady >= 5;
    },
    { timeoutMs: 20_000, everyMs: 100 },
  );
  const held = (rssOf(agent.pid) - before.rss) / 1024 / 1024;
  t.ok(held < 150, `50 stalled floods hold ${Math.round(held)} MiB`);
  t.equal(await greet(), 'hello', 'others get through');
  child.kill('SIGKILL');
  await waitFor('their descriptors to return', () => descriptorsOf(agent.pid) <= before.descriptors + 2);
  t.equal(await greet(), 'hello');
  await waitFor('nothing to be left in status', async () => (await statusOf(agent)).todo.length === 0, {
    timeoutMs: 30_000,
  });
  t.equal(await agent.kill(), 0);
});
