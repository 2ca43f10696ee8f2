import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import type { Snapshot } from '../src/catalog/snapshot.ts';
import type { StoreStatus } from '../src/store/store.ts';
import type { NameServerDocument, StatusDocument } from './admin/documents.ts';
import { conditionDocument } from './admin/views.ts';

/** What `status` is made of, asked at each call. */
export interface StatusParts {
  readonly self: { readonly hostId: string; readonly hostName: string; readonly address: string };
  readonly mesh: string;
  readonly version: string;
  readonly startedAtMs: number;
  readonly startedMonotonicMs: number;
  readonly clock: Clock;
  readonly conditions: Conditions;
  readonly snapshot: () => Snapshot;
  readonly confirmedAtMs: () => number | undefined;
  readonly storeKind: string;
  readonly store: () => StoreStatus | undefined;
  readonly storeProblem: () => string | undefined;
  readonly docker: () => StatusDocument['docker'] & { readonly containers: number };
  readonly vip: () => StatusDocument['vip'];
  readonly callers: () => StatusDocument['callers'];
  readonly links: () => number;
  readonly names: () => readonly NameServerDocument[];
}

/** One screen's worth of truth: what is, and what is wrong with what to do. */
export function statusDocument(parts: StatusParts): StatusDocument {
  const nowMs = parts.clock.nowMs();
  const snapshot = parts.snapshot();
  const store = parts.store();
  const confirmedAtMs = parts.confirmedAtMs();
  const { containers, ...docker } = parts.docker();
  let instances = 0;
  let services = 0;
  for (const service of snapshot.services.values()) {
    const own = service.instances.filter((instance) => instance.hostId === parts.self.hostId).length;
    instances += own;
    if (own > 0) services += 1;
  }
  return {
    host: { id: parts.self.hostId, name: parts.self.hostName, address: parts.self.address },
    mesh: parts.mesh,
    version: parts.version,
    pid: process.pid,
    startedAt: new Date(parts.startedAtMs).toISOString(),
    uptimeMs: Math.round(parts.clock.monotonicMs() - parts.startedMonotonicMs),
    store: {
      kind: parts.storeKind,
      state: store?.state ?? 'away',
      since: new Date(store?.sinceMs ?? parts.startedAtMs).toISOString(),
      revision: snapshot.revision,
      snapshot: {
        origin: snapshot.origin,
        ageMs: confirmedAtMs === undefined ? 0 : Math.max(0, nowMs - confirmedAtMs),
      },
      problem: parts.storeProblem() ?? store?.problem ?? null,
    },
    docker,
    vip: parts.vip(),
    callers: parts.callers(),
    here: { containers, instances, services, links: parts.links() },
    names: parts.names(),
    todo: parts.conditions.list().map(conditionDocument),
  };
}
