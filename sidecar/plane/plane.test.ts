import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { LinkBackendDocument, LinkDocument } from '../../proxy/link-document.ts';
import type { TunnelDocument } from '../../proxy/tunnel/tunnel-document.ts';
import { ManualClock, systemClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import { LegateError } from '../../src/base/errors.ts';
import { Latest } from '../../src/base/feed.ts';
import { silentLog } from '../../src/base/log.ts';
import { addFigures, lastingFigures, Metrics } from '../../src/base/metrics.ts';
import { PersistentMap } from '../../src/base/persistent-map.ts';
import { processNameOf } from '../../src/base/processes.ts';
import { compareInstances } from '../../src/catalog/members.ts';
import { emptySnapshot, type Service, type Snapshot } from '../../src/catalog/snapshot.ts';
import type { CallerTable } from '../../src/model/caller.ts';
import type { Instance } from '../../src/model/instance.ts';
import { temporaryFolder } from '../../test/support/agent.ts';
import { waitFor } from '../../test/support/wait.ts';
import { callersCodec, maxPartSize, snapshotCodec } from './codecs.ts';
import { FeedReceiver, FeedSender } from './feeds.ts';
import { FormerWorkers } from './former-workers.ts';
import { mergeLinks, mergeTunnels } from './merge.ts';
import { Peer, type Wire } from './peer.ts';
import { toldValues } from './seam.ts';
import { WorkerCallers } from './worker-callers.ts';
import { WorkerFaults } from './worker-faults.ts';

const instance = (number: number, more: Partial<Instance> = {}): Instance => ({
  id: `web-${number % 3}/i-${String(number).padStart(5, '0')}`,
  name: `i-${number}`,
  host: `web-${number % 3}`,
  hostId: `000000000000000${number % 3}`,
  service: 'db',
  address: '10.0.0.1',
  port: 1000 + number,
  protocol: 'tcp',
  reach: 'host',
  tags: [],
  meta: {},
  weight: 100,
  status: 'passing',
  draining: false,
  output: '',
  source: 'file',
  incarnation: '',
  revision: '1',
  ...more,
});

const service = (name: string, instances: readonly Instance[], usable = instances): Service => ({
  name,
  port: 80,
  protocol: 'tcp',
  balance: 'round-robin',
  vip: undefined,
  instances: [...instances].sort(compareInstances),
  usable: [...usable].sort(compareInstances),
  faults: [],
});

const snapshotOf = (services: readonly Service[], version: number): Snapshot => ({
  ...emptySnapshot,
  version,
  origin: 'store',
  services: PersistentMap.from(services.map((each) => [each.name, each] as const)),
});

/** What a value becomes on its way through a channel. */
const travelled = <T>(value: T): T => structuredClone(value);

t.test('a snapshot arrives as what changed, and what did not change is the same object', async (t) => {
  const rows = Array.from({ length: 2000 }, (_, number) => instance(number));
  const others = Array.from({ length: 600 }, (_, number) => service(`s${number}`, [instance(number)]));
  const first = snapshotOf([service('db', rows), ...others], 1);
  let there = snapshotCodec.initial;
  let before: Snapshot = snapshotCodec.initial;
  const parts = (after: Snapshot): unknown[] => [...snapshotCodec.diff(before, after)];
  const send = (after: Snapshot): number => {
    const sent = parts(after);
    for (const part of sent) there = snapshotCodec.apply(there, travelled(part) as never);
    before = after;
    return sent.reduce<number>((size, part) => size + JSON.stringify(part).length, 0);
  };
  const check = (name: string): void => {
    t.same(new Map(there.services), new Map(before.services), name);
    t.equal(there.version, before.version);
  };
  t.ok(parts(first).length > 600 / maxPartSize, 'in parts');
  const whole = send(first);
  check('all of it');
  t.equal(there.services.get('db')?.usable[7], there.services.get('db')?.instances[7], 'usable ones are the instances');

  const was = there.services.get('db');
  const dead = instance(1000, { status: 'critical', revision: '2' });
  const all = rows.map((row) => (row.id === dead.id ? dead : row));
  const usable = rows.filter(({ id }) => id !== dead.id);
  const cost = send(snapshotOf([service('db', all, usable), ...others], 2));
  check('one turned critical');
  t.ok(cost < whole / 100, `${cost} of ${whole} characters`);
  const is = there.services.get('db');
  t.equal(is?.instances.filter((row) => was?.instances.includes(row)).length, 1999, 'the others are the same objects');
  t.equal(is?.usable[7], is?.instances[7]);

  const renamed = { ...service('db', all, usable), port: 81 };
  send(snapshotOf([renamed, ...others.slice(1)], 3));
  check('a setting changed and a service went');
  t.equal(there.services.get('db')?.instances, is?.instances, 'the lists are the same');
  const shrunk = all.filter((_, at) => at % 2 === 0);
  send(snapshotOf([service('db', [...shrunk, instance(9999)], []), service('new', [dead])], 4));
  check('nearly everything changed');
  t.same(parts(before), [], 'nothing more');
});

t.test('any change of a list arrives', async (t) => {
  let seed = 7;
  const random = (below: number): number => {
    seed = (seed * 1103515245 + 12345) % 2147483648;
    return seed % below;
  };
  let there = snapshotCodec.initial;
  let before: Snapshot = snapshotCodec.initial;
  const pool = new Map<number, Instance>();
  for (let version = 1; version <= 200; version += 1) {
    for (let change = random(5); change >= 0; change -= 1) {
      const number = random(40);
      if (random(3) === 0) pool.delete(number);
      else pool.set(number, instance(number, { revision: `${version}` }));
    }
    const list = [...pool.values()];
    const after = snapshotOf(
      [
        service(
          'db',
          list,
          list.filter(({ port }) => (port + version) % 3 > 0),
        ),
      ],
      version,
    );
    for (const part of snapshotCodec.diff(before, after)) there = snapshotCodec.apply(there, travelled(part) as never);
    before = after;
    const [is, should] = [there.services.get('db'), after.services.get('db')];
    const lists = [is, should].map((each) => JSON.stringify([each?.instances, each?.usable]));
    if (lists[0] !== lists[1]) return t.fail(`version ${version}`, { is, should });
  }
  t.pass('200 versions');
});

t.test('a slow process is sent the latest, one part at a time', async (t) => {
  const source = new Latest<CallerTable>({ off: undefined, bound: PersistentMap.empty() });
  const receiver = new FeedReceiver(toldValues);
  let underWay = 0;
  let most = 0;
  let sent = 0;
  const release: (() => void)[] = [];
  const sender = new FeedSender({
    source,
    codec: callersCodec,
    send: async (part) => {
      underWay += 1;
      sent += 1;
      most = Math.max(most, underWay);
      await new Promise<void>((resolve) => release.push(resolve));
      receiver.take('callers', travelled(part));
      underWay -= 1;
    },
  });
  for (let round = 0; round < 100; round += 1) {
    const caller = { consumer: `c${round}`, container: 'c', links: [] };
    source.set({ off: undefined, bound: source.value.bound.with([['10.0.0.1', caller]], []) });
    await Promise.resolve();
    await Promise.resolve();
  }
  const last = sender.flush();
  const timer = setInterval(() => release.shift()?.(), 0);
  await last;
  clearInterval(timer);
  t.equal(receiver.get('callers').value.bound.get('10.0.0.1')?.consumer, 'c99');
  t.equal(receiver.get('callers').value.off, undefined);
  t.equal(most, 1);
  t.ok(sent <= 4, `${sent} parts for 100 changes`);
});

interface Ends {
  readonly wires: readonly [Wire, Wire];
  readonly cut: () => void;
}

function ends(): Ends {
  const listeners: ((message: unknown, handle: unknown) => void)[] = [];
  const closers: (() => void)[] = [];
  const wire = (own: number, other: number): Wire => ({
    send: (message, handle) => {
      const copy = travelled(message);
      setImmediate(() => listeners[other]?.(copy, handle));
    },
    onMessage: (listener) => {
      listeners[own] = listener;
    },
    onClose: (listener) => void closers.push(listener),
  });
  return {
    wires: [wire(0, 1), wire(1, 0)],
    cut: () => {
      for (const close of closers) close();
    },
  };
}

t.test('calls between processes', async (t) => {
  interface Theirs {
    double(number: number): Promise<number>;
    fail(how: 'ours' | 'system'): Promise<void>;
    never(): Promise<void>;
    told(word: string, handle: unknown): void;
  }
  const { wires, cut } = ends();
  const clock = new ManualClock();
  const words: unknown[] = [];
  const theirs: Theirs = {
    double: async (number) => number * 2,
    async fail(how) {
      if (how === 'ours') throw new LegateError('E_CONFLICT', 'no', { hint: 'do it otherwise' });
      throw Object.assign(new Error('taken'), { code: 'EADDRINUSE' });
    },
    never: () => new Promise(() => undefined),
    told: (...args) => void words.push(...args),
  };
  new Peer<Theirs, object>({ wire: wires[1], clock, mine: theirs });
  const peer = new Peer<object, Theirs>({ wire: wires[0], clock, mine: {} });
  t.equal(await peer.call('double', 21), 42);
  await t.rejects(peer.call('fail', 'ours'), { code: 'E_CONFLICT', message: 'no', hint: 'do it otherwise' });
  await t.rejects(peer.call('fail', 'system'), { code: 'EADDRINUSE', message: 'taken' });
  const unknown = peer as unknown as Peer<object, { toString(): Promise<string> }>;
  await t.rejects(unknown.call('toString'), /has no toString/);
  const late = t.rejects(peer.callWithin(100, 'never'), { code: 'E_TIMEOUT' });
  await clock.advance(101);
  await late;
  peer.tellWith('handle', 'told', 'word');
  await waitFor('it', () => words.length > 0);
  t.same(words, ['word', 'handle']);
  const pending = t.rejects(peer.call('never'), { code: 'E_CLOSED' });
  cut();
  await pending;
  await t.rejects(peer.call('double', 1), { code: 'E_CLOSED' });
});

t.test('figures are added up and counters outlive their process', async (t) => {
  const control = new Metrics();
  const workers = [new Metrics(), new Metrics()];
  control.counter('legate_link_bytes_total', 'Bytes.', { service: 'db' }).value = 1;
  for (const [index, metrics] of workers.entries()) {
    metrics.counter('legate_link_bytes_total', 'Bytes.', { service: 'db' }).value = 10 * (index + 1);
    metrics.counter('legate_link_bytes_total', 'Bytes.', { service: `only-${index}` }).value = 5;
    metrics.gauge('legate_link_open_count', 'Open.', [], () => [[[], 3]]);
    metrics.histogram('legate_link_took_seconds', 'Time.', [1, 2]).observe(1.5);
  }
  let living = workers;
  let past: Awaited<ReturnType<Metrics['figures']>> = [];
  control.addOthers(async () => addFigures([past, ...(await Promise.all(living.map((each) => each.figures())))]));
  const all = await control.exposition();
  t.match(all, 'legate_link_bytes_total{service="db"} 31');
  t.match(all, 'legate_link_bytes_total{service="only-1"} 5');
  t.match(all, 'legate_link_open_count 6');
  t.match(all, 'legate_link_took_seconds_bucket{le="2"} 2');
  t.match(all, 'legate_link_took_seconds_count 2');
  t.equal(all.split('# TYPE legate_link_bytes_total counter').length, 2, 'each family once');
  const [dead, ...rest] = workers;
  past = addFigures([past, lastingFigures((await dead?.figures()) ?? [])]);
  living = rest;
  const after = await control.exposition();
  t.match(after, 'legate_link_bytes_total{service="db"} 31');
  t.match(after, 'legate_link_open_count 3');
  t.match(after, 'legate_link_took_seconds_count 2');
});

t.test('documents of workers become one', async (t) => {
  const backend: LinkBackendDocument = {
    id: 'a',
    address: '',
    host: 'here',
    via: 'direct',
    near: 'host',
    status: 'passing',
    tunnel: null,
    active: 0,
    total: 0,
    ejectedUntil: null,
    ejectedFor: null,
    ejections: 0,
    suspect: false,
  };
  const link = (active: number, more: Partial<LinkDocument> = {}): LinkDocument => ({
    service: 'db',
    kind: 'vip',
    address: '240.77.0.5:80',
    tls: null,
    state: 'open',
    problem: null,
    balance: 'round-robin',
    instances: 2,
    connections: { active, total: 10, failed: 1, retried: 0, held: 0 },
    consumers: [{ name: 'host', active, total: 10 }],
    bytes: { received: 5, sent: 6 },
    rates: { received: 1, sent: 2, connections: 3 },
    backends: [{ ...backend, active, total: 10 }],
    lastError: null,
    denied: { total: 0, last: null },
    ...more,
  });
  const ejected = {
    ...{ ...backend, active: 2, total: 4, ejections: 1, suspect: true },
    ...{ ejectedUntil: '2026', ejectedFor: 'slowness' as const },
  };
  const web = { name: 'web', active: 1, total: 30 };
  const merged = mergeLinks([
    [link(1), link(1, { kind: 'listen', address: '127.0.0.1:1' })],
    [
      link(2, {
        state: 'down',
        problem: 'x',
        consumers: [web],
        backends: [ejected],
        lastError: { at: '1', message: 'm' },
      }),
    ],
  ]);
  t.match(merged, [
    {
      kind: 'vip',
      state: 'open',
      problem: 'x',
      connections: { active: 3, total: 20, failed: 2, retried: 0 },
      consumers: [web, { name: 'host', active: 1, total: 10 }],
      bytes: { received: 10, sent: 12 },
      backends: [
        { id: 'a', active: 3, total: 14, ejectedUntil: '2026', ejectedFor: 'slowness', ejections: 1, suspect: true },
      ],
      lastError: { message: 'm' },
    },
    { kind: 'listen', connections: { active: 1 } },
  ]);
  const tunnel = (state: TunnelDocument['state'], roundTripMs: number | null): TunnelDocument => ({
    hostId: '1',
    host: 'web-1',
    address: null,
    state,
    since: state,
    problem: state === 'ready' ? null : 'why',
    connections: { dialled: 1, accepted: 0 },
    streams: { active: 1, opened: 2, accepted: 3 },
    bytes: { received: 1, sent: 2 },
    roundTripMs,
    peerCertificateUntil: null,
  });
  t.match(mergeTunnels([[tunnel('connecting', null)], [tunnel('ready', 2)]]), [
    {
      state: 'ready',
      problem: null,
      since: 'ready',
      connections: { dialled: 2 },
      streams: { accepted: 6 },
      roundTripMs: 2,
    },
  ]);
});

t.test('a fault of several workers is one, until the last of them has it no more', async (t) => {
  const conditions = new Conditions(silentLog, systemClock, new Metrics());
  const faults = new WorkerFaults(conditions);
  for (const slot of [0, 1]) faults.raise(slot, 'link.map', 'error', 'message', 'hint');
  t.equal(conditions.list().length, 1);
  faults.clear(0, 'link.map');
  t.equal(conditions.list().length, 1);
  faults.forget(1);
  t.same(conditions.list(), []);
});

t.test('an address is fresh in a worker for less time than the kernel records', async (t) => {
  const clock = new ManualClock();
  const table = new Latest<CallerTable>({ off: undefined, bound: PersistentMap.empty() });
  const callers = new WorkerCallers({ table, clock, confirm: () => Promise.reject(new Error('control is gone')) });
  const caller = { consumer: 'web', container: 'web', links: [] };
  table.set({ off: undefined, bound: table.value.bound.with([['172.17.0.2', caller]], []) });
  await Promise.resolve();
  t.equal(callers.isFresh('172.17.0.2'), true);
  t.equal(callers.isFresh('172.17.0.3'), false);
  await clock.advance(WorkerCallers.freshMs);
  t.equal(callers.isFresh('172.17.0.2'), false);
  const connection = { source: { address: '172.17.0.2', port: 1 }, destination: { address: '240.77.0.1', port: 1 } };
  t.equal(await callers.confirm(connection), false, 'nobody is let in whom control cannot confirm');
  const travels = new WorkerCallers({ table, clock, confirm: async (asked) => structuredClone(asked) === undefined });
  const held = { ...connection, decide: () => undefined };
  t.equal(await travels.confirm(held), false, 'what is asked can be cloned');
  const confirmed = new WorkerCallers({ table, clock, confirm: async (asked) => structuredClone(asked) !== undefined });
  t.equal(await confirmed.confirm(held), true);
});

t.test('workers of a sidecar before are found, and no other process is taken for one', async (t) => {
  const path = join(temporaryFolder(t), 'workers');
  const child = spawn('sleep', ['60']);
  t.teardown(() => child.kill('SIGKILL'));
  const ended = once(child, 'exit');
  await waitFor('it runs', () => child.pid !== undefined);
  const own = processNameOf(child.pid ?? 0);
  writeFileSync(path, `${own}\n${own}1\n${own.replace(/ \d+ /, ' 4194303 ')}\nnonsense\n`);
  const former = new FormerWorkers({ path, clock: systemClock });
  t.equal(former.count, 1);
  former.remember([process.pid]);
  t.same(readFileSync(path, 'utf8'), `${processNameOf(process.pid)}\n${own}\n`, 'the next one finds both');
  former.leave();
  await ended;
  t.equal(former.count, 0);
  await former.end(0);
  former.remember([]);
  t.equal(existsSync(path), false);
});
