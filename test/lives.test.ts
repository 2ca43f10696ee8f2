import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { ManualClock } from '../src/base/clock.ts';
import { Catalog } from '../src/catalog/catalog.ts';
import { encodeService } from '../src/catalog/codec.ts';
import { parseSaved, SnapshotFile } from '../src/catalog/disk.ts';
import { lostLimitMs } from '../src/catalog/lost-hosts.ts';
import type { SavedState } from '../src/catalog/saved-state.ts';
import type { Service, Snapshot } from '../src/catalog/snapshot.ts';
import { parseIpv4Range } from '../src/model/address.ts';
import type { InstanceRecord } from '../src/model/instance.ts';
import { HostSweeper } from '../src/registrar/host-sweeper.ts';
import { openMesh } from '../src/registrar/mesh-identity.ts';
import { keepMesh } from '../src/registrar/mesh-keeper.ts';
import { Registrar } from '../src/registrar/registrar.ts';
import { ServiceClaims } from '../src/registrar/service-claims.ts';
import { keysOf } from '../src/store/keys.ts';
import { MemoryStore } from './support/memory-store.ts';
import { hostId, instanceRecord, parts } from './support/records.ts';

/** Several hosts in one process: the catalogs, registrars and claims of as many sidecars on one store. */

const keys = keysOf('test');
const hourMs = 3_600_000;

class Host {
  readonly id: string;
  readonly name: string;
  readonly parts;
  readonly catalog: Catalog;
  readonly #mesh: Mesh;
  readonly #records = new Map<string, InstanceRecord>();
  readonly #ended = new AbortController();
  #registrar: Registrar | undefined;
  #loops: Promise<unknown>[] = [];

  constructor(mesh: Mesh, number: number, saved?: SavedState) {
    this.#mesh = mesh;
    this.id = hostId(number);
    this.name = `web-${number}`;
    this.parts = parts(mesh.clock);
    this.catalog = new Catalog({ ...this.parts, keys, self: { hostId: this.id, hostName: this.name } });
    if (saved !== undefined) this.catalog.restore(saved);
    mesh.hosts.push(this);
  }

  /** What the sidecar does when its store can be opened. */
  async begin(saved?: SavedState): Promise<void> {
    const { store, range } = this.#mesh;
    const { signal } = this.#ended;
    const common = { ...this.parts, store, keys, random: () => Math.random() };
    const opened = await openMesh({ store, keys, ...(saved && { saved }) });
    this.#registrar = new Registrar({
      ...common,
      host: { id: this.id, name: this.name, address: `10.77.0.${Number.parseInt(this.id, 16)}`, version: '0.1.0' },
      leaseTtlMs: 10_000,
    });
    this.#registrar.setDesired({ kind: 'reset', items: [...this.#records.values()], revision: '' });
    const shown = { snapshots: this.catalog.snapshots, hostId: this.id };
    const claims = new ServiceClaims({ ...common, ...shown, settings: new Map(), links: [], vip: { on: true, range } });
    const forgotten = (): ReadonlySet<string> => this.catalog.forgotten;
    const sweeper = new HostSweeper({ ...common, ...shown, forgotten, holdsStore: false, mayWrite: () => true });
    const remembered = opened.meshId;
    this.#loops.push(
      this.catalog.follow(store, signal),
      this.#registrar.run(signal),
      claims.run(signal),
      sweeper.run(signal),
      keepMesh({ ...common, remembered, saved: () => this.catalog.saved(), signal }),
    );
  }

  /** Containers of `db` that start here; they publish a port. */
  run(...names: string[]): void {
    const puts = names.map((name) => instanceRecord({ name, reach: 'mesh', address: '172.17.0.2' }));
    for (const record of puts) this.#records.set(record.name, record);
    const change = { kind: 'delta', puts, deletes: [], revision: '' } as const;
    this.catalog.applyOwn(change);
    this.#registrar?.setDesired(change);
  }

  /** The sidecar is gone, its lease stays until it lapses. */
  async kill(): Promise<void> {
    this.#ended.abort();
    await Promise.allSettled(this.#loops);
    this.#loops = [];
    this.#mesh.hosts.splice(this.#mesh.hosts.indexOf(this), 1);
  }

  /** And that, too. */
  async powerOff(): Promise<void> {
    await this.kill();
    this.#mesh.store.lapseOf(keys.aliveOf(this.id));
  }

  get snapshot(): Snapshot {
    return this.catalog.snapshots.value;
  }

  get db(): Service | undefined {
    return this.snapshot.services.get('db');
  }

  get usable(): string {
    return (this.db?.usable ?? [])
      .map(({ name }) => name)
      .sort()
      .join(' ');
  }

  /** All that it knows: `a:passing`. */
  get statuses(): string {
    return (this.db?.instances ?? [])
      .map(({ name, status }) => `${name}:${status}`)
      .sort()
      .join(' ');
  }

  get alive(): string {
    const hosts = [...this.snapshot.hosts.values()].sort((a, b) => (a.id < b.id ? -1 : 1));
    return hosts.map(({ name, alive }) => `${name}${alive ? '' : ':lost'}`).join(' ');
  }

  get saved(): SavedState {
    const saved = this.catalog.saved();
    if (saved === undefined) throw new Error('nothing is known yet');
    return saved;
  }
}

class Mesh {
  readonly clock = new ManualClock();
  readonly store = new MemoryStore();
  readonly hosts: Host[] = [];
  readonly range = parseIpv4Range('240.136.0.0/16') ?? ({} as never);

  /** Hosts `web-1`, `web-2`…, each with the instances named. */
  static async of(t: Test, ...instances: string[][]): Promise<Mesh> {
    const mesh = new Mesh();
    mesh.store.nowMs = () => mesh.clock.nowMs();
    t.teardown(() => Promise.all([...mesh.hosts].map((host) => host.kill())));
    for (const [index, names] of instances.entries()) {
      const host = new Host(mesh, index + 1);
      host.run(...names);
      await host.begin();
    }
    await mesh.clock.advance(5000);
    return mesh;
  }

  at(index: number): Host {
    const host = this.hosts[index];
    if (host === undefined) throw new Error(`no host ${index}`);
    return host;
  }

  /** The same on all hosts, or each one's. */
  all(of: (host: Host) => string): string {
    const values = new Set(this.hosts.map(of));
    return values.size === 1 ? [...values].join() : [...values].join(' | ');
  }
}

t.test('a host that loses power is lost everywhere, and back within seconds with nothing rewritten', async (t) => {
  const mesh = await Mesh.of(t, ['a'], ['b', 'c'], ['d', 'e']);
  t.equal(
    mesh.all((host) => host.usable),
    'a b c d e',
  );
  t.equal(
    mesh.all((host) => host.alive),
    'web-1 web-2 web-3',
  );
  const two = mesh.at(1);
  await two.powerOff();
  await mesh.clock.advance(100);
  t.equal(
    mesh.all((host) => host.usable),
    'a d e',
  );
  t.equal(
    mesh.all((host) => host.statuses),
    'a:passing b:lost c:lost d:passing e:passing',
  );
  t.equal(
    mesh.all((host) => host.alive),
    'web-1 web-2:lost web-3',
  );
  const before = mesh.store.writes.length;
  const again = new Host(mesh, 2, two.saved);
  again.run('b', 'c', 'new');
  await again.begin(two.saved);
  await mesh.clock.advance(1000);
  t.equal(
    mesh.all((host) => host.usable),
    'a b c d e new',
  );
  t.same(
    mesh.store.writes.slice(before),
    [`put ${keys.instance(again.id, 'new')}`, `put ${keys.aliveOf(again.id)}`],
    'only what differs, and the sign of life',
  );
});

t.test('nothing is asked of the store while nothing changes', async (t) => {
  const mesh = await Mesh.of(t, ['a'], ['b'], ['c']);
  mesh.store.requests.length = 0;
  await mesh.clock.advance(hourMs);
  t.ok(mesh.store.requests.every((request) => request.startsWith('range ')));
  const each = mesh.store.requests.length / 3;
  t.ok(each >= 11 && each <= 14, `${each} comparisons of each host in an hour`);
});

t.test('when all leases lapse at once, everybody goes on with everybody', async (t) => {
  const mesh = await Mesh.of(t, ['a'], ['b', 'c'], ['d', 'e']);
  mesh.store.setAway(true);
  await mesh.clock.advance(60_000);
  t.equal(
    mesh.all((host) => host.usable),
    'a b c d e',
    'what was alive stays alive',
  );
  mesh.store.lapse();
  mesh.store.setAway(false);
  await mesh.clock.advance(0);
  t.ok(mesh.hosts.some(({ statuses }) => statuses.includes('lost')));
  t.equal(
    mesh.all((host) => host.usable),
    'a b c d e',
  );
  for (let ms = 0; ms < 1000; ms += 50) {
    // The brake ends when half pass again; the others have returned by then or do so within the jitter.
    t.ok(
      mesh.hosts.every(({ usable }) => usable.split(' ').length >= 3),
      `${ms} ms after the store's return: ${mesh.all((host) => host.usable)}`,
    );
    await mesh.clock.advance(50);
  }
  t.equal(
    mesh.all((host) => host.usable),
    'a b c d e',
  );
  t.equal(
    mesh.all((host) => host.statuses),
    'a:passing b:passing c:passing d:passing e:passing',
  );
  t.ok(mesh.hosts.every(({ db }) => db?.brake === undefined));
});

t.test('the brake counts lost instances when more than one host was lost', async (t) => {
  const mesh = await Mesh.of(t, ['a'], ['b', 'c'], ['d', 'e'], []);
  const [one, two, three] = [mesh.at(0), mesh.at(1), mesh.at(2)];
  await two.powerOff();
  await mesh.clock.advance(29_000);
  t.equal(
    mesh.all((host) => host.usable),
    'a d e',
  );
  await three.powerOff();
  await mesh.clock.advance(100);
  t.equal(
    mesh.all((host) => host.usable),
    'a b c d e',
    'two within 30 s, four of five instances',
  );
  t.ok(mesh.hosts.every(({ db }) => db?.brake !== undefined));
  const { saved } = one;
  await one.kill();
  const again = new Host(mesh, 1, saved);
  again.run('a');
  await mesh.clock.advance(1000);
  t.equal(again.usable, 'a b c d e', 'a restart keeps it');
  await again.begin(saved);
  await mesh.clock.advance(1000);
  t.equal(again.usable, 'a b c d e');
  await mesh.clock.advance(600_000);
  t.equal(
    mesh.all((host) => host.usable),
    'a',
    'for ten minutes',
  );
});

t.test('and one host after another is ordinary failover', async (t) => {
  const mesh = await Mesh.of(t, ['a'], ['b', 'c'], ['d', 'e'], ['f', 'g', 'h', 'i', 'j', 'k']);
  const [two, three, four] = [mesh.at(1), mesh.at(2), mesh.at(3)];
  await four.powerOff();
  await mesh.clock.advance(31_000);
  t.equal(
    mesh.all((host) => host.usable),
    'a b c d e',
  );
  await two.powerOff();
  await mesh.clock.advance(31_000);
  t.equal(
    mesh.all((host) => host.usable),
    'a d e',
  );
  await three.powerOff();
  await mesh.clock.advance(100);
  t.equal(
    mesh.all((host) => host.usable),
    'a',
  );
});

t.test('a host whose services are its own alone is kept with the second that is lost', async (t) => {
  const mesh = await Mesh.of(t, ['a', 'b'], [], []);
  const [one, two] = [mesh.at(0), mesh.at(1)];
  await one.powerOff();
  await mesh.clock.advance(10_000);
  t.equal(mesh.at(1).usable, '');
  await two.powerOff();
  await mesh.clock.advance(100);
  t.equal(mesh.at(0).usable, 'a b', 'no instance of it changed when the second was lost');
});

t.test('a host that has been lost for a day is forgotten, and its records are deleted', async (t) => {
  const mesh = await Mesh.of(t, ['a'], ['b'], ['c', 'd']);
  const three = mesh.at(2);
  const memory = three.saved;
  await three.powerOff();
  await mesh.clock.advance(23 * hourMs);
  t.equal(
    mesh.all((host) => host.statuses),
    'a:passing b:passing c:lost d:lost',
  );
  const { saved } = mesh.at(0);
  t.equal(saved.lost.get(hostId(3)), 23 * hourMs);
  await mesh.at(0).kill();
  const one = new Host(mesh, 1, saved);
  one.run('a');
  await one.begin(saved);
  await mesh.clock.advance(hourMs - 60_000);
  t.equal(
    mesh.all((host) => host.alive),
    'web-1 web-2 web-3:lost',
    'a restart neither ends nor shortens it',
  );
  await mesh.clock.advance(70_000);
  t.equal(
    mesh.all((host) => host.statuses),
    'a:passing b:passing',
  );
  t.equal(
    mesh.all((host) => host.alive),
    'web-1 web-2',
  );
  await mesh.clock.advance(180_000);
  t.same(mesh.store.keys(keys.instancesOf(hostId(3))), []);
  t.same(mesh.store.keys(keys.hosts), [keys.host(hostId(1)), keys.host(hostId(2))]);
  t.notOk(mesh.all((host) => String(host.catalog.forgotten.size)).includes('1'));
  const back = new Host(mesh, 3, memory);
  back.run('c', 'd');
  await back.begin(memory);
  await mesh.clock.advance(2000);
  t.equal(
    mesh.all((host) => host.usable),
    'a b c d',
    'its return brings all back',
  );
});

t.test('a forgotten host that returns before it is deleted loses nothing', async (t) => {
  const mesh = await Mesh.of(t, ['a'], ['b', 'c']);
  const two = mesh.at(1);
  const { saved } = two;
  await two.powerOff();
  const deleted: string[] = [];
  let again: Host | undefined;
  mesh.store.beforeTxn = async (guards, writes) => {
    if (again !== undefined || !writes.some(({ kind }) => kind === 'delete')) return;
    deleted.push(...writes.map(({ key }) => key));
    t.match(guards[0], { kind: 'absent', key: keys.aliveOf(hostId(2)) });
    again = new Host(mesh, 2, saved);
    again.run('b', 'c');
    await again.begin(saved);
    for (let turn = 0; turn < 50; turn += 1) await new Promise((resolve) => setImmediate(resolve));
  };
  await mesh.clock.advance(lostLimitMs + 200_000);
  t.equal(deleted.length, 3, 'it was about to be deleted');
  t.equal(
    mesh.all((host) => host.statuses),
    'a:passing b:passing c:passing',
  );
  t.equal(mesh.store.keys(keys.instancesOf(hostId(2))).length, 2);
});

t.test('no clock that is a day off forgets a host, nor does a store that is away', async (t) => {
  const mesh = await Mesh.of(t, ['a'], ['b'], ['c']);
  await mesh.at(2).powerOff();
  for (const jump of [1, -2, 1]) {
    mesh.clock.jumpWall(jump * 25 * hourMs);
    await mesh.clock.advance(60_000);
    t.equal(
      mesh.all((host) => host.alive),
      'web-1 web-2 web-3:lost',
      `${jump} days`,
    );
    const saved = mesh.at(0).saved;
    await mesh.at(0).kill();
    const one = new Host(mesh, 1, saved);
    one.run('a');
    await one.begin(saved);
    mesh.hosts.unshift(...mesh.hosts.splice(-1));
    await mesh.clock.advance(1000);
    t.equal(
      mesh.all((host) => host.statuses),
      'a:passing b:passing c:lost',
    );
  }
  mesh.store.setAway(true);
  await mesh.clock.advance(26 * hourMs);
  t.equal(
    mesh.all((host) => host.alive),
    'web-1 web-2 web-3:lost',
    'nobody could have shown that he lives',
  );
  t.match(await mesh.at(0).parts.metrics.exposition(), /legate_catalog_age_seconds 936\d\d/);
  mesh.store.setAway(false);
  await mesh.clock.advance(10_000);
  t.match(await mesh.at(0).parts.metrics.exposition(), /legate_catalog_age_seconds 0\n/);
  t.match(await mesh.at(0).parts.metrics.exposition(), /legate_catalog_lost_hosts_count 1\n/);
});

t.test('while the store is away all goes on, and a sidecar that restarts begins from its disk', async (t) => {
  const mesh = await Mesh.of(t, ['a'], ['b'], ['c']);
  const { vip } = mesh.at(0).db ?? {};
  t.type(vip, 'string');
  mesh.store.setAway(true);
  await mesh.clock.advance(600_000);
  mesh.at(0).run('started');
  await mesh.clock.advance(10);
  t.equal(mesh.at(0).usable, 'a b c started', 'served on its own host at once');
  t.equal(mesh.at(1).usable, 'a b c');
  t.equal(mesh.at(0).catalog.confirmedAtMs, mesh.clock.nowMs() - 600_010, 'and says how old the picture is');
  const path = join(t.testdir(), 'snapshot.json');
  const three = mesh.at(2);
  await new SnapshotFile({ ...three.parts, path, metrics: parts().metrics }).write(three.catalog);
  await three.kill();
  const { saved } = parseSaved(readFileSync(path, 'utf8'));
  const again = new Host(mesh, 3, saved);
  again.run('c', 'meanwhile');
  await mesh.clock.advance(10);
  t.equal(again.usable, 'a b c meanwhile');
  t.equal(again.db?.vip, vip);
  await t.rejects(again.begin(saved), { code: 'E_STORE_AWAY' });
  mesh.store.lapse();
  mesh.store.setAway(false);
  await again.begin(saved);
  await mesh.clock.advance(15_000);
  t.equal(
    mesh.all((host) => host.usable),
    'a b c meanwhile started',
    'registered everywhere when it is back',
  );
  t.equal(
    mesh.all((host) => host.db?.vip ?? ''),
    vip,
  );
});

t.test('a store that comes back empty gets everything back from all, and nobody is withdrawn', async (t) => {
  const mesh = await Mesh.of(t, ['a', 'b'], ['c'], ['d', 'e']);
  const vip = mesh.all((host) => host.db?.vip ?? '');
  const before = mesh.store.dump(keys.root);
  t.match(vip, /^240\.136\./);
  mesh.store.setAway(true);
  await mesh.clock.advance(60_000);
  mesh.at(1).run('new');
  await mesh.clock.advance(10);
  mesh.store.replace();
  for (let ms = 0; ms < 90_000; ms += ms < 2000 ? 50 : 5000) {
    t.match(
      mesh.all((host) => host.usable),
      /a b c d e/,
      `${ms} ms after its return`,
    );
    t.equal(
      mesh.all((host) => host.db?.vip ?? ''),
      vip,
    );
    await mesh.clock.advance(ms < 2000 ? 50 : 5000);
  }
  t.equal(
    mesh.all((host) => host.statuses),
    'a:passing b:passing c:passing d:passing e:passing new:passing',
  );
  const after = mesh.store.dump(keys.root);
  t.same(Object.keys(after).sort(), [...Object.keys(before), keys.instance(hostId(2), 'new')].sort());
  compare(t, before, after);
});

/** All that lasts is as it was; `meta` says when it was written back. */
function compare(t: Test, before: Readonly<Record<string, string>>, after: Readonly<Record<string, string>>): void {
  for (const [key, value] of Object.entries(before)) {
    if (key !== keys.meta && !key.startsWith(keys.alive)) t.equal(after[key], value, key);
  }
  t.match(after[keys.meta], /"restoredAtMs":\d+/);
}

const deletionOf = (key: string) => ({ kind: 'delete', key }) as const;

/** How a store is emptied under running sidecars, and keeps its id. */
const emptyings: Readonly<Record<string, (store: MemoryStore, vip: string) => unknown>> = {
  'all keys in one deletion': (store) => store.txn([], store.keys(keys.root).map(deletionOf)),
  'key by key': async (store) => {
    for (const key of store.keys(keys.root)) await store.delete(key);
  },
  'key by key, with pauses': async (store) => {
    for (const key of store.keys(keys.root)) {
      await store.delete(key);
      await new Promise((resolve) => setImmediate(resolve));
    }
  },
  'wiped and begun anew under the same id': (store) => store.replace({ keepId: true }),
  'wiped while it was away': async (store) => {
    store.setAway(true);
    await new Promise((resolve) => setImmediate(resolve));
    store.replace({ keepId: true });
  },
  'all but the hosts': (store) =>
    store.txn(
      [],
      store
        .keys(keys.root)
        .filter((key) => !key.startsWith(keys.hosts) && !key.startsWith(keys.alive))
        .map(deletionOf),
    ),
  'services and claims alone with meta': (store, vip) =>
    store.txn([], [keys.vip(vip), keys.service('db'), keys.meta].map(deletionOf)),
  'meta alone': (store) => store.delete(keys.meta),
};

for (const [what, empty] of Object.entries(emptyings)) {
  t.test(`a store that is emptied and keeps its id: ${what}`, async (t) => {
    const mesh = await Mesh.of(t, ['a', 'b'], ['c'], ['d', 'e']);
    const vip = mesh.all((host) => host.db?.vip ?? '');
    t.match(vip, /^240\.136\./);
    const before = mesh.store.dump(keys.root);
    const all = `${vip} a b c d e`;
    const seen = new Set<string>();
    for (const host of mesh.hosts) {
      host.catalog.snapshots.subscribe(({ services }) => {
        const db = services.get('db');
        seen.add(`${db?.vip} ${host.usable}`);
      });
    }
    await empty(mesh.store, vip);
    for (let ms = 0; ms < 90_000; ms += ms < 2000 ? 50 : 5000) await mesh.clock.advance(ms < 2000 ? 50 : 5000);
    // Key by key each is a deletion like any other until `meta` is gone: instances then return from their hosts.
    const withdrawn = [...seen].filter((each) => (what.startsWith('key') ? !each.startsWith(`${vip} `) : each !== all));
    t.same(withdrawn, [], 'nobody and nothing is withdrawn meanwhile');
    const after = mesh.store.dump(keys.root);
    t.same(Object.keys(after).sort(), Object.keys(before).sort());
    compare(t, before, after);
    t.equal(
      mesh.all((host) => host.statuses),
      'a:passing b:passing c:passing d:passing e:passing',
    );
    for (const { parts } of mesh.hosts) t.match(parts.conditions.list(), [{ id: 'store.restored' }], 'told everywhere');
    mesh.at(0).run('later');
    await mesh.clock.advance(1000);
    t.equal(
      mesh.all((host) => host.usable),
      'a b c d e later',
      'and all goes on',
    );
  });
}

t.test('a single deletion is no emptying', async (t) => {
  const mesh = await Mesh.of(t, ['a'], ['b']);
  await mesh.store.put(
    keys.service('old'),
    encodeService({ name: 'old', port: 1, protocol: 'tcp', balance: 'random' }),
  );
  await mesh.clock.advance(1000);
  t.ok(mesh.hosts.every(({ snapshot }) => snapshot.services.has('old')));
  await mesh.store.delete(keys.service('old'));
  await mesh.clock.advance(10_000);
  t.notOk(mesh.hosts.some(({ snapshot }) => snapshot.services.has('old')));
  t.notOk(mesh.store.keys().includes(keys.service('old')));
  t.same(mesh.at(0).parts.conditions.list(), []);
});

t.test('a meta that cannot be used is told, and is left alone', async (t) => {
  const mesh = await Mesh.of(t, ['a'], ['b']);
  const good = mesh.store.dump()[keys.meta] ?? '';
  const cases: [value: string, id: string, hint: RegExp][] = [
    ['garbage', 'store.meta', /delete the key \/legate\/test\/meta/],
    ['{"v":9}', 'store.meta', /install the newer version/],
    [good.replace(/"meshId":"[^"]*"/, `"meshId":"${'cd'.repeat(16)}"`), 'store.foreign', /check the store settings/],
  ];
  for (const [value, id, hint] of cases) {
    await mesh.store.put(keys.meta, new TextEncoder().encode(value));
    await mesh.clock.advance(10_000);
    t.equal(mesh.store.dump()[keys.meta], value);
    for (const { parts } of mesh.hosts) t.match(parts.conditions.list(), [{ id, hint }], value);
    await mesh.store.put(keys.meta, new TextEncoder().encode(good));
    await mesh.clock.advance(10_000);
    t.same(mesh.at(0).parts.conditions.list(), []);
  }
  await mesh.store.put(keys.meta, new TextEncoder().encode('garbage'));
  await mesh.clock.advance(10_000);
  await mesh.store.delete(keys.meta);
  await mesh.clock.advance(10_000);
  t.match(mesh.store.dump()[keys.meta], /"restoredAtMs"/, 'what the hint says helps');
  for (const { parts } of mesh.hosts) t.match(parts.conditions.list(), [{ id: 'store.restored' }]);
});
