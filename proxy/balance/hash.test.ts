import fc from 'fast-check';
import t from 'tap';
import { ManualClock } from '../../src/base/clock.ts';
import type { Instance } from '../../src/model/instance.ts';
import { Backends } from '../backends.ts';
import { instanceOf, otherHost, ownHost, serviceOf } from '../link-plane.fixture.ts';
import { Suspects } from '../suspects.ts';
import type { Backend, Distance } from './backend.ts';
import { alwaysRoom, maxShareFactor } from './hash.ts';
import { hashOfText } from './hashing.ts';

type Weights = Readonly<Record<string, number>>;

/** The instances as a host sees them, in an order of its own. */
function hostOf(weights: Weights, selfId = ownHost, distance: (hostId: string) => Distance = () => 0) {
  const clock = new ManualClock();
  const suspects = new Suspects({ clock, selfId });
  const ejections = { failures: { value: 0 }, errors: { value: 0 }, slowness: { value: 0 } };
  const dial = (endpoint: Instance) => ({ via: 'direct', endpoint }) as const;
  const backends = new Backends({ clock, random: () => 0.5, ejections, suspects, dial, distance });
  const update = (to: Weights, hostId = ownHost): void => {
    const instances = Object.entries(to).map(([name, weight]) => instanceOf({ name, weight, hostId }));
    backends.update(serviceOf(instances, { balance: 'hash' }));
  };
  update(weights);
  const byName = (name: string): Backend => {
    const found = backends.list().find(({ id }) => id === `here/${name}`);
    if (found === undefined) throw new Error(`no backend ${name}`);
    return found;
  };
  const placeOf = (key: number, tried: readonly Backend[] = []): string =>
    backends.pick(tried, key)?.id.replace('here/', '') ?? 'none';
  return { clock, backends, update, byName, placeOf };
}

const keys = Array.from({ length: 6000 }, (_, index) => hashOfText(`10.1.${index >> 8}.${index & 255}`));

function places(bed: ReturnType<typeof hostOf>): string[] {
  return keys.map((key) => bed.placeOf(key));
}

function shares(of: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const name of of) counts[name] = (counts[name] ?? 0) + 1;
  return Object.fromEntries(Object.entries(counts).map(([name, count]) => [name, count / of.length]));
}

t.test('keys spread by weight', async (t) => {
  const table: readonly Weights[] = [
    { a: 1, b: 1 },
    { a: 1, b: 1, c: 1, d: 1, e: 1 },
    { a: 5, b: 3, c: 2 },
    { a: 100, b: 1, c: 1 },
  ];
  for (const weights of table) {
    const found = shares(places(hostOf(weights)));
    const sum = Object.values(weights).reduce((total, weight) => total + weight, 0);
    for (const [name, weight] of Object.entries(weights)) {
      const off = (found[name] ?? 0) - weight / sum;
      t.ok(Math.abs(off) < 0.025, `${name} of ${JSON.stringify(weights)}: ${found[name]}`);
    }
  }
  t.strictSame(shares(places(hostOf({ a: 0, b: 1 }))), { b: 1 }, 'weight 0 gets nothing while another is there');
  t.equal(hostOf({}).placeOf(1), 'none');
  const keyless = hostOf({ a: 1, b: 1 });
  const turns = Array.from({ length: 4 }, () => keyless.backends.pick([])?.id);
  t.strictSame(turns, ['here/a', 'here/b', 'here/a', 'here/b'], 'what has no key takes turns');
});

t.test('a key has the same place on every host', async (t) => {
  const weights = Object.fromEntries(Array.from({ length: 20 }, (_, index) => [`i${index}`, 1 + (index % 3)]));
  const backwards = Object.fromEntries(Object.entries(weights).reverse());
  t.strictSame(places(hostOf(weights)), places(hostOf(backwards, otherHost)));
  // Written down, so that versions agree as well.
  const fixed = hostOf({ a: 1, b: 1, c: 1, d: 2 });
  t.equal(
    keys
      .slice(0, 24)
      .map((key) => fixed.placeOf(key))
      .join(''),
    'bdaddcdcddddcbbbcbdbdadc',
  );
});

t.test('only the keys of who comes or goes move', async (t) => {
  const members = fc.uniqueArray(fc.tuple(fc.constantFrom(...'abcdefghijkl'), fc.integer({ min: 1, max: 9 })), {
    minLength: 2,
    maxLength: 12,
    selector: ([name]) => name,
  });
  const property = fc.property(members, fc.array(fc.integer(), { minLength: 1, maxLength: 50 }), (list, some) => {
    const [[gone]] = list as [[string, number]];
    const bed = hostOf(Object.fromEntries(list));
    const before = some.map((key) => bed.placeOf(key));
    bed.update(Object.fromEntries(list.slice(1)));
    for (const [index, key] of some.entries()) {
      const place = bed.placeOf(key);
      if (before[index] === gone ? place === gone : place !== before[index]) return false;
    }
    bed.update(Object.fromEntries(list));
    return some.every((key, index) => bed.placeOf(key) === before[index]);
  });
  fc.assert(property, { numRuns: 200 });
  const bed = hostOf({ a: 1, b: 1, c: 1 });
  const before = places(bed);
  bed.update({ a: 2, b: 1, c: 1 });
  const moved = places(bed).filter((place, index) => place !== before[index]);
  t.ok(moved.length > 0 && moved.every((place) => place === 'a'), 'more weight only takes keys from others');
});

t.test('who is ejected, tried or of a suspect host is passed over, and gets its keys back', async (t) => {
  const bed = hostOf({ a: 1, b: 1, c: 1, d: 1 });
  const before = places(bed);
  for (let times = 0; times < 3; times += 1) bed.backends.failed(bed.byName('b'));
  for (const [index, place] of places(bed).entries()) {
    if (before[index] === 'b' ? place === 'b' : place !== before[index]) t.fail(`key ${index} went to ${place}`);
  }
  const key = keys[before.indexOf('b')] ?? 0;
  const second = bed.placeOf(key);
  await bed.clock.advance(10_000);
  t.strictSame(places(bed), before, 'as before when it is back');
  t.equal(bed.placeOf(key, [bed.byName('b')]), second, 'a retry goes where the key goes without it');
  const order: Backend[] = [];
  for (let next = bed.backends.pick(order, key); next !== undefined; next = bed.backends.pick(order, key))
    order.push(next);
  t.equal(order.length, 4, 'and to each once');
  const hosts = hostOf({});
  const there = ['c', 'd'].map((name) => instanceOf({ name, hostId: otherHost }));
  hosts.backends.update(serviceOf([...['a', 'b'].map((name) => instanceOf({ name })), ...there], { balance: 'hash' }));
  t.strictSame(places(hosts), before, 'whichever hosts they are on');
  hosts.backends.failed(hosts.byName('c'), true);
  for (const [index, place] of places(hosts).entries()) {
    const isThere = before[index] === 'c' || before[index] === 'd';
    if (isThere ? place === 'c' || place === 'd' : place !== before[index]) t.fail(`key ${index} went to ${place}`);
  }
});

t.test('the nearest come first, and share the keys among themselves', async (t) => {
  const bed = hostOf({}, ownHost, (hostId) => (hostId === ownHost ? 0 : 2));
  const near = ['a', 'b'].map((name) => instanceOf({ name }));
  const far = ['c', 'd'].map((name) => instanceOf({ name, hostId: otherHost }));
  bed.backends.update(serviceOf([...near, ...far], { balance: 'hash' }));
  t.strictSame(Object.keys(shares(places(bed))).sort(), ['a', 'b']);
  bed.backends.update(serviceOf([...near, ...far], { balance: 'hash', prefer: 'any' }));
  t.strictSame(Object.keys(shares(places(bed))).sort(), ['a', 'b', 'c', 'd']);
});

t.test('nobody gets much more than his share of what runs, however the keys are', async (t) => {
  const table: readonly Weights[] = [
    { a: 1, b: 1 },
    { a: 1, b: 1, c: 1, d: 1, e: 1 },
    { a: 5, b: 3, c: 2 },
  ];
  for (const weights of table) {
    const bed = hostOf(weights);
    const sum = Object.values(weights).reduce((total, weight) => total + weight, 0);
    const hot = keys[0] ?? 0;
    const first = bed.placeOf(hot);
    for (let running = 1; running <= 200; running += 1) {
      // Nine of ten are of one key.
      const backend = bed.backends.pick([], running % 10 === 0 ? keys[running] : hot);
      if (backend === undefined) return t.fail('nobody was found');
      backend.active += 1;
      const bound = Math.max(alwaysRoom, Math.ceil((maxShareFactor * running * backend.instance.weight) / sum));
      if (running <= alwaysRoom && backend.id !== `here/${first}`) t.fail('little enough stays together');
      if (backend.active > bound) t.fail(`${backend.id} runs ${backend.active} of ${running}`);
    }
    const kept = bed.byName(first);
    const share = kept.instance.weight / sum;
    t.ok(kept.active >= Math.floor(200 * share), `the key's own instance runs ${kept.active} of 200`);
    for (const backend of bed.backends.list()) while (backend.active > 0) bed.backends.ended(backend);
    t.equal(bed.placeOf(hot), first, 'the key returns');
  }
});
