import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { LegateError } from '../src/base/errors.ts';
import type { Observable } from '../src/base/feed.ts';
import type { Metrics } from '../src/base/metrics.ts';
import { printable, truncate } from '../src/base/text.ts';
import type { Ungranted } from '../src/catalog/rights.ts';
import type { Snapshot } from '../src/catalog/snapshot.ts';
import type { StaticInstance } from '../src/config/config.ts';
import type { GivenSettings } from '../src/config/settings-value.ts';
import type { HealthDetails } from '../src/health/runner.ts';
import type { Refresh } from '../src/health/ttl-check.ts';
import { initialStatuses } from '../src/model/check.ts';
import type { Instance, InstanceRecord, Refusal } from '../src/model/instance.ts';
import { instanceNameFault } from '../src/model/names.ts';
import type { RevokedHost } from '../src/model/policy.ts';
import type { ServiceOrders } from '../src/registrar/service-orders.ts';
import { makeBackup, parseBackup } from '../src/registrar/store-backup.ts';
import { restoreBackup } from '../src/registrar/store-restore.ts';
import type { Keys } from '../src/store/keys.ts';
import type { Store } from '../src/store/store.ts';
import type { AdminBackend } from './admin/backend.ts';
import type {
  DrainDocument,
  DrainResultDocument,
  InstanceDocument,
  LinksDocument,
  PictureDocument,
  RefreshDocument,
  RegisterDocument,
  ResolveDocument,
  ServiceSettingsDocument,
  StatusDocument,
} from './admin/documents.ts';
import {
  dialDocument,
  healthDocument,
  hostDocuments,
  instanceDocuments,
  serviceDocument,
  serviceOf,
  servicesDocument,
} from './admin/views.ts';
import type { HostCertificates } from './host-certificates.ts';

/** What the admin API's answers are made of, and what its orders act on. */
export interface BackendParts {
  readonly self: { readonly hostId: string; readonly hostName: string };
  /** Whether links to other hosts may go in the clear. */
  readonly clearUnderlay: boolean;
  /** Whether this host has tunnels to others. */
  readonly tunnels: () => boolean;
  /** Of the store that is open. */
  readonly keys: () => Keys;
  /** The mesh's name. */
  readonly mesh: string;
  /** This host's mesh, once it is known. */
  readonly meshId: () => string | undefined;
  readonly copies: AdminBackend['copies'];
  readonly policy: AdminBackend['policy'];
  /** Hosts that were revoked, and what others offer without a grant. */
  readonly revoked: () => readonly RevokedHost[];
  readonly authorityId: () => string | undefined;
  /** When hosts' certificates end. */
  readonly certificates: () => Promise<HostCertificates>;
  readonly ungranted: () => readonly Ungranted[];
  readonly authority: AdminBackend['authority'];
  readonly clock: Clock;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  readonly changes: Observable<unknown>;
  readonly snapshots: Observable<Snapshot>;
  /** This host's instances by name, also those that it may not offer. */
  readonly own: () => ReadonlyMap<string, InstanceRecord>;
  readonly refusals: () => readonly Refusal[];
  /** What is known of the health of one of this host's instances beyond its record. */
  readonly health: (name: string) => HealthDetails | undefined;
  readonly store: () => Store | undefined;
  readonly storeProblem: () => string | undefined;
  readonly picture: () => PictureDocument;
  readonly ready: () => boolean;
  readonly status: () => Promise<StatusDocument>;
  readonly links: () => Promise<LinksDocument>;
  readonly split: AdminBackend['split'];
  readonly resolve: (name: string, type: string, from: string | undefined) => Promise<ResolveDocument>;
  readonly why: AdminBackend['why'];
  /** Checks an entry as the configuration file would; E_INVALID names every fault. */
  readonly parseInstance: (body: RegisterDocument, name: string) => StaticInstance;
  /** Keeps it on disk and registers it. */
  readonly register: (instance: StaticInstance) => Promise<InstanceRecord>;
  /** Its own word on how it is; E_NOT_FOUND, and E_INVALID when nothing of it waits for that. */
  readonly refresh: (name: string, refresh: Refresh) => Promise<InstanceRecord>;
  /** E_NOT_FOUND when no instance of the API has this name. */
  readonly deregister: (name: string) => Promise<void>;
  /** Checks a service's settings as the configuration file would; E_INVALID names every fault. */
  readonly parseSettings: (body: ServiceSettingsDocument) => GivenSettings;
  /** Undefined while the store is not open. */
  readonly orders: () => ServiceOrders | undefined;
  /** Drains own instances by name; with `host` also those that come later. */
  readonly drain: (names: readonly string[], on: boolean, wholeHost: boolean) => Promise<void>;
  /** Lets go of everything but connections; E_CONFLICT where it cannot. */
  readonly handOver: () => Promise<void>;
  readonly connectionsTo: (ids: ReadonlySet<string>) => Promise<number>;
}

export function createBackend(parts: BackendParts): AdminBackend {
  const snapshot = (): Snapshot => parts.snapshots.value;
  const ownName = (id: string): string => {
    const slash = id.indexOf('/');
    const name = slash < 0 ? id : id.slice(slash + 1);
    if (slash >= 0 && id.slice(0, slash) !== parts.self.hostName) {
      throw new LegateError(
        'E_CONFLICT',
        `${printable(truncate(id, 160))} is not an instance of this host, ${parts.self.hostName}`,
        {
          hint: 'run the command on the host that the id names',
        },
      );
    }
    const fault = instanceNameFault(name);
    if (fault !== undefined)
      throw new LegateError(
        'E_INVALID',
        `the instance's name ${JSON.stringify(printable(truncate(name, 160)))} ${fault}`,
      );
    return name;
  };
  const withHealth = (instance: Instance): InstanceDocument => {
    const details = instance.hostId === parts.self.hostId ? parts.health(instance.name) : undefined;
    const { self, clearUnderlay, tunnels } = parts;
    const dialled = dialDocument(instance, { hostId: self.hostId, clearUnderlay, tunnels: tunnels() });
    return { ...instance, ...dialled, ...(details && healthDocument(details)) };
  };
  /** As the catalog has it; one that it does not show, for its health or for want of a grant, as it is here. */
  const shownAs = (record: InstanceRecord): Instance => {
    const { hostId, hostName } = parts.self;
    const id = `${hostName}/${record.name}`;
    const shown = snapshot()
      .services.get(record.service)
      ?.instances.find((each) => each.id === id && each.hostId === hostId);
    return shown ?? { ...record, id, host: hostName, hostId, revision: '' };
  };
  const ownInstances = (): Instance[] => [...parts.own().values()].map(shownAs).sort((a, b) => (a.id < b.id ? -1 : 1));
  const ownInstance = (name: string): Instance | undefined => {
    const record = parts.own().get(name);
    return record && shownAs(record);
  };
  const documentOf = (record: InstanceRecord): InstanceDocument => withHealth(shownAs(record));

  /** What lives on the store, which has to be open for it. */
  const opened = <T>(part: T | undefined): T => {
    if (part !== undefined) return part;
    throw new LegateError('E_STORE_AWAY', `the store is not open: ${parts.storeProblem() ?? 'it is being opened'}`, {
      hint: 'legate status says what to do',
    });
  };

  return {
    metrics: parts.metrics,
    changes: parts.changes,
    ready: parts.ready,
    status: parts.status,
    links: parts.links,
    split: parts.split,
    resolve: parts.resolve,
    why: parts.why,
    userKeys() {
      return { store: opened(parts.store()), keys: parts.keys() };
    },
    copies: parts.copies,
    policy: parts.policy,
    authority: parts.authority,
    async backup() {
      const { mesh, keys, clock, store } = parts;
      return (await makeBackup(opened(store()), keys(), { mesh, nowMs: clock.nowMs() })).parts;
    },
    async restore(file, how) {
      const backup = parseBackup(file);
      const known = { meshId: parts.meshId(), clock: parts.clock };
      return await restoreBackup({ store: opened(parts.store()), keys: parts.keys(), backup, ...known, ...how });
    },
    picture: parts.picture,
    hosts: async () => {
      const certificates = await parts.certificates();
      const nowMs = parts.clock.nowMs();
      const of = { revoked: parts.revoked(), authorityId: parts.authorityId(), certificates, nowMs };
      return hostDocuments(snapshot(), parts.self.hostId, of);
    },
    ungranted: (service) =>
      parts
        .ungranted()
        .filter((each) => service === undefined || each.service === service)
        .map(({ id, host, service: name }) => ({ id, host, service: name })),
    services: () => servicesDocument(snapshot(), parts.refusals(), withHealth),
    service: (name) => serviceDocument(serviceOf(snapshot(), name), withHealth),
    instances: (service) => {
      // A service of which all is left out may have no record, but it is no mistyped name.
      const isUngranted = parts.ungranted().some((each) => each.service === service);
      if (service !== undefined && isUngranted && snapshot().services.get(service) === undefined) return [];
      return instanceDocuments(snapshot(), withHealth, service);
    },
    async register(id, body) {
      const name = ownName(id);
      if (isRefresh(body)) return documentOf(await parts.refresh(name, refreshOf(body)));
      const known = ownInstance(name);
      if (known !== undefined && known.source !== 'api') {
        throw new LegateError('E_CONFLICT', `${known.id} exists already, from ${printable(known.source)}`, {
          hint: 'choose another name',
        });
      }
      return documentOf(await parts.register(parts.parseInstance(body, name)));
    },
    async deregister(id) {
      const name = ownName(id);
      const known = ownInstance(name);
      if (known !== undefined && known.source !== 'api') {
        throw new LegateError('E_CONFLICT', `${known.id} comes from ${printable(known.source)} and would come back`, {
          hint:
            known.source === 'file'
              ? 'remove it from the configuration file and reload'
              : 'stop or remove the container, or use legate drain',
        });
      }
      await parts.deregister(name);
    },
    async setService(name, body) {
      const { settings, unset } = parts.parseSettings(body);
      return serviceDocument(await opened(parts.orders()).set(name, settings, unset), withHealth);
    },
    async forgetService(name) {
      return { forgotten: name, vips: await opened(parts.orders()).forget(name) };
    },
    handOver: () => parts.handOver(),
    async drain(body: DrainDocument): Promise<DrainResultDocument> {
      const chosen = chooseToDrain(body, snapshot(), ownInstances(), ownName);
      await parts.drain(
        chosen.map((instance) => instance.name),
        body.undrain !== true,
        body.host === true,
      );
      const ids = chosen.map((instance) => instance.id);
      return { instances: ids, connections: await parts.connectionsTo(new Set(ids)) };
    },
  };
}

/** Whether a body only has a word on how an instance is, and does not describe one. */
function isRefresh(body: RegisterDocument | RefreshDocument): body is RefreshDocument {
  return Object.keys(body).every((key) => key === 'status' || key === 'output');
}

function refreshOf({ status: given = 'passing', output = '' }: RefreshDocument): Refresh {
  const status = initialStatuses.find((word) => word === given);
  if (status === undefined) {
    throw new LegateError('E_INVALID', `"status" is none of ${initialStatuses.join(', ')}`, {
      hint: 'say how the instance is now',
    });
  }
  if (typeof output !== 'string') throw new LegateError('E_INVALID', '"output" is not text');
  return { status, output };
}

function chooseToDrain(
  body: DrainDocument,
  snapshot: Snapshot,
  own: readonly Instance[],
  ownName: (id: string) => string,
): readonly Instance[] {
  if (body.host === true) return own;
  if (typeof body.service === 'string') {
    const { service: name } = body;
    const found = own.filter((instance) => instance.service === name);
    if (found.length === 0) serviceOf(snapshot, name);
    return found;
  }
  if (typeof body.id === 'string') {
    const name = ownName(body.id);
    const found = own.filter((instance) => instance.name === name);
    if (found.length > 0) return found;
    throw new LegateError(
      'E_NOT_FOUND',
      `there is no instance ${JSON.stringify(printable(truncate(body.id, 160)))} on this host`,
      {
        hint: 'legate services and legate instances SERVICE show the ids',
      },
    );
  }
  throw new LegateError('E_INVALID', 'drain needs one of "id", "service" or "host": true');
}
