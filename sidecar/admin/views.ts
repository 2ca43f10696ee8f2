import type { Condition } from '../../src/base/conditions.ts';
import { LegateError } from '../../src/base/errors.ts';
import { printable, truncate } from '../../src/base/text.ts';
import type { Service, Snapshot } from '../../src/catalog/snapshot.ts';
import type { HealthDetails } from '../../src/health/runner.ts';
import { type Dialler, dialOf, formatDial } from '../../src/model/dial.ts';
import { type Instance, isUsableStatus, type Refusal } from '../../src/model/instance.ts';
import type { RevokedHost } from '../../src/model/policy.ts';
import { defaultPreference, furtherSettings } from '../../src/model/service-settings.ts';
import type { HostCertificates } from '../host-certificates.ts';
import type {
  ConditionDocument,
  HostDocument,
  InstanceDocument,
  ServiceDocument,
  ServicesDocument,
} from './documents.ts';

/** Turns the catalog's snapshot into the API's documents. Pure. */

type DocumentOf = (instance: Instance) => InstanceDocument;

/** Those that were revoked are in no snapshot, whatever they go on writing into the store. */
export function hostDocuments(
  snapshot: Snapshot,
  selfId: string,
  {
    revoked,
    authorityId,
    certificates: { untilMs, lateMs },
    nowMs,
  }: {
    readonly revoked: readonly RevokedHost[];
    readonly authorityId: string | undefined;
    readonly certificates: HostCertificates;
    readonly nowMs: number;
  },
): readonly HostDocument[] {
  const counts = new Map<string, number>();
  for (const service of snapshot.services.values()) {
    for (const instance of service.instances) counts.set(instance.hostId, (counts.get(instance.hostId) ?? 0) + 1);
  }
  const times = new Map(revoked.map(({ hostId, setAtMs }) => [hostId, setAtMs]));
  const shown = [...snapshot.hosts.values()].map((host): HostDocument => {
    const revokedAtMs = times.get(host.id);
    const certificateMs = untilMs.get(host.id);
    return {
      id: host.id,
      name: host.name,
      address: host.address,
      version: host.version,
      alive: host.alive,
      self: host.id === selfId,
      instances: counts.get(host.id) ?? 0,
      zone: host.zone ?? null,
      ...(host.id === authorityId && { authority: true }),
      ...(revokedAtMs !== undefined && { revokedAt: timeText(revokedAtMs) }),
      ...(certificateMs !== undefined && { certificateUntil: timeText(certificateMs) }),
      ...(certificateMs !== undefined && certificateMs - nowMs < lateMs && { certificateLate: true }),
    };
  });
  const gone = revoked
    .filter(({ hostId }) => !snapshot.hosts.has(hostId))
    .map(({ hostId, name, setAtMs }): HostDocument => {
      const nothing = { address: '', version: '', alive: false, self: false, instances: 0, zone: null };
      return { id: hostId, name, ...nothing, revokedAt: timeText(setAtMs) };
    });
  return [...shown, ...gone].sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** What the host that answers adds to its own instances. */
export function healthDocument({
  sinceMs,
  checks,
  history,
}: HealthDetails): Pick<InstanceDocument, 'since' | 'checks' | 'history'> {
  return {
    since: timeText(sinceMs),
    checks: checks.map(({ sinceMs: checkSinceMs, ...check }) => ({ ...check, since: timeText(checkSinceMs) })),
    history: history.map(({ atMs, status, output }) => ({ at: timeText(atMs), status, output })),
  };
}

/** What links of this host dial for it, and if nothing, why. */
export function dialDocument(instance: Instance, dialler: Dialler): Pick<InstanceDocument, 'dial' | 'unreachable'> {
  const found = dialOf(instance, dialler);
  return typeof found === 'string'
    ? { dial: null, unreachable: found }
    : { dial: formatDial(found, instance), unreachable: null };
}

/** `documentOf` adds to each instance what is known of it beyond the catalog. */
export function serviceDocument(service: Service, documentOf: DocumentOf): ServiceDocument {
  const instances = instancesOf(service, documentOf);
  const used = new Set(service.usable.map(({ id }) => id));
  return {
    name: service.name,
    port: service.port,
    protocol: service.protocol,
    balance: service.balance,
    ...furtherSettings(service),
    prefer: service.prefer ?? defaultPreference,
    parkMs: service.parkMs ?? 0,
    proxyProtocol: service.proxyProtocol ?? 'off',
    ...(service.formerSplit && { formerSplit: service.formerSplit }),
    ...(service.takenBack && { takenBack: service.takenBack.tag }),
    vip: service.vip ?? null,
    instances,
    usable: service.usable.length,
    usableHere: instances.filter(({ id, dial }) => used.has(id) && dial !== null).length,
    brake: service.brake
      ? {
          since: new Date(service.brake.sinceMs).toISOString(),
          until: new Date(service.brake.untilMs).toISOString(),
        }
      : null,
    faults: service.faults,
  };
}

/** The service's instances; those that only the brake keeps in use say so. */
function instancesOf({ instances, usable, brake }: Service, documentOf: DocumentOf): readonly InstanceDocument[] {
  if (brake === undefined) return instances.map(documentOf);
  const used = new Set(usable);
  return instances.map((instance) => {
    const document = documentOf(instance);
    return used.has(instance) && !isUsableStatus(instance.status) ? { ...document, stillUsed: true } : document;
  });
}

export function servicesDocument(
  snapshot: Snapshot,
  refused: readonly Refusal[],
  documentOf: DocumentOf,
): ServicesDocument {
  const services = [...snapshot.services.values()]
    .map((service) => serviceDocument(service, documentOf))
    .sort((a, b) => (a.name < b.name ? -1 : 1));
  return { services, refused };
}

export function serviceOf(snapshot: Snapshot, name: string): Service {
  const service = snapshot.services.get(name);
  if (service !== undefined) return service;
  throw new LegateError('E_NOT_FOUND', `there is no service ${JSON.stringify(printable(truncate(name, 80)))}`, {
    hint: 'legate services lists them, and what was refused with the reason',
  });
}

export function instanceDocuments(
  snapshot: Snapshot,
  documentOf: DocumentOf,
  service?: string,
): readonly InstanceDocument[] {
  if (service !== undefined) return instancesOf(serviceOf(snapshot, service), documentOf);
  const all = [...snapshot.services.values()].flatMap((each) => instancesOf(each, documentOf));
  return all.sort((a, b) => (a.id < b.id ? -1 : 1));
}

function timeText(wallMs: number): string {
  return new Date(wallMs).toISOString();
}

export function conditionDocument(condition: Condition): ConditionDocument {
  return {
    id: condition.id,
    severity: condition.severity,
    message: condition.message,
    hint: condition.hint,
    since: timeText(condition.sinceMs),
    count: condition.count,
  };
}
