import t from 'tap';
import { Latest } from '../src/base/feed.ts';
import { PersistentMap } from '../src/base/persistent-map.ts';
import type { Service } from '../src/catalog/snapshot.ts';
import { type Caller, type Callers, type Identity, noCallers } from '../src/model/caller.ts';
import type { DeclaredLink, DeclaredPorts } from '../src/model/link.ts';
import { waitFor } from '../test/support/wait.ts';
import { AliasLinks } from './alias-links.ts';
import { Link } from './link.ts';
import { ask, type Bed, instanceOf, naming, serviceOf, startBackend, startBed } from './link-plane.fixture.ts';

function ports(wanted: Readonly<Record<string, readonly number[]>>): DeclaredPorts {
  return PersistentMap.from(Object.entries(wanted));
}

function mapped(bed: Bed): string {
  return bed.portMap.last
    .map(({ address, port }) => `${address}:${port}`)
    .sort()
    .join(' ');
}

function privatePort(bed: Bed, port: number): number {
  return bed.portMap.last.find((entry) => entry.port === port)?.privatePort ?? 0;
}

/** The test's own connections come from this address, as if a container that declares these links had it. */
function callersWith(links: readonly DeclaredLink[]): Callers {
  const caller: Caller = { consumer: 'web', container: 'web-1', links };
  const bound = PersistentMap.from([['127.0.0.1', caller]]);
  return { ...noCallers, table: new Latest({ off: undefined, bound }) };
}

t.test('a port that containers declare is mapped to a listener of its own', async (t) => {
  const vip = '127.9.1.5';
  const { port } = await startBackend(t, naming('one'));
  const one = instanceOf({ name: 'one', port });
  const db = (fields: Partial<Service> = {}): Service => serviceOf([one], { vip, ...fields });
  const declared = new Latest(ports({ db: [6379], nosuch: [1] }));
  const callers = callersWith([{ alias: 'cache', service: 'db', port: 6379 }]);
  const bed = await startBed(t, { links: [], services: [db()], declared, callers });
  t.equal(mapped(bed), `${vip}:5432 ${vip}:6379`, 'from the start');
  t.not(privatePort(bed, 6379), privatePort(bed, 5432));
  t.equal(await ask(t, privatePort(bed, 6379), vip), 'one');
  t.match(bed.plane.links(), [
    { kind: 'vip', address: `${vip}:5432`, state: 'open', connections: { total: 0 } },
    { kind: 'alias', address: `${vip}:6379`, state: 'open', connections: { total: 1 } },
  ]);

  const follow = async (what: string, change: () => void, expected: string): Promise<void> => {
    change();
    await waitFor(what, () => mapped(bed) === expected);
    t.equal(bed.plane.links().length, expected === '' ? 0 : expected.split(' ').length, what);
  };
  const before = privatePort(bed, 6379);
  const want = (...list: number[]) => declared.set(list.length === 0 ? ports({}) : ports({ db: list }));
  await follow('two ports', () => want(6379, 7000), `${vip}:5432 ${vip}:6379 ${vip}:7000`);
  t.equal(privatePort(bed, 6379), before, 'the first is not touched');
  await follow('the service’s own port needs nothing', () => want(5432, 6379), `${vip}:5432 ${vip}:6379`);
  await follow('the service moves there', () => bed.set(db({ port: 6379 })), `${vip}:5432 ${vip}:6379`);
  t.match(bed.plane.links(), [
    { kind: 'vip', address: `${vip}:6379` },
    { kind: 'alias', address: `${vip}:5432` },
  ]);
  await waitFor('the listener has gone', async () => (await ask(t, before, vip)) === 'ECONNREFUSED');
  await follow('and away', () => bed.set(db()), `${vip}:5432 ${vip}:6379`);
  await follow('another address', () => bed.set(db({ vip: '127.9.1.6' })), '127.9.1.6:5432 127.9.1.6:6379');
  t.equal(await ask(t, privatePort(bed, 6379), '127.9.1.6'), 'one');

  bed.set(serviceOf([{ ...one, status: 'critical' }], { vip }));
  await waitFor('nothing usable: the kernel refuses', () => mapped(bed) === '');
  t.match(bed.plane.links()[1], { kind: 'alias', state: 'refusing' });
  await follow('usable again', () => bed.set(db()), `${vip}:5432 ${vip}:6379`);
  await follow('the last container has gone', () => want(), `${vip}:5432`);
  await follow('one comes', () => want(6379), `${vip}:5432 ${vip}:6379`);
  await follow('the service has gone', () => bed.set(), '');
  await follow('and returns', () => bed.set(db()), `${vip}:5432 ${vip}:6379`);
  await follow('udp has no virtual address', () => bed.set(db({ protocol: 'udp' })), '');
  t.strictSame(bed.conditions.list(), []);
  await bed.plane.close();
});

t.test('who may use a port that was declared', async (t) => {
  const link = (port: number | undefined): Link => {
    const target = { name: 'redis', links: new Set(), cells: {} };
    const options = { kind: 'alias', address: '127.9.1.5', target, createListener: () => undefined };
    return new Link({ ...options, ...(port !== undefined && { port }) } as unknown as ConstructorParameters<
      typeof Link
    >[0]);
  };
  const caller = (...links: DeclaredLink[]): Identity => {
    return { kind: 'container', caller: { consumer: 'web', container: 'web', links } };
  };
  const cases: readonly (readonly [what: string, identity: Identity, admitted: boolean])[] = [
    ['declares it', caller({ alias: 'cache', service: 'redis', port: 6379 }), true],
    ['declares it by another alias', caller({ alias: 'redis', service: 'redis', port: 6379 }), true],
    ['another port', caller({ alias: 'cache', service: 'redis', port: 6380 }), false],
    ['no port', caller({ alias: 'cache', service: 'redis', port: undefined }), false],
    ['another service', caller({ alias: 'redis', service: 'db', port: 6379 }), false],
    ['nothing', caller(), false],
    ['the host', { kind: 'host' }, false],
    ['nobody', { kind: 'anonymous' }, false],
  ];
  for (const [what, identity, admitted] of cases) {
    t.equal(link(6379).admits(identity), admitted, what);
    t.ok(link(undefined).admits(identity), `${what}, at the service’s own port`);
  }
});

t.test('ports of aliases are bounded', async (t) => {
  const vip = '127.9.1.7';
  const { port } = await startBackend(t, naming('one'));
  const services = ['a', 'b'].map((name, index) => {
    const one = instanceOf({ name: 'one', service: name, port });
    return serviceOf([one], { name, vip: index === 0 ? vip : '127.9.1.8' });
  });
  const some = Array.from({ length: AliasLinks.maxLinks + 5 }, (_, index) => 10_000 + index);
  const declared = new Latest(ports({ a: some }));
  const bed = await startBed(t, { links: [], services, declared });
  const count = (name: string): number =>
    bed.plane.links().filter(({ kind, service }) => kind === 'alias' && service === name).length;
  t.equal(count('a'), AliasLinks.maxLinks);
  t.match(bed.conditions.list(), [{ id: AliasLinks.limitCondition, severity: 'error' }]);
  declared.set(ports({ a: some, b: [7000] }));
  await null;
  t.equal(count('b'), 0, 'no room');
  declared.set(ports({ a: some.slice(0, 3), b: [7000] }));
  await waitFor('room for the other', () => count('b') === 1);
  t.equal(count('a'), 3);
  t.strictSame(bed.conditions.list(), []);
});
