import t from 'tap';
import { ManualClock } from '../src/base/clock.ts';
import type { Dial } from '../src/model/dial.ts';
import type { Instance } from '../src/model/instance.ts';
import type { Balance } from '../src/model/service.ts';
import { Backends } from './backends.ts';
import type { Backend } from './balance/backend.ts';
import { instanceOf, ownHost, serviceOf } from './link-plane.fixture.ts';
import { Suspects } from './suspects.ts';

/** A repeatable sequence in [0, 1) (a linear congruential generator). */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

const noEjections = () => ({ failures: { value: 0 }, errors: { value: 0 }, slowness: { value: 0 } });

const direct = (endpoint: Instance): Dial => ({ via: 'direct', endpoint });

function set(weights: Readonly<Record<string, number>>, balance: Balance = 'round-robin') {
  const clock = new ManualClock();
  const ejections = noEjections();
  const dial = (instance: Instance) => (instance.port === 9 ? undefined : direct(instance));
  const distance = () => 0 as const;
  const suspects = new Suspects({ clock, selfId: ownHost });
  const backends = new Backends({ clock, random: randomFrom(7), ejections, suspects, dial, distance });
  const update = (to: Readonly<Record<string, number>>, fields: Partial<Instance> = {}): void => {
    const instances = Object.entries(to).map(([name, weight]) => instanceOf({ name, weight, ...fields }));
    backends.update(serviceOf(instances, { balance }));
  };
  update(weights);
  const next = (): string => backends.pick([])?.id.replace('here/', '') ?? 'none';
  const picks = (count: number): string => Array.from({ length: count }, next).join('');
  const share = (count: number): Record<string, number> => {
    const counts: Record<string, number> = {};
    for (const name of picks(count)) counts[name] = (counts[name] ?? 0) + 1;
    return counts;
  };
  const byName = (name: string): Backend => {
    const found = backends.list().find((backend) => backend.id === `here/${name}`);
    if (found === undefined) throw new Error(`no backend ${name}`);
    return found;
  };
  const fail = (name: string, times = 3): void => {
    for (let time = 0; time < times; time += 1) backends.failed(byName(name));
  };
  return { clock, ejections, suspects, backends, update, picks, share, byName, fail };
}

function count(bed: ReturnType<typeof set>, picks: number, name: string): number {
  return bed.share(picks)[name] ?? 0;
}

t.test('p2c-latency goes where answers come quickly, and forgets a slow one', async (t) => {
  const bed = set({ a: 1, b: 1, c: 1 }, 'p2c-latency');
  for (const [name, ms] of Object.entries({ a: 2, b: 2, c: 200 }))
    bed.byName(name).latency.observe(ms, bed.clock.monotonicMs());
  const { a = 0, b = 0, c = 0 } = bed.share(300);
  t.ok(a > 100 && b > 100 && c < 10, `${a} ${b} ${c}`);
  bed.byName('a').active = 9;
  t.ok(count(bed, 300, 'b') > 180, 'and where few wait');
  bed.byName('a').active = 0;
  await bed.clock.advance(60_000);
  for (const name of ['a', 'b']) bed.byName(name).latency.observe(2, bed.clock.monotonicMs());
  t.ok(count(bed, 300, 'c') > 50, 'a slow one is tried again after a while');
  const fresh = set({ a: 1, b: 1 }, 'p2c-latency');
  fresh.byName('a').latency.observe(2, 0);
  t.ok(count(fresh, 100, 'b') > 60, 'one that nothing is known of is tried');
  fresh.byName('b').active = 1;
  t.equal(count(fresh, 100, 'b'), 0, 'but not over and over while it has not answered');
});

t.test('round-robin takes turns by weight, smoothly', async (t) => {
  t.equal(set({ a: 1, b: 1, c: 1 }).picks(6), 'abcabc');
  t.equal(set({ a: 5, b: 1, c: 1 }).picks(7), 'aabacaa');
  t.equal(set({ a: 0, b: 1 }).picks(4), 'bbbb', 'weight 0 gets nothing while another is there');
  t.equal(set({ a: 0, b: 0 }).picks(4), 'abab', 'and its turn when nothing else is');
  t.equal(set({}).picks(1), 'none');
  const kept = set({ a: 1, b: 1, c: 1 });
  kept.picks(1);
  kept.update({ a: 1, b: 1, c: 1, d: 1 });
  t.not(kept.picks(1), 'a', 'a change does not begin the round anew');
});

t.test('random follows the weights', async (t) => {
  const { a = 0, b = 0, c } = set({ a: 3, b: 1, c: 0 }, 'random').share(10_000);
  t.ok(Math.abs(a / 10_000 - 0.75) < 0.02, `${a} of 10,000`);
  t.ok(Math.abs(b / 10_000 - 0.25) < 0.02, `${b} of 10,000`);
  t.equal(c, undefined);
});

t.test('least-connections follows the load by weight', async (t) => {
  const equal = set({ a: 1, b: 1, c: 1 }, 'least-connections');
  t.strictSame(equal.share(9), { a: 3, b: 3, c: 3 }, 'idle ones take turns');
  equal.byName('a').active = 5;
  equal.byName('b').active = 2;
  t.equal(equal.picks(2), 'cc');
  const weighted = set({ a: 3, b: 1 }, 'least-connections');
  for (let count = 0; count < 40; count += 1) {
    const picked = weighted.backends.pick([]);
    if (picked !== undefined) picked.active += 1;
  }
  t.equal(weighted.byName('a').active, 30);
  t.equal(weighted.byName('b').active, 10);
});

t.test('three failures in a row eject for ten seconds', async (t) => {
  const { clock, ejections, picks, fail, byName } = set({ a: 1, b: 1 });
  fail('a', 2);
  byName('a').failures = 0; // What the relay does at the first byte from it.
  fail('a', 2);
  t.equal(picks(2), 'ab');
  fail('a', 1);
  t.equal(picks(4), 'bbbb');
  t.equal(ejections.failures.value, 1);
  await clock.advance(9_999);
  t.equal(picks(2), 'bb');
  await clock.advance(1);
  t.match(picks(2), /ab|ba/);
  fail('a', 1);
  t.equal(picks(2), 'bb', 'one that fails again is out again at once');
});

t.test('never more than half is ejected, and never a single one', async (t) => {
  for (const [names, most] of [
    ['a', 0],
    ['ab', 1],
    ['abc', 1],
    ['abcd', 2],
    ['abcde', 2],
  ] as const) {
    const { ejections, fail, picks } = set(Object.fromEntries([...names].map((name) => [name, 1])));
    for (const name of names) fail(name, 5);
    t.equal(ejections.failures.value, most, `of ${names.length}`);
    t.equal(new Set(picks(20)).size, names.length - most);
  }
  const { update, fail, picks } = set({ a: 1, b: 1, c: 1, d: 1 });
  fail('a');
  fail('b');
  update({ a: 1, b: 1, c: 1 });
  t.match(picks(2), /ac|ca/, 'when others leave, the oldest ejection ends');
  update({ a: 1, b: 1 });
  t.equal(picks(2), 'aa');
  update({ b: 1 });
  t.equal(picks(2), 'bb');
});

t.test('each further ejection is twice as long, up to five minutes', async (t) => {
  const { clock, fail, byName } = set({ a: 1, b: 1 });
  for (const seconds of [10, 20, 40, 80, 160, 300, 300]) {
    fail('a');
    const a = byName('a');
    t.equal(a.ejectedUntilMs, clock.monotonicMs() + seconds * 1000, `${seconds} s`);
    await clock.advance(seconds * 1000);
    t.equal(byName('a').ejectedUntilMs, undefined);
  }
});

t.test('ejections are forgotten one by one by serving well', async (t) => {
  // After three ejections (10, 20 and 40 s): what happens for how long, and how long the next one is.
  for (const [what, served, seconds, ejections, nextSeconds] of [
    ['at once', true, 0, 3, 80],
    ['shorter than the last one', true, 39.999, 3, 80],
    ['as long as the last one', true, 40, 2, 40],
    ['then as long as the one before', true, 60, 1, 20],
    ['long enough for all', true, 70, 0, 10],
    ['for an hour', true, 3600, 0, 10],
    ['an hour without a success', false, 3600, 3, 80],
  ] as const) {
    const { clock, fail, byName } = set({ a: 1, b: 1 });
    for (const ejectedSeconds of [10, 20, 40]) {
      fail('a');
      await clock.advance(ejectedSeconds * 1000);
      byName('a');
    }
    if (served) byName('a').failures = 0;
    await clock.advance(seconds * 1000);
    t.equal(byName('a').ejections, ejections, what);
    fail('a');
    t.equal(byName('a').ejectedUntilMs, clock.monotonicMs() + nextSeconds * 1000, what);
  }
  const { clock, fail, byName } = set({ a: 1, b: 1 });
  fail('a');
  await clock.advance(10_000);
  fail('a');
  await clock.advance(20_000);
  byName('a').failures = 0;
  await clock.advance(15_000);
  fail('a', 2);
  byName('a').failures = 0;
  await clock.advance(5_000);
  t.equal(byName('a').ejections, 1, 'failures that do not eject do not begin the time anew');
});

t.test('while the brake holds, ejection leaves at least half of all that are used', async (t) => {
  const { backends, picks, fail } = set({});
  const instances = [...'abcde'].map((name) => instanceOf({ name, status: 'critical' }));
  backends.update(serviceOf(instances, { usable: instances, brake: { sinceMs: 0, untilMs: 600_000 } }));
  for (const name of 'abcde') fail(name, 5);
  t.equal(new Set(picks(20)).size, 3);
  const tried: Backend[] = [];
  for (let pick = backends.pick(tried); pick !== undefined; pick = backends.pick(tried)) tried.push(pick);
  t.equal(tried.length, 5, 'and a retry still reaches everyone');
  backends.update(serviceOf(instances, { usable: instances.slice(0, 2) }));
  t.equal(new Set(picks(20)).size, 1);
});

t.test('one change among many keeps everyone else as he was', async (t) => {
  const names = Array.from({ length: 300 }, (_, index) => `i-${String(index).padStart(3, '0')}`);
  const clock = new ManualClock();
  const asked: string[] = [];
  const dial = (instance: Instance) => {
    asked.push(instance.name);
    return instance.port === 9 ? undefined : direct(instance);
  };
  const backends = new Backends({
    clock,
    random: randomFrom(3),
    ejections: noEjections(),
    suspects: new Suspects({ clock, selfId: ownHost }),
    dial,
    distance: () => 0,
  });
  let instances = names.map((name) => instanceOf({ name }));
  const update = (next: Instance[]): string => {
    instances = next;
    asked.length = 0;
    backends.update(serviceOf(next));
    const shown = backends.list().map((backend) => backend.instance);
    const dialable = next.filter(({ port }) => port !== 9);
    t.same(shown.map(({ name }) => name).sort(), dialable.map(({ name }) => name).sort());
    t.ok(
      shown.every((instance) => dialable.includes(instance)),
      'each with its present instance',
    );
    return asked.join();
  };
  t.equal(update(instances).split(',').length, 300);
  t.equal(update(instances.slice()), '', 'nobody is looked at anew');
  const put = (index: number, fields: Partial<Instance>) =>
    instances.map((one, at) => (at === index ? { ...one, ...fields } : one));
  t.equal(update(put(7, { output: 'x' })), 'i-007');
  t.equal(update(put(7, { port: 9 })), 'i-007');
  t.equal(update(put(299, { output: 'x' })), 'i-299');
  t.equal(update(put(7, { port: 1 })), 'i-007');
  t.equal(update(instances.filter((_, index) => index !== 0 && index !== 150)), '');
  t.equal(update([instanceOf({ name: 'i-000' }), ...instances]), 'i-000');
  t.equal(update([]), '');
  update(names.map((name) => instanceOf({ name })).reverse());
  update(names.map((name) => instanceOf({ name })));
});

t.test('a new incarnation begins without a record', async (t) => {
  const { update, fail, picks } = set({ a: 1, b: 1 });
  fail('a');
  update({ a: 1, b: 1 });
  t.equal(picks(2), 'bb');
  update({ a: 1, b: 1 }, { incarnation: '2' });
  t.match(picks(2), /ab|ba/);
});

t.test('retries go to each once, ejected ones last', async (t) => {
  const { backends, fail } = set({ a: 1, b: 1, c: 0 });
  fail('a');
  const tried: Backend[] = [];
  for (let pick = backends.pick(tried); pick !== undefined; pick = backends.pick(tried)) tried.push(pick);
  t.strictSame(
    tried.map((backend) => backend.id),
    ['here/b', 'here/c', 'here/a'],
  );
  t.notOk(backends.hasOther(tried));
});

t.test('counts outlive a leave, until the last connection has ended', async (t) => {
  const { backends, update, byName } = set({ a: 1, b: 1 });
  const a = byName('a');
  a.active = 1;
  update({ b: 1 });
  t.equal(backends.size, 1);
  t.equal(byName('a'), a, 'it is still shown');
  update({ a: 1, b: 1 });
  t.equal(byName('a'), a, 'and is the same when it returns');
  update({ b: 1 });
  backends.ended(a);
  t.throws(() => byName('a'));
  update({ a: 1 }, { port: 9 });
  t.equal(backends.size, 0, 'what cannot be dialled does not count');
});

t.test('instances of a host that does not answer are tried last, whatever the service', async (t) => {
  const clock = new ManualClock();
  const suspects = new Suspects({ clock, selfId: ownHost });
  const make = (hosts: readonly string[]) => {
    const distance = () => 0 as const;
    const random = randomFrom(5);
    const made = new Backends({ clock, random, ejections: noEjections(), suspects, dial: direct, distance });
    const of = (numbers: readonly string[]) =>
      made.update(
        serviceOf(
          numbers.map((name) => {
            const number = Number(name.slice(1, 2));
            return instanceOf({ name, id: name, hostId: number === 1 ? ownHost : `host-${number}` });
          }),
        ),
      );
    of(hosts);
    const picks = (count: number): string =>
      [...new Set(Array.from({ length: count }, () => made.pick([])?.id ?? 'none'))].sort().join(' ');
    const fail = (id: string, silent: boolean): void => {
      const backend = made.list().find((one) => one.id === id);
      if (backend === undefined) throw new Error(`no backend ${id}`);
      made.failed(backend, silent);
    };
    return { made, of, picks, fail };
  };
  const db = make(['h1-a', 'h2-b', 'h2-c', 'h3-d']);
  const web = make(['h2-x', 'h3-y']);
  const alone = make(['h2-z']);
  db.fail('h2-b', false);
  t.equal(db.picks(8), 'h1-a h2-b h2-c h3-d', 'a refusal says that the host lives');
  db.fail('h1-a', true);
  t.equal(db.picks(8), 'h1-a h2-b h2-c h3-d', 'our own host is never suspect');
  db.fail('h2-b', true);
  t.equal(db.picks(8), 'h1-a h3-d', 'all that it has');
  t.equal(web.picks(8), 'h3-y', 'of every service');
  t.equal(alone.picks(8), 'h2-z', 'unless nothing else is there');
  const tried: Backend[] = [];
  for (let pick = db.made.pick(tried); pick !== undefined; pick = db.made.pick(tried)) tried.push(pick);
  t.match(tried.map(({ id }) => id).join(' '), /^h[13]-. h[13]-. h2-. h2-.$/);
  await clock.advance(Suspects.firstMs - 1);
  t.equal(suspects.count, 1);
  db.fail('h2-c', true);
  await clock.advance(1);
  t.equal(web.picks(8), 'h2-x h3-y', 'who tried it meanwhile told nothing new');
  db.fail('h2-c', true);
  await clock.advance(Suspects.firstMs);
  t.equal(web.picks(8), 'h3-y', 'the second time is twice as long');
  await clock.advance(Suspects.firstMs);
  t.equal(web.picks(8), 'h2-x h3-y');
  for (let time = 0; time < 20; time += 1) {
    db.fail('h2-c', true);
    t.ok((suspects.untilMs('host-2') ?? 0) - clock.monotonicMs() <= Suspects.maxMs);
    await clock.advance(Suspects.maxMs);
  }
  db.fail('h2-c', true);
  suspects.forgive('host-2');
  t.equal(web.picks(8), 'h2-x h3-y', 'one that answers is forgiven at once');
  db.fail('h2-c', true);
  t.equal((suspects.untilMs('host-2') ?? 0) - clock.monotonicMs(), Suspects.firstMs, 'and begins without a record');
  for (const name of ['h1-a', 'h3-d']) for (let time = 0; time < 3; time += 1) db.fail(name, false);
  t.match(db.picks(8), /^h[13]-[ad]/, 'an ejected one refuses sooner than a silent host');
  for (let number = 0; number < Suspects.maxHosts + 5; number += 1) suspects.silent(`many-${number}`);
  t.equal(suspects.count, Suspects.maxHosts);
});
