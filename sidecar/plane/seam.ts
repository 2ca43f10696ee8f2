import type { PortMapping } from '../../proxy/kernel/port-map.ts';
import type { LinkDocument } from '../../proxy/link-document.ts';
import type { ConnectionFilter } from '../../proxy/link-plane.ts';
import type { DataPlaneOptions, Learned } from '../../proxy/local-plane.ts';
import type { SidesOfProcess } from '../../proxy/side-document.ts';
import type { Probe, ProbeResult } from '../../proxy/tunnel/probe.ts';
import type { TunnelDocument } from '../../proxy/tunnel/tunnel-document.ts';
import type { Condition } from '../../src/base/conditions.ts';
import type { LogLevel } from '../../src/base/log.ts';
import type { Figures } from '../../src/base/metrics.ts';
import type { InstanceAddress } from '../../src/catalog/instance-addresses.ts';
import type { Endpoint } from '../../src/model/address.ts';
import type { Credentials } from '../../src/model/credentials.ts';
import type { Policy } from '../../src/model/policy.ts';
import { emptyTopology } from '../../src/model/topology.ts';
import type { DeskCaller } from '../../src/pki/desk.ts';
import { byEntry, callersCodec, snapshotCodec, wholly } from './codecs.ts';
import type { Observables } from './feeds.ts';

/** What control keeps its workers told of: one more is one line here, and one where control and worker name theirs. */
export const toldValues = {
  snapshots: snapshotCodec,
  declared: byEntry<readonly number[]>(),
  callers: callersCodec,
  topology: wholly(emptyTopology),
  credentials: wholly<Credentials | undefined>(undefined),
  policy: wholly<Policy | undefined>(undefined),
  instanceAddresses: byEntry<InstanceAddress>(),
} as const;
export type ToldValues = Observables<typeof toldValues>;

/** What a worker is told once, first of all: its slice of the configuration. */
export interface WorkerSetup
  extends Pick<
    DataPlaneOptions,
    | 'self'
    | 'zone'
    | 'clearUnderlay'
    | 'links'
    | 'vipRange'
    | 'localRange'
    | 'tunnel'
    | 'maxConnections'
    | 'accessLog'
    | 'workers'
  > {
  /** Which of the workers it is, from 0. */
  readonly slot: number;
  readonly logLevel: LogLevel;
  /** Where workers are written down; beside it this one has its doors for a later sidecar. */
  readonly workersFile: string;
  /** Whether the kernel steers virtual addresses. */
  readonly vips: boolean;
  /** Whether this host lets new hosts in. */
  readonly desk: boolean;
}

/** What control does when a worker asks, or tells. */
export interface ControlCalls {
  /** Replaces what the kernel maps to this worker. */
  mapPorts(mappings: readonly PortMapping[]): Promise<void>;
  /** `Callers.confirm`. */
  confirmCaller(connection: { readonly source: Endpoint; readonly destination: Endpoint }): Promise<boolean>;
  /** `EnrolmentDesk.answer`. */
  answerDesk(kind: 'enrol' | 'renew', request: Uint8Array, from: DeskCaller): Promise<Uint8Array>;
  /** Asks for the handle of a listener that all workers share; it comes with `listenWith`, now or later. */
  shareListener(endpoint: Endpoint): Promise<void>;
  raise(id: string, severity: Condition['severity'], message: string, hint: string): void;
  clear(id: string): void;
  learned(pairs: readonly Learned[]): void;
}

/** What a worker does when control asks, or tells. */
export interface WorkerCalls {
  setUp(setup: WorkerSetup): Promise<void>;
  /** One part of a change of a told value. */
  take(name: string, part: unknown): Promise<void>;
  /** `DataPlane.start`, when all values have been told once. */
  start(): Promise<void>;
  listenWith(endpoint: Endpoint, handle: unknown): void;
  cannotListen(endpoint: Endpoint, code: string, message: string): void;
  links(): Promise<readonly LinkDocument[]>;
  sides(): Promise<readonly SidesOfProcess[]>;
  tunnels(): Promise<readonly TunnelDocument[]>;
  probe(probe: Probe): Promise<ProbeResult>;
  activeConnections(filter: ConnectionFilter | undefined): Promise<number>;
  figures(): Promise<Figures>;
  drain(timeoutMs: number): Promise<number>;
  /** Control ends now in order, and another one takes over: no reason to worry. */
  handedOver(): void;
  /** Ends the process, and whatever it still carries. */
  end(): void;
}
