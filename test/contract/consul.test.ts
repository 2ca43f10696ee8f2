import t from 'tap';
import { systemClock } from '../../src/base/clock.ts';
import type { Store } from '../../src/store/store.ts';
import { TestConsul, unlessConsul } from '../support/consul.ts';
import { openConsul } from '../support/consul-client.ts';
import { type StoreHarness, storeContract } from './store-contract.ts';

const skip = unlessConsul();

t.test('consul', { skip, timeout: 110_000 }, async (t) => {
  const consul = await TestConsul.start(t);
  t.jobs = 8;
  const open = async (): Promise<StoreHarness> => {
    const opened: Store[] = [];
    const another = async (): Promise<Store> => {
      const store = (await openConsul(consul.urls)).store;
      opened.push(store);
      // Known to be connected, as one that was opened a while ago.
      await store.get('/known');
      return store;
    };
    const store = await another();
    const reopen = async (): Promise<Store> => {
      await opened.at(-1)?.close();
      return await another();
    };
    return {
      store,
      reopen,
      advance: (byMs) => systemClock.sleep(byMs),
      die: async (use) => {
        await use(store);
        // Closing gives nothing back either: leases lapse by themselves.
        return await reopen();
      },
      close: async () => {
        for (const each of opened) await each.close();
      },
    };
  };
  const features = { leaseTtlMs: 10_000, lapseFactor: 2, resumes: false, propertyRuns: 15, concurrent: true };
  storeContract(t, 'consul', open, features);
});
