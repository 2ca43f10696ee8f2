import t from 'tap';
import { systemClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import type { EtcdStoreConfig } from '../../src/config/config.ts';
import { openEtcdStore } from '../../src/store/etcd/etcd-store.ts';
import type { Store } from '../../src/store/store.ts';
import { EtcdCluster, Relay, storeUrl } from '../support/etcd.ts';
import { unless } from '../support/needs.ts';
import { waitFor } from '../support/wait.ts';
import { type StoreHarness, storeContract } from './store-contract.ts';

async function open(config: EtcdStoreConfig): Promise<Store> {
  const metrics = new Metrics();
  const conditions = new Conditions(silentLog, systemClock, metrics);
  const store = await openEtcdStore(config, { clock: systemClock, log: silentLog, metrics, conditions });
  await waitFor('the store to be connected', () => store.status.value.state === 'connected');
  return store;
}

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
      const store = await open(config);
      stores.push(store);
      return store;
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
