import { Resolver } from 'node:dns/promises';
import t from 'tap';
import { systemClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import type { ConsulStoreConfig } from '../../src/config/config.ts';
import type { InstanceRecord } from '../../src/model/instance.ts';
import { openMirror } from '../../src/store/backends.ts';
import type { Mirror } from '../../src/store/mirror.ts';
import { Agent } from '../support/agent.ts';
import { TestConsul, unlessConsul } from '../support/consul.ts';
import { waitFor } from '../support/wait.ts';

const skip = unlessConsul();

const record: InstanceRecord = {
  name: 'db-5432',
  service: 'db',
  address: '172.17.0.2',
  port: 5432,
  protocol: 'tcp',
  reach: 'mesh',
  published: { address: '10.77.0.1', port: 15432 },
  tags: ['primary'],
  meta: { zone: 'a', 'not a key': 'x' },
  weight: 3,
  status: 'passing',
  draining: false,
  output: '',
  source: 'file',
  incarnation: '1',
};

interface Host {
  readonly mirror: Mirror;
  readonly conditions: Conditions;
  show(...records: readonly InstanceRecord[]): void;
  lose(...ids: readonly string[]): void;
}

t.test('the mirror', { skip, timeout: 110_000 }, async (t) => {
  const consul = await TestConsul.start(t);
  const resolver = new Resolver({ timeout: 2000, tries: 1 });
  resolver.setServers([`127.0.0.1:${consul.first.ports.dns}`]);
  const addresses = async (name: string): Promise<string> =>
    (await resolver.resolve4(name).catch(() => [])).sort().join();
  const config: ConsulStoreConfig = {
    kind: 'consul',
    leaseTtlMs: 10_000,
    endpoints: consul.urls,
    prefix: '/legate',
    tls: {},
    credentialsFile: undefined,
    mirror: true,
  };
  const host = async (name: string, id: string, address: string): Promise<Host> => {
    const metrics = new Metrics();
    const conditions = new Conditions(silentLog, systemClock, metrics);
    let records: readonly InstanceRecord[] = [];
    let lost: readonly string[] = [];
    const mirror = await openMirror(config, {
      clock: systemClock,
      log: silentLog,
      metrics,
      conditions,
      mesh: 'legate',
      host: { id, name, address },
      instances: () => records,
      lostHosts: () => lost,
    });
    if (mirror === undefined) throw new Error('there is no mirror');
    t.teardown(() => mirror.close());
    const changed = (): void => mirror.changed();
    return {
      mirror,
      conditions,
      show: (...next) => {
        records = next;
        changed();
      },
      lose: (...ids) => {
        lost = ids;
        changed();
      },
    };
  };
  const json = async (path: string): Promise<unknown> => await (await consul.first.ask(path)).json();
  const servicesOf = async (node: string): Promise<string[]> => {
    const { Services } = (await json(`/catalog/node/${node}`)) as { Services: object };
    return Object.keys(Services);
  };
  const register = async (body: object): Promise<void> => {
    const response = await consul.first.ask('/catalog/register', { method: 'PUT', body: JSON.stringify(body) });
    if (!response.ok) throw new Error(await response.text());
  };

  // What others registered, under the same service and on the same node.
  await register({ Node: 'old', Address: '10.9.9.9', Service: { Service: 'db', Port: 1 } });

  const one = await host('web-1', '1111111111111111', '10.77.0.1');
  const two = await host('web-2', '2222222222222222', '10.77.0.2');
  one.show(record, { ...record, name: 'inner-80', service: 'inner', reach: 'host' });
  two.show({ ...record, published: { address: '10.77.0.2', port: 15432 } });
  const all = '10.77.0.1,10.77.0.2,10.9.9.9';
  await waitFor('both in DNS', async () => (await addresses('db.service.consul')) === all);
  t.equal(await addresses('primary.db.service.consul'), '10.77.0.1,10.77.0.2');
  t.equal(await addresses('inner.service.consul'), '', 'reach host stays at home');
  const ports = await resolver.resolveSrv('db.service.consul');
  // Consul cuts an answer over UDP to what fits.
  t.ok(ports.some(({ port }) => port === 15432));
  t.match(await json('/catalog/node/legate-web-1'), {
    Node: { Address: '10.77.0.1', Meta: { 'external-source': 'legate', 'legate-host': '1111111111111111' } },
    Services: {
      'db-5432': {
        Tags: ['primary'],
        Meta: { zone: 'a', 'external-source': 'legate', 'legate-mesh': 'legate' },
        Weights: { Passing: 3, Warning: 3 },
      },
    },
  });

  // Health, draining, and what is gone.
  one.show({ ...record, status: 'critical', output: 'refused' });
  await waitFor('critical is left out', async () => (await addresses('db.service.consul')) === '10.77.0.2,10.9.9.9');
  t.match(JSON.stringify(await json('/health/node/legate-web-1')), /refused/);
  one.show({ ...record, draining: true });
  await waitFor('draining', async () => JSON.stringify(await json('/health/node/legate-web-1')).includes('draining'));
  one.show(record, { ...record, name: 'mail-25', service: 'mail' });
  await waitFor('a second service', async () => (await addresses('mail.service.consul')) === '10.77.0.1');
  await register({
    Node: 'legate-web-1',
    Address: '10.77.0.1',
    SkipNodeUpdate: true,
    Service: { Service: 'guest', Port: 2 },
  });
  one.show(record);
  await waitFor('gone', async () => (await addresses('mail.service.consul')) === '');
  t.equal(await addresses('db.service.consul'), all);
  t.equal(await addresses('guest.service.consul'), '10.77.0.1', 'what is not ours stays');
  const before = await json('/health/node/legate-web-1');
  one.show(record);
  two.show({ ...record, published: { address: '10.77.0.2', port: 15432 }, tags: ['second'] });
  await waitFor('the other host', async () => (await addresses('second.db.service.consul')) === '10.77.0.2');
  t.same(await json('/health/node/legate-web-1'), before, 'nothing is written that does not differ');

  // A host that is lost is marked by another, and takes that back by itself.
  two.lose('1111111111111111');
  await waitFor('lost', async () => (await addresses('db.service.consul')) === '10.77.0.2,10.9.9.9');
  two.lose();
  one.show({ ...record, weight: 4 });
  await waitFor('back', async () => (await addresses('db.service.consul')) === all);

  // Renamed; and a node that somebody else has made.
  await one.mirror.close();
  await waitFor('it has left', async () => (await addresses('db.service.consul')) === '10.77.0.2,10.9.9.9');
  const renamed = await host('web-one', '1111111111111111', '10.77.0.1');
  renamed.show(record);
  await waitFor('under its new name', async () => (await addresses('db.service.consul')) === all);
  t.same(await servicesOf('legate-web-1'), ['guest'], 'but for what is not ours, the old node is empty');
  await register({ Node: 'legate-taken', Address: '10.9.9.8' });
  const third = await host('taken', '3333333333333333', '10.77.0.3');
  third.show(record);
  await waitFor('a condition', () => third.conditions.list().some(({ id }) => id === 'store.mirror'));
  t.match(await json('/catalog/node/legate-taken'), { Node: { Address: '10.9.9.8' }, Services: {} });

  // The whole sidecar on Consul.
  const agent = new Agent(t, {
    host: 'web-9',
    advertise: '10.77.0.9',
    store: { kind: 'consul', endpoints: consul.urls.map(({ text }) => text), mirror: true },
    instances: [{ service: 'shop', address: '10.77.0.9', port: 80, reach: 'mesh' }],
  });
  await agent.start();
  await waitFor('the sidecar in DNS', async () => (await addresses('shop.service.consul')) === '10.77.0.9');
  const keys = (await json('/kv/legate/?keys')) as string[];
  t.ok(
    keys.some((key) => /^legate\/legate\/alive\/[0-9a-f]{16}$/.test(key)),
    keys.join(' '),
  );
  await agent.kill('SIGTERM');
  t.equal(await addresses('shop.service.consul'), '', 'and after it has left');
});
