import { systemClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import { type Log, silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import type { ConsulStoreConfig, StoreUrl } from '../../src/config/config.ts';
import { openConsulStore } from '../../src/store/consul/consul-store.ts';
import type { Store } from '../../src/store/store.ts';

/** A client as the sidecar opens one, with what it reports. */
export async function openConsul(
  endpoints: readonly StoreUrl[],
  config: Partial<ConsulStoreConfig> = {},
  log: Log = silentLog,
): Promise<{ readonly store: Store; readonly conditions: Conditions; readonly metrics: Metrics }> {
  const metrics = new Metrics();
  const conditions = new Conditions(log, systemClock, metrics);
  const plain: ConsulStoreConfig = {
    kind: 'consul',
    leaseTtlMs: 10_000,
    endpoints,
    prefix: '/legate',
    tls: {},
    credentialsFile: undefined,
    mirror: false,
  };
  const store = await openConsulStore({ ...plain, ...config }, { clock: systemClock, log, metrics, conditions });
  return { store, conditions, metrics };
}
