import t from 'tap';
import type { EtcdStoreConfig } from '../../src/config/config.ts';
import type { Store } from '../../src/store/store.ts';
import { EtcdCluster, openTestStore, Relay, stateOf, storeUrl } from '../support/etcd.ts';
import { unless } from '../support/needs.ts';
import { type StoreHarness, storeContract } from './store-contract.ts';

const skip = unless('command:etcd', 'command:etcdctl');
if (skip) t.plan(0, skip);
else {
  const cluster = await EtcdCluster.start(t);
  const [member] = cluster.members;
  const port = member?.url.port ?? 0;

  const openHarness = async (): Promise<StoreHarness> => {
    const relay = await Relay.open(t, port);
    const stores: Store[] = [];
    const fresh = async (config: EtcdStoreConfig): Promise<Store> => {
      const opened = await openTestStore(t, config);
      stores.push(opened.store);
      await stateOf(opened, 'connected');
      return opened.store;
    };
    const store = await fresh(cluster.config({ endpoints: [storeUrl(relay.port)] }));
    return {
      store,
      reopen: async () => {
        await store.close();
        return await fresh(cluster.config());
      },
      advance: (byMs) => new Promise((resolve) => setTimeout(resolve, byMs)),
      compact: async (revision) => {
        await cluster.must('compact', revision.replace(/^.*\./, ''));
      },
      die: async (use) => {
        await use(store);
        relay.closed = true;
        relay.cut();
        return await fresh(cluster.config());
      },
      close: async () => {
        for (const each of stores) await each.close();
        relay.cut();
      },
    };
  };

  // etcd looks for lapsed leases twice a second; how long that takes is waited for, not advanced.
  storeContract(t, 'etcd', openHarness, { leaseTtlMs: 1000, lapseFactor: 1, resumes: true, propertyRuns: 30 });
}
