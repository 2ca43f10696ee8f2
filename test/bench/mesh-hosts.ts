import { Catalog } from '../../src/catalog/catalog.ts';
import type { EtcdStoreConfig } from '../../src/config/config.ts';
import { Registrar } from '../../src/registrar/registrar.ts';
import { openStore } from '../../src/store/backends.ts';
import { keysOf } from '../../src/store/keys.ts';
import type { Store } from '../../src/store/store.ts';
import { parts } from '../support/records.ts';
import { hostOf, hosts, idOf, leaseTtlMs, meshName, perHost, recordOf, serviceOf } from './mesh-records.ts';

/**
 * Some hosts of the mesh, in one process: for each of them the client of the store, the catalog and the registrar, as a
 * sidecar has them. Told what to do over IPC.
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

interface Host {
  readonly number: number;
  readonly store: Store;
  readonly catalog: Catalog;
  readonly registrar: Registrar;
  /** Rounds that it has not seen yet, with the host that makes them. */
  readonly awaited: Map<number, number>;
}

export function nowMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

function send(message: FromHosts): void {
  process.send?.(message);
}

const mine: Host[] = [];
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
  const keys = keysOf(meshName);
  const forever = new AbortController().signal;
  for (let number = from; number < to; number += 1) {
    const common = parts();
    const store = await openStore(config, { ...common, dataDir: '/nonexistent' });
    const catalog = new Catalog({ ...common, keys, self: { hostId: idOf(number), hostName: `host-${number}` } });
    const registrar = new Registrar({ ...common, store, keys, host: hostOf(number), leaseTtlMs });
    const items = Array.from({ length: perHost }, (_, index) => recordOf(number, index, 1));
    catalog.applyOwn({ kind: 'reset', items, revision: '' });
    registrar.setDesired({ kind: 'reset', items, revision: '' });
    void catalog.follow(store, forever);
    void registrar.run(forever);
    const host = { number, store, catalog, registrar, awaited: new Map<number, number>() };
    catalog.snapshots.subscribe(() => look(host));
    mine.push(host);
  }
  const poll = setInterval(() => {
    if (mine.some(({ catalog }) => aliveIn(catalog) < hosts)) return;
    clearInterval(poll);
    send({ kind: 'ready' });
    setInterval(() => {
      const connected = mine.filter(({ store }) => store.status.value.state === 'connected').length;
      send({ kind: 'state', connected, alive: Math.min(...mine.slice(0, 3).map(({ catalog }) => aliveIn(catalog))) });
    }, stateEveryMs);
  }, stateEveryMs);
}

function aliveIn(catalog: Catalog): number {
  let alive = 0;
  for (const host of catalog.snapshots.value.hosts.values()) if (host.alive) alive += 1;
  return alive;
}

function look(host: Host): void {
  if (host.awaited.size === 0) return;
  const atMs = nowMs();
  const { services } = host.catalog.snapshots.value;
  for (const [round, changer] of host.awaited) {
    const shown = services.get(serviceOf(changer, 0))?.instances.find(({ hostId }) => hostId === idOf(changer));
    // A later round of the same host may have overtaken it: a feed converges.
    if (shown === undefined || shown.weight < round) continue;
    host.awaited.delete(round);
    const times = seen.get(round);
    times?.push(atMs);
    if (times?.length !== mine.length) continue;
    seen.delete(round);
    send({ kind: 'seen', round, atMs: times });
  }
}

function change(changer: number, round: number): void {
  seen.set(round, []);
  for (const host of mine) host.awaited.set(round, changer);
  const host = mine.find(({ number }) => number === changer);
  if (host !== undefined) {
    send({ kind: 'changed', round, atMs: nowMs() });
    const delta = { kind: 'delta', puts: [recordOf(changer, 0, round)], deletes: [], revision: '' } as const;
    host.catalog.applyOwn(delta);
    host.registrar.setDesired(delta);
  }
  for (const each of mine) look(each);
}

process.on('message', (message: ToHosts) => {
  if (message.kind === 'start') void start(message.from, message.to, message.port);
  else change(message.host, message.round);
});
process.on('disconnect', () => process.exit(0));
