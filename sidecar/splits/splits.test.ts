import t, { type Test } from 'tap';
import type { SidesOfProcess } from '../../proxy/side-document.ts';
import { ManualClock } from '../../src/base/clock.ts';
import { LegateError } from '../../src/base/errors.ts';
import { Latest } from '../../src/base/feed.ts';
import { PersistentMap } from '../../src/base/persistent-map.ts';
import { emptySnapshot, type Service, type Snapshot } from '../../src/catalog/snapshot.ts';
import type { Weights } from '../../src/model/routes.ts';
import type { TakenBack } from '../../src/model/taken-back.ts';
import { hostId, parts, shownInstance } from '../../test/support/records.ts';
import { HeldBack } from './held-back.ts';
import { splitDocument } from './split-document.ts';
import { SplitGuard } from './split-guard.ts';
import { watchTakenBack } from './taken-back-watch.ts';
import { SideTraffic } from './traffic.ts';
import { failingSide, type SideSeen } from './verdict.ts';
import { watchVoidSplits } from './void-split-watch.ts';

const side = (tag: string, weight: number, requests: number, errors: number, usable = true): SideSeen => {
  return { tag, weight, requests, errors, usable };
};

t.test('a side fails when chance does not explain its errors', async (t) => {
  const cases: [name: string, sides: SideSeen[], failing: string | undefined, factor?: number][] = [
    ['a fifth of few fails', [side('stable', 95, 950, 5), side('canary', 5, 50, 10)], 'canary'],
    ['all fail, and are five', [side('stable', 95, 95, 0), side('canary', 5, 5, 5)], 'canary'],
    ['all fail, and are four', [side('stable', 95, 190, 0), side('canary', 5, 4, 4)], undefined],
    ['all fail, and the others now and then', [side('stable', 95, 95, 8), side('canary', 5, 5, 5)], undefined],
    ['both are bad', [side('stable', 95, 950, 200), side('canary', 5, 50, 12)], undefined],
    ['three times as many, and no more', [side('stable', 95, 1000, 50), side('canary', 5, 200, 30)], undefined],
    ['more than that', [side('stable', 95, 1000, 50), side('canary', 5, 200, 60)], 'canary'],
    ['not for a guard of ten', [side('stable', 95, 1000, 50), side('canary', 5, 200, 60)], undefined, 10],
    ['many times of next to nothing', [side('stable', 95, 1e6, 10), side('canary', 5, 1e5, 4000)], undefined],
    ['the heaviest fails', [side('stable', 95, 950, 900), side('canary', 5, 50, 0)], undefined],
    ['nothing to compare with', [side('stable', 95, 19, 0), side('canary', 5, 50, 50)], undefined],
    ['the heaviest is gone', [side('stable', 95, 950, 0, false), side('canary', 5, 50, 50)], undefined],
    ['one without weight', [side('stable', 95, 950, 0), side('canary', 0, 50, 50)], undefined],
    ['equal sides', [side('a', 50, 500, 200), side('b', 50, 500, 1)], 'a'],
    ['the worse of two', [side('a', 50, 500, 1), side('b', 20, 200, 40), side('c', 20, 200, 90)], 'c'],
    ['a side alone', [side('a', 50, 500, 400)], undefined],
    ['no side', [], undefined],
    ['no guard', [side('stable', 95, 950, 5), side('canary', 5, 50, 50)], undefined, 0],
  ];
  for (const [name, sides, failing, factor = 3] of cases) t.equal(failingSide(sides, factor)?.side.tag, failing, name);
});

t.test('sides that are equally bad are not told apart by chance', async (t) => {
  // Mulberry32: the same windows in every run.
  let state = 42;
  const random = (): number => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
  const errorsOf = (requests: number, rate: number): number => {
    let errors = 0;
    for (let each = 0; each < requests; each += 1) if (random() < rate) errors += 1;
    return errors;
  };
  let tripped = 0;
  for (const rate of [0.01, 0.05, 0.2, 0.4]) {
    for (const requests of [12, 30, 100]) {
      for (let window = 0; window < 1000; window += 1) {
        const stable = side('stable', 80, 4 * requests, errorsOf(4 * requests, rate));
        // As if whoever set the guard had asked for the least that there is.
        if (failingSide([stable, side('canary', 20, requests, errorsOf(requests, rate))], 1) !== undefined)
          tripped += 1;
      }
    }
  }
  t.equal(tripped, 0);
});

const told = (from: string, requests: number, errors = 0, tag = 'canary'): SidesOfProcess => {
  return { from, sides: [{ service: 'web', tag, requests, errors, seconds: requests / 10 }] };
};

t.test('what counts is how much the figures of each process have grown', async (t) => {
  const traffic = new SideTraffic(30_000);
  const take = (atMs: number, ...processes: SidesOfProcess[]): number => {
    traffic.take(processes, ['web'], atMs);
    return traffic.since('web', 'canary', 30_000, atMs).requests;
  };
  t.equal(take(0, told('a', 1000), { from: 'b', sides: [] }), 0, 'what was before is nobody’s business');
  t.equal(take(2000, told('a', 1010), told('b', 5)), 15, 'a side that is new in a known process counts from its first');
  t.equal(take(4000, told('a', 1020)), 25, 'one does not answer');
  t.equal(take(6000, told('a', 1020), told('b', 9)), 29, 'and does again');
  t.equal(take(8000, told('b', 9), told('c', 70)), 29, 'one ends, another one takes its place');
  t.equal(take(10_000, told('c', 80)), 39);
  t.equal(take(12_000, told('c', 3)), 42, 'one has forgotten the service in between');
  t.match(traffic.since('web', 'canary', 4000, 12_000), { requests: 13, ms: 4000 });
  t.equal(traffic.total('web', 'canary').requests, 3 + 9 + 1020);
  t.equal(take(40_000, told('c', 4)), 4, 'what is long ago is over');
  traffic.forget('web');
  t.equal(take(42_000, told('c', 100)), 0, 'begun anew');
  t.match(traffic.since('web', 'other', 4000, 42_000), { requests: 0, ms: 0 });
});

const split: Weights = { canary: 5, stable: 95 };

/** A guard, its figures, and a store that takes its verdicts. */
function guarded(t: Test) {
  const clock = new ManualClock();
  const shared = parts(clock);
  const instances = ['canary', 'stable'].map((tag) => shownInstance({ name: tag, service: 'web', tags: [tag] }));
  const view: Service = {
    ...{ name: 'web', port: 80, protocol: 'http', balance: 'round-robin', vip: undefined, faults: [] },
    ...{ instances, usable: instances, split, splitGuard: 3 },
  };
  let version = 0;
  const snapshotOf = (service: Service | undefined): Snapshot => {
    version += 1;
    const services = service === undefined ? [] : [['web', service] as const];
    return { ...emptySnapshot, version, origin: 'store', services: PersistentMap.from(services) };
  };
  const snapshots = new Latest(snapshotOf(undefined));
  const held = new HeldBack(snapshots);
  const figures = { canary: [0, 0], stable: [0, 0] } as Record<string, [number, number]>;
  const written: TakenBack[] = [];
  let failure: Error | undefined;
  let asked = 0;
  const guard = new SplitGuard({
    ...shared,
    hostId: hostId(1),
    snapshots,
    held,
    sides: async () => {
      asked += 1;
      const sides = Object.entries(figures).map(([tag, [requests, errors]]) => {
        return { service: 'web', tag, requests, errors, seconds: requests / 100 };
      });
      return [{ from: 'here', sides }];
    },
    orders: () => ({
      takeBack: async (_name, _split, takenBack) => {
        if (failure !== undefined) throw failure;
        written.push(takenBack);
        return true;
      },
    }),
  });
  const unwatch = watchTakenBack(held.snapshots, shared.conditions);
  t.teardown(() => {
    guard.close();
    held.close();
    unwatch();
  });
  return {
    clock,
    view,
    held,
    written,
    asked: () => asked,
    told: () => shared.conditions.list().map(({ id, message, hint }) => `${id}: ${message}; ${hint}`),
    fail: (error?: Error) => {
      failure = error;
    },
    show: async (service: Service | undefined) => {
      snapshots.set(snapshotOf(service));
      await clock.advance(0);
    },
    /** So many requests to each side, of which so many of the canary's fail. */
    carry: async (stable: number, canary: number, errors: number) => {
      figures.stable = [(figures.stable?.[0] ?? 0) + stable, 0];
      figures.canary = [(figures.canary?.[0] ?? 0) + canary, (figures.canary?.[1] ?? 0) + errors];
      await clock.advance(2000);
    },
    weights: () => held.snapshots.value.services.get('web')?.split,
    document: () =>
      splitDocument('web', {
        ...{ snapshot: held.snapshots.value, host: 'web-1', guard, nowMs: clock.monotonicMs() },
      }),
  };
}

t.test('a guard takes a failing side back, here at once and in the store', async (t) => {
  const g = guarded(t);
  await g.clock.advance(60_000);
  t.equal(g.asked(), 0, 'without a split nothing is asked');
  await g.show(g.view);
  await g.carry(190, 10, 0);
  await g.carry(190, 10, 4);
  t.same(g.weights(), split, 'four errors are too few');
  t.match(g.document(), {
    guard: 3,
    sides: [
      { tag: 'canary', share: 0.05, requests: 20, errors: 4, rates: { requests: 5, errors: 1 }, errorRate: 0.2 },
      { tag: 'stable', verdict: 'measure', latencyMs: 10 },
    ],
    takenBack: null,
  });
  const before = g.held.snapshots.value;
  await g.show({ ...g.view });
  t.not(g.held.snapshots.value, before);
  await g.carry(190, 10, 5);
  t.same(g.weights(), { canary: 0, stable: 95 }, 'taken back');
  t.match(g.written, [{ tag: 'canary', weight: 5, hostId: hostId(1), requests: 30, errors: 9, againstRequests: 570 }]);
  t.match(g.document(), {
    takenBack: { tag: 'canary', host: hostId(1) },
    sides: [{ verdict: 'taken back' }, {}],
  });
  const [told, ...more] = g.told();
  t.equal(
    told,
    `split.taken-back.web: web: canary was taken back to 0 by the guard of ${hostId(1)}: 9 of 30 requests failed (30 %), ` +
      'of stable 0 of 570 (0 %); when it is mended, try again: legate split web canary=5 stable=95; ' +
      'to leave it so and end this: legate split web canary=0 stable=95',
  );
  t.same(more, []);

  const shown = g.held.snapshots.value.services.get('web');
  await g.show(g.view);
  const again = g.held.snapshots.value.services.get('web');
  t.not(again, shown);
  const {
    written: [takenBack],
  } = g;
  const stored = { ...g.view, split: { canary: 0, stable: 95 }, formerSplit: split, ...(takenBack && { takenBack }) };
  await g.show(stored);
  t.equal(g.held.snapshots.value.services.get('web'), stored, 'the store says so: nothing is held here any more');
  t.equal(g.held.trips.size, 0);
  t.equal(g.told().length, 1);
  await g.carry(190, 0, 0);
  await g.show(g.view);
  t.same(g.told(), [], 'tried again by hand');
  await g.carry(190, 10, 5);
  t.same(g.weights(), split, 'by what comes from now on');
  await g.carry(190, 10, 10);
  t.equal(g.written.length, 2);
  await g.show({ ...g.view, splitGuard: 0 });
  t.same(g.weights(), split, 'without a guard nothing is held');
  await g.show(undefined);
  t.same(g.told(), []);
});

t.test('a verdict that the store does not take holds on this host, and is tried again', async (t) => {
  const g = guarded(t);
  g.fail(new LegateError('E_STORE_AWAY', 'the store is away', { hint: 'wait' }));
  await g.show(g.view);
  await g.carry(190, 10, 0);
  await g.carry(190, 20, 18);
  t.same(g.weights(), { canary: 0, stable: 95 });
  t.match(g.told(), [
    /taken-back/,
    /split\.unwritten\.web: canary of web is taken back on this host only: .*away; wait/,
  ]);
  await g.clock.advance(60_000);
  t.equal(g.written.length, 0);
  g.fail();
  await g.clock.advance(60_000);
  t.equal(g.written.length, 1);
  t.equal(g.told().length, 1, 'only what happened');
  await g.clock.advance(60_000);
  t.equal(g.written.length, 1, 'once');
});

t.test('what a document says where there is no split, and what gets nothing', async (t) => {
  const g = guarded(t);
  const { split: _, splitGuard: __, ...plain } = g.view;
  await g.show(plain);
  t.match(g.document(), { split: null, former: null, guard: 0, sticky: 'off', splits: true, sides: [] });
  const stray = shownInstance({ name: 'x', service: 'web', tags: ['v3', 'old'] });
  const instances = [...g.view.instances, stray];
  await g.show({ ...g.view, split: { stable: 1, next: 1 }, protocol: 'tcp', instances, usable: [] });
  t.match(g.document(), {
    splits: false,
    sides: [
      { tag: 'stable', share: 0.5, instances: 1, usable: 0, latencyMs: null, errorRate: null },
      { tag: 'next', instances: 0 },
    ],
    without: { instances: 2, tags: ['canary', 'old', 'v3'] },
  });
  t.throws(() => splitDocument('none', { snapshot: emptySnapshot, host: '', guard: {} as never, nowMs: 0 }), {
    code: 'E_NOT_FOUND',
  });
});

t.test('a split that nobody serves is told, until somebody does', async (t) => {
  const clock = new ManualClock();
  const { conditions } = parts(clock);
  const stable = shownInstance({ name: 's', service: 'web', tags: ['stable'] });
  const canary = shownInstance({ name: 'c', service: 'web', tags: ['canary', 'stable'] });
  const plain = { port: 80, protocol: 'http', balance: 'round-robin', vip: undefined, faults: [] } as const;
  const service = (name: string, more: Partial<Service>): Service => {
    const { instances = [stable, canary], usable = instances } = more;
    return { name, ...plain, ...more, instances, usable };
  };
  let version = 0;
  const snapshotOf = (...services: Service[]): Snapshot => {
    version += 1;
    const entries = services.map((each) => [each.name, each] as const);
    return { ...emptySnapshot, version, origin: 'store', services: PersistentMap.from(entries) };
  };
  const snapshots = new Latest(emptySnapshot);
  t.teardown(watchVoidSplits(snapshots, conditions));
  const told = async (...services: Service[]): Promise<string[]> => {
    snapshots.set(snapshotOf(...services));
    await clock.advance(0);
    return conditions.list().map(({ id, message }) => `${id}: ${message}`);
  };
  const lost = 'split.void.web: web: no tag of its split has a usable instance';
  const all = 'requests go to all instances';
  const api = service('api', { usable: [] });
  const routes = [
    { match: {} },
    { match: {}, split: { canary: 1 }, service: 'api' },
    { match: {}, mirror: { tag: 'next' } },
  ];
  const cases: [name: string, services: Service[], told: string[]][] = [
    ['no split', [service('web', {})], []],
    ['both tags are there', [service('web', { split: { stable: 9, canary: 1 } })], []],
    ['one tag is', [service('web', { split: { stable: 9, next: 1 } })], []],
    ['one is, and has no weight', [service('web', { split: { stable: 0, next: 1 } })], [`${lost} (next): ${all}`]],
    ['none is', [service('web', { split: { blue: 9, next: 1 } })], [`${lost} (blue, next): ${all}`]],
    [
      'many are not',
      [service('web', { split: { a: 1, b: 1, c: 1, d: 1, e: 1, f: 0 } })],
      [`${lost} (a, b, c, d and 1 more): ${all}`],
    ],
    ['for TCP it has no effect', [service('web', { split: { next: 1 }, protocol: 'tcp' })], []],
    ['nobody serves at all', [service('web', { split: { next: 1 }, usable: [] })], []],
    ['all of it ended', [service('web', { split: {} })], []],
    [
      'the tagged one cannot be used',
      [service('web', { split: { canary: 1 }, instances: [stable, canary], usable: [stable] })],
      [`${lost} (canary): ${all}`],
    ],
    ['the service is forgotten', [], []],
    [
      'a mirror, and a route to who is away',
      [service('web', { routes }), api],
      [
        'split.void.web: web: no instance of web that is usable has what its route 3 asks for (next): nothing is copied',
      ],
    ],
    [
      'only the other service has changed',
      [service('web', { routes: routes.slice(0, 2) }), service('api', { usable: [stable] })],
      [
        'split.void.web: web: no instance of api that is usable has what its route 2 asks for (canary): ' +
          'such requests go to all instances of api',
      ],
    ],
    ['and is as it should be', [service('web', { routes: routes.slice(0, 2) }), service('api', {})], []],
  ];
  for (const [name, services, messages] of cases) t.same(await told(...services), messages, name);
  const web = service('web', { routes, split: { next: 1 } });
  await told(web, service('api', {}));
  t.match(await told(web, service('api', { usable: [stable] })), [
    /its split has.* all instances; and so with 2 more of its routes$/,
  ]);
  t.match(conditions.list(), [{ severity: 'warning', hint: /^legate split web shows which tags .* --off$/ }]);
});
