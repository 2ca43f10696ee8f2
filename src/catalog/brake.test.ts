import t from 'tap';
import { MemoryStore } from '../../test/support/memory-store.ts';
import { hostId, instanceRecord, parts } from '../../test/support/records.ts';
import { ManualClock } from '../base/clock.ts';
import type { InstanceRecord, StoredStatus } from '../model/instance.ts';
import { keysOf } from '../store/keys.ts';
import { Catalog } from './catalog.ts';
import { encodeAlive, encodeHost, encodeInstance, encodeMeta } from './codec.ts';
import type { SavedState } from './saved-state.ts';
import type { Service } from './snapshot.ts';

const keys = keysOf('test');
const self = { hostId: hostId(1), hostName: 'web-1' };
const minuteMs = 60_000;

/** One service on a standing clock; instances are named by letters. */
class Scene {
  readonly clock: ManualClock;
  readonly parts;
  readonly catalog: Catalog;
  readonly #records = new Map<string, InstanceRecord>();

  constructor(clock = new ManualClock()) {
    this.clock = clock;
    this.parts = parts(clock);
    this.catalog = new Catalog({ ...this.parts, keys, self });
  }

  /** Each letter takes the status (or what else is given); without it is registered so. */
  async put(names: string, over: Partial<InstanceRecord> = {}): Promise<void> {
    const puts: InstanceRecord[] = [];
    for (const name of names) {
      const record = { ...(this.#records.get(name) ?? instanceRecord({ name })), ...over };
      this.#records.set(name, record);
      puts.push(record);
    }
    this.catalog.applyOwn({ kind: 'delta', puts, deletes: [], revision: '' });
    await this.clock.advance(0);
  }

  async remove(names: string): Promise<void> {
    for (const name of names) this.#records.delete(name);
    this.catalog.applyOwn({ kind: 'delta', puts: [], deletes: [...names], revision: '' });
    await this.clock.advance(0);
  }

  get service(): Service | undefined {
    return this.catalog.snapshots.value.services.get('db');
  }

  get usable(): string {
    return this.service?.usable.map(({ name }) => name).join('') ?? '';
  }

  get braked(): boolean {
    return this.service?.brake !== undefined;
  }
}

/**
 * What happens at which second: `critical ab`, `passing a`, `starting a`, `drain a`, `undrain a`, `remove a`, `replace a`
 * (another incarnation). After it those that are usable, with `!` while the brake holds.
 */
type Step = readonly [second: number, deed: string, usable: string];

const cases: Readonly<Record<string, { readonly of: string; readonly steps: readonly Step[] }>> = {
  'all five at once': { of: 'abcde', steps: [[0, 'critical abcde', 'abcde!']] },
  'one of five is left out': { of: 'abcde', steps: [[0, 'critical a', 'bcde']] },
  'three of five are more than half': { of: 'abcde', steps: [[0, 'critical abc', 'abcde!']] },
  'two of five are not': { of: 'abcde', steps: [[0, 'critical ab', 'cde']] },
  'exactly half is not': { of: 'abcd', steps: [[0, 'critical ab', 'cd']] },
  'two of two are': { of: 'ab', steps: [[0, 'critical ab', 'ab!']] },
  'one of one never': { of: 'a', steps: [[0, 'critical a', '']] },
  'one after another, 11 s apart': {
    of: 'abcde',
    steps: [
      [0, 'critical a', 'bcde'],
      [11, 'critical b', 'cde'],
      [22, 'critical c', 'abcde!'],
    ],
  },
  '30 s apart belong together': {
    of: 'ab',
    steps: [
      [0, 'critical a', 'b'],
      [30, 'critical b', 'ab!'],
    ],
  },
  'more than 30 s apart do not': {
    of: 'ab',
    steps: [
      [0, 'critical a', 'b'],
      [30.001, 'critical b', ''],
    ],
  },
  'one that came back meanwhile does not count': {
    of: 'abcde',
    steps: [
      [0, 'critical ab', 'cde'],
      [1, 'passing a', 'acde'],
      [2, 'critical c', 'ade'],
      [3, 'critical a', 'abcde!'],
    ],
  },
  'what stays critical turned only once': {
    of: 'abcde',
    steps: [
      [0, 'critical ab', 'cde'],
      [29, 'output ab', 'cde'],
      [40, 'critical c', 'de'],
    ],
  },
  'it ends when half pass again': {
    of: 'abcde',
    steps: [
      [0, 'critical abcde', 'abcde!'],
      [60, 'passing a', 'abcde!'],
      [70, 'passing b', 'abcde!'],
      [80, 'warning c', 'abc'],
    ],
  },
  'it ends after 10 minutes': {
    of: 'abcde',
    steps: [
      [0, 'critical abcd', 'abcde!'],
      [599.999, '', 'abcde!'],
      [600, '', 'e'],
      [700, 'output a', 'e'],
    ],
  },
  'after 10 minutes it takes new turns': {
    of: 'abc',
    steps: [
      [0, 'critical abc', 'abc!'],
      [600, '', ''],
      [700, 'passing abc', 'abc'],
      [731, 'critical ab', 'abc!'],
      [1330.999, '', 'abc!'],
      [1331, '', 'c'],
    ],
  },
  'coming and going does not extend it': {
    of: 'abc',
    steps: [
      [0, 'critical abc', 'abc!'],
      [100, 'passing ab', 'ab'],
      [110, 'critical ab', 'ab!'],
      [300, 'passing abc', 'abc'],
      [329.999, 'critical abc', 'abc!'],
      [599, '', 'abc!'],
      [600, '', ''],
      [610, 'passing abc', 'abc'],
      [620, 'critical abc', ''],
      [630, 'passing abc', 'abc'],
      [660, 'critical abc', 'abc!'],
    ],
  },
  'single ones that flap do not extend it': {
    of: 'abcde',
    steps: [
      [0, 'critical abcde', 'abcde!'],
      [200, 'passing a', 'abcde!'],
      [210, 'critical a', 'bcde!'],
      [590, 'passing a', 'abcde!'],
      [599, 'critical a', 'bcde!'],
      [600, '', ''],
    ],
  },
  'who turns within the window after it began joins': {
    of: 'abcdefg',
    steps: [
      [0, 'critical abcd', 'abcdefg!'],
      [30, 'critical e', 'abcdefg!'],
      [30.001, 'critical f', 'abcdeg!'],
    ],
  },
  'draining ones are not brought back': {
    of: 'abcde',
    steps: [
      [0, 'drain a', 'bcde'],
      [1, 'critical abcd', 'bcde!'],
      [2, 'drain b', 'cde!'],
      [3, 'undrain b', 'bcde!'],
    ],
  },
  'with a single one that is not draining there is no brake': {
    of: 'abc',
    steps: [
      [0, 'drain ab', 'c'],
      [1, 'critical abc', ''],
    ],
  },
  'deregistered ones have not turned': {
    of: 'abcde',
    steps: [
      [0, 'remove abc', 'de'],
      [1, 'critical d', 'e'],
    ],
  },
  'deregistered ones are not kept': {
    of: 'abcde',
    steps: [
      [0, 'critical abcd', 'abcde!'],
      [1, 'remove a', 'bcde!'],
      [2, 'remove bc', 'e'],
    ],
  },
  'when the others leave, those that turned may be most': {
    of: 'abcde',
    steps: [
      [0, 'critical ab', 'cde'],
      [5, 'remove cd', 'abe!'],
    ],
  },
  'those that never passed are not brought back': {
    of: 'abc',
    steps: [
      [0, 'replace c', 'ab'],
      [1, 'critical abc', 'ab!'],
    ],
  },
  'and are not the two that it takes': {
    of: 'abc',
    steps: [
      [0, 'replace bc', 'a'],
      [1, 'critical abc', ''],
    ],
  },
  'one that was restarted begins anew': {
    of: 'abc',
    steps: [
      [0, 'critical abc', 'abc!'],
      [1, 'replace a', 'bc!'],
      [2, 'critical a', 'bc!'],
    ],
  },
  'it passed once, whatever came in between': {
    of: 'ab',
    steps: [
      [0, 'starting ab', ''],
      [9, 'critical ab', 'ab!'],
    ],
  },
  'nobody is kept, so no brake is shown': {
    of: 'abcde',
    steps: [
      [0, 'critical abc', 'abcde!'],
      [1, 'drain abc', 'de'],
    ],
  },
};

async function act(scene: Scene, deed: string, incarnation: string): Promise<void> {
  const [word = '', names = ''] = deed.split(' ');
  if (word === '') return;
  if (word === 'remove') await scene.remove(names);
  else if (word === 'drain' || word === 'undrain') await scene.put(names, { draining: word === 'drain' });
  else if (word === 'output') await scene.put(names, { output: incarnation });
  else if (word === 'replace') await scene.put(names, { status: 'starting', incarnation });
  else await scene.put(names, { status: word as StoredStatus });
}

t.test('when the brake holds, and for whom', async (t) => {
  for (const [name, { of, steps }] of Object.entries(cases)) {
    const scene = new Scene();
    await scene.put(of);
    let nowMs = 0;
    for (const [second, deed, usable] of steps) {
      await scene.clock.advance(second * 1000 - nowMs);
      nowMs = second * 1000;
      await act(scene, deed, `${second}`);
      t.equal(`${scene.usable}${scene.braked ? '!' : ''}`, usable, `${name}: at ${second} s, ${deed}`);
    }
  }
});

t.test('since when and until when, by the wall clock, whatever that does', async (t) => {
  const scene = new Scene();
  await scene.put('abc');
  const sinceMs = scene.clock.nowMs();
  await scene.put('abc', { status: 'critical' });
  t.same(scene.service?.brake, { sinceMs, untilMs: sinceMs + 10 * minuteMs });
  t.match(await scene.parts.metrics.exposition(), /legate_catalog_braked_services_count 1\n/);
  scene.clock.jumpWall(60 * minuteMs);
  await scene.clock.advance(10 * minuteMs - 1);
  t.ok(scene.braked);
  await scene.clock.advance(1);
  t.notOk(scene.braked);
  t.match(await scene.parts.metrics.exposition(), /legate_catalog_braked_services_count 0\n/);
  t.equal(scene.clock.pending, 0, 'no timer is left');
});

t.test('a change of another service, or of none, leaves the view as it is', async (t) => {
  const scene = new Scene();
  await scene.put('abc');
  await scene.put('abc', { status: 'critical' });
  const before = scene.service;
  await scene.put('x', { service: 'web' });
  t.equal(scene.service, before);
  await scene.put('a', { output: 'another word' });
  t.equal(scene.service?.brake, before?.brake);
  t.equal(scene.usable, 'abc');
});

async function scenes(): Promise<{ scene: Scene; saved: () => SavedState; later: () => Promise<Scene> }> {
  const scene = new Scene();
  const store = new MemoryStore();
  await store.put(keys.meta, encodeMeta({ meshId: 'ab'.repeat(16), format: 1 }));
  const ended = new AbortController();
  const following = scene.catalog.follow(store, ended.signal);
  await scene.clock.advance(0);
  ended.abort();
  await following;
  const saved = (): SavedState => scene.catalog.saved() as SavedState;
  const later = async (): Promise<Scene> => {
    const next = new Scene(scene.clock);
    next.catalog.restore(saved());
    await scene.clock.advance(0);
    return next;
  };
  return { scene, saved, later };
}

t.test('a restart neither ends the brake nor extends it', async (t) => {
  const { scene, later } = await scenes();
  await scene.put('abcde');
  await scene.put('abcd', { status: 'critical' });
  await scene.clock.advance(minuteMs);
  const next = await later();
  t.equal(next.usable, 'abcde');
  t.same(next.service?.brake, scene.service?.brake);
  const own = 'abcde'.split('').map((name) => instanceRecord({ name, status: name === 'e' ? 'passing' : 'critical' }));
  next.catalog.applyOwn({ kind: 'reset', items: own, revision: '' });
  await scene.clock.advance(9 * minuteMs - 1);
  t.equal(next.usable, 'abcde', 'own instances with the health that was remembered');
  await scene.clock.advance(1);
  t.equal(next.usable, 'e');
});

t.test('turns before a restart count after it', async (t) => {
  const { scene, later } = await scenes();
  await scene.put('abcde');
  await scene.put('ab', { status: 'critical' });
  await scene.clock.advance(20_000);
  const next = await later();
  await next.put('abcde');
  await next.put('ab', { status: 'critical' });
  t.notOk(next.braked, 'the health that the first sources tell decides');
  const other = await later();
  const own = 'abcde'
    .split('')
    .map((name) => instanceRecord({ name, status: 'ab'.includes(name) ? 'critical' : 'passing' }));
  other.catalog.applyOwn({ kind: 'reset', items: own, revision: '' });
  await scene.clock.advance(0);
  t.equal(other.usable, 'cde');
  await scene.clock.advance(10_000);
  other.catalog.applyOwn({
    kind: 'delta',
    puts: [instanceRecord({ name: 'c', status: 'critical' })],
    deletes: [],
    revision: '',
  });
  await scene.clock.advance(0);
  t.equal(other.usable, 'abcde');
});

t.test('what was saved is believed only as far as it can be', async (t) => {
  const { scene, saved } = await scenes();
  await scene.put('abc');
  await scene.put('abc', { status: 'critical' });
  const good = saved();
  const brake = good.brakes.get('db');
  if (brake?.episode === undefined) return t.fail('nothing was saved');
  const { turned, episode } = brake;
  const nowMs = scene.clock.nowMs();
  const far = nowMs + 1000 * minuteMs;
  const table: [string, SavedState['brakes'], string, number][] = [
    ['a hold without end', new Map([['db', { turned, episode: { ...episode, untilMs: far } }]]), 'abc', nowMs],
    [
      'from the future',
      new Map([['db', { turned, episode: { sinceMs: far, untilMs: far, beganMs: far } }]]),
      'abc',
      nowMs,
    ],
    ['long over', new Map([['db', { turned, episode: { ...episode, untilMs: nowMs } }]]), '', 0],
    ['of nobody', new Map([['db', { turned: [{ key: 'x/y', atMs: 1, passed: true }], episode }]]), '', 0],
    ['of another service', new Map([['web', { turned, episode }]]), '', 0],
    [
      'who never passed',
      new Map([['db', { turned: turned.map((turn) => ({ ...turn, passed: false })), episode }]]),
      '',
      0,
    ],
    ['nothing', new Map(), '', 0],
  ];
  for (const [what, brakes, usable, sinceMs] of table) {
    const next = new Scene(scene.clock);
    next.catalog.restore({ ...good, brakes });
    await scene.clock.advance(0);
    t.equal(next.usable, usable, what);
    if (usable === '') t.notOk(next.braked, what);
    else t.same(next.service?.brake, { sinceMs, untilMs: sinceMs + 10 * minuteMs }, what);
  }
});

t.test('lost instances do not count, and a host that returns has not turned', async (t) => {
  const scene = new Scene();
  const store = new MemoryStore();
  const other = hostId(2);
  await store.put(keys.meta, encodeMeta({ meshId: 'ab'.repeat(16), format: 1 }));
  await store.put(keys.host(other), encodeHost({ id: other, name: 'web-2', address: '10.77.0.2', version: '1' }));
  await store.put(keys.aliveOf(other), encodeAlive({ sinceMs: 1 }));
  const write = async (names: string, status: StoredStatus): Promise<void> => {
    for (const name of names)
      await store.put(keys.instance(other, name), encodeInstance(instanceRecord({ name, status })));
  };
  await write('abc', 'passing');
  const ended = new AbortController();
  const following = scene.catalog.follow(store, ended.signal);
  await scene.clock.advance(0);
  t.equal(scene.usable, 'abc');
  await store.delete(keys.aliveOf(other));
  await scene.clock.advance(0);
  t.equal(scene.usable, '', 'one lost host is ordinary failover');
  await store.put(keys.aliveOf(other), encodeAlive({ sinceMs: 1 }));
  await scene.clock.advance(0);
  t.equal(scene.usable, 'abc');
  await write('ab', 'critical');
  await scene.clock.advance(0);
  t.ok(scene.braked, 'critical ones of another host count');
  await store.delete(keys.aliveOf(other));
  await scene.clock.advance(0);
  t.equal(scene.usable, '', 'lost ones are not used');
  await scene.clock.advance(minuteMs);
  await store.put(keys.aliveOf(other), encodeAlive({ sinceMs: 1 }));
  await scene.clock.advance(0);
  t.equal(scene.usable, 'abc', 'they are as they were');
  ended.abort();
  await following;
});

t.test('the lists of a service are the same whether made at once or change by change', async (t) => {
  const scene = new Scene();
  const letters = 'abcdefghijklmnopqrstuvwxyz';
  const statuses: readonly StoredStatus[] = ['passing', 'critical', 'warning', 'starting'];
  let state = 5;
  const next = (bound: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * bound);
  };
  for (let round = 0; round < 300; round += 1) {
    const names = new Set(Array.from({ length: 1 + next(round % 10 === 0 ? 20 : 3) }, () => letters[next(26)] ?? 'a'));
    if (next(4) === 0) await scene.remove([...names].join(''));
    else {
      const protocol = next(12) === 0 ? 'udp' : 'tcp';
      await scene.put([...names].join(''), {
        status: statuses[next(4)] ?? 'passing',
        draining: next(6) === 0,
        protocol,
      });
    }
    if (next(3) === 0) await scene.clock.advance(40_000);
    const { service } = scene;
    if (service === undefined) continue;
    const ids = service.instances.map(({ id }) => id);
    const ordinary = service.instances.filter(
      ({ status, draining, protocol }) =>
        (status === 'passing' || status === 'warning') && !draining && protocol === service.protocol,
    );
    const used = service.usable.filter((instance) => service.brake === undefined || instance.status !== 'critical');
    const faults = service.instances.filter(({ protocol }) => protocol !== service.protocol).length;
    if (
      String(ids) !== String([...ids].sort()) ||
      String(used.map(({ id }) => id)) !== String(ordinary.map(({ id }) => id))
    )
      t.fail(`round ${round}: ${ids} / ${used.map(({ id }) => id)}`);
    if (service.faults.length !== Math.min(faults, 21)) t.fail(`round ${round}: ${service.faults}`);
  }
  t.pass('300 rounds');
});
