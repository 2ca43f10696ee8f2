/**
 * One side of Legate's pair in the tunnel benchmark: the data plane as a sidecar has it, with a snapshot made by hand. It
 * is told its side by its parent, and ends with it.
 */
import 'reflect-metadata';
import process from 'node:process';
import { LocalDataPlane } from '../../proxy/local-plane.ts';
import { systemClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import { Latest } from '../../src/base/feed.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import { PersistentMap } from '../../src/base/persistent-map.ts';
import { emptySnapshot, type Service, type Snapshot } from '../../src/catalog/snapshot.ts';
import type { Credentials } from '../../src/model/credentials.ts';
import type { Host } from '../../src/model/host.ts';
import { hostRecord, shownInstance } from '../support/records.ts';
import type { TwoPorts } from './tunnel-envoy.ts';

export interface TunnelSetup {
  readonly side: 'near' | 'far';
  readonly credentials: Credentials;
  /** The host id of the other side. */
  readonly peerId: string;
  readonly nearAddress: string;
  readonly farAddress: string;
  readonly tunnelPort: number;
  /** Of the near side's listeners, or of the origin. */
  readonly ports: TwoPorts;
}

const loopback = '127.0.0.1';

/** Both sides know the same: the instances are on the far one, and other hosts cannot dial them. */
function snapshotOf({ side, credentials, peerId, nearAddress, farAddress, tunnelPort, ports }: TunnelSetup): Snapshot {
  const farId = side === 'far' ? credentials.hostId : peerId;
  const nearId = side === 'near' ? credentials.hostId : peerId;
  const host = (id: string, name: string, address: string): [string, Host] => [
    id,
    { ...hostRecord(id, name), address, tunnelPort, alive: true, revision: '1' },
  ];
  const service = (name: 'http' | 'bulk'): [string, Service] => {
    const where = { host: 'far', hostId: farId, address: loopback, port: ports[name], reach: 'host' } as const;
    const instance = shownInstance({ name, service: name, ...where });
    const parts = { instances: [instance], usable: [instance], faults: [], vip: undefined };
    return [name, { name, port: ports[name], protocol: 'tcp', balance: 'round-robin', ...parts }];
  };
  return {
    ...emptySnapshot,
    version: 1,
    origin: 'store',
    hosts: PersistentMap.from([host(nearId, 'near', nearAddress), host(farId, 'far', farAddress)]),
    services: PersistentMap.from([service('http'), service('bulk')]),
  };
}

async function serve(setup: TunnelSetup): Promise<void> {
  const { side, credentials, ports } = setup;
  const metrics = new Metrics();
  const address = side === 'near' ? setup.nearAddress : setup.farAddress;
  const listener = (service: 'http' | 'bulk') => ({ service, listen: { address: loopback, port: ports[service] } });
  const plane = new LocalDataPlane({
    snapshots: new Latest(snapshotOf(setup)),
    self: { hostId: credentials.hostId },
    clearUnderlay: false,
    links: side === 'near' ? [listener('http'), listener('bulk')] : [],
    portMap: undefined,
    clock: systemClock,
    log: silentLog,
    metrics,
    conditions: new Conditions(silentLog, systemClock, metrics),
    tunnel: { listen: { address, port: setup.tunnelPort } },
    credentials: new Latest<Credentials | undefined>(credentials),
    policy: new Latest(undefined),
  });
  await plane.start();
}

process.on('disconnect', () => process.exit(0));
process.on('message', (message: TunnelSetup | 'collect') => {
  if (message === 'collect') {
    // Twice: what the first one finalises goes with the second.
    globalThis.gc?.();
    globalThis.gc?.();
    process.send?.('collected');
    return;
  }
  void serve(message).then(() => process.send?.('ready'));
});
