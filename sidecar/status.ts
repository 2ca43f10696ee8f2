import type { TunnelDocument } from '../proxy/tunnel/tunnel-document.ts';
import type { Clock } from '../src/base/clock.ts';
import type { Condition, Conditions } from '../src/base/conditions.ts';
import type { Snapshot } from '../src/catalog/snapshot.ts';
import type { StoreConfig } from '../src/config/config.ts';
import { comeBackHint, revokedText } from '../src/model/policy.ts';
import type { StoreStatus } from '../src/store/store.ts';
import type { NameServerDocument, PictureDocument, StatusDocument } from './admin/documents.ts';
import { conditionDocument } from './admin/views.ts';
import { storeText } from './store-target.ts';

/** What conditions of single hosts begin with. */
const tunnelId = 'tunnel.host.';
const lostId = 'host.lost.';

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
  /** This host's instances, also those that it may not offer. */
  readonly own: () => Iterable<{ readonly service: string }>;
  readonly confirmedAtMs: () => number | undefined;
  /** The store in use, if any, and the one that is to be. */
  readonly stores: { readonly used: StoreConfig | undefined; readonly wanted: StoreConfig };
  /** Whether it is another sidecar's own. */
  readonly isOfMesh: (store: StoreConfig) => boolean;
  readonly store: () => StoreStatus | undefined;
  readonly storeProblem: () => string | undefined;
  readonly docker: () => StatusDocument['docker'] & { readonly containers: number };
  readonly vip: () => StatusDocument['vip'];
  readonly callers: () => StatusDocument['callers'];
  readonly links: () => number;
  readonly names: () => readonly NameServerDocument[];
  readonly tunnels: readonly TunnelDocument[];
  readonly policy: () => StatusDocument['policy'];
  readonly identity: () => StatusDocument['identity'];
}

/** One screen's worth of truth: what is, and what is wrong with what to do. */
export function statusDocument(parts: StatusParts): StatusDocument {
  const nowMs = parts.clock.nowMs();
  const snapshot = parts.snapshot();
  const store = parts.store();
  const confirmedAtMs = parts.confirmedAtMs();
  const { containers, ...docker } = parts.docker();
  const own = [...parts.own()].map(({ service }) => service);
  return {
    host: { id: parts.self.hostId, name: parts.self.hostName, address: parts.self.address },
    mesh: parts.mesh,
    policy: parts.policy(),
    identity: parts.identity(),
    version: parts.version,
    pid: process.pid,
    startedAt: new Date(parts.startedAtMs).toISOString(),
    uptimeMs: Math.round(parts.clock.monotonicMs() - parts.startedMonotonicMs),
    store: {
      ...storeParts(parts, snapshot, store?.problem),
      state: store?.state ?? 'away',
      since: new Date(store?.sinceMs ?? parts.startedAtMs).toISOString(),
      revision: snapshot.revision,
      snapshot: {
        origin: snapshot.origin,
        ageMs: confirmedAtMs === undefined ? 0 : Math.max(0, nowMs - confirmedAtMs),
      },
    },
    docker,
    vip: parts.vip(),
    callers: parts.callers(),
    here: { containers, instances: own.length, services: new Set(own).size, links: parts.links() },
    names: parts.names(),
    tunnels: parts.tunnels
      .filter((tunnel) => tunnel.state !== 'idle')
      .map(({ host, state, since, problem }) => ({ host, state, since, problem })),
    todo: onceEach(revokedOnce(lostOnce(parts.conditions.list()))).map(conditionDocument),
  };
}

/** How well the picture of the mesh is confirmed. */
export function pictureDocument(
  store: StoreStatus | undefined,
  confirmedAtMs: number | undefined,
  nowMs: number,
): PictureDocument {
  const ageMs = confirmedAtMs === undefined ? null : Math.max(0, nowMs - confirmedAtMs);
  return { store: store?.state ?? 'away', ageMs };
}

/** The store in use, and another that is wanted with what speaks against it; without any in use the wanted one alone. */
function storeParts(
  { stores: { used, wanted }, isOfMesh, storeProblem }: StatusParts,
  snapshot: Snapshot,
  usedProblem: string | undefined,
): Pick<StatusDocument['store'], 'kind' | 'where' | 'problem' | 'wanted'> {
  const sessionProblem = storeProblem();
  const shown = (store: StoreConfig): { kind: string; where: string } => {
    const { kind } = store;
    if (kind === 'embedded' || !isOfMesh(store)) return { kind, where: storeText(store) };
    const [{ text, host } = { text: '', host: '' }] = store.endpoints;
    const holder = [...snapshot.hosts.values()].find(({ address }) => address === host);
    return { kind: 'embedded', where: `the store of ${holder?.name ?? 'another host'}, at ${text}` };
  };
  const wantedText = shown(wanted);
  const problem = usedProblem ?? null;
  if (used === undefined) return { ...wantedText, problem: sessionProblem ?? problem, wanted: null };
  const other = used === wanted ? null : { ...wantedText, problem: sessionProblem ?? null };
  return { ...shown(used), problem, wanted: other };
}

/** On a host that was revoked one sentence instead of what every host and the store say of it in their own ways. */
function revokedOnce(conditions: readonly Condition[]): readonly Condition[] {
  const first = conditions.find(({ hint }) => hint === comeBackHint);
  if (first === undefined) return conditions;
  const isSaid = ({ id, hint }: Condition): boolean =>
    hint === comeBackHint || id === 'store.etcd.away' || id === 'store.open' || id === 'pki.certificate';
  return [{ ...first, severity: 'error', message: revokedText }, ...conditions.filter((each) => !isSaid(each))];
}

/** A lost host that shows a bad certificate is told once, with what mends that. */
function lostOnce(conditions: readonly Condition[]): readonly Condition[] {
  const tunnels = new Map(
    conditions.flatMap((each) => (each.id.startsWith(tunnelId) ? [[each.id, each] as const] : [])),
  );
  const told = new Set<Condition>();
  const merged = conditions.map((condition) => {
    const tunnel = condition.id.startsWith(lostId) && tunnels.get(tunnelId + condition.id.slice(lostId.length));
    if (!tunnel) return condition;
    told.add(tunnel);
    const problem = tunnel.message.replace(/^no tunnel to host \S+: /, '');
    return { ...condition, message: `${condition.message}: ${problem}`, hint: tunnel.hint };
  });
  return merged.filter((condition) => !told.has(condition));
}

/** Without what a store says of itself and the session, which waits for it, says too. */
function onceEach(conditions: readonly Condition[]): readonly Condition[] {
  const ofSession = conditions.find(({ id }) => id === 'store.open');
  if (ofSession === undefined) return conditions;
  const isSaid = ({ id, message }: Condition): boolean =>
    id.startsWith('store.') && ofSession.message.startsWith(message);
  return conditions.filter((condition) => condition === ofSession || !isSaid(condition));
}
