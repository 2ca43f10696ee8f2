import { watchUsable } from '../../sidecar/usable-watch.ts';
import { Catalog } from '../../src/catalog/catalog.ts';
import { encodeInstance } from '../../src/catalog/codec.ts';
import type { InstanceRecord } from '../../src/model/instance.ts';
import { Registrar } from '../../src/registrar/registrar.ts';
import { openStore } from '../../src/store/backends.ts';
import { keysOf } from '../../src/store/keys.ts';
import { type Teardown, temporaryFolder } from '../support/agent.ts';
import { MemoryStore } from '../support/memory-store.ts';
import { hostId, hostRecord, parts } from '../support/records.ts';
import { waitFor } from '../support/wait.ts';
import type { Figure } from './bench.ts';
import { allInstances, otherHostOf, otherInstance, realInstances, writeOthers } from './scale-mesh.ts';
import { median, percentile } from './tools.ts';

const mesh = 'bench';
const keys = keysOf(mesh);
const self = { hostId: hostId(1), hostName: 'web-1' };
const changes = 2000;
const resets = 7;
const storeMs = 2000;
const storeWriters = 64;

/** The catalog with the whole mesh, on a store in memory: what one change and one reset cost in the process. */
export async function catalogFigures(): Promise<Figure[]> {
  const store = new MemoryStore();
  const common = parts();
  await writeOthers(store, mesh);
  const catalog = new Catalog({ ...common, keys, self });
  const stop = new AbortController();
  const following = catalog.follow(store, stop.signal);
  try {
    const own = Array.from({ length: realInstances }, (_, index) => otherInstance(index));
    catalog.applyOwn({ kind: 'reset', items: own, revision: '' });
    watchUsable(catalog.snapshots, common.conditions, common.clock);
    const shown = (): number => {
      let count = 0;
      for (const service of catalog.snapshots.value.services.values()) count += service.instances.length;
      return count;
    };
    await waitFor('the catalog', () => shown() === allInstances);
    const stored: number[] = [];
    const mine: number[] = [];
    for (let round = 0; round < changes; round += 1) {
      const index = realInstances + ((round * 37) % (allInstances - realInstances));
      stored.push(await nextSnapshot(catalog, () => putOther(store, index, round)));
      const record = { ...otherInstance(round % realInstances), weight: 2 + (round % 50) };
      mine.push(await nextSnapshot(catalog, () => catalog.applyOwn(delta(record))));
    }
    const reset: number[] = [];
    for (let round = 0; round < resets; round += 1) {
      reset.push(await resetTime(catalog, store, round));
    }
    return [
      figure('one change, another host’s, stored until in the snapshot, p50', stored, 0.5, 1),
      figure('… p99', stored, 0.99, 1),
      figure('one change, our own, p50', mine, 0.5, 1),
      figure('… p99', mine, 0.99, 1),
      figure(`a reset of ${allInstances - realInstances} records, one changed`, reset, 0.5),
    ];
  } finally {
    stop.abort();
    await following;
  }
}

/** Until the next snapshot, in milliseconds; listeners that were there before have run by then. */
function nextSnapshot(catalog: Catalog, change: () => unknown): Promise<number> {
  return new Promise((resolve) => {
    const unsubscribe = catalog.snapshots.subscribe(() => {
      unsubscribe();
      resolve(performance.now() - beganMs);
    });
    const beganMs = performance.now();
    change();
  });
}

function putOther(store: MemoryStore, index: number, round: number): unknown {
  const record = { ...otherInstance(index), weight: 2 + (round % 50) };
  return store.put(keys.instance(otherHostOf(index), record.name), encodeInstance(record));
}

/** All watches begin anew while one record has changed unseen: until that one is shown. */
async function resetTime(catalog: Catalog, store: MemoryStore, round: number): Promise<number> {
  store.silent = true;
  await putOther(store, realInstances, 100 + round);
  store.silent = false;
  const shown = new Promise<number>((resolve) => {
    const unsubscribe = catalog.snapshots.subscribe(({ services }) => {
      const weight = services
        .get(otherInstance(realInstances).service)
        ?.instances.find(({ name }) => name === otherInstance(realInstances).name)?.weight;
      if (weight !== 2 + ((100 + round) % 50)) return;
      unsubscribe();
      resolve(performance.now());
    });
  });
  const beganMs = performance.now();
  store.resetWatches();
  return (await shown) - beganMs;
}

function delta(record: InstanceRecord): { kind: 'delta'; puts: InstanceRecord[]; deletes: string[]; revision: string } {
  return { kind: 'delta', puts: [record], deletes: [], revision: '' };
}

/** The embedded store alone, on a new folder. */
export async function storeFigures(t: Teardown): Promise<Figure[]> {
  const common = parts();
  const dataDir = temporaryFolder(t);
  const store = await openStore({ kind: 'embedded', leaseTtlMs: 30_000, listen: undefined }, { ...common, dataDir });
  try {
    const puts = async (writers: number): Promise<number> => {
      const startedMs = performance.now();
      let count = 0;
      const write = async (_: unknown, writer: number): Promise<void> => {
        for (let round = 0; performance.now() - startedMs < storeMs; round += 1) {
          const record = otherInstance((writer * 100 + round) % allInstances);
          await store.put(keys.userKey(record.name), encodeInstance(record));
          count += 1;
        }
      };
      await Promise.all(Array.from({ length: writers }, write));
      return (count * 1000) / (performance.now() - startedMs);
    };
    const one = await puts(1);
    const many = await puts(storeWriters);
    const written = await registrarTime(store);
    return [
      { what: 'embedded store, one writer', unit: 'puts/s', ours: one, better: 'higher' },
      { what: `embedded store, ${storeWriters} writers`, unit: 'puts/s', ours: many, better: 'higher' },
      { what: `the registrar writes ${allInstances} own records`, unit: 'ms', ours: written, better: 'lower' },
    ];
  } finally {
    await store.close();
  }
}

async function registrarTime(store: Awaited<ReturnType<typeof openStore>>): Promise<number> {
  const host = hostRecord(self.hostId, self.hostName);
  const registrar = new Registrar({ ...parts(), store, keys, host, leaseTtlMs: 30_000 });
  const stop = new AbortController();
  const running = registrar.run(stop.signal);
  try {
    const items = Array.from({ length: allInstances }, (_, index) => otherInstance(index));
    const startedMs = performance.now();
    registrar.setDesired({ kind: 'reset', items, revision: '' });
    // Its sign of life comes when everything else has been written.
    await waitFor('the registrar', () => store.get(keys.aliveOf(self.hostId)), { timeoutMs: 30_000, everyMs: 5 });
    const elapsedMs = performance.now() - startedMs;
    const { entries } = await store.range(keys.instancesOf(self.hostId));
    if (entries.length !== allInstances) throw new Error(`only ${entries.length} records were written`);
    return elapsedMs;
  } finally {
    stop.abort();
    await running;
  }
}

function figure(what: string, values: readonly number[], part: number, aim?: number): Figure {
  const ours = part === 0.5 ? median(values) : percentile(values, part);
  return { what, unit: 'ms', ours, better: 'lower', ...(aim !== undefined && { aim }) };
}
