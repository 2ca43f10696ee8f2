import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { checkout, run } from '../support/agent.ts';
import { unless } from '../support/needs.ts';
import { waitFor } from '../support/wait.ts';
import type { TestbedHost } from './host.ts';
import { stateFile } from './plan.ts';
import { testbedControlGroups, testbedNamespaces } from './remains.ts';
import { Testbed, testbedNeeds, testbedTurn } from './testbed.ts';

/** The testbed itself: what it claims to be, each fault, and that nothing is left behind. */

const skip = unless(...testbedNeeds, 'command:curl');
const program = join(checkout, 'build', 'test', 'testbed', 'main.js');
const testbed = (...args: string[]) => run(process.execPath, [program, ...args]);

/** What is left is the same for all testbeds: nobody else may have one in between. */
if (skip === false) await testbedTurn(t);

/** What curl tells by its exit status. */
const [reached, refused, timedOut] = [0, 7, 28];

/** The exit status of asking a host's published port from another host. */
async function ask(from: TestbedHost, to: TestbedHost, seconds = 1): Promise<number> {
  const args = ['--silent', '--max-time', String(seconds), `http://${to.address}:8080/`];
  return (await from.tryRun('curl', ...args)).status;
}

/** Processes, mounts, namespaces, control groups and files that are a testbed's. */
function leftOf(folder: string): string[] {
  const processes = readdirSync('/proc').filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(folder);
    } catch {
      return false;
    }
  });
  const mounts = readFileSync('/proc/self/mounts', 'utf8').split('\n');
  return [
    ...processes.map((pid) => `process ${pid}`),
    ...mounts.filter((line) => line.includes(folder)),
    ...testbedNamespaces(),
    ...testbedControlGroups(),
    ...[folder, stateFile].filter((path) => existsSync(path)),
  ];
}

t.test('three hosts, each fault, and power', { skip, timeout: 240_000 }, async (t) => {
  const up = await Testbed.up(t, { hasTurn: true });
  const [one, two, three] = [up.host(1), up.host(2), up.host(3)];
  const serve = [
    'run',
    '-d',
    '--restart',
    'always',
    '--stop-signal',
    'KILL',
    '-p',
    '8080:80',
    'busybox',
    'httpd',
    '-f',
  ];
  for (const host of up.hosts) await host.docker(...serve);
  await Promise.all(up.hosts.map((host) => waitFor('httpd', async () => (await ask(host, host)) === reached)));

  await t.test('each is a host of its own', async (t) => {
    for (const host of up.hosts) {
      t.equal(await host.run('hostname'), host.name);
      t.match(await host.run('cat', '/proc/1/comm'), 'docker-init');
      t.match((await host.run('ls', '/sys/class/net')).split('\n'), ['docker0', 'eth0', 'lo']);
      t.match(await host.docker('info', '--format', '{{.Name}} {{.ContainersRunning}}'), `${host.name} 1`);
      t.equal(await host.run('printenv', 'NODE_OPTIONS').catch(() => 'none'), 'none');
      for (const other of up.hosts) t.equal(await ask(host, other), reached, `${host.name} reaches ${other.name}`);
    }
    t.match(await one.docker('run', '--rm', await one.image('node'), 'node', '-p', '6 * 7'), '42');
  });

  await t.test('a cut goes both ways and only between two', async (t) => {
    await up.cut(1, 2);
    t.same(await Promise.all([ask(one, two), ask(two, one), ask(one, three), ask(two, three)]), [28, 28, 0, 0]);
    await up.heal(1, 2);
    t.equal(await ask(one, two, 5), reached);
  });

  await t.test('a cut one way: what is sent the other way arrives', async (t) => {
    const listen = "bind(9000, () => console.log('ready')).on('message', (text) => console.log(String(text)))";
    const heard = await two.spawn(process.execPath, '-e', `require('node:dgram').createSocket('udp4').${listen}`);
    await waitFor('a listener', () => heard.lines.includes('ready'));
    await up.cutOneWay(2, 1);
    t.equal(await ask(one, two), timedOut, 'no answer comes back');
    const send = `send('arrived', 9000, '${two.address}', () => process.exit())`;
    await one.run(process.execPath, '-e', `require('node:dgram').createSocket('udp4').${send}`);
    await waitFor('what was sent', () => heard.lines.includes('arrived'));
    await heard.kill('SIGKILL');
    await up.heal(2);
    t.equal(await ask(one, two, 5), reached);
  });

  await t.test('isolated, lossy and slow', async (t) => {
    await up.isolate(3);
    t.same(await Promise.all([ask(one, three), ask(three, one), ask(one, two)]), [28, 28, 0]);
    await up.heal();
    t.equal(await ask(one, three, 5), reached);

    await up.loss(3, 100);
    t.equal(await ask(one, three), timedOut);
    await up.loss(3, 30);
    const pinged = await one.tryRun('busybox', 'ping', '-c', '40', '-i', '0.02', '-w', '10', three.address);
    const lost = Number(/(\d+)% packet loss/.exec(pinged.stdout)?.[1]);
    t.ok(lost > 10 && lost < 90, `${lost} % lost`);
    await up.heal(3);

    await up.rate(3, 400);
    const page = 'dd if=/dev/zero of=/big bs=1k count=100 2>/dev/null';
    await three.docker('exec', await three.docker('ps', '-q'), 'sh', '-c', page);
    const speed = async (): Promise<number> => {
      const args = ['--silent', '-o', '/dev/null', '-w', '%{speed_download}', `http://${three.address}:8080/big`];
      return Number(await one.run('curl', ...args));
    };
    const slow = await speed();
    t.ok(slow > 0 && slow < 100_000, `${slow} B/s at 400 kbit/s`);
    await up.heal();
    t.ok((await speed()) > 1_000_000, 'healed');
    t.same(up.faults, { cuts: [], isolated: [], loss: {}, rate: {} });
  });

  await t.test('a power cut is silent, and the disk survives it', async (t) => {
    await two.run('sh', '-c', 'touch /var/lib/kept /etc/kept /run/lost');
    const sleeper = await two.spawn('sleep', '1000');
    const connect = `connect(8080, '${two.address}', () => console.log('connected'))`;
    const client = await one.spawn(process.execPath, '-e', `require('node:net').${connect}`);
    await waitFor('a connection', () => client.lines.includes('connected'));
    await up.cut(2, 3);
    await two.powerOff();
    t.equal(two.isOn, false);
    t.equal(await sleeper.ended(), 'SIGKILL');
    t.equal(await ask(one, two), timedOut, 'not refused');
    t.equal(client.running, true, 'who was connected is not told');
    await client.kill('SIGKILL');

    await two.boot();
    t.equal(await two.run('sh', '-c', 'ls /var/lib/kept /etc/kept; ls /run/lost || true'), '/etc/kept\n/var/lib/kept');
    await waitFor('the container to be back', async () => (await ask(one, two)) === reached);
    t.equal(await ask(three, two), timedOut, 'what was cut stays cut');
    await up.heal();
  });

  await t.test('an engine that is killed, and started again', async (t) => {
    await one.killEngine();
    t.not((await one.tryRun('docker', 'ps')).status, 0);
    t.equal(await one.run('pgrep', '-c', '-x', 'httpd').catch(() => '0'), '1', 'containers go on');
    await one.startEngine();
    await waitFor('the container', async () => (await ask(two, one)) === reached);
    await two.powerOff();
    await two.boot({ engine: false });
    t.equal(await ask(one, two), refused, 'it is on, and serves nothing');
    await two.startEngine();
    await waitFor('the container to be back', async () => (await ask(one, two)) === reached);
  });

  await t.test('down leaves nothing', async (t) => {
    t.ok(leftOf(up.folder).length > 5, 'there is something to be found');
    const refusal = await testbed('down');
    t.match(refusal, { status: 1, stderr: new RegExp(`in use by the process ${process.pid}`) });
    await up.down();
    t.same(leftOf(up.folder), []);
  });
});

t.test(
  'an owner that is killed takes its hosts along, and the next removes the rest',
  { skip, timeout: 120_000 },
  async (t) => {
    const file = join(checkout, 'build', 'test', 'testbed', 'testbed.child.js');
    const owner = spawn('env', ['-u', 'NODE_OPTIONS', process.execPath, file], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    t.teardown(() => void owner.kill('SIGKILL'));
    const [chunk] = (await once(owner.stdout, 'data')) as [Buffer];
    const folder = chunk.toString().trim();
    const ended = once(owner, 'exit');
    owner.kill('SIGKILL');
    // It holds the testbed until it is gone.
    await ended;
    await waitFor('its hosts to go', () => leftOf(folder).every((line) => !line.startsWith('process')));
    t.ok(leftOf(folder).includes(folder), 'the rest is there');
    await Testbed.takeDown();
    t.same(leftOf(folder), []);
  },
);

t.test('by hand', { skip, timeout: 120_000 }, async (t) => {
  t.teardown(() => testbed('down'));
  t.match(await testbed('--help'), { status: 0, stdout: /Examples:\n.*npm run testbed -- up/ });
  for (const wrong of [[], ['dwon'], ['up', '--hots', '3'], ['sh', 'x'], ['fault', 'cut', '1']]) {
    t.match(await testbed(...wrong), { status: wrong[0] === 'fault' ? 1 : 2, stdout: '' }, wrong.join(' '));
  }
  t.match(await testbed('status'), { status: 1, stderr: /no testbed is up: npm run testbed -- up/ });
  t.match(await testbed('up', '--hosts', '2'), { status: 0, stdout: /host-2 {2}10\.77\.0\.2 {2}Docker [\d.]+/ });
  const folder = Testbed.attach()?.folder ?? '';
  await t.rejects(Testbed.up(t, { hasTurn: true }), {
    message: /a testbed is up, by hand since .*npm run testbed -- down/,
  });
  t.match(await testbed('sh', '2', 'sh', '-c', 'hostname; exit 3'), { status: 3, stdout: 'host-2\n' });
  t.match(await testbed('fault', 'cut-one-way', '1', '2'), { status: 0 });
  t.match(await testbed('fault', 'power-off', '2'), { status: 0 });
  t.match(await testbed('fault', 'rate', '2', '1000'), { status: 0 });
  const said = /host-1 .*\nhost-2 .* off\ncut: 1 -> 2\nrate: 2 1000 kbit\/s\n$/;
  t.match(await testbed('status'), { status: 0, stdout: said });
  t.match(await testbed('fault', 'cut', '1', '5'), { status: 1, stderr: /there is no host 5: 1 to 2/ });
  t.match(await testbed('fault', 'boot', '2'), { status: 0 });
  t.match(await testbed('sh', '2', 'tc', 'qdisc', 'show', 'dev', 'eth0'), { stdout: /tbf .* rate 1Mbit/ });
  t.match(await testbed('down'), { status: 0 });
  t.same(leftOf(folder), []);
});
