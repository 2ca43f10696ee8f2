import type { Clock } from '../base/clock.ts';
import type { Conditions } from '../base/conditions.ts';
import type { Log } from '../base/log.ts';
import type { Metrics } from '../base/metrics.ts';
import type { StoreUrl } from '../config/config.ts';
import { isLoopback } from '../model/address.ts';
import type { StoreTrust } from './trust.ts';

/** What the stores outside of the sidecar are given. */
export interface RemoteStoreOptions {
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  /** The host's own certificate and roots, which are shown and believed where the configuration names no files. */
  readonly trust?: StoreTrust;
  /** For jitter; in [0, 1). */
  readonly random?: () => number;
}

/** Says so where a store is reached in the clear, beyond this machine; the returned function takes it back. */
export function warnOfClearText(endpoints: readonly StoreUrl[], conditions: Conditions): () => void {
  const open = endpoints.find((endpoint) => !endpoint.secure && !isLoopback(endpoint.host));
  if (open === undefined) return () => undefined;
  const id = `store.clear.${open.text}`;
  conditions.raise(
    id,
    'warning',
    `the store at ${open.text} is reached without TLS: whoever is on the network in between can read and change it`,
    "use https in store.endpoints (a sidecar's store speaks it after legate init), or a member or agent on this host",
  );
  return () => conditions.clear(id);
}
