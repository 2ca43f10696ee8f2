import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { ManualClock } from '../src/base/clock.ts';
import { Conditions } from '../src/base/conditions.ts';
import { LegateError } from '../src/base/errors.ts';
import { silentLog } from '../src/base/log.ts';
import { Metrics } from '../src/base/metrics.ts';
import type { Config, StoreConfig } from '../src/config/config.ts';
import { loadConfig } from '../src/config/load.ts';
import { encodeMarker, type MovedTo } from '../src/registrar/store-marker.ts';
import { MemoryStore } from '../test/support/memory-store.ts';
import { waitFor } from '../test/support/wait.ts';
import { StoreMoves } from './store-moves.ts';
import { StoreSession } from './store-session.ts';
import { configLine, followedConfig, movedTo, storeConfigOf, storeKeys } from './store-target.ts';

const hostId = '0011223344556677';

function configOf(flags: Record<string, string> = {}): Config {
  const defaults = { hostname: 'web-1', advertise: () => '10.77.0.1' };
  const result = loadConfig({ env: {}, flags: { 'network.underlay': 'trusted', ...flags }, defaults });
  if ('faults' in result) throw new Error(result.faults.map(({ text }) => text).join('; '));
  return result.config;
}

const embedded = configOf();
const offered = configOf({ 'store.listen': '10.77.0.1:7712' });
const etcd = (port: number, more: Record<string, string> = {}): Config =>
  configOf({ 'store.kind': 'etcd', 'store.endpoints': `http://10.0.0.1:${port}`, ...more });

function world(t: Tap.Test, file: Config, reread: () => Config | undefined = () => undefined) {
  const clock = new ManualClock();
  const conditions = new Conditions(silentLog, clock, new Metrics());
  const stopping = new AbortController();
  const path = mkdtempSync(join(tmpdir(), 'legate-session-'));
  const stores = new Map<string, MemoryStore>();
  const events: string[] = [];
  const nameOf = (config: StoreConfig): string =>
    config.kind === 'embedded' ? 'embedded' : String(config.endpoints[0]?.port);
  const storeOf = (name: string): MemoryStore => {
    const store = stores.get(name) ?? new MemoryStore();
    stores.set(name, store);
    return store;
  };
  const faults = new Map<string, LegateError>();
  const common = { clock, conditions, log: silentLog };
  const moves: StoreMoves = new StoreMoves({
    ...{ ...common, config: file, hostId, path: join(path, 'moved.json'), reread },
    session: () => session,
  });
  const session: StoreSession = new StoreSession({
    ...common,
    signal: stopping.signal,
    open: async (config) => {
      const name = nameOf(config);
      events.push(`open ${name}`);
      const store = storeOf(name);
      const close = store.close.bind(store);
      store.close = async () => {
        events.push(`close ${name}`);
        stores.delete(name);
        await close();
      };
      return store;
    },
    redirect: (store, config, until) => moves.redirect(store, config, until),
    prepare: async (_store, config) => {
      const fault = faults.get(nameOf(config));
      if (fault !== undefined) throw fault;
    },
    begin: (store, config, until) => {
      events.push(`begin ${nameOf(config)}`);
      until.addEventListener('abort', () => events.push(`end ${nameOf(config)}`));
      return [moves.watch(store, config, until)];
    },
  });
  t.teardown(async () => {
    stopping.abort();
    await session.close();
    rmSync(path, { recursive: true, force: true, maxRetries: 5 });
  });
  const usedOf = (name: string): Promise<unknown> =>
    waitFor(`${name} to be used: ${events.join(', ')}`, async () => {
      await clock.advance(1000);
      return session.config !== undefined && nameOf(session.config) === name;
    });
  const told = (id: string) => conditions.list().find((each) => each.id === id);
  return { clock, session, moves, storeOf, events, faults, usedOf, told };
}

/** As tap hands it to a test. */
declare namespace Tap {
  type Test = { teardown(run: () => void | Promise<void>): void };
}

async function mark(store: MemoryStore, at: StoreConfig, to: MovedTo): Promise<void> {
  await store.put(storeKeys('legate', at).moved, encodeMarker({ state: 'moved', atMs: 1, to }));
}

t.test('a store that is away is waited for, one that must not be used is tried again', async (t) => {
  const w = world(t, etcd(1));
  w.storeOf('1').status.set({ state: 'connecting', sinceMs: 0, storeId: undefined, problem: 'no route', hint: 'look' });
  const using = w.session.use(etcd(1).store);
  await w.clock.advance(2900);
  t.equal(w.told('store.open'), undefined);
  await w.clock.advance(100);
  await using;
  t.equal(w.session.store, undefined, 'nobody waits for it longer');
  t.match(w.told('store.open'), { message: 'no route', hint: 'look' });
  w.faults.set('1', new LegateError('E_STORE_FOREIGN', 'of another mesh'));
  w.storeOf('1').status.set({ state: 'connected', sinceMs: 0, storeId: 'x' });
  await waitFor('it to say so', () => w.told('store.open')?.message === 'of another mesh');
  w.faults.clear();
  await w.usedOf('1');
  t.equal(w.told('store.open'), undefined);
});

t.test('another store takes the place of the one in use when it answers', async (t) => {
  const w = world(t, embedded);
  await w.session.use(w.moves.first());
  t.same(w.events.splice(0), ['open embedded', 'begin embedded']);
  w.storeOf('1').status.set({ state: 'away', sinceMs: 0, storeId: undefined });
  await w.moves.fileSays(etcd(1));
  await w.clock.advance(3000);
  t.match(w.told('store.open')?.message, /the embedded store is used until then/);
  t.same(w.events.splice(0), ['open 1'], 'the present one stays meanwhile');
  await w.moves.fileSays(etcd(2));
  await w.usedOf('2');
  t.same(
    w.events.splice(0),
    ['close 1', 'open 2', 'end embedded', 'close embedded', 'begin 2'],
    'the last word counts',
  );
  await w.moves.fileSays(etcd(2));
  t.same(w.events, [], 'no change, nothing happens');
  await w.moves.fileSays(embedded);
  await w.usedOf('embedded');
  w.events.splice(0);
  await w.moves.fileSays(offered);
  await waitFor('it to be opened anew', () => w.events.includes('begin embedded'));
  t.same(
    w.events,
    ['end embedded', 'close embedded', 'open embedded', 'begin embedded'],
    'two cannot be in one folder',
  );
});

t.test('a mesh that moves is followed', async (t) => {
  const w = world(t, offered);
  await w.session.use(w.moves.first());
  await mark(w.storeOf('embedded'), offered.store, movedTo(etcd(1).store, 'f'.repeat(16)));
  await w.usedOf('1');
  t.notOk(w.events.includes('close embedded'), 'others still read in it where the mesh is');
  t.match(w.told('store.moved'), {
    message: 'the mesh has moved to etcd at http://10.0.0.1:1; the file still says the embedded store',
    hint: /`store: \{kind: etcd, endpoints: \["http:\/\/10\.0\.0\.1:1"\]\}`/,
  });
  // And on, with a hop between that says so at once.
  await mark(w.storeOf('2'), etcd(2).store, movedTo(etcd(3).store, 'f'.repeat(16)));
  await mark(w.storeOf('1'), etcd(1).store, movedTo(etcd(2).store, 'f'.repeat(16)));
  await w.usedOf('3');
  await w.moves.fileSays(etcd(3));
  await waitFor('the old one to be closed', () => w.events.includes('close embedded'));
  t.equal(w.told('store.moved'), undefined);
});

t.test('nothing secret goes where only a store says so', async (t) => {
  let prepared: Config | undefined;
  const w = world(t, etcd(1, { 'store.credentials_file': '/etc/legate/one' }), () => prepared);
  await w.session.use(w.moves.first());
  const secret = etcd(2, { 'store.credentials_file': '/etc/legate/two' });
  await mark(w.storeOf('1'), etcd(1).store, movedTo(secret.store, 'f'.repeat(16)));
  await waitFor('it to say what to do', () => w.told('store.moved'));
  t.match(w.told('store.moved'), { severity: 'error', hint: /credentials_file: FILE\}` into .* send SIGHUP/ });
  t.same(w.events, ['open 1', 'begin 1']);
  await w.moves.fileSays(secret);
  await w.usedOf('2');
  t.equal(w.told('store.moved'), undefined);
  // A file that was changed before the mesh moved is taken up at that moment.
  prepared = etcd(3, { 'store.credentials_file': '/etc/legate/three' });
  await mark(w.storeOf('2'), secret.store, movedTo(prepared.store, 'f'.repeat(16)));
  await w.usedOf('3');
  t.same(w.session.config, prepared.store);
});

t.test('targets and what files say of them', (t) => {
  const of = (to: string, more: object = {}): StoreConfig => storeConfigOf({ to, ...more }, embedded);
  t.match(of('https://e:2379,https://f:2379', { prefix: '/p', credentialsFile: '/c', ca: '/ca' }), {
    ...{ kind: 'etcd', prefix: '/p', credentialsFile: '/c', tls: { ca: '/ca' } },
    endpoints: [{ host: 'e', secure: true }, { host: 'f' }],
  });
  t.match(of('consul+http://127.0.0.1:8500'), { kind: 'consul', endpoints: [{ port: 8500 }] });
  t.match(of('embedded'), { kind: 'embedded', listen: undefined });
  t.match(of('embedded://10.77.0.1:7712'), { kind: 'embedded', listen: { address: '10.77.0.1', port: 7712 } });
  for (const wrong of [
    '',
    'e:2379',
    'embedded://',
    'embeddedx',
    'http://user:secret@h:1',
    'consul',
    'x'.repeat(5000),
  ]) {
    t.throws(() => of(wrong), { code: 'E_INVALID' }, wrong.slice(0, 40));
  }
  for (const text of ['http://h:1', 'consul+http://h:1,http://i:1', 'embedded', 'embedded://10.77.0.1:7712']) {
    const to = movedTo(of(text), hostId);
    t.same(followedConfig(to, embedded, hostId), of(text), `${text} is followed`);
    const line = configLine(to, hostId);
    const written = loadConfig({
      file: { path: 'f', text: `${line}\nnetwork: {underlay: trusted}` },
      env: {},
      flags: {},
      defaults: { hostname: 'web-1', advertise: () => '10.77.0.1' },
    });
    t.same('config' in written && written.config.store, of(text), line);
  }
  const secure = movedTo(of('embedded://10.77.0.1:7712'), hostId, true);
  t.match(followedConfig(secure, embedded, 'f'.repeat(16)), {
    kind: 'etcd',
    endpoints: [{ text: 'https://10.77.0.1:7712' }],
  });
  t.same(followedConfig(secure, embedded, hostId), of('embedded://10.77.0.1:7712'));
  t.match(configLine(secure, 'f'.repeat(16)), /endpoints: \["https:\/\/10\.77\.0\.1:7712"\]/);
  t.match(configLine(secure, hostId), /listen: "10\.77\.0\.1:7712"/);
  const held = movedTo(of('embedded://10.77.0.1:7712'), hostId);
  t.match(followedConfig(held, embedded, 'f'.repeat(16)), {
    kind: 'etcd',
    endpoints: [{ text: 'http://10.77.0.1:7712' }],
  });
  t.equal(followedConfig(movedTo(of('embedded'), hostId), embedded, 'f'.repeat(16)), undefined, 'offered to nobody');
  t.end();
});
