import { Server, ServerCredentials } from '@grpc/grpc-js';
import type { Clock } from '../../../base/clock.ts';
import type { Conditions } from '../../../base/conditions.ts';
import { LegateError } from '../../../base/errors.ts';
import type { Log } from '../../../base/log.ts';
import type { Metrics } from '../../../base/metrics.ts';
import type { Endpoint } from '../../../model/address.ts';
import type { StoreTrust } from '../../trust.ts';
import type { EmbeddedStore } from '../embedded-store.ts';
import { Calls } from './calls.ts';
import { serveCluster } from './cluster.ts';
import { Connections } from './connections.ts';
import { Gate, Outstanding } from './gate.ts';
import { serveKeyValues } from './kv.ts';
import { serveLeases } from './lease-api.ts';
import { limits, times } from './limits.ts';
import { Permissions } from './permissions.ts';
import { Ranges } from './ranges.ts';
import { Refusals } from './refusals.ts';
import { WatchHub } from './watch-hub.ts';
import { Identity } from './wire.ts';

export interface StoreServerOptions {
  readonly store: EmbeddedStore;
  readonly listen: Endpoint;
  /** Without it everybody is served in the clear. */
  readonly trust?: StoreTrust;
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
export async function serveStore(options: StoreServerOptions): Promise<StoreServer> {
  const { store, log, metrics, listen, clock, conditions, trust } = options;
  const { access, leases } = store;
  const identity = new Identity(access.head().storeId);
  const server = new Server({
    'grpc.max_receive_message_length': limits.messageBytes,
    'grpc.max_send_message_length': -1,
    'grpc.max_concurrent_streams': limits.streamsPerConnection,
    'grpc.keepalive_time_ms': times.keepaliveMs,
    'grpc.keepalive_timeout_ms': times.keepaliveTimeoutMs,
    'grpc.enable_channelz': 0,
  });
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  const accept = injector.injectConnection.bind(injector);
  const refusals = new Refusals({ clock, metrics, conditions, livingHost: trust?.livingHost });
  const connections = new Connections({ listen, trust, refusals, clock, log, metrics, conditions, accept });
  const drop = connections.drop.bind(connections);
  const outstanding = new Outstanding(limits.outstandingBytes);
  const gate = new Gate(limits.reads);
  const permissions = new Permissions({ trust, refusals });
  const caller = connections.peer.bind(connections);
  const calls = new Calls({ server, log, metrics, outstanding, drop, caller });
  const ranges = new Ranges({ access, identity, gate, permissions });
  const hub = new WatchHub({ access, identity, log, metrics, outstanding, gate, drop, permissions });
  const revision = (): number => {
    checkConnected(store);
    return access.head().revision;
  };

  serveKeyValues(calls, {
    access,
    identity,
    ranges,
    permissions,
    storeLimits: store.limits,
    leaseExists: (id) => leases.has(id),
  });
  serveLeases(calls, { leases, identity, revision, permissions });
  serveCluster(calls, {
    access,
    identity,
    revision,
    endpoint: () => connections.endpoint,
    secure: () => connections.secure,
  });
  hub.serve(calls);
  await connections.start();

  let closed: Promise<void> | undefined;
  const close = async (): Promise<void> => {
    connections.stop();
    refusals.close();
    hub.close();
    ranges.close();
    injector.drain(times.closeGraceMs);
    // Those who are told so go elsewhere by themselves; the others lose their connection.
    await new Promise((resolve) => setTimeout(resolve, times.closeGraceMs));
    connections.endAll();
    server.forceShutdown();
  };
  return {
    get endpoint() {
      return connections.endpoint;
    },
    close: () => {
      closed ??= close();
      return closed;
    },
  };
}

function checkConnected({ status }: EmbeddedStore): void {
  const { state, problem = 'the store cannot be used now', hint } = status.value;
  if (state !== 'connected') throw new LegateError('E_STORE_AWAY', problem, hint === undefined ? {} : { hint });
}
