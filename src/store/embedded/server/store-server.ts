import type { Clock } from '../../../base/clock.ts';
import type { Conditions } from '../../../base/conditions.ts';
import type { Log } from '../../../base/log.ts';
import type { Metrics } from '../../../base/metrics.ts';
import type { Endpoint } from '../../../model/address.ts';
import type { EmbeddedStore } from '../embedded-store.ts';

export interface StoreServerOptions {
  readonly store: EmbeddedStore;
  readonly listen: Endpoint;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
}

export interface StoreServer {
  /** Where it listens: with the port that was found for port 0. */
  readonly endpoint: Endpoint;
  close(): Promise<void>;
}

/**
 * Offers the embedded store to other hosts with etcd's v3 API. Where it cannot listen (the port is taken, the address is
 * not there yet) it says so in a condition and tries again: this host's own sidecar uses the store meanwhile.
 */
export async function serveStore(_options: StoreServerOptions): Promise<StoreServer> {
  throw new Error('not written yet');
}
