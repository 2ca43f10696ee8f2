import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import type { Conditions } from '../base/conditions.ts';
import type { Log } from '../base/log.ts';
import type { Metrics } from '../base/metrics.ts';
import type { StoreConfig } from '../config/config.ts';
import type { Store } from './store.ts';

export interface OpenStoreOptions {
  /** The sidecar's data directory; the embedded store lives in `store/` below it. */
  readonly dataDir: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
}

/** Opens the store that the configuration names, which is loaded only then. The only place that knows which there are. */
export async function openStore(config: StoreConfig, options: OpenStoreOptions): Promise<Store> {
  const { dataDir, ...rest } = options;
  switch (config.kind) {
    case 'embedded': {
      const { openEmbeddedStore } = await import('./embedded/embedded-store.ts');
      return await openEmbeddedStore({ path: join(dataDir, 'store'), ...rest });
    }
  }
}
