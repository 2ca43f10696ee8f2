import type { Test } from 'tap';
import type { EtcdStoreConfig } from '../../src/config/config.ts';
import { KV } from '../../src/store/etcd-api/gen/etcd_pb.ts';
import type { Store } from '../../src/store/store.ts';
import type { StoreTrust } from '../../src/store/trust.ts';
import { openTestStore, Relay, stateOf, storeUrl } from '../support/etcd.ts';
import { type OfferedStore, RawClient } from '../support/offered-store.ts';
import type { StoreHarness } from './store-contract.ts';

export function offeredConfig(port: number, secure = false): EtcdStoreConfig {
  const rest = { leaseTtlMs: 10_000, prefix: '/legate', tls: {}, credentialsFile: undefined };
  return { kind: 'etcd', endpoints: [storeUrl(port, secure)], ...rest };
}

/** Clients of an offered store for the contract; with `trust` over mutual TLS. */
export function offeredHarness(t: Test, shared: OfferedStore, trust?: StoreTrust): () => Promise<StoreHarness> {
  return async () => {
    const relay = await Relay.open(t, shared.port);
    const stores: Store[] = [];
    const fresh = async (port: number): Promise<Store> => {
      const opened = await openTestStore(t, offeredConfig(port, trust !== undefined), undefined, trust);
      stores.push(opened.store);
      await stateOf(opened, 'connected');
      return opened.store;
    };
    const store = await fresh(relay.port);
    return {
      store,
      reopen: async () => {
        await store.close();
        return await fresh(shared.port);
      },
      advance: (byMs) => new Promise((resolve) => setTimeout(resolve, byMs)),
      compact: async (revision) => {
        const number = BigInt(revision.replace(/^.*\./, ''));
        await new RawClient(t, shared.port, trust?.credentials.value).call(KV.method.compact, { revision: number });
      },
      die: async (use) => {
        await use(store);
        relay.closed = true;
        relay.cut();
        return await fresh(shared.port);
      },
      close: async () => {
        for (const each of stores) await each.close();
        relay.cut();
      },
    };
  };
}
