import type { EtcdStoreConfig } from '../../config/config.ts';
import type { RemoteStoreOptions } from '../remote.ts';
import type { Store } from '../store.ts';

/**
 * A client of an etcd cluster (v3 API), which may also be another sidecar's embedded store. Returns at once: the state is
 * `connecting` until a member answered. Errors: E_CONFIG and E_PERMISSION for files that cannot be used.
 */
export async function openEtcdStore(_config: EtcdStoreConfig, _options: RemoteStoreOptions): Promise<Store> {
  throw new Error('not written yet');
}
