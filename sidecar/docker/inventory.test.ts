import t from 'tap';
import { ManualClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import type { Change } from '../../src/base/feed.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import type { DesiredInstance } from '../../src/model/instance.ts';
import { waitFor } from '../../test/support/wait.ts';
import { type Container, parseContainer } from './container.ts';
import { Drains } from './draining.ts';
import { Inspections } from './inspections.ts';
import { Inventory } from './inventory.ts';
import { parseNetworks } from './network.ts';
import { NetworkWatch } from './network-watch.ts';

const startedAt = '2026-01-02T03:04:05.5Z';
const startedMs = Date.parse(startedAt);
const bridges = new Map(
  parseNetworks([{ Id: 'b1', Name: 'bridge', Driver: 'bridge' }]).map((network) => [network.id, network]),
);

interface Sketch {
  labels?: Record<string, string>;
  env?: string[];
  mode?: string;
  address?: string;
  stopSignal?: string;
  health?: { Status: string; Log: { Output: string }[] };
  published?: boolean;
}

const idOf = (digit: string): string => digit.repeat(64);

function sketch(
  digit: string,
  { labels, env, mode = 'default', address = `172.17.0.${digit}`, stopSignal, health, published }: Sketch,
): Container {
  const container = parseContainer({
    Id: idOf(digit),
    Name: `/c${digit}`,
    State: { Running: true, StartedAt: startedAt, Health: health },
    Config: { Labels: labels, Env: env, StopSignal: stopSignal, StopTimeout: 3 },
    HostConfig: { NetworkMode: mode },
    NetworkSettings: {
      Ports: published ? { '80/tcp': [{ HostIp: '0.0.0.0', HostPort: '8080' }] } : {},
      Networks: mode.startsWith('container:')
        ? {}
        : { bridge: { NetworkID: 'b1', IPAddress: address, MacAddress: `02:42:ac:11:00:0${digit}` } },
    },
  });
  if (container === undefined) throw new Error('not a container');
  return container;
}

interface Bench {
  readonly inventory: Inventory;
  readonly drains: Drains;
  readonly conditions: Conditions;
  readonly clock: ManualClock;
  readonly changes: Change<DesiredInstance>[];
  /** What was told of callers, in a few words each. */
  readonly callers: string[];
  put(container: Container): void;
  /** The last change in a few words. */
  last(): string;
}

function bench(): Bench {
  const clock = new ManualClock(startedMs + 100_000);
  const conditions = new Conditions(silentLog, clock, new Metrics());
  const changes: Change<DesiredInstance>[] = [];
  const callers: string[] = [];
  const drains = new Drains(clock, (id) => inventory.refresh(id));
  const inventory = new Inventory({
    expose: 'labelled',
    advertise: '10.77.0.1',
    surroundings: () => ({ networks: bridges, topology: undefined }),
    isDraining: (id) => drains.isDraining(id),
    onChange: (change) => changes.push(change),
    onCaller: (id, group) => {
      const places = group?.addresses.map(({ ipv4, mac }) => `${ipv4} ${mac}`).join() ?? '';
      const links = group?.links.map(({ alias }) => alias).join() ?? '';
      callers.push(group === undefined ? `-${id[0]}` : `${group.name} ${places} [${group.consumers.join()}] ${links}`);
    },
    conditions,
  });
  const last = (): string => {
    const change = changes.at(-1);
    if (change === undefined) return 'nothing';
    const puts = change.kind === 'reset' ? change.items : change.puts;
    const words = puts.map(
      ({ name, service, address, draining }) => `+${name} ${service}@${address}${draining ? ' draining' : ''}`,
    );
    const gone = change.kind === 'reset' ? ['reset'] : change.deletes.map((name) => `-${name}`);
    return [...gone, ...words].join(', ');
  };
  return {
    inventory,
    drains,
    conditions,
    clock,
    changes,
    callers,
    last,
    put(container) {
      drains.inspected(container);
      inventory.put({ container, image: undefined });
    },
  };
}

const db = { labels: { 'legate.service': 'db', 'legate.port': '80' } };

t.test('one reset, then only what differs', async (t) => {
  const { inventory, put, changes, last } = bench();
  put(sketch('1', db));
  put(sketch('2', db));
  t.equal(changes.length, 0, 'nothing before everything is known');
  inventory.load();
  t.equal(last(), 'reset, +111111111111-80 db@172.17.0.1, +222222222222-80 db@172.17.0.2');
  put(sketch('1', db));
  t.equal(changes.length, 1, 'the same again is no change');
  put(sketch('1', { ...db, address: '172.17.0.9' }));
  t.equal(last(), '+111111111111-80 db@172.17.0.9');
  inventory.remove(idOf('1'));
  t.equal(last(), '-111111111111-80');
  inventory.remove(idOf('1'));
  t.equal(changes.length, 3);
  put(sketch('2', { labels: { 'legate.service': 'db', 'legate.port': '81' } }));
  t.equal(last(), '-222222222222-80, +222222222222-81 db@172.17.0.2');
  t.equal(new Set(changes.map(({ revision }) => revision)).size, changes.length);
});

t.test('what a health check prints is no change, what it says is', async (t) => {
  const { inventory, put, changes } = bench();
  const health = (Status: string, Output: string): Sketch => ({ ...db, health: { Status, Log: [{ Output }] } });
  put(sketch('1', health('healthy', 'at 10:00')));
  inventory.load();
  put(sketch('1', health('healthy', 'at 10:01')));
  t.equal(changes.length, 1);
  put(sketch('1', health('unhealthy', 'at 10:02')));
  t.match(changes.at(-1), { kind: 'delta', puts: [{ reported: { status: 'critical', output: 'at 10:02' } }] });
});

t.test('a name that two want goes to the second when the first leaves', async (t) => {
  const { inventory, put, last, conditions } = bench();
  inventory.load();
  const web = { env: ['SERVICE_NAME=web', 'SERVICE_ID=one'], published: true };
  put(sketch('1', web));
  put(sketch('2', web));
  t.equal(last(), '+one web@172.17.0.1');
  t.match(inventory.refusals.value, [
    { source: 'docker:c2', service: 'web', reason: 'the instance name one is taken by docker:c1' },
  ]);
  t.match(conditions.list(), [{ id: 'docker.container.222222222222.refused.0', severity: 'warning' }]);
  inventory.remove(idOf('1'));
  t.equal(last(), '+one web@172.17.0.2');
  t.same(inventory.refusals.value, []);
  t.same(conditions.list(), []);
  put(sketch('1', web));
  inventory.remove(idOf('1'));
  t.same(inventory.refusals.value, []);
  inventory.remove(idOf('2'));
  t.equal(last(), '-one');
  t.equal(inventory.instances, 0);
});

t.test('refusals and notes are raised, replaced and cleared', async (t) => {
  const { inventory, put, conditions } = bench();
  inventory.load();
  put(sketch('1', { labels: { 'legate.service': 'db', 'legate.port': '5 4', 'legate.tagz': '' } }));
  t.match(inventory.refusals.value, [{ source: 'docker:c1', reason: /"5 4" is not a port/ }]);
  t.match(conditions.list(), [
    { severity: 'warning', message: 'docker:c1 (service db): legate.port: "5 4" is not a port (1 to 65535)' },
    { severity: 'note', message: /unknown label/ },
  ]);
  put(sketch('1', { labels: { 'legate.service': 'db', 'legate.port': '0' } }));
  t.match(inventory.refusals.value, [{ reason: /"0" is not a port/ }]);
  t.equal(inventory.refusals.value.length, 1);
  t.equal(conditions.list().length, 1);
  put(sketch('1', { labels: { 'legate.service': 'db', 'legate.port': '0' } }));
  inventory.remove(idOf('1'));
  t.same(inventory.refusals.value, []);
  t.same(conditions.list(), []);
});

t.test('names that become equal over containers are reported', async (t) => {
  const { inventory, put, conditions } = bench();
  put(sketch('1', { env: ['SERVICE_NAME=My_App'], published: true }));
  put(sketch('2', { env: ['SERVICE_NAME=my.app'], published: true }));
  t.match(conditions.list(), [
    { id: 'docker.names.my-app', severity: 'note', message: 'service names "My_App" and "my.app" all become my-app' },
  ]);
  inventory.remove(idOf('2'));
  t.same(conditions.list(), []);
});

t.test('those that share a network follow it', async (t) => {
  const { inventory, put, last } = bench();
  inventory.load();
  put(sketch('2', { ...db, mode: `container:${idOf('1')}` }));
  t.match(inventory.refusals.value, [{ source: 'docker:c2', reason: /is not running/ }]);
  put(sketch('3', { ...db, mode: 'container:c2' }));
  put(sketch('1', {}));
  t.equal(last(), '+222222222222-80 db@172.17.0.1, +333333333333-80 db@172.17.0.1');
  t.same(inventory.refusals.value, []);
  put(sketch('1', { address: '172.17.0.8' }));
  t.equal(last(), '+222222222222-80 db@172.17.0.8, +333333333333-80 db@172.17.0.8');
  inventory.remove(idOf('1'));
  t.equal(last(), '-222222222222-80, -333333333333-80');
  put(sketch('4', { ...db, mode: `container:${idOf('4')}` }));
  t.equal(inventory.get(idOf('4'))?.name, 'c4', 'sharing with itself ends');
});

t.test('draining begins with the stop signal and SIGKILL only', async (t) => {
  for (const [stopSignal, signal, drains] of [
    [undefined, 15, true],
    [undefined, 9, true],
    [undefined, 1, false],
    [undefined, 2, false],
    ['SIGINT', 2, true],
    ['SIGINT', 15, false],
    ['SIGINT', 9, true],
    ['3', 3, true],
    ['RTMIN+3', 37, true],
  ] as const) {
    const { inventory, drains: all, put, last, clock } = bench();
    inventory.load();
    const container = sketch('1', { ...db, ...(stopSignal === undefined ? {} : { stopSignal }) });
    put(container);
    all.kill(container.id, signal, clock.nowMs(), container);
    t.equal(last().endsWith('draining'), drains, `${stopSignal} ${signal}`);
    all.close();
  }
});

t.test('draining is taken back 5 s after the stop timeout, and ends with the container', async (t) => {
  const { inventory, drains, put, last, clock, changes } = bench();
  inventory.load();
  const container = sketch('1', db);
  put(container);
  drains.kill(container.id, 15, clock.nowMs(), container);
  t.match(last(), /draining$/);
  put(container);
  t.equal(changes.length, 3, 'an inspection meanwhile changes nothing');
  await clock.advance(7999);
  t.match(last(), /draining$/);
  await clock.advance(1);
  t.equal(last(), '+111111111111-80 db@172.17.0.1');
  drains.kill(container.id, 9, clock.nowMs(), container);
  await clock.advance(7000);
  drains.kill(container.id, 9, clock.nowMs(), container);
  await clock.advance(7000);
  t.match(last(), /draining$/, 'another signal begins the time anew');
  drains.forget(container.id);
  inventory.remove(container.id);
  t.equal(clock.pending, 0);
  put(container);
  t.notMatch(last(), /draining/, 'a new run begins without it');
});

t.test('old kill events: of an earlier run, long past, and of a container not yet known', async (t) => {
  const { inventory, drains, put, last, clock } = bench();
  inventory.load();
  const container = sketch('1', db);
  const nowMs = clock.nowMs();
  drains.kill(container.id, 15, startedMs - 1, undefined);
  put(container);
  drains.kill(container.id, 15, nowMs - 8000, container);
  t.notMatch(last(), /draining/);
  drains.kill(container.id, 15, nowMs - 6000, container);
  t.match(last(), /draining/);
  await clock.advance(2000);
  t.notMatch(last(), /draining/, 'after what remains of its time');
  const second = sketch('2', db);
  drains.kill(second.id, 15, clock.nowMs(), undefined);
  put(second);
  t.match(last(), /^\+222.* draining$/);
  const third = sketch('3', db);
  put(third);
  drains.kill(third.id, 15, clock.nowMs(), third);
  t.match(last(), /^\+333.* draining$/);
  put({ ...third, startedAt: new Date(clock.nowMs() + 1000).toISOString() });
  t.match(last(), /^\+333/);
  t.notMatch(last(), /draining/, 'the death of the earlier run was missed');
  drains.close();
});

t.test(
  'inspections: one at a time for each, what is outdated is asked again, failures are retried and bounded',
  async (t) => {
    const clock = new ManualClock();
    const controller = new AbortController();
    const asked: { id: string; answer: (value: string) => void; fail: (error: Error) => void }[] = [];
    const taken: string[] = [];
    const failed: string[] = [];
    const inspections = new Inspections({
      fetch: (id) =>
        new Promise((resolve, reject) => {
          asked.push({ id, answer: (value) => resolve(() => taken.push(`${id}=${value}`)), fail: reject });
        }),
      onFailed: (id) => failed.push(id),
      signal: controller.signal,
      clock,
    });
    inspections.request('a');
    inspections.request('a');
    t.equal(asked.length, 1);
    asked[0]?.answer('old');
    await waitFor('the second question', () => asked.length === 2);
    t.same(taken, [], 'it was asked for again meanwhile');
    asked[1]?.answer('new');
    await waitFor('the answer', () => taken.length === 1);
    t.same(taken, ['a=new']);

    for (let n = 0; n < 20; n += 1) void inspections.check(`x${n}`);
    inspections.request('urgent');
    t.equal(asked.length - 2, Inspections.maxRunning);
    asked[2]?.answer('');
    await waitFor('the next', () => asked.length === 3 + Inspections.maxRunning);
    t.equal(asked.at(-1)?.id, 'urgent', 'what an event named comes first');
    for (let n = 3; n < asked.length || taken.length < 22; n += 1) {
      await waitFor(`question ${n}`, () => asked.length > n);
      asked[n]?.answer('');
      await waitFor(`answer ${n}`, () => taken.length >= n);
    }

    const from = asked.length;
    const first = inspections.check('bad');
    for (let tries = 0; tries < Inspections.maxTries; tries += 1) {
      await clock.advance(5000);
      asked[from + tries]?.fail(new Error('no'));
      await clock.advance(0);
    }
    t.equal(await first, false);
    await clock.advance(60_000);
    t.equal(asked.length - from, Inspections.maxTries);
    t.same(failed, ['bad']);

    const waiting = inspections.check('late');
    controller.abort();
    t.equal(await waiting, false);
    asked.at(-1)?.answer('never');
    await clock.advance(10);
    t.notOk(taken.includes('late=never'));
  },
);

t.test('networks are read again once, however often that is asked', async (t) => {
  const answers: ((networks: unknown) => void)[] = [];
  const watch = new NetworkWatch(
    () => new Promise((resolve) => answers.push((value) => resolve(parseNetworks(value)))),
  );
  const { signal } = new AbortController();
  const all = Promise.all([watch.refresh(signal), watch.refresh(signal), watch.refresh(signal)]);
  t.equal(answers.length, 1);
  answers[0]?.([{ Id: 'a1', Name: 'a' }]);
  await waitFor('the second question', () => answers.length === 2);
  answers[1]?.([
    { Id: 'b1', Name: 'b', Driver: 'bridge' },
    { Id: 'c1', Name: 'c', Driver: 'bridge', Options: { 'com.docker.network.bridge.name': 'evil; rm' } },
  ]);
  await all;
  t.same(
    watch.all.value.map(({ name, interface: device }) => [name, device]),
    [
      ['b', 'br-b1'],
      ['c', 'br-c1'],
    ],
  );
  t.equal(answers.length, 2);
});

t.test('everybody who runs is a caller, and those of one network are one', async (t) => {
  const { inventory, put, callers } = bench();
  const told = (): string[] => callers.splice(0);
  put(sketch('1', {}));
  t.same(told(), ['c1 172.17.0.1 02:42:ac:11:00:01 [] '], 'also without labels, and before everything is known');
  inventory.load();
  put(sketch('1', {}));
  t.same(told(), [], 'the same again is no change');
  put(sketch('2', db));
  t.same(told(), ['c2 172.17.0.2 02:42:ac:11:00:02 [db] ']);
  put(sketch('3', { mode: `container:${idOf('1')}`, labels: { 'legate.consumer': 'web', 'legate.links': 'db' } }));
  t.same(told(), ['c1 172.17.0.1 02:42:ac:11:00:01 [web] db']);
  put(sketch('4', { mode: 'container:c1', labels: { 'legate.consumer': 'api' } }));
  t.same(told(), ['c1 172.17.0.1 02:42:ac:11:00:01 [api,web] db']);
  inventory.remove(idOf('3'));
  t.same(told(), ['c1 172.17.0.1 02:42:ac:11:00:01 [api] ']);
  inventory.remove(idOf('1'));
  t.same(told(), ['-1'], 'the network goes with its owner');
  inventory.remove(idOf('4'));
  t.same(told(), []);
  put(sketch('5', { mode: 'container:c6', labels: { 'legate.consumer': 'web' } }));
  t.same(told(), [], 'its owner is not known yet');
  put(sketch('6', {}));
  t.equal(told().at(-1), 'c6 172.17.0.6 02:42:ac:11:00:06 [web] ');
  inventory.disconnected(idOf('6'), 'other');
  t.same(told(), []);
  inventory.disconnected(idOf('6'), 'b1');
  t.same(told(), ['c6  [web] '], 'at once');
  put(sketch('6', {}));
  t.same(told(), ['c6 172.17.0.6 02:42:ac:11:00:06 [web] '], 'it is still there');
});
