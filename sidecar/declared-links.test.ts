import t from 'tap';
import { ManualClock } from '../src/base/clock.ts';
import { Latest } from '../src/base/feed.ts';
import { PersistentMap } from '../src/base/persistent-map.ts';
import { emptySnapshot, type Service, type Snapshot } from '../src/catalog/snapshot.ts';
import type { Caller, CallerTable } from '../src/model/caller.ts';
import type { Instance } from '../src/model/instance.ts';
import type { DeclaredLink } from '../src/model/link.ts';
import { parts } from '../test/support/records.ts';
import { declaredDocuments } from './admin/declared-views.ts';
import type { LinkDocument } from './admin/documents.ts';
import { DeclaredLinks } from './declared-links.ts';

function link(alias: string, service = alias, port?: number): DeclaredLink {
  return { alias, service, port };
}

function caller(container: string, ...links: DeclaredLink[]): Caller {
  return { container, consumer: undefined, links };
}

function service(name: string, fields: Partial<Service> = {}): Service {
  const one = { id: `web-1/${name}`, address: '172.17.0.2', port: 6380 } as Instance;
  const { instances = [one], usable = instances } = fields;
  const rest = { port: 6380, protocol: 'tcp', balance: 'round-robin', vip: '240.77.0.5', faults: [] } as const;
  return { name, ...rest, ...fields, instances, usable };
}

function bench(t: import('tap').Test, callers: Readonly<Record<string, Caller>>, services: readonly Service[] = []) {
  const clock = new ManualClock();
  const { conditions } = parts(clock);
  const snapshotOf = (list: readonly Service[]): Snapshot => ({
    ...emptySnapshot,
    origin: 'store',
    services: PersistentMap.from(list.map((each) => [each.name, each])),
  });
  const tableOf = (by: Readonly<Record<string, Caller>>): CallerTable => {
    return { off: undefined, bound: PersistentMap.from(Object.entries(by)) };
  };
  const table = new Latest(tableOf(callers));
  const snapshots = new Latest(snapshotOf(services));
  const declaring: Caller[] = [];
  const nameOf = (idStart: string): string | undefined =>
    'abcdef012345'.repeat(2).startsWith(idStart) ? 'web' : undefined;
  const declared = new DeclaredLinks({
    callers: table,
    snapshots,
    declaring: () => declaring,
    nameOf,
    clock,
    conditions,
  });
  t.teardown(() => declared.close());
  const ports = (): Record<string, readonly number[]> => Object.fromEntries(declared.ports.value);
  const notes = (): string[] => conditions.list().map(({ id, message }) => `${id}: ${message}`);
  const bind = async (by: Readonly<Record<string, Caller>>): Promise<void> => {
    table.set({ ...table.value, bound: tableOf(by).bound });
    await null;
  };
  const have = async (...list: readonly Service[]): Promise<void> => {
    snapshots.set(snapshotOf(list));
    await null;
  };
  return { clock, declared, declaring, table, snapshots, ports, notes, bind, have };
}

t.test('which ports are wanted of which services', async (t) => {
  const a = caller('a', link('cache', 'redis', 6379), link('db'));
  const b = caller('b', link('redis', 'redis', 7000), link('kv', 'redis', 6379), link('own', 'redis'));
  const w = bench(t, { '172.17.0.2': a });
  t.strictSame(w.ports(), { redis: [6379], db: [] });
  await w.bind({ '172.17.0.2': a, '172.17.0.3': b, '172.18.0.3': b });
  t.strictSame(w.ports(), { redis: [6379, 7000], db: [] });
  const before = w.declared.ports.value;
  await w.bind({ '172.17.0.2': a, '172.17.0.3': b });
  t.equal(w.declared.ports.value, before, 'another of its addresses changes nothing');
  await w.bind({ '172.17.0.3': b });
  t.strictSame(w.ports(), { redis: [6379, 7000] });
  await w.bind({ '172.17.0.3': caller('c', link('redis')) });
  t.strictSame(w.ports(), { redis: [] }, 'the address has another container');
  await w.bind({});
  t.strictSame(w.ports(), {});
});

t.test('what each declared link leads to', async (t) => {
  const critical = service('sick', { usable: [] });
  const udp = service('syslog', { protocol: 'udp', vip: undefined as never });
  const services = [service('redis'), critical, service('empty', { instances: [] }), udp];
  const up = (address: string, state: LinkDocument['state'] = 'open', problem: string | null = null): LinkDocument =>
    ({ kind: 'vip', service: 'redis', address, state, problem }) as LinkDocument;
  const listener = { ...up('127.0.0.1:16380'), kind: 'listen' } as const;
  const on = { on: true, reason: null };
  const off = { on: false, reason: 'no nftables' };
  const vip = '240.77.0.5';
  const cases: readonly [DeclaredLink, LinkDocument[], typeof on | typeof off, string][] = [
    [link('db'), [], on, 'waiting null null'],
    [link('empty'), [], on, `waiting ${vip}:6380 null`],
    [link('cache', 'empty', 1), [], on, `waiting ${vip}:1 null`],
    [link('cache', 'redis'), [up(`${vip}:6380`)], on, `open ${vip}:6380 null`],
    [link('cache', 'redis', 1), [up(`${vip}:6380`), up(`${vip}:1`, 'refusing')], on, `refusing ${vip}:1 null`],
    [link('cache', 'redis'), [up(`${vip}:6380`, 'down', 'taken')], on, `down ${vip}:6380 taken`],
    [link('cache', 'redis', 1), [], on, `down null ${vip}:1 is not open: legate status says why`],
    [link('cache', 'redis'), [], off, 'open 172.17.0.2:6380 null'],
    [link('cache', 'redis', 6380), [listener], off, 'open 127.0.0.1:16380 null'],
    [link('cache', 'sick'), [], off, 'refusing null null'],
    [
      link('cache', 'redis', 1),
      [listener],
      off,
      'down null port 1 needs a virtual address, and there are none (no nftables): use redis at its own port 6380, or see legate status',
    ],
    [
      link('log', 'syslog', 1),
      [],
      on,
      'down null port 1 would need a virtual address, which UDP services do not have: use syslog at its own port 6380',
    ],
    [link('log', 'syslog'), [], on, 'open 172.17.0.2:6380 null'],
  ];
  for (const [declaredLink, links, vipState, expected] of cases) {
    const w = bench(t, { '172.17.0.9': caller('web', declaredLink) }, services);
    const [found] = declaredDocuments(w.declared.list(), { snapshot: w.snapshots.value, links, vip: vipState });
    t.equal(`${found?.state} ${found?.address} ${found?.problem}`, expected, JSON.stringify(declaredLink));
    t.equal(found?.since === null, found?.state !== 'waiting');
  }
});

t.test('containers whose aliases nobody knows', async (t) => {
  const w = bench(t, { '172.17.0.9': caller('web', link('db')) });
  w.declaring.push(caller('web', link('db')), caller('on-host', link('db')));
  const shown = () => {
    const surroundings = { snapshot: w.snapshots.value, links: [], vip: { on: true, reason: null } };
    return declaredDocuments(w.declared.list(), surroundings).map(
      (row) => `${row.container} ${row.state} ${row.problem}`,
    );
  };
  t.match(shown(), [/^on-host down its address is not known/, 'web waiting null']);
  w.table.set({ off: 'no nftables', bound: PersistentMap.empty() });
  await null;
  t.strictSame(
    shown(),
    ['on-host down', 'web down'].map((text) => `${text} who asks cannot be told: no nftables`),
  );
  t.throws(() => w.declared.addressOf('web\u001b'), { code: 'E_NOT_FOUND', message: /web\\u001b/ });
});

t.test('since when a link waits', async (t) => {
  const web = caller('web', link('db'));
  const w = bench(t, { '172.17.0.9': web });
  const begin = w.clock.nowMs();
  const since = (): number => (w.declared.list()[0]?.waitingSinceMs ?? 0) - begin;
  await w.clock.advance(1000);
  t.equal(since(), 0, 'since it was declared');
  await w.have(service('db'));
  await w.clock.advance(1000);
  await w.have(service('db', { instances: [] }));
  await w.clock.advance(1000);
  t.equal(since(), 2000, 'since the last instance went');
  await w.have();
  t.equal(since(), 2000);
  await w.bind({});
  await w.bind({ '172.17.0.9': web });
  t.equal(since(), 3000, 'another container');
});

t.test('clashes are notes', async (t) => {
  const web = caller('web', link('cache', 'redis'), link('db'));
  const w = bench(t, { '172.17.0.9': web, '172.18.0.9': web }, [service('db'), service('redis')]);
  t.strictSame(w.notes(), [], 'an alias of its own service hides nothing');
  await w.have(service('cache'));
  t.strictSame(w.notes(), ['links.alias.cache: the alias cache of web hides the service cache for it']);
  const others = Object.fromEntries(
    ['a', 'b', 'c', 'd'].map((name, index) => [`172.17.0.${index + 1}`, caller(name, link('cache', 'x'))]),
  );
  await w.bind({ '172.17.0.9': web, ...others });
  t.match(w.notes(), [/^links.alias.cache: the alias cache of a, b, c and 2 more hides the service cache for them$/]);
  await w.have();
  t.strictSame(w.notes(), []);
  await w.have(service('cache'));
  await w.bind({});
  t.strictSame(w.notes(), [], 'with the containers it ends');

  await w.bind({
    '172.17.0.9': caller('pod', link('db', 'one'), link('db', 'two'), link('x', 'y', 1), link('x', 'y', 1)),
  });
  t.match(w.notes(), [
    /^links.twice.172.17.0.9: containers that share the network of pod mean one and two by the alias db/,
  ]);
  t.match(
    w.declared.list().map(({ link: { service: name }, beatenBy }) => [name, beatenBy?.service]),
    [
      ['one', undefined],
      ['two', 'one'],
      ['y', undefined],
    ],
  );
  w.declared.close();
  t.strictSame(w.notes(), []);
});

t.test('a container by its name or id', async (t) => {
  const w = bench(t, { '172.17.0.9': caller('web'), '172.17.0.8': caller('abcdef0123450') });
  for (const text of ['web', 'abcdef012345', 'ABCDEF012345', 'abcdef012345abcdef012345']) {
    t.equal(w.declared.addressOf(text), '172.17.0.9', text);
  }
  t.equal(w.declared.addressOf('abcdef0123450'), '172.17.0.8', 'a name comes first');
  for (const text of ['abcdef01234', 'abcdef012346', ''])
    t.throws(() => w.declared.addressOf(text), { code: 'E_NOT_FOUND' });
});
