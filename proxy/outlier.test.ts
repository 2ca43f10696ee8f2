import { once } from 'node:events';
import { createServer } from 'node:http';
import { connect, createServer as createServer2 } from 'node:http2';
import type { AddressInfo } from 'node:net';
import t, { type Test } from 'tap';
import { ManualClock } from '../src/base/clock.ts';
import type { Instance } from '../src/model/instance.ts';
import { Backends } from './backends.ts';
import type { Backend } from './balance/backend.ts';
import { type Bed, instanceOf, ownHost, serviceOf, startBed } from './link-plane.fixture.ts';
import { Outlier } from './outlier.ts';
import { AnswerTimes, slowness } from './slowness.ts';
import { Suspects } from './suspects.ts';

/** A service of these instances, each named by a letter. */
function set(names: string, ejectSlow = 0) {
  const clock = new ManualClock();
  const ejections = { failures: { value: 0 }, errors: { value: 0 }, slowness: { value: 0 } };
  const suspects = new Suspects({ clock, selfId: ownHost });
  const dial = (endpoint: Instance) => ({ via: 'direct', endpoint }) as const;
  const backends = new Backends({ clock, random: () => 0.5, ejections, suspects, dial, distance: () => 0 });
  const instances = [...names].map((name) => instanceOf({ name }));
  const update = (factor: number): void => backends.update(serviceOf(instances, { ejectSlow: factor }));
  update(ejectSlow);
  const byName = (name: string): Backend => {
    const found = backends.list().find(({ id }) => id === `here/${name}`);
    if (found === undefined) throw new Error(`no backend ${name}`);
    return found;
  };
  /** Who is ejected now. */
  const out = (): string =>
    backends
      .list()
      .filter(({ ejectedUntilMs }) => ejectedUntilMs !== undefined)
      .map(({ id }) => id.at(-1))
      .join('');
  const errors = (name: string, times: number): void => {
    for (let time = 0; time < times; time += 1) backends.answered(byName(name), true, undefined);
  };
  /** One window in which each answers so often in so many milliseconds. */
  const window = async (ms: Readonly<Record<string, number>>, times = 20): Promise<string> => {
    for (const [name, each] of Object.entries(ms)) {
      const backend = byName(name);
      for (let time = 0; time < times; time += 1) backends.answered(backend, false, each);
    }
    await clock.advance(slowness.windowMs);
    backends.pick([]);
    return out();
  };
  const picked = (count: number): string =>
    [...new Set(Array.from({ length: count }, () => backends.pick([])?.id.at(-1)))].sort().join('');
  return { clock, ejections, backends, instances, update, byName, out, errors, window, picked };
}

t.test('server errors in a row eject, and never more than half', async (t) => {
  const { errors, out, byName, ejections, clock } = set('ab');
  errors('a', 4);
  const a = byName('a');
  errors('b', 1);
  t.equal(out(), '', 'four are not enough');
  errors('a', 1);
  t.equal(out(), 'a');
  t.equal(a.ejectedFor, 'errors');
  t.equal(ejections.errors.value, 1);
  await clock.advance(10_000);
  t.equal(out(), '');

  for (const [names, most] of [
    ['a', 0],
    ['ab', 1],
    ['abc', 1],
    ['abcdef', 3],
  ] as const) {
    const bed = set(names);
    for (let round = 0; round < 60; round += 1) {
      for (const name of names) bed.errors(name, 1);
      if (bed.out().length > most) t.fail(`${bed.out()} of ${names} are out`);
      await bed.clock.advance(1000);
      bed.backends.pick([]);
    }
    t.equal(bed.picked(20).length, names.length - bed.out().length, `all of ${names} fail, and the others serve`);
    t.equal(bed.ejections.errors.value > 0, most > 0);
  }

  const held = set('abcd');
  const brake = { sinceMs: 0, untilMs: 600_000 };
  const critical = held.instances.map((instance) => ({ ...instance, status: 'critical' as const }));
  held.backends.update(serviceOf(critical, { usable: critical, brake }));
  for (const name of 'abcd') held.errors(name, 9);
  t.equal(held.out().length, 2, 'those that the brake keeps count like any other');
});

t.test('ejections for errors are forgotten by serving well, whether or not somebody looks', async (t) => {
  const { byName, backends, clock } = set('ab');
  const a = byName('a');
  const fail = (): void => {
    for (let time = 0; time < 5; time += 1) backends.answered(a, true, undefined);
  };
  fail();
  await clock.advance(10_000);
  backends.pick([]);
  fail();
  t.equal(a.ejectedUntilMs, clock.monotonicMs() + 20_000, 'twice as long');
  await clock.advance(20_000);
  backends.pick([]);
  backends.answered(a, false, undefined);
  await clock.advance(3_600_000);
  fail();
  t.equal(a.ejectedUntilMs, clock.monotonicMs() + Outlier.firstEjectionMs, 'as if it were the first');
});

t.test('who answers much slower than the others', async (t) => {
  const table: readonly (readonly [what: string, times: Readonly<Record<string, number>>, out: string])[] = [
    ['one of three', { a: 10, b: 12, c: 200 }, 'c'],
    ['one of two', { a: 10, b: 200 }, 'b'],
    ['not the quicker ones', { a: 100, b: 120, c: 1 }, ''],
    ['not less than the factor', { a: 100, b: 100, c: 250 }, ''],
    ['not for a few milliseconds', { a: 2, b: 2, c: 40 }, ''],
    ['half at most, the slowest first', { a: 10, b: 10, c: 300, d: 400 }, 'cd'],
    ['half at most of five', { a: 10, b: 10, c: 10, d: 300, e: 400 }, 'de'],
    ['none, when most are slow', { a: 10, b: 300, c: 300 }, ''],
    ['nobody to compare with', { c: 5000 }, ''],
  ];
  for (const [what, times, out] of table) {
    const names = Object.keys(times).length === 1 ? 'abc' : Object.keys(times).join('');
    const bed = set(names, 3);
    t.equal(await bed.window(times), out, what);
    t.equal(bed.ejections.slowness.value, out.length, what);
    t.equal(bed.picked(20).length, names.length - out.length, what);
    for (const name of out) t.equal(bed.byName(name).ejectedFor, 'slowness');
    t.equal(await set(names, 0).window(times), '', 'nobody, unless it is wanted');
  }
  t.equal(await set('abc', 3).window({ a: 10, b: 10, c: 200 }, 19), '', 'nobody by a few answers');
  const mixed = set('ab', 3);
  const slowest = mixed.byName('b');
  for (let time = 0; time < 9; time += 1) mixed.backends.answered(slowest, false, 60_000);
  t.equal(await mixed.window({ a: 10, b: 10 }), '', 'some slow answers are not all of them');
});

t.test('a slow one comes back, and is out twice as long if it is still slow', async (t) => {
  const { window, out, byName, clock, backends, update } = set('abc', 3);
  const slow = { a: 10, b: 10, c: 400 };
  const quick = { a: 10, b: 10 };
  t.equal(await window(slow), 'c');
  const until = byName('c').ejectedUntilMs ?? 0;
  t.equal(until, clock.monotonicMs() + Outlier.firstEjectionMs);
  t.equal(await window(quick), 'c');
  t.equal(await window(quick), '', 'it is over');
  t.equal(await window(slow), 'c');
  t.equal(byName('c').ejectedUntilMs, clock.monotonicMs() + 2 * Outlier.firstEjectionMs);
  await clock.advance(20_000);
  backends.pick([]);
  t.equal(out(), '');
  for (let time = 0; time < 30; time += 1) for (const name of 'abc') backends.answered(byName(name), false, 500);
  update(0);
  t.equal(byName('a').times, undefined, 'nothing is measured any more');
  await clock.advance(slowness.windowMs);
  t.equal(await window(slow), '');
});

t.test('the median of answer times', async (t) => {
  for (const [values, median] of [
    [[0], 1],
    [[100], 100],
    [[1, 1, 1, 1000, 1000], 1],
    [[1, 1000, 1000], 1000],
    [[5e9], 2 ** 20],
  ] as const) {
    const times = new AnswerTimes();
    for (const value of values) times.add(value);
    t.ok(Math.abs(times.median() / median - 1) < 0.1, `${values}: ${times.median()}`);
    times.clear();
    t.equal(times.count, 0);
  }
});

type Protocol = 'http' | 'http2' | 'grpc';

interface Answer {
  writeHead(status: number, headers: Record<string, string>): void;
  end(): void;
}

/** Two instances: the first answers at once, the second after 200 ms. Both with this status, of HTTP or of gRPC. */
async function slowBed(t: Test, protocol: Protocol, status: number): Promise<Bed> {
  const clock = new ManualClock();
  const ports = await Promise.all(
    [0, 200].map(async (ms) => {
      const server = protocol === 'http' ? createServer() : createServer2();
      server.on('request', async (_request, answer: Answer) => {
        await clock.advance(ms);
        const grpc = { 'content-type': 'application/grpc', 'grpc-status': String(status) };
        answer.writeHead(protocol === 'grpc' ? 200 : status, protocol === 'grpc' ? grpc : {});
        answer.end();
      });
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
      t.teardown(() => server.close());
      return (server.address() as AddressInfo).port;
    }),
  );
  const instances = ports.map((port, index) => instanceOf({ name: `i${index}`, port, protocol }));
  return startBed(t, { services: [serviceOf(instances, { protocol, ejectSlow: 4 })], clock });
}

async function askOften(t: Test, bed: Bed, protocol: Protocol): Promise<void> {
  if (protocol === 'http') {
    for (let time = 0; time < 60; time += 1) await (await fetch(`http://127.0.0.1:${bed.port}/`)).arrayBuffer();
    return;
  }
  const session = connect(`http://127.0.0.1:${bed.port}`);
  t.teardown(() => session.destroy());
  const headers = { ':path': '/', ...(protocol === 'grpc' && { 'content-type': 'application/grpc', te: 'trailers' }) };
  for (let time = 0; time < 60; time += 1) {
    const stream = session.request(headers);
    stream.resume();
    await once(stream, 'close');
  }
}

t.test('requests of all protocols are timed, and only good answers count', async (t) => {
  for (const [protocol, status, isOut] of [
    ['http', 200, true],
    ['http', 404, false],
    ['http2', 204, true],
    ['http2', 404, false],
    ['grpc', 0, true],
    ['grpc', 5, false],
  ] as const) {
    const bed = await slowBed(t, protocol, status);
    await askOften(t, bed, protocol);
    const [link] = bed.plane.links();
    const backends = link?.backends.map(({ ejectedFor }) => ejectedFor);
    t.strictSame(backends, [null, isOut ? 'slowness' : null], `${protocol} ${status}`);
    const metric = 'legate_link_ejections_total{service="db",reason="slowness"}';
    t.equal(await bed.metric(metric), isOut ? 1 : 0, metric);
  }
});
