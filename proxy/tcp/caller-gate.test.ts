import { connect, type Socket } from 'node:net';
import t from 'tap';
import { ManualClock } from '../../src/base/clock.ts';
import { Latest } from '../../src/base/feed.ts';
import { Metrics } from '../../src/base/metrics.ts';
import { PersistentMap } from '../../src/base/persistent-map.ts';
import { type Ipv4Range, parseIpv4Range } from '../../src/model/address.ts';
import { type Caller, type Callers, type CallerTable, callerWaitMs, consumerName } from '../../src/model/caller.ts';
import type { Topology } from '../../src/model/topology.ts';
import { waitFor } from '../../test/support/wait.ts';
import { Consumers } from '../consumers.ts';
import { instanceOf, naming, outcome, serviceOf, startBackend, startBed } from '../link-plane.fixture.ts';
import { CallerGate } from './caller-gate.ts';

const range = (text: string): Ipv4Range => parseIpv4Range(text) as Ipv4Range;
const bridge = { interface: 'docker0', network: 'bridge', gateway: '172.17.0.1', internal: false };
const topology: Topology = {
  addresses: new Set(['172.17.0.1', '10.0.0.1']),
  bridges: [{ ...bridge, subnet: range('172.17.0.0/16') }],
};
const web: Caller = { consumer: 'web', container: 'c1', links: [] };
const nameless: Caller = { consumer: undefined, container: 'c2', links: [] };

class FakeCallers implements Callers {
  readonly table = new Latest<CallerTable>({ off: undefined, bound: PersistentMap.empty() });
  readonly fresh = new Set<string>();
  readonly asked: string[] = [];
  /** Answers of `confirm`, to be given by the test. */
  readonly answers: ((confirmed: boolean) => void)[] = [];

  isFresh(address: string): boolean {
    return this.fresh.has(address);
  }

  confirm({ source, destination }: Parameters<Callers['confirm']>[0]): Promise<boolean> {
    this.asked.push(`${source.address}:${source.port} ${destination.address}`);
    return new Promise((resolve) => this.answers.push(resolve));
  }

  bind(address: string, caller: Caller | undefined): void {
    const { bound } = this.table.value;
    const puts = caller === undefined ? [] : [[address, caller] as const];
    this.table.set({ off: undefined, bound: bound.with(puts, caller === undefined ? [address] : []) });
  }
}

function bench() {
  const callers = new FakeCallers();
  const clock = new ManualClock();
  const metrics = new Metrics();
  const vipRange = range('240.77.0.0/16');
  const gate = new CallerGate({ callers, topology: () => topology, vipRange, clock, metrics });
  /** What becomes of a connection from an address: `waits`, `refused`, or who it is. */
  const call = (remoteAddress: string | undefined): { outcome: string } => {
    const local = { localAddress: '240.77.0.5', localPort: 15001 };
    const socket = { remoteAddress, remotePort: 40_000, ...local, on: () => undefined } as unknown as Socket;
    const told = { outcome: 'waits' };
    gate.identify(socket, (identity) => {
      told.outcome = identity === undefined ? 'refused' : consumerName(identity);
    });
    return told;
  };
  return { callers, clock, gate, call };
}

t.test('who is known is told at once', async (t) => {
  const { callers, call } = bench();
  callers.bind('172.17.0.2', web);
  callers.bind('172.17.0.3', nameless);
  for (const [address, expected] of [
    ['172.17.0.2', 'web'],
    ['::ffff:172.17.0.2', 'web'],
    ['172.17.0.3', 'anonymous'],
    ['172.17.0.9', 'waits'],
    ['172.17.0.1', 'host'],
    ['127.0.0.1', 'host'],
    ['10.0.0.1', 'host'],
    ['240.77.0.5', 'host'],
    ['192.0.2.1', 'anonymous'],
    [undefined, 'refused'],
  ] as const) {
    const wanted = address === undefined ? 'anonymous' : expected;
    for (const round of [1, 2]) t.equal(call(address).outcome, wanted, `${address}, ${round}`);
  }
  callers.bind('172.17.0.2', undefined);
  t.equal(call('172.17.0.2').outcome, 'waits', 'nobody has it any more');
  callers.table.set({ off: 'no Docker', bound: PersistentMap.empty() });
  t.equal(call('172.17.0.2').outcome, 'anonymous', 'callers are off');
});

t.test('a new address is waited for and confirmed', async (t) => {
  const { callers, clock, call } = bench();
  const good = call('172.17.0.2');
  const late = call('172.17.0.4');
  callers.bind('172.17.0.3', web);
  await new Promise(setImmediate);
  t.equal(good.outcome, 'waits', 'another one came');
  callers.bind('172.17.0.2', web);
  await waitFor('the question', () => callers.answers.length === 1);
  t.same(callers.asked, ['172.17.0.2:40000 240.77.0.5']);
  t.equal(good.outcome, 'waits', 'not confirmed yet');
  callers.answers[0]?.(true);
  await waitFor('the answer', () => good.outcome === 'web');
  await clock.advance(callerWaitMs);
  t.equal(late.outcome, 'refused', 'not known in time');

  const spoofed = call('172.17.0.5');
  callers.bind('172.17.0.5', web);
  await waitFor('the question', () => callers.answers.length === 2);
  callers.answers[1]?.(false);
  await waitFor('the answer', () => spoofed.outcome === 'refused');

  const again = call('172.17.0.6');
  callers.bind('172.17.0.6', web);
  await waitFor('the question', () => callers.answers.length === 3);
  callers.bind('172.17.0.6', nameless);
  callers.answers[2]?.(true);
  await waitFor('it to be asked again, for somebody else is there now', () => callers.answers.length === 4);
  callers.answers[3]?.(true);
  await waitFor('the answer', () => again.outcome === 'anonymous');

  callers.fresh.add('172.17.0.3');
  const fresh = call('172.17.0.3');
  t.equal(fresh.outcome, 'waits', 'known, but only just');
  callers.answers[4]?.(true);
  await waitFor('the answer', () => fresh.outcome === 'web');

  const off = call('172.17.0.7');
  callers.table.set({ off: 'no Docker', bound: PersistentMap.empty() });
  await waitFor('nobody to wait any more', () => off.outcome === 'anonymous');
});

t.test('no more wait than there is room for, and none for ever', async (t) => {
  const { callers, gate, call } = bench();
  const all = Array.from({ length: CallerGate.maxHeld }, () => call('172.17.0.2'));
  t.equal(call('172.17.0.2').outcome, 'refused');
  callers.bind('172.17.0.3', web);
  t.equal(call('172.17.0.3').outcome, 'web', 'who is known need not wait');
  gate.close();
  t.ok(all.every(({ outcome }) => outcome === 'refused'));
});

t.test('connections are counted by consumer', async (t) => {
  const callers = new FakeCallers();
  callers.bind('127.0.0.2', web);
  const { port } = await startBackend(t, naming('served'));
  const bed = await startBed(t, { services: [serviceOf([instanceOf({ name: 'a', port })])], callers });
  for (const localAddress of ['127.0.0.2', '127.0.0.1', '127.0.0.2']) {
    const socket = connect({ port: bed.port, host: '127.0.0.1', localAddress });
    t.equal((await outcome(socket)).data.toString(), 'served');
    socket.destroy();
  }
  const [link] = bed.plane.links();
  await waitFor('their ends', () => bed.plane.activeConnections() === 0);
  t.same(bed.plane.links()[0]?.consumers, [
    { name: 'web', active: 0, total: 2 },
    { name: 'host', active: 0, total: 1 },
  ]);
  t.equal(link?.connections.total, 3);
  t.equal(await bed.metric('legate_link_consumer_connections_total{service="db",consumer="web"}'), 2);

  const links = [{ service: 'db', listen: { address: '127.0.0.1', port: 0 }, consumer: 'legacy' }];
  const other = await startBed(t, { services: [serviceOf([instanceOf({ name: 'a', port })])], callers, links });
  await outcome(connect({ port: other.port, host: '127.0.0.1', localAddress: '127.0.0.2' }));
  t.match(other.plane.links()[0]?.consumers, [{ name: 'legacy', total: 1 }], 'a link that stands for somebody');
});

t.test('the names of consumers are bounded', async (t) => {
  const consumers = new Consumers(undefined as never, () => ({ value: 0 }));
  for (let index = 0; index < Consumers.maxNames + 50; index += 1) consumers.of(`c${index}`).total += 1;
  const documents = consumers.documents();
  t.equal(documents.length, Consumers.maxNames + 1);
  t.same(documents[0], { name: '_other', active: 0, total: 50 });
});
