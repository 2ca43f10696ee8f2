import { type Change, eachChange } from '../../src/base/feed.ts';
import { Catalog } from '../../src/catalog/catalog.ts';
import { decodeInstance } from '../../src/catalog/codec.ts';
import { tables } from '../../src/catalog/stored-view.ts';
import type { EtcdStoreConfig } from '../../src/config/config.ts';
import { Registrar } from '../../src/registrar/registrar.ts';
import { openStore } from '../../src/store/backends.ts';
import { keysOf } from '../../src/store/keys.ts';
import type { Entry, Store } from '../../src/store/store.ts';
import { monotonicMs } from '../support/monotonic.ts';
import { parts } from '../support/records.ts';
import { hostOf, hosts, idOf, leaseTtlMs, meshName, perHost, recordOf, serviceOf } from './mesh-records.ts';

/**
 * Some hosts of the mesh, in one process: for each of them the client of the store, its watches and the registrar, as a
 * sidecar has them. One in five has the catalog, too; the others only take note of what arrives, because two processors
 * cannot do what two hundred hosts do. Told what to do over IPC.
 */
export type ToHosts =
  | { readonly kind: 'start'; readonly from: number; readonly to: number; readonly port: number }
  /** The first instance of `host` gets the weight `round`; everybody looks out for it. */
  | { readonly kind: 'change'; readonly host: number; readonly round: number };

/** Times are of the machine's monotonic clock, in milliseconds: all processes have the same. */
export type FromHosts =
  | { readonly kind: 'ready' }
  | { readonly kind: 'changed'; readonly round: number; readonly atMs: number }
  | { readonly kind: 'seen'; readonly round: number; readonly atMs: readonly number[] }
  /** Every so often: how many of the stores are connected, and how few hosts the first catalog sees alive. */
  | { readonly kind: 'state'; readonly connected: number; readonly alive: number };

const stateEveryMs = 100;
/** Looking at every change itself would cost more than the change. */
const lookEveryMs = 5;
const catalogEvery = 5;
const keys = keysOf(meshName);
const forever = new AbortController().signal;

/** What a host sees of the mesh. */
interface View {
  /** The weight of the first instance of a host; 0 while it is not seen. */
  weightOf(host: number): number;
  /** How many hosts have a sign of life. */
  alive(): number;
}

interface Host {
  readonly number: number;
  readonly store: Store;
  readonly view: View;
  readonly registrar: Registrar;
  /** Undefined for one that only follows. */
  readonly catalog: Catalog | undefined;
  /** Rounds that it has not seen yet, by the host that makes them. */
  readonly awaited: Map<number, number[]>;
  /** Whether it was told something since it was looked at last. */
  isNews: boolean;
}

function send(message: FromHosts): void {
  process.send?.(message);
}

const mine: Host[] = [];
/** Of each host: the service of its first instance, its id, and that instance's key. */
const names = Array.from(
  { length: hosts },
  (_, host) => [serviceOf(host, 0), idOf(host), keys.instance(idOf(host), recordOf(host, 0, 1).name)] as const,
);
const firstKeys: ReadonlySet<string> = new Set(names.map(([, , key]) => key));
const seen = new Map<number, number[]>();

async function start(from: number, to: number, port: number): Promise<void> {
  const text = `http://127.0.0.1:${port}`;
  const endpoints = [{ secure: false, host: '127.0.0.1', port, text }];
  const config: EtcdStoreConfig = {
    kind: 'etcd',
    leaseTtlMs,
    endpoints,
    prefix: '/legate',
    tls: {},
    credentialsFile: undefined,
  };
  for (let number = from; number < to; number += 1) {
    const common = parts();
    const store = await openStore(config, { ...common, dataDir: '/nonexistent' });
    const registrar = new Registrar({ ...common, store, keys, host: hostOf(number), leaseTtlMs });
    const items = Array.from({ length: perHost }, (_, index) => recordOf(number, index, 1));
    const self = { hostId: idOf(number), hostName: `host-${number}` };
    const catalog = number % catalogEvery === 0 ? new Catalog({ ...common, keys, self }) : undefined;
    const awaited = new Map<number, number[]>();
    const look = (): void => {
      host.isNews = true;
    };
    const view = catalog === undefined ? lightView(store, look) : catalogView(catalog);
    const host: Host = { number, store, view, registrar, catalog, awaited, isNews: false };
    if (catalog !== undefined) {
      catalog.applyOwn({ kind: 'reset', items, revision: '' });
      catalog.snapshots.subscribe(look);
      void catalog.follow(store, forever);
    }
    registrar.setDesired({ kind: 'reset', items, revision: '' });
    void registrar.run(forever);
    mine.push(host);
  }
  setInterval(() => mine.forEach(lookFor), lookEveryMs);
  const poll = setInterval(() => {
    if (mine.some(({ view, registrar }) => view.alive() < hosts || !registrar.holdsHostId)) return;
    clearInterval(poll);
    send({ kind: 'ready' });
    setInterval(() => {
      const connected = mine.filter(({ store }) => store.status.value.state === 'connected').length;
      send({
        kind: 'state',
        connected,
        alive: Math.min(...mine.slice(0, catalogEvery).map(({ view }) => view.alive())),
      });
    }, stateEveryMs);
  }, stateEveryMs);
}

function catalogView({ snapshots }: Catalog): View {
  return {
    weightOf(host) {
      const [service = '', id = ''] = names[host] ?? [];
      return snapshots.value.services.get(service)?.instances.find(({ hostId }) => hostId === id)?.weight ?? 0;
    },
    alive() {
      let alive = 0;
      for (const host of snapshots.value.hosts.values()) if (host.alive) alive += 1;
      return alive;
    },
  };
}

/** Follows what the catalog follows, and reads nothing but what is looked for. */
function lightView(store: Store, look: () => void): View {
  const weights = new Map<string, number>();
  const living = new Set<string>();
  const take = (table: (typeof tables)[number], change: Change<Entry>): void => {
    if (change.kind === 'reset' && table === 'alive') living.clear();
    for (const key of change.kind === 'delta' ? change.deletes : []) living.delete(key);
    for (const { key, value } of change.kind === 'reset' ? change.items : change.puts) {
      if (table === 'alive') living.add(key);
      if (!firstKeys.has(key)) continue;
      const decoded = decodeInstance(value, key.slice(key.lastIndexOf('/') + 1));
      if (decoded.ok) weights.set(key, decoded.value.weight);
    }
    look();
  };
  for (const table of tables) void eachChange(store.watch(keys[table], { signal: forever }), (c) => take(table, c));
  return { weightOf: (host) => weights.get(names[host]?.[2] ?? '') ?? 0, alive: () => living.size };
}

function lookFor(host: Host): void {
  if (!host.isNews || host.awaited.size === 0) return;
  host.isNews = false;
  const atMs = monotonicMs();
  for (const [changer, rounds] of host.awaited) {
    // A later round of the same host may have overtaken one: a feed converges.
    const weight = host.view.weightOf(changer);
    for (const round of rounds) if (round <= weight) noteSeen(round, atMs);
    const left = rounds.filter((round) => round > weight);
    if (left.length === 0) host.awaited.delete(changer);
    else if (left.length < rounds.length) host.awaited.set(changer, left);
  }
}

function noteSeen(round: number, atMs: number): void {
  const times = seen.get(round);
  times?.push(atMs);
  if (times?.length !== mine.length) return;
  seen.delete(round);
  send({ kind: 'seen', round, atMs: times });
}

function change(changer: number, round: number): void {
  seen.set(round, []);
  for (const { awaited } of mine) awaited.set(changer, [...(awaited.get(changer) ?? []), round]);
  const host = mine.find(({ number }) => number === changer);
  if (host !== undefined) {
    send({ kind: 'changed', round, atMs: monotonicMs() });
    const delta = { kind: 'delta', puts: [recordOf(changer, 0, round)], deletes: [], revision: '' } as const;
    host.catalog?.applyOwn(delta);
    host.registrar.setDesired(delta);
  }
  for (const each of mine) each.isNews = true;
}

process.on('message', (message: ToHosts) => {
  if (message.kind === 'start') void start(message.from, message.to, message.port);
  else change(message.host, message.round);
});
process.on('disconnect', () => process.exit(0));
