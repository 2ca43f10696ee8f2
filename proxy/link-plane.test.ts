import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { ManualClock } from '../src/base/clock.ts';
import { LegateError } from '../src/base/errors.ts';
import type { Service } from '../src/catalog/snapshot.ts';
import type { Instance } from '../src/model/instance.ts';
import { waitFor } from '../test/support/wait.ts';
import {
  ask,
  blackHole,
  deadPort,
  dial,
  instanceOf,
  naming,
  otherHost,
  outcome,
  serviceOf,
  startBackend,
  startBed,
} from './link-plane.fixture.ts';
import { AcceptGate } from './tcp/accept-gate.ts';
import { connectionLimit, maxConnections } from './tcp/limits.ts';
import { connectAttemptMs } from './tcp/relay-bounds.ts';

t.test('a virtual address is mapped while something usable is behind it', async (t) => {
  const vip = '127.9.0.5';
  const { port } = await startBackend(t, naming('one'));
  const one = instanceOf({ name: 'one', port });
  const db = (fields: Partial<Instance>, service: Partial<Service> = {}): Service =>
    serviceOf([{ ...one, ...fields }], { vip, ...service });
  const udp = serviceOf([instanceOf({ name: 'u', protocol: 'udp', port })], {
    name: 'syslog',
    vip: '127.9.0.6',
    protocol: 'udp',
  });
  const bed = await startBed(t, { links: [], services: [db({}), udp] });
  const mapped = (): string => bed.portMap.last.map((entry) => `${entry.address}:${entry.port}`).join(' ');
  t.equal(mapped(), '127.9.0.5:5432', 'and udp not yet');
  const privatePort = bed.portMap.last[0]?.privatePort ?? 0;
  t.equal(await ask(t, privatePort, vip), 'one');
  t.match(bed.plane.links(), [{ service: 'db', kind: 'vip', address: '127.9.0.5:5432', state: 'open', problem: null }]);

  const follow = async (what: string, service: Service, expected: string): Promise<void> => {
    bed.set(service, udp);
    await waitFor(what, () => mapped() === expected);
  };
  await follow('critical: it leaves', db({ status: 'critical' }), '');
  t.equal(bed.plane.links()[0]?.state, 'refusing');
  t.equal(await ask(t, privatePort, vip), 'ECONNRESET', 'the listener stays');
  await follow('passing: it is back', db({}), '127.9.0.5:5432');
  t.equal(bed.portMap.last[0]?.privatePort, privatePort, 'at the same private port');
  await follow('draining: it leaves', db({ draining: true }), '');
  await follow('another port', db({}, { port: 5433 }), '127.9.0.5:5433');
  t.equal(bed.portMap.last[0]?.privatePort, privatePort);
  await follow('another address', db({}, { vip: '127.9.0.7' }), '127.9.0.7:5432');
  t.equal(await ask(t, bed.portMap.last[0]?.privatePort ?? 0, '127.9.0.7'), 'one');
  t.ok(bed.portMap.sets.every((set) => set.length <= 1));
  await waitFor('the former listener is closed', async () => (await ask(t, privatePort, vip)) === 'ECONNREFUSED');
  await follow('udp now: it leaves', db({ protocol: 'udp' }, { protocol: 'udp' }), '');
  t.strictSame(bed.plane.links(), []);
  await follow('and returns', db({}), '127.9.0.5:5432');
  bed.set(udp);
  await waitFor('the service is gone', () => mapped() === '' && bed.plane.links().length === 0);

  bed.set(db({}), udp);
  bed.portMap.failing = true;
  await waitFor('the kernel refuses', () => bed.conditions.list().some(({ id }) => id === 'link.map'));
  bed.portMap.failing = false;
  await waitFor('it was tried again', () => mapped() === '127.9.0.5:5432');
  t.strictSame(bed.conditions.list(), []);
  await bed.plane.close();
  t.strictSame(bed.portMap.last, [], 'everything is taken back');
});

t.test('instances of other hosts are dialled on a declared underlay only', async (t) => {
  const { port } = await startBackend(t, naming('far'));
  const published = { address: '127.0.0.1', port };
  const far = instanceOf({ name: 'far', hostId: otherHost, address: '172.17.0.2', port: 1 });
  const cases: [string, Partial<Instance>, boolean, string][] = [
    ['published, underlay declared', { reach: 'mesh', published }, true, 'far'],
    ['published, underlay untrusted', { reach: 'mesh', published }, false, 'ECONNRESET'],
    ['reach host', { reach: 'host', published }, true, 'ECONNRESET'],
    ['routed', { reach: 'mesh', ...published }, true, 'far'],
    ['an address that is none', { reach: 'mesh', published: { address: 'db.example', port } }, true, 'ECONNRESET'],
  ];
  for (const [what, fields, clearUnderlay, expected] of cases) {
    const bed = await startBed(t, { clearUnderlay, services: [serviceOf([{ ...far, ...fields }])] });
    t.equal(await ask(t, bed.port), expected, what);
    await bed.plane.close();
  }
});

t.test('connections outlive what they came from', async (t) => {
  const { port } = await startBackend(t, (socket) => socket.pipe(socket));
  const vip = '127.9.0.8';
  const one = instanceOf({ name: 'one', port });
  const bed = await startBed(t, { links: [], services: [serviceOf([one], { vip })] });
  const client = dial(t, bed.portMap.last[0]?.privatePort ?? 0, vip);
  const echo = async (text: string): Promise<string> => {
    client.write(text);
    const [chunk] = await once(client, 'data');
    return String(chunk);
  };
  t.equal(await echo('a'), 'a');
  bed.set(serviceOf([{ ...one, draining: true }], { vip }));
  await waitFor('no new connections', () => bed.plane.links()[0]?.state === 'refusing');
  t.equal(await echo('draining'), 'draining');
  t.match(bed.plane.links()[0]?.backends, [{ id: 'here/one', active: 1, total: 1 }], 'it is still shown');
  bed.set();
  await waitFor('the link is gone', () => bed.plane.links().length === 0);
  t.equal(await echo('gone'), 'gone');
  t.equal(bed.plane.activeConnections({ service: 'db' }), 1);
  t.equal(await bed.metric('legate_link_active_connections{service="db"}'), 1);
  client.end();
  await waitFor('it ended', () => bed.plane.activeConnections() === 0);
  t.not(await bed.metric('legate_link_active_connections{service="db"}'), 1);
});

t.test('drain waits for what runs, then resets it', async (t) => {
  const { port } = await startBackend(t, (socket) => socket.pipe(socket));
  const services = [serviceOf([instanceOf({ name: 'one', port })], { vip: '127.9.0.9' })];
  for (const { finish, signal, expected } of [
    { finish: true, signal: false, expected: 0 },
    { finish: false, signal: false, expected: 2 },
    { finish: false, signal: true, expected: 2 },
  ]) {
    const clock = new ManualClock();
    const bed = await startBed(t, { clock, services });
    const clients = [dial(t, bed.port), dial(t, bed.port)];
    const outcomes = clients.map((client) => outcome(client));
    await waitFor(
      'both run',
      () => bed.plane.links().reduce((sum, link) => sum + (link.backends[0]?.total ?? 0), 0) === 4,
    );
    const listened = bed.port;
    const abort = new AbortController();
    const drained = bed.plane.drain(30_000, abort.signal);
    // One that comes before it closes is let in.
    const refuses = (): Promise<boolean> => {
      const late = dial(t, listened);
      return new Promise<boolean>((resolve) => {
        late.once('connect', () => resolve(false)).once('error', () => resolve(true));
      }).finally(() => late.destroy());
    };
    await waitFor('it does not listen', refuses);
    t.strictSame(bed.portMap.last, []);
    await waitFor('those two alone', () => bed.plane.activeConnections() === 2);
    if (finish) for (const client of clients) client.end();
    else if (signal) abort.abort();
    else await clock.advance(30_000);
    t.equal(await drained, expected);
    t.strictSame(
      (await Promise.all(outcomes)).map(({ how }) => how),
      finish ? ['end', 'end'] : ['ECONNRESET', 'ECONNRESET'],
    );
    await bed.plane.close();
  }
});

t.test('an address that is taken is a condition, and is taken later', async (t) => {
  const holder = createServer();
  await new Promise<void>((resolve) => holder.listen(0, '127.0.0.1', resolve));
  const address = holder.address();
  const taken = typeof address === 'object' && address !== null ? address.port : 0;
  const { port } = await startBackend(t, naming('one'));
  const services = [
    serviceOf([instanceOf({ name: 'one', port })]),
    serviceOf([instanceOf({ name: 'o', port })], { name: 'web' }),
  ];
  const clock = new ManualClock();
  const bed = await startBed(t, {
    clock,
    services,
    links: [
      { service: 'db', listen: { address: '127.0.0.1', port: taken } },
      { service: 'web', listen: { address: '127.0.0.1', port: 0 } },
    ],
    explainListenError: async () => new LegateError('E_IN_USE', 'held by postgres (pid 812)', { hint: 'stop it' }),
  });
  await waitFor('it is told', () => bed.conditions.list().length === 1);
  t.match(bed.conditions.list(), [
    { severity: 'error', message: /link to db cannot listen on 127.0.0.1:\d+: held by postgres/, hint: 'stop it' },
  ]);
  t.match(bed.plane.links(), [
    { service: 'db', state: 'down', problem: /postgres/ },
    { service: 'web', state: 'open' },
  ]);
  t.equal(bed.plane.listenerOf('db'), undefined);
  t.equal(await ask(t, bed.plane.listenerOf('web')?.port ?? 0), 'one', 'everything else goes on');
  await new Promise((resolve) => holder.close(resolve));
  await clock.advance(10_000);
  await waitFor('it listens', () => bed.plane.listenerOf('db')?.port === taken);
  t.equal(await ask(t, taken), 'one');
  t.strictSame(bed.conditions.list(), []);
});

t.test('beyond the limit connections are reset, told and counted', async (t) => {
  const { port } = await startBackend(t, (socket) => socket.pipe(socket));
  const bed = await startBed(t, { maxConnections: 3, services: [serviceOf([instanceOf({ name: 'one', port })])] });
  const clients = [dial(t, bed.port), dial(t, bed.port), dial(t, bed.port)];
  await waitFor('they run', () => bed.plane.activeConnections() === 3);
  t.equal(await ask(t, bed.port), 'ECONNRESET');
  t.match(bed.conditions.list(), [{ id: 'link.limit' }]);
  t.equal(await bed.metric('legate_link_connections_over_limit_total'), 1);
  for (const client of clients) client.end();
  await waitFor('it is over', () => bed.conditions.list().length === 0);
  t.equal(connectionLimit(1_000_000), maxConnections);
  t.equal(connectionLimit(20_000), 9488);
  t.equal(connectionLimit(64), 24);
  t.ok(connectionLimit() > 0);
});

t.test('with no descriptor left it says so, does not spin, and recovers', async (t) => {
  const { port } = await startBackend(t, (socket) => socket.pipe(socket));
  const script = fileURLToPath(new URL('./link-plane.child.js', import.meta.url));
  const child = spawn('/bin/sh', ['-c', 'ulimit -n 60 && exec "$0" "$@"', process.execPath, script, String(port)], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  const state = { port: 0, conditions: [] as string[], cpuMs: 0 };
  child.on('message', (message) => Object.assign(state, message));
  await waitFor('it listens', () => state.port > 0);
  const clients = Array.from({ length: 40 }, () => dial(t, state.port));
  for (const client of clients) client.on('error', () => undefined);
  await waitFor('it is told', () => state.conditions.includes('link.descriptors'));
  const before = state.cpuMs;
  await new Promise((resolve) => setTimeout(resolve, 500));
  t.ok(state.cpuMs - before < 250, `${state.cpuMs - before} ms of CPU in 500 ms`);
  for (const client of clients) client.destroy();
  const answered = async (): Promise<boolean> => {
    const client = dial(t, state.port);
    client.end('x');
    const { data } = await outcome(client);
    return data.toString() === 'x';
  };
  await waitFor('it serves again', answered);
});

t.test('in a burst running connections are held for moments only', async (t) => {
  let nowMs = 0;
  const gate = new AcceptGate(() => nowMs);
  const started: number[] = [];
  const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
  let accepted = 0;
  const accept = async (): Promise<void> => {
    const number = accepted;
    accepted += 1;
    gate.accepted(() => started.push(number));
    await turn();
  };
  for (let count = 0; count < AcceptGate.burstTurns; count += 1) await accept();
  t.equal(started.length, AcceptGate.burstTurns, 'the first start at once');
  t.ok(gate.holding);
  let resumed = false;
  gate.hold(() => {
    resumed = true;
  });
  await accept();
  t.equal(started.length, AcceptGate.burstTurns);
  nowMs += AcceptGate.maxHoldMs;
  await accept();
  t.notOk(gate.holding, 'the hold is over although more come');
  t.ok(resumed);
  t.equal(started.length, accepted);
  await accept();
  t.ok(gate.holding, 'and the next one follows after a turn');
  await accept();
  await turn();
  await turn();
  t.notOk(gate.holding, 'with nobody left it ends at once');
  t.equal(started.length, accepted);
});

t.test('600 at once are all served', async (t) => {
  const { port } = await startBackend(t, naming('hello'));
  const bed = await startBed(t, { services: [serviceOf([instanceOf({ name: 'one', port })])] });
  const answers = await Promise.all(Array.from({ length: 600 }, () => ask(t, bed.port)));
  t.equal(answers.filter((answer) => answer === 'hello').length, 600);
});

t.test('an unused port stays unused', async (t) => {
  const bed = await startBed(t, {
    portMap: undefined,
    services: [serviceOf([instanceOf({ name: 'a', port: await deadPort() })], { vip: '127.9.0.4' })],
  });
  t.match(bed.plane.links(), [{ kind: 'listen' }], 'without a port map there are no listeners on virtual addresses');
  t.equal(bed.plane.links().length, 1);
});

t.test('only the first connection pays for a host that lost power, until its lease is back', async (t) => {
  const clock = new ManualClock();
  const { port } = await startBackend(t, naming('other'));
  const hole = await blackHole(t);
  const dead = ['a', 'b', 'c'].map((name) =>
    instanceOf({ name, id: `web-2/${name}`, hostId: otherHost, reach: 'mesh', port: hole }),
  );
  const third = '00000000000000cc';
  const living = instanceOf({ name: 'd', id: 'web-3/d', hostId: third, reach: 'mesh', port });
  const db = serviceOf([...dead, living]);
  const web = serviceOf([...dead, living], { name: 'web' });
  const bed = await startBed(t, { clearUnderlay: true, clock, services: [db, web] });
  const failures = (): Promise<number> => bed.metric('legate_link_connect_failures_total{service="db"}');
  const first = ask(t, bed.port);
  const backends = () => bed.plane.links().find(({ service }) => service === 'db')?.backends ?? [];
  await waitFor('an attempt', () => backends().some(({ active }) => active === 1));
  await clock.advance(connectAttemptMs);
  t.equal(await first, 'other');
  t.equal(await failures(), 1);
  t.same(
    backends().map(({ id, suspect }) => `${id} ${suspect}`),
    ['web-2/a true', 'web-2/b true', 'web-2/c true', 'web-3/d false'],
  );
  t.match(await bed.metrics.exposition(), /legate_link_suspect_hosts_count 1\n/);
  for (let time = 0; time < 8; time += 1) t.equal(await ask(t, bed.port), 'other');
  t.equal(await failures(), 1, 'nobody else met it');
  const host = { id: otherHost, name: 'web-2', address: '10.77.0.2', version: '1', revision: '1' };
  for (const alive of [false, true]) {
    const { value } = bed.snapshots;
    bed.snapshots.set({ ...value, hosts: value.hosts.with([[otherHost, { ...host, alive }]], []) });
    await clock.advance(0);
  }
  t.ok(backends().every(({ suspect }) => !suspect));
});
