import type { Endpoint } from '../../src/model/address.ts';
import type { Instance } from '../../src/model/instance.ts';

/**
 * What this host remembers of one instance while its service has a link here: kept from one snapshot to the next by the
 * instance's id, so that counts, turns and ejections survive a change. Plain fields: the relay counts on its hot path.
 */
export class Backend {
  readonly id: string;
  instance: Instance;
  /** What this host dials. */
  endpoint: Endpoint;
  /** Connections that run or are being opened. */
  active = 0;
  /** Connections that were opened, ever. */
  total = 0;
  /** Connect failures since the last success. */
  failures = 0;
  /** Monotonic; undefined when it is not ejected. */
  ejectedUntilMs: number | undefined;
  /** Ejections that are not yet forgotten. */
  ejections = 0;
  /** Monotonic; since when it has made up for the last one, once that is over. */
  cleanSinceMs = 0;
  /** The smooth weighted round-robin's credit. */
  credit = 0;

  constructor(instance: Instance, endpoint: Endpoint) {
    this.id = instance.id;
    this.instance = instance;
    this.endpoint = endpoint;
  }
}
