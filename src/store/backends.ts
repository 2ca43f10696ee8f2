import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import type { Conditions } from '../base/conditions.ts';
import type { Log } from '../base/log.ts';
import type { Metrics } from '../base/metrics.ts';
import type { EmbeddedStoreConfig, StoreConfig } from '../config/config.ts';
import type { Mirror, MirrorOptions } from './mirror.ts';
import type { Store } from './store.ts';
import type { StoreTrust } from './trust.ts';

export interface OpenStoreOptions {
  /** The sidecar's data directory; the embedded store lives in `store/` below it. */
  readonly dataDir: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  /** Whom other hosts are to this one; without it a store is offered and reached as if there were no certificates. */
  readonly trust?: StoreTrust;
}

/** Opens the store that the configuration names, which is loaded only then. The only place that knows which there are. */
export async function openStore(config: StoreConfig, options: OpenStoreOptions): Promise<Store> {
  const { dataDir, ...rest } = options;
  switch (config.kind) {
    case 'embedded':
      return await openEmbedded(config, options);
    case 'etcd': {
      const { openEtcdStore } = await import('./etcd/etcd-store.ts');
      return await openEtcdStore(config, rest);
    }
    case 'consul': {
      const { openConsulStore } = await import('./consul/consul-store.ts');
      return await openConsulStore(config, rest);
    }
  }
}

/** The store in this process; where it is to be offered to other hosts, its server ends before it is closed. */
async function openEmbedded(config: EmbeddedStoreConfig, { dataDir, ...rest }: OpenStoreOptions): Promise<Store> {
  const { openEmbeddedStore } = await import('./embedded/embedded-store.ts');
  const store = await openEmbeddedStore({ path: join(dataDir, 'store'), ...rest });
  if (config.listen === undefined) return store;
  const { serveStore } = await import('./embedded/server/store-server.ts');
  const server = await serveStore({ store, listen: config.listen, ...rest });
  const close = store.close.bind(store);
  store.close = async () => {
    await server.close();
    await close();
  };
  return store;
}

/** What shows this host's instances in the store's own catalog, where the store has one and the configuration asks for it. */
export async function openMirror(config: StoreConfig, options: MirrorOptions): Promise<Mirror | undefined> {
  if (config.kind !== 'consul' || !config.mirror) return undefined;
  const { openConsulMirror } = await import('./consul/mirror.ts');
  return openConsulMirror(config, options);
}
