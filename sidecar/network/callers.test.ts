import t from 'tap';
import type { Binding, Contact } from '../../proxy/kernel/caller-filter.ts';
import type { VipState } from '../../proxy/kernel/vip-table.ts';
import { ManualClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import { LegateError } from '../../src/base/errors.ts';
import { Latest } from '../../src/base/feed.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import { waitFor } from '../../test/support/wait.ts';
import type { CallerGroup } from '../docker/caller-groups.ts';
import { CallerBindings, type CallerBindingsOptions } from './callers.ts';
import { parseLinks, VethFinder } from './veth.ts';

/** What the kernel would hold; says so when it is let. */
class FakeFilter {
  readonly state = new Latest<VipState>({ state: 'on', reason: null });
  filterProblem: string | null = null;
  readonly held = new Map<string, Binding>();
  readonly settled: string[] = [];
  seen: Contact[] = [];
  /** Changes wait for this. */
  gate: Promise<void> = Promise.resolve();

  async bind(puts: readonly Binding[], deletes: readonly string[]): Promise<void> {
    await this.gate;
    if (this.state.value.state === 'off') throw new LegateError('E_INVALID', 'no table');
    for (const address of deletes) this.held.delete(address);
    for (const binding of puts) this.held.set(binding.address, binding);
  }

  async settle(addresses: readonly string[]): Promise<void> {
    this.settled.push(...addresses);
  }

  async setCallerRanges(): Promise<void> {}
  async setTelling(): Promise<void> {}
  async setWatched(): Promise<void> {}
  async contacts(): Promise<readonly Contact[]> {
    return this.seen;
  }
}

interface Bench {
  readonly bindings: CallerBindings;
  readonly filter: FakeFilter;
  readonly clock: ManualClock;
  readonly conditions: Conditions;
  readonly docker: Latest<{ state: string; problem: string | null }>;
  /** Interfaces by MAC address; what `find` throws instead, if anything. */
  readonly veths: Map<string, string>;
  fault: unknown;
  at(address: string): string | undefined;
}

function bench(options: Partial<CallerBindingsOptions> = {}): Bench {
  const clock = new ManualClock();
  const metrics = new Metrics();
  const conditions = new Conditions(silentLog, clock, metrics);
  const filter = new FakeFilter();
  const docker = new Latest<{ state: string; problem: string | null }>({ state: 'connected', problem: null });
  const veths = new Map<string, string>();
  const find = async (_pid: number, macs: readonly string[]): Promise<ReadonlyMap<string, string>> => {
    if (bed.fault !== undefined) throw bed.fault;
    return new Map([...veths].filter(([mac]) => macs.includes(mac)));
  };
  const common = { clock, log: silentLog, metrics, conditions };
  const bindings = new CallerBindings({ ...common, filter, off: null, docker, find, ...options });
  const bed: Bench = {
    ...{ bindings, filter, clock, conditions, docker, veths, fault: undefined },
    at: (address) => bindings.table.value.bound.get(address)?.container,
  };
  return bed;
}

const mac = (digit: string): string => `02:42:ac:11:00:0${digit}`;
const idOf = (digit: string): string => digit.repeat(64);

function group(digit: string, addresses: readonly string[], more: Partial<CallerGroup> = {}): CallerGroup {
  const list = addresses.map((ipv4) => ({ networkId: `n-${ipv4}`, ipv4, mac: mac(digit) }));
  return { id: idOf(digit), name: `c${digit}`, pid: 100, addresses: list, consumers: [], links: [], ...more };
}

t.test('an address counts from the word of the kernel until the turn in which its container ends', async (t) => {
  const { bindings, filter, veths, clock, at } = bench();
  veths.set(mac('1'), 'veth1');
  let open: () => void = () => undefined;
  filter.gate = new Promise((resolve) => {
    open = resolve;
  });
  bindings.apply(idOf('1'), group('1', ['172.17.0.2'], { consumers: ['web'] }));
  await new Promise(setImmediate);
  t.equal(at('172.17.0.2'), undefined, 'not before');
  open();
  await waitFor('the binding', () => at('172.17.0.2'));
  t.equal(bindings.table.value.bound.get('172.17.0.2')?.consumer, 'web');
  t.equal(bindings.isFresh('172.17.0.2'), true);
  await clock.advance(CallerBindings.freshMs);
  t.equal(bindings.isFresh('172.17.0.2'), false);
  t.same(filter.settled, ['172.17.0.2']);
  const caller = bindings.table.value.bound.get('172.17.0.2');
  bindings.apply(idOf('1'), group('1', ['172.17.0.2'], { consumers: ['api'] }));
  t.equal(bindings.table.value.bound.get('172.17.0.2')?.consumer, 'api', 'what changes is taken over at once');
  t.not(bindings.table.value.bound.get('172.17.0.2'), caller);
  t.equal(bindings.isFresh('172.17.0.2'), false, 'and binds nothing anew');
  bindings.apply(idOf('1'), undefined);
  t.equal(at('172.17.0.2'), undefined, 'at once');
  await waitFor('the kernel to follow', () => filter.held.size === 0);
});

t.test('whoever ends while it is being bound is not bound', async (t) => {
  const { bindings, filter, veths, at } = bench();
  veths.set(mac('1'), 'veth1');
  let open: () => void = () => undefined;
  filter.gate = new Promise((resolve) => {
    open = resolve;
  });
  bindings.apply(idOf('1'), group('1', ['172.17.0.2']));
  await new Promise(setImmediate);
  bindings.apply(idOf('1'), undefined);
  open();
  await new Promise(setImmediate);
  await waitFor('the kernel to follow', () => filter.held.size === 0);
  t.equal(at('172.17.0.2'), undefined);
});

t.test('an address that is reused is that of the new container, whatever is told of the old one later', async (t) => {
  const { bindings, filter, veths, at } = bench();
  veths.set(mac('1'), 'veth1').set(mac('2'), 'veth2');
  bindings.apply(idOf('1'), group('1', ['172.17.0.2', '172.18.0.2']));
  await waitFor('both', () => at('172.17.0.2') === 'c1' && at('172.18.0.2') === 'c1');
  bindings.apply(idOf('2'), group('2', ['172.17.0.2']));
  await waitFor('the new one', () => at('172.17.0.2') === 'c2');
  bindings.apply(idOf('1'), undefined);
  t.equal(at('172.17.0.2'), 'c2');
  t.equal(at('172.18.0.2'), undefined);
  await waitFor('the kernel', () => filter.held.size === 1);
  t.match(filter.held.get('172.17.0.2'), { interface: 'veth2', mac: mac('2') });
  bindings.apply(idOf('2'), group('2', ['172.17.0.2'], { pid: 200 }));
  t.equal(at('172.17.0.2'), undefined, 'a restart is another interface');
  veths.set(mac('2'), 'veth3');
  await waitFor('it to be bound again', () => at('172.17.0.2') === 'c2');
  bindings.apply(idOf('2'), group('2', []));
  t.equal(at('172.17.0.2'), undefined, 'disconnected');
});

t.test('a connection is confirmed by where all its segments came from', async (t) => {
  const { bindings, filter, veths, at } = bench();
  veths.set(mac('1'), 'veth1');
  bindings.apply(idOf('1'), group('1', ['172.17.0.2']));
  await waitFor('the binding', () => at('172.17.0.2'));
  const source = { address: '172.17.0.2', port: 40_000 };
  const [vip, other] = ['240.77.0.5', '240.77.0.6'];
  const good = { interface: 'veth1', mac: mac('1'), source, destination: vip };
  const confirm = (): Promise<boolean> => bindings.confirm({ source, destination: { address: vip, port: 1 } });
  for (const [what, seen, expected] of [
    ['its own interface', [good], true],
    ['nothing recorded', [], false],
    ['another interface', [{ ...good, interface: 'veth2' }], false],
    ['another MAC address', [{ ...good, mac: mac('2') }], false],
    ['both its own and another one', [good, { ...good, interface: 'veth2' }], false],
    ['another port or address of ours', [{ ...good, destination: other }], false],
    ['others beside it', [good, { ...good, source: { ...source, port: 1 }, interface: 'veth2' }], true],
  ] as const) {
    filter.seen = [...seen];
    t.equal(await confirm(), expected, what);
  }
  filter.seen = [good];
  bindings.apply(idOf('1'), undefined);
  t.equal(await confirm(), false, 'nobody has the address any more');
});

t.test('why callers are not told apart', async (t) => {
  t.equal(bench({ off: 'docker.expose is off' }).bindings.table.value.off, 'docker.expose is off');
  t.match(bench({ filter: undefined }).bindings.table.value.off, /no table/);

  const { bindings, filter, veths, docker, at } = bench();
  veths.set(mac('1'), 'veth1');
  docker.set({ state: 'connecting', problem: 'no socket' });
  await waitFor('it to be off', () => bindings.table.value.off?.includes('no socket'));
  docker.set({ state: 'connected', problem: null });
  bindings.apply(idOf('1'), group('1', ['172.17.0.2']));
  await waitFor('the binding', () => at('172.17.0.2'));
  filter.state.set({ state: 'off', reason: 'flushed' });
  await waitFor('it to be off', () => bindings.table.value.off === 'flushed');
  t.equal(bindings.table.value.bound.size, 0, 'what the kernel does not hold does not count');
  filter.state.set({ state: 'on', reason: null });
  await waitFor('it to be on', () => at('172.17.0.2'));
});

t.test('a host whose containers cannot be looked at, and one container that cannot', async (t) => {
  const bed = bench();
  const { bindings, veths, clock, conditions, at } = bed;
  bed.fault = new LegateError('E_NOT_FOUND', 'not to be seen', { hint: 'run it with --pid host' });
  bindings.apply(idOf('1'), group('1', ['172.17.0.2']));
  await waitFor('it to be off', async () => {
    await clock.advance(1000);
    return bindings.table.value.off === 'not to be seen';
  });
  t.match(conditions.list(), [{ id: 'callers.off', severity: 'note', hint: 'run it with --pid host' }]);
  bed.fault = undefined;
  veths.set(mac('1'), 'veth1');
  await waitFor('it to be on', async () => {
    await clock.advance(1000);
    return at('172.17.0.2') === 'c1';
  });
  t.same(conditions.list(), []);
  bindings.apply(idOf('2'), group('2', ['172.17.0.3'], { consumers: ['a', 'b'] }));
  const ids = (): string[] => conditions.list().map(({ id }) => id);
  await waitFor('a warning', async () => {
    await clock.advance(1000);
    return ids().includes(`callers.${'2'.repeat(12)}.unseen`);
  });
  t.equal(bindings.table.value.off, undefined, 'others are told apart');
  t.ok(ids().includes(`callers.${'2'.repeat(12)}.several`));
  bindings.apply(idOf('2'), undefined);
  t.same(ids(), []);
  bindings.close();
});

t.test('interfaces are read from what ip prints, and not from who is not there', async (t) => {
  t.same(parseLinks('[{"ifindex":7,"ifname":"eth0","address":"02:42:ac:11:00:02","link_index":8},{"ifname":1},null]'), [
    { index: 7, name: 'eth0', mac: mac('2'), peer: 8 },
  ]);
  t.throws(() => parseLinks('{}'), { code: 'E_INVALID' });
  await t.rejects(new VethFinder().find(2 ** 22 + 1, [mac('1')]), { code: 'E_NOT_FOUND', hint: /--pid host/ });
});
