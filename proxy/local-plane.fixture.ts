import { systemClock } from '../src/base/clock.ts';
import { Conditions } from '../src/base/conditions.ts';
import { Latest } from '../src/base/feed.ts';
import { type Log, silentLog } from '../src/base/log.ts';
import { Metrics } from '../src/base/metrics.ts';
import { PersistentMap } from '../src/base/persistent-map.ts';
import { emptySnapshot, type Service, type Snapshot } from '../src/catalog/snapshot.ts';
import type { Credentials } from '../src/model/credentials.ts';
import type { Host } from '../src/model/host.ts';
import { LocalDataPlane } from './local-plane.ts';

/** Where a host of a test's mesh stands. */
export interface Place {
  readonly hostId: string;
  readonly name: string;
  readonly address: string;
  readonly tunnelPort: number;
}

export interface PlaneOptions {
  readonly self: Place;
  readonly all: readonly Place[];
  readonly credentials: Credentials;
  readonly services: readonly Service[];
  readonly log?: Log;
  readonly accessLog?: boolean;
}

export function snapshotOf(all: readonly Place[], services: readonly Service[]): Snapshot {
  const hosts = all.map(({ hostId, name, address, tunnelPort }): [string, Host] => [
    hostId,
    { id: hostId, name, address, tunnelPort, version: '1', alive: true, revision: '' },
  ]);
  return {
    ...emptySnapshot,
    version: 1,
    origin: 'store',
    hosts: PersistentMap.from(hosts),
    services: PersistentMap.from(services.map((service) => [service.name, service] as const)),
  };
}

/** A data plane with real tunnels, and a listener for `db`; not yet started. */
export function planeOf({ self, all, credentials, services, log = silentLog, ...rest }: PlaneOptions) {
  const metrics = new Metrics();
  const clock = systemClock;
  const conditions = new Conditions(silentLog, clock, metrics);
  const snapshots = new Latest<Snapshot>(snapshotOf(all, services));
  const plane = new LocalDataPlane({
    self: { hostId: self.hostId },
    clearUnderlay: false,
    links: [{ service: 'db', listen: { address: '127.0.0.1', port: 0 } }],
    portMap: undefined,
    tunnel: { listen: { address: self.address, port: self.tunnelPort } },
    credentials: new Latest<Credentials | undefined>(credentials),
    policy: new Latest(undefined),
    ...{ snapshots, clock, log, metrics, conditions, ...rest },
  });
  return { plane, snapshots, metrics, conditions };
}
