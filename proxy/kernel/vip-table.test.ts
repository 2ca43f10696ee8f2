import { execFile, execFileSync } from 'node:child_process';
import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import t from 'tap';
import { systemClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import { listenTcp } from '../../src/base/sockets.ts';
import { type Ipv4Range, parseIpv4Range } from '../../src/model/address.ts';
import { unless } from '../../test/support/needs.ts';
import { makeNamespace, run } from './test-namespace.ts';
import { passingOwner, VipMappings } from './vip-mappings.ts';
import {
  buildScript,
  deltaCommands,
  formerMappings,
  parseListing,
  plainMappings,
  sameContent,
  tableName,
} from './vip-rules.ts';
import { openVipTable } from './vip-table.ts';

const range = (text: string): Ipv4Range => parseIpv4Range(text) as Ipv4Range;
const content = (ports: readonly (readonly [string, number])[], clients: readonly string[] = ['lo']) => ({
  ports: new Map(ports),
  clients: new Set(clients),
  guarded: new Set<string>(),
});

t.test('the table is named after its range', async (t) => {
  t.equal(tableName(range('240.77.0.0/16')), 'legate');
  t.equal(tableName(range('240.99.0.0/20')), 'legate_240_99_0_0_20');
});

t.test('only differences become commands', async (t) => {
  const before = content([
    ['tcp 240.77.0.5 80', 1000],
    ['udp 240.77.0.5 53', 1053],
  ]);
  const after = content(
    [
      ['tcp 240.77.0.5 80', 1001],
      ['tcp 240.77.0.6 81', 1002],
      ['udp 240.77.0.6 54', 1054],
    ],
    ['lo', 'docker0'],
  );
  const keys = [...before.ports.keys(), ...after.ports.keys()];
  t.same(deltaCommands('legate', before, after, new Set(keys)), {
    commands: [
      'delete element ip legate tcp_vip { 240.77.0.5 . 80 }',
      'delete element ip legate udp_vip { 240.77.0.5 . 53 }',
      'add element ip legate tcp_vip { 240.77.0.5 . 80 : 240.77.0.5 . 1001, 240.77.0.6 . 81 : 240.77.0.6 . 1002 }',
      'add element ip legate udp_vip { 240.77.0.6 . 54 : 240.77.0.6 . 1054 }',
      'add element ip legate clients { "docker0" }',
    ],
    size: 6,
    staleUdp: [
      { address: '240.77.0.5', port: '53', privatePort: 1053 },
      { address: '240.77.0.6', port: '54', privatePort: 54 },
    ],
  });
  t.same(deltaCommands('legate', after, after, new Set(keys)).commands, []);

  const slot = Array.from({ length: 100 }, (_, port) => [`tcp_1 240.77.0.5 ${port + 1}`, 2000] as const);
  const both = content([...slot, ['tcp_0 240.77.0.5 1', 3000]]);
  t.same(
    deltaCommands('legate', both, content([['tcp_0 240.77.0.5 1', 3000]]), both.ports.keys()).commands,
    ['flush map ip legate tcp_1'],
    'what a dead process had leaves at one stroke',
  );
});

t.test(
  'in a network namespace of its own',
  { skip: unless('nft', 'netns', 'busybox', 'command:conntrack') },
  async (t) => {
    const namespace = makeNamespace(`legate-test-net-${process.pid}`);
    t.teardown(() => namespace.remove());
    const child = fileURLToPath(new URL('vip-table.netns.js', import.meta.url));
    const env = { ...process.env, LEGATE_TEST_NAMESPACE: namespace.name };
    await t.spawn('ip', ['netns', 'exec', namespace.name, process.execPath, child], { env }, 'vip-table.netns');
  },
);

t.test('what was built is read back', { skip: unless('nft', 'netns') }, async (t) => {
  const namespace = makeNamespace(`legate-test-net-${process.pid}-list`);
  t.teardown(() => namespace.remove());
  const nft = ['netns', 'exec', namespace.name, 'nft'];
  const many = Array.from({ length: 300 }, (_, index) => [`udp 240.77.1.${index & 255} ${53 + index}`, 2000] as const);
  const wanted = {
    ...content([['tcp 240.77.0.5 5432', 15432], ...many], ['lo', 'docker0', 'br-0123456789ab']),
    guarded: new Set(['172.17.0.1 . 53', '172.18.0.1 . 53']),
  };
  execFileSync('ip', [...nft, '-f', '-'], { input: buildScript('legate', [range('240.77.0.0/16')], wanted) });
  const full = parseListing(run('ip', ...nft, 'list', 'table', 'ip', 'legate'));
  t.ok(sameContent(full.content, wanted));
  t.notOk(sameContent(full.content, content([])));
  t.equal(parseListing(run('ip', ...nft, '-t', 'list', 'table', 'ip', 'legate')).shape, full.shape);

  const slots = content([
    ['tcp 240.77.0.53 53', 15053],
    ['tcp_0 240.77.0.5 5432', 15432],
    ['tcp_1 240.77.0.5 5432', 15433],
    ['tcp_former 240.77.0.6 80', 15080],
  ]);
  for (const count of [1, 2, 3]) {
    const wanted = count === 1 ? content([...slots.ports].filter(([key]) => !key.startsWith('tcp_1'))) : slots;
    execFileSync('ip', [...nft, '-f', '-'], { input: buildScript('legate', [range('240.77.0.0/16')], wanted, count) });
    const listing = parseListing(run('ip', ...nft, 'list', 'table', 'ip', 'legate'));
    t.ok(sameContent(listing.content, wanted), `${count} slots`);
    t.equal(parseListing(run('ip', ...nft, '-t', 'list', 'table', 'ip', 'legate')).shape, listing.shape);
    const ports = formerMappings(listing.content).map(({ address, port }) => `${address}:${port}`);
    t.same(ports.sort(), ['240.77.0.5:5432', '240.77.0.6:80'], 'what links had, and not what names have');
    const names = { transport: 'tcp', address: '240.77.0.53', port: 53, privatePort: 15053 };
    t.same(plainMappings(listing.content), [names]);
  }
});

t.test('what was mapped before goes to whoever wants it', async (t) => {
  const mappings = new VipMappings([range('240.77.0.0/16')]);
  const names = { transport: 'udp', address: '240.77.0.53', port: 53, privatePort: 15053 } as const;
  const other = { ...names, port: 54 };
  mappings.replace(passingOwner, [names, other]);
  t.same(mappings.replace('dns', [names]), [], 'the kernel has it already');
  t.throws(() => mappings.replace('links', [names]), { code: 'E_CONFLICT' });
  t.same(mappings.replace(passingOwner, []), ['udp 240.77.0.53 54']);
  t.same([...mappings.ports.keys()], ['udp 240.77.0.53 53']);
});

t.test('beside a real Docker Engine', { skip: unless('nft', 'docker', 'busybox') }, async (t) => {
  const id = `legate-test-net-${process.pid}`;
  const root = mkdtempSync(join(tmpdir(), `${id}-`));
  t.teardown(() => {
    for (const name of [`${id}-published`, `${id}-a`, `${id}-b`]) tryRun('docker', 'rm', '-f', name);
    tryRun('docker', 'network', 'rm', id);
    tryRun('docker', 'image', 'rm', id);
    rmSync(root, { recursive: true, force: true });
  });
  cpSync('/bin/busybox', join(root, 'busybox'));
  run('tar', '-C', root, '-cf', join(root, 'image.tar'), 'busybox');
  run('docker', 'import', join(root, 'image.tar'), id);
  run('docker', 'network', 'create', id);
  const bridge = `br-${run('docker', 'network', 'inspect', '-f', '{{.Id}}', id).slice(0, 12)}`;

  const metrics = new Metrics();
  const conditions = new Conditions(silentLog, systemClock, metrics);
  const vip = '240.99.0.5';
  const options = { range: range('240.99.0.0/16'), clock: systemClock, log: silentLog, metrics, conditions };
  const table = await openVipTable(options);
  t.teardown(() => table.close());
  const server = createServer((socket) => socket.end('from the virtual address\n'));
  const privatePort = await listenTcp(server, { address: vip, port: 0 });
  t.teardown(() => server.close());

  const publishing = [
    '--name',
    `${id}-published`,
    '-p',
    '80',
    id,
    '/busybox',
    'nc',
    '-ll',
    '-p',
    '80',
    '-e',
    '/busybox',
  ];
  run('docker', 'run', '-d', ...publishing, 'echo', 'from the published port');
  const port = Number(run('docker', 'port', `${id}-published`, '80').split('\n')[0]?.split(':').pop());
  await table.set('links', [{ transport: 'tcp', address: vip, port, privatePort }]);
  await table.setClients(['docker0', bridge]);
  for (const [name, network] of [
    [`${id}-a`, 'bridge'],
    [`${id}-b`, id],
  ] as const) {
    const nc = ['/busybox', 'nc', '-w', '5', vip, String(port)];
    const text = await runDocker(['run', '--rm', '--name', name, '--network', network, id, ...nc]);
    t.equal(text, 'from the virtual address\n', `${network}: the virtual address, not port ${port} of the host`);
  }
});

/** Not synchronously, for the server that the container asks is in this process. */
async function runDocker(args: readonly string[]): Promise<string> {
  const { stdout } = await promisify(execFile)('docker', args, { timeout: 30_000 });
  return stdout;
}

function tryRun(command: string, ...args: string[]): void {
  try {
    run(command, ...args);
  } catch {
    // It was not there, or is gone already.
  }
}
