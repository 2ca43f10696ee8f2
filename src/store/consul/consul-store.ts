import type { ConsulStoreConfig } from '../../config/config.ts';
import type { RemoteStoreOptions } from '../remote.ts';
import type { Store } from '../store.ts';

/**
 * A client of Consul's key-value store. Returns at once: the state is `connecting` until a server answered. Errors:
 * E_CONFIG and E_PERMISSION for files that cannot be used.
 */
export async function openConsulStore(_config: ConsulStoreConfig, _options: RemoteStoreOptions): Promise<Store> {
  throw new Error('not written yet');
}
