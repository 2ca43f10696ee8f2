import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { ManualClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import { type EmbeddedStore, openEmbeddedStore } from '../../src/store/embedded/embedded-store.ts';
import { type StoreHarness, storeContract } from './store-contract.ts';

async function openEmbedded(): Promise<StoreHarness> {
  const folder = await mkdtemp(join(tmpdir(), 'legate-store-'));
  const clock = new ManualClock();
  const open = (): Promise<EmbeddedStore> =>
    openEmbeddedStore({ path: join(folder, 'store'), clock, log: silentLog, metrics: new Metrics() });
  let store = await open();
  const reopen = async (): Promise<EmbeddedStore> => {
    await store.close();
    store = await open();
    return store;
  };
  return {
    store,
    reopen,
    advance: (byMs) => clock.advance(byMs),
    compact: (revision) => store.compact(revision),
    die: async (use) => {
      await use(store);
      return await reopen();
    },
    close: async () => {
      await store.close();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

storeContract(t, 'embedded', openEmbedded, { leaseTtlMs: 1000, lapseFactor: 1, resumes: true, propertyRuns: 150 });
