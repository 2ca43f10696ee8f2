import type { Clock } from '../../src/base/clock.ts';
import type { Conditions } from '../../src/base/conditions.ts';
import { LegateError } from '../../src/base/errors.ts';
import type { Observable } from '../../src/base/feed.ts';
import type { Log } from '../../src/base/log.ts';
import type { Metrics } from '../../src/base/metrics.ts';
import type { Endpoint, Ipv4Range } from '../../src/model/address.ts';
import type { CallerFilter } from './caller-filter.ts';
import { KernelVipTable } from './kernel-vip-table.ts';
import { takeOwnership } from './ownership.ts';
import type { PortMap } from './port-map.ts';
import { type Counters, tableName } from './vip-rules.ts';

export interface VipState {
  readonly state: 'on' | 'off';
  /** Why it is off, for a reader; null while it is on. */
  readonly reason: string | null;
}

/** What steers virtual addresses on this host: the route, our nftables tables, and the watch over all of them. */
export interface VipTable extends PortMap, CallerFilter {
  /** Has one more range, from now on, with the same rules; rejects when the kernel refuses. */
  addRange(range: Ipv4Range): Promise<void>;
  /** The interfaces that may reach virtual addresses and guarded endpoints, besides `lo`. */
  setClients(interfaces: readonly string[]): Promise<void>;
  /** Endpoints of the host (name servers on bridges' gateways) that only clients may reach, over tcp and udp. */
  setGuards(endpoints: readonly Endpoint[]): Promise<void>;
  /** New packets of containers to mapped ports, before and after the host's own firewall, since the table was built. */
  counters(): Promise<Counters>;
  readonly state: Observable<VipState>;
  /** Takes table and route back and gives up the ownership. Later changes reject with E_CLOSED. */
  close(): Promise<void>;
}

export interface VipTableOptions {
  readonly range: Ipv4Range;
  /** The table's name, by default after the range. */
  readonly name?: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  /** How often table, route and counters are looked at without being told of a change; default 10 s. */
  readonly probe?: { readonly everyMs: number };
}

/**
 * Takes the ownership of the table in this network namespace and builds it, in place of what a crash left behind.
 * Rejects with E_IN_USE (a living sidecar owns it), E_PERMISSION (no NET_ADMIN), E_NOT_FOUND (a command is not installed)
 * or E_INVALID (the kernel lacks what the rules need); nothing is left behind then.
 */
export async function openVipTable(options: VipTableOptions): Promise<VipTable> {
  const name = options.name ?? tableName(options.range);
  if (!/^[a-z][a-z0-9_]{0,63}$/.test(name)) throw new LegateError('E_INVALID', `${name} is not a name for a table`);
  const ownership = await takeOwnership(name);
  const table = new KernelVipTable(options, name, ownership);
  try {
    await table.open();
    return table;
  } catch (error) {
    await table.close();
    throw error;
  }
}
