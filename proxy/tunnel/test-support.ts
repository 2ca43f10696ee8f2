import { createHash, randomBytes } from 'node:crypto';
import type { Clock } from '../../src/base/clock.ts';
import { systemClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import { Latest } from '../../src/base/feed.ts';
import { type Log, silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import { PersistentMap } from '../../src/base/persistent-map.ts';
import { emptySnapshot, type Snapshot } from '../../src/catalog/snapshot.ts';
import type { Credentials } from '../../src/model/credentials.ts';
import type { Host } from '../../src/model/host.ts';
import type { Policy, RevokedHost } from '../../src/model/policy.ts';
import type { EnrolmentDesk } from '../../src/pki/desk.ts';
import { TunnelPlane } from './tunnel-plane.ts';
import type { AcceptStream, ResetReason, StreamEvents, StreamHead, TunnelStream } from './tunnels.ts';

/** A host with tunnels, for tests: everything around the plane is real or a value that the test sets. */
export interface TestHost {
  readonly plane: TunnelPlane;
  readonly hostId: string;
  readonly credentials: Latest<Credentials | undefined>;
  readonly policy: Latest<Policy | undefined>;
  readonly snapshots: Latest<Snapshot>;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  /** Streams that other hosts opened here, as the default acceptor keeps them. */
  readonly incoming: Incoming[];
  /** Puts other hosts into the catalog. */
  knows(...hosts: { readonly hostId: string; readonly port: number; readonly alive?: boolean }[]): void;
}

export interface Incoming {
  readonly head: StreamHead;
  readonly hostId: string;
  readonly stream: TunnelStream;
  readonly events: RecordedEvents;
}

export interface TestHostOptions {
  readonly hostId: string;
  readonly credentials: Credentials | undefined;
  readonly accept?: AcceptStream;
  readonly clock?: Clock;
  readonly desk?: EnrolmentDesk;
  readonly policy?: Policy;
  readonly log?: Log;
  /** Where it listens; any free port when it does not say. */
  readonly port?: number;
}

export function makeHost(options: TestHostOptions): TestHost {
  const { hostId, clock = systemClock } = options;
  const metrics = new Metrics();
  const conditions = new Conditions(silentLog, clock, metrics);
  const credentials = new Latest<Credentials | undefined>(options.credentials);
  const policy = new Latest<Policy | undefined>(options.policy);
  const snapshots = new Latest<Snapshot>(emptySnapshot);
  const incoming: Incoming[] = [];
  const accept: AcceptStream = (head, from, stream) => {
    const events = new RecordedEvents(stream);
    incoming.push({ head, hostId: from, stream, events });
    stream.accept();
    return events;
  };
  const plane = new TunnelPlane({
    ...{ self: { hostId }, listen: { address: '127.0.0.1', port: options.port ?? 0 }, credentials, policy, snapshots },
    ...{
      clock,
      log: options.log ?? silentLog,
      metrics,
      conditions,
      desk: options.desk,
      accept: options.accept ?? accept,
    },
  });
  return {
    ...{ plane, hostId, credentials, policy, snapshots, metrics, conditions, incoming },
    knows(...hosts) {
      const entries = hosts.map((host): readonly [string, Host] => [
        host.hostId,
        {
          ...{ id: host.hostId, name: `host-${host.hostId.slice(-1)}`, address: '127.0.0.1', tunnelPort: host.port },
          ...{ version: '0', alive: host.alive ?? true, revision: '1' },
        },
      ]);
      const before = snapshots.value;
      snapshots.set({
        ...before,
        version: before.version + 1,
        hosts: PersistentMap.from([...before.hosts, ...entries]),
      });
    },
  };
}

/** Keeps all that is heard of a stream. Bytes are taken as consumed at once, unless `slow`. */
export class RecordedEvents implements StreamEvents {
  stream: TunnelStream | undefined;
  slow = false;
  bytes = 0;
  isOpened = false;
  hasEnded = false;
  drains = 0;
  closedBy: { readonly reason: ResetReason | undefined; readonly detail: string } | undefined;
  readonly #hash = createHash('sha256');
  onEnd: (() => void) | undefined;
  onDrain: (() => void) | undefined;

  constructor(stream?: TunnelStream) {
    this.stream = stream;
  }

  /** Of every byte so far. */
  get sha256(): string {
    return this.#hash.copy().digest('hex');
  }

  opened(): void {
    this.isOpened = true;
  }

  data(chunk: Buffer): void {
    this.bytes += chunk.length;
    this.#hash.update(chunk);
    if (!this.slow) this.stream?.consumed(chunk.length);
  }

  ended(): void {
    this.hasEnded = true;
    this.onEnd?.();
  }

  drained(): void {
    this.drains += 1;
    this.onDrain?.();
  }

  closed(reason: ResetReason | undefined, detail: string): void {
    this.closedBy = { reason, detail };
  }
}

export function testHead(head: Partial<StreamHead> = {}): StreamHead {
  return {
    ...{ consumer: 'web', declared: false, service: 'db', instance: 'db-5432' },
    ...{ client: { address: '172.17.0.2', port: 41_000 }, traceId: randomBytes(16).toString('hex') },
    ...head,
  };
}

export function testPolicy(revoked: readonly string[], version = 1): Policy {
  const hosts: RevokedHost[] = revoked.map((hostId) => ({ hostId, name: hostId, setAtMs: 0 }));
  return {
    ...{ mesh: 'legate', meshId: 'm', version, authority: 'a'.repeat(16), roots: [], default: 'allow' },
    ...{ mode: 'enforce', fromLinks: true, intents: [], grants: [], external: [], revoked: hosts },
  };
}
