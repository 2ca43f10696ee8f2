import type { Clock } from '../base/clock.ts';
import type { Conditions } from '../base/conditions.ts';
import type { Log } from '../base/log.ts';
import type { Metrics } from '../base/metrics.ts';

/** What the stores outside of the sidecar are given. */
export interface RemoteStoreOptions {
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  /** For jitter; in [0, 1). */
  readonly random?: () => number;
}
