import { isIPv4 } from 'node:net';
import { openVipTable, type VipTable } from '../../proxy/kernel/vip-table.ts';
import type { Clock } from '../../src/base/clock.ts';
import type { Conditions } from '../../src/base/conditions.ts';
import { describeError, isLegateError } from '../../src/base/errors.ts';
import { Latest, type Observable } from '../../src/base/feed.ts';
import type { Log } from '../../src/base/log.ts';
import type { Metrics } from '../../src/base/metrics.ts';
import type { Config } from '../../src/config/config.ts';
import { type Endpoint, isLoopback, isPort } from '../../src/model/address.ts';
import type { Topology } from '../../src/model/topology.ts';

const condition = 'vip.open';
const clientsCondition = 'vip.clients';

export interface VirtualAddresses {
  /** What steers them in the kernel; undefined where there are none. */
  readonly table: VipTable | undefined;
  readonly on: Observable<boolean>;
  /** Why there are none, for people; null while there are. */
  readonly reason: () => string | null;
  /**
   * Lets the bridges of the topology in, and whatever comes and goes from now on, until aborted. At `listeners`, too,
   * containers are held to their addresses.
   */
  follow(topology: Observable<Topology>, listeners: readonly Endpoint[], signal: AbortSignal): Promise<void>;
  close(): Promise<void>;
  /** As `close`, and everything stays in force in the kernel for the sidecar that comes next. */
  abandon(): Promise<void>;
}

/**
 * Virtual addresses where this host can have them. Without the right, without nftables, or beside another sidecar the
 * host runs without them: a note says why and what to do, and links need listeners of the configuration.
 */
export async function openVirtualAddresses(options: {
  readonly config: Config['vip'];
  /** Processes that may map the same ports. */
  readonly slots: number;
  /** Whether processes of the sidecar before still carry connections. */
  readonly adopt: boolean;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
}): Promise<VirtualAddresses> {
  const { config, conditions } = options;
  let problem: string | null = config.mode === 'off' ? 'vip.mode is off' : null;
  let table: VipTable | undefined;
  if (problem === null) {
    try {
      table = await openVipTable({ ...options, range: config.range });
    } catch (error) {
      problem = describeError(error);
      const hint = isLegateError(error) ? (error.hint ?? '') : '';
      conditions.raise(condition, 'warning', `no virtual addresses: ${problem}`, hint);
    }
  }
  const on = new Latest(table?.state.value.state === 'on');
  const unsubscribe = table?.state.subscribe((state) => {
    on.set(state.state === 'on');
    // What is built anew holds all that was wanted meanwhile.
    if (state.state === 'on') conditions.clear(clientsCondition);
  });
  return {
    table,
    on,
    reason: () => problem ?? table?.state.value.reason ?? null,
    async follow(topology, listeners, signal) {
      if (table === undefined) return;
      const admit = async ({ bridges, addresses }: Topology): Promise<void> => {
        try {
          const gateways = bridges.map((bridge) => bridge.gateway).filter((gateway) => gateway !== undefined);
          await Promise.all([
            table.setCallerRanges(bridges.map((bridge) => bridge.subnet)),
            table.setWatched(listeners.flatMap((endpoint) => reachableAt(endpoint, addresses))),
            table.setClients(bridges.map((bridge) => bridge.interface)),
            table.setGuards(gateways.map((address) => ({ address, port: 53 }))),
          ]);
          conditions.clear(clientsCondition);
        } catch (error) {
          if (isLegateError(error, 'E_CLOSED')) return;
          const text = `containers on some bridges cannot reach virtual addresses: ${describeError(error)}`;
          conditions.raise(clientsCondition, 'error', text, 'it is tried again with the next change of a bridge');
        }
      };
      const end = topology.subscribe((next) => void admit(next));
      signal.addEventListener('abort', end, { once: true });
      await admit(topology.value);
    },
    async close() {
      unsubscribe?.();
      await table?.close();
    },
    async abandon() {
      unsubscribe?.();
      await table?.abandon();
    },
  };
}

/** Where containers reach a listener of the host: at its address, or at all of the host's when it has none. */
function reachableAt({ address, port }: Endpoint, addresses: ReadonlySet<string>): Endpoint[] {
  const all = address === '0.0.0.0' || address === '::' ? [...addresses] : [address];
  return all
    .filter((each) => isIPv4(each) && !isLoopback(each) && isPort(port))
    .map((each) => ({ address: each, port }));
}
