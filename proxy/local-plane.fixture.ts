import { systemClock } from '../src/base/clock.ts';
import { Conditions } from '../src/base/conditions.ts';
import { Latest } from '../src/base/feed.ts';
import { type Log, type LogFields, silentLog } from '../src/base/log.ts';
import { Metrics } from '../src/base/metrics.ts';
import { PersistentMap } from '../src/base/persistent-map.ts';
import { emptySnapshot, type Service, type Snapshot } from '../src/catalog/snapshot.ts';
import type { Credentials } from '../src/model/credentials.ts';
import type { Host } from '../src/model/host.ts';
import type { Policy } from '../src/model/policy.ts';
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
  readonly accessLog?: number;
  readonly policy?: Latest<Policy | undefined>;
}

/** A log that keeps the lines with this message. */
export function recordingLog(message: string): { readonly log: Log; readonly lines: LogFields[] } {
  const lines: LogFields[] = [];
  const note = (text: string, fields: LogFields = {}): void => {
    if (text === message) lines.push(fields);
  };
  const log: Log = { child: () => log, debug: note, info: note, warn: note, error: note };
  return { log, lines };
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
export function planeOf({ self, all, credentials, services, policy, log = silentLog, ...rest }: PlaneOptions) {
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
    policy: policy ?? new Latest(undefined),
    ...{ snapshots, clock, log, metrics, conditions, ...rest },
  });
  return { plane, snapshots, metrics, conditions };
}
