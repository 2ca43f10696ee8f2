import t from 'tap';
import { run } from '../../proxy/kernel/test-namespace.ts';
import { systemClock } from '../../src/base/clock.ts';
import { Latest } from '../../src/base/feed.ts';
import { silentLog } from '../../src/base/log.ts';
import { waitFor } from '../../test/support/wait.ts';
import type { DockerNetwork } from '../docker/network.ts';
import { defaultAddress } from './default-address.ts';
import { TopologyWatcher } from './topology.ts';

/** Runs inside a network namespace of its own; `network.test.ts` makes it and starts this. */
const shop: DockerNetwork = {
  id: '0123456789ab'.padEnd(64, '0'),
  name: 'shop',
  driver: 'bridge',
  internal: true,
  interface: 'br-0123456789ab',
  subnets: ['10.8.1.0/24', 'fd00:8::/64'],
  gateway: undefined,
  hostReachable: true,
};

function addBridge(name: string, address: string): void {
  run('ip', 'link', 'add', name, 'type', 'bridge');
  run('ip', 'address', 'add', address, 'dev', name);
  run('ip', 'link', 'set', name, 'up');
}

t.test('bridges are seen as they come and go, with and without Docker', async (t) => {
  const networks = new Latest<readonly DockerNetwork[]>([]);
  const watcher = new TopologyWatcher({ dockerNetworks: networks, clock: systemClock, log: silentLog });
  const stop = new AbortController();
  const running = watcher.run(stop.signal);
  const seen = () =>
    watcher.topology.value.bridges.map(({ interface: name, network, gateway }) => [name, network, gateway]);
  const becomes = async (what: string, expected: unknown) => {
    const startedMs = performance.now();
    await waitFor(what, () => JSON.stringify(seen()) === JSON.stringify(expected), { timeoutMs: 4000 });
    t.pass(`${what} (${(performance.now() - startedMs).toFixed(0)} ms)`);
  };
  await waitFor('a first reading', () => watcher.topology.value.addresses.has('127.0.0.1'));
  addBridge('docker0', '10.8.0.1/24');
  addBridge('br-lan', '10.8.9.1/24');
  await becomes('docker0 by its name, br-lan not', [['docker0', 'bridge', '10.8.0.1']]);
  t.ok(watcher.topology.value.addresses.has('10.8.9.1'), 'its address is the host own');
  addBridge('br-0123456789ab', '10.8.1.1/24');
  await becomes('a user network by its name', [
    ['br-0123456789ab', 'br-0123456789ab', '10.8.1.1'],
    ['docker0', 'bridge', '10.8.0.1'],
  ]);
  networks.set([shop]);
  await becomes('only what Docker lists, once it does', [['br-0123456789ab', 'shop', '10.8.1.1']]);
  t.match(watcher.topology.value.bridges[0], { internal: true, subnet: { text: '10.8.1.0/24' } });
  run('ip', 'link', 'del', 'br-0123456789ab');
  await becomes('a removed bridge is gone', []);
  const before = watcher.topology.value;
  t.equal(await watcher.refresh(), before, 'nothing new, the same picture');
  stop.abort();
  await running;
});

t.test('the default address', async (t) => {
  t.equal(await defaultAddress(), undefined, 'none without interfaces');
  run('ip', 'link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'eth1');
  run('ip', 'address', 'add', '192.0.2.77/24', 'dev', 'eth0');
  run('ip', 'link', 'set', 'eth1', 'up');
  run('ip', 'link', 'set', 'eth0', 'up');
  t.equal(await defaultAddress(), '192.0.2.77', 'without a default route the first that is no bridge');
  run('ip', 'address', 'add', '10.8.7.7/24', 'dev', 'eth1');
  run('ip', 'route', 'add', 'default', 'via', '10.8.7.1');
  t.equal(await defaultAddress(), '10.8.7.7', 'of the default route');
});
