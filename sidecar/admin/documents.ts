export type { LinkDocument } from '../../proxy/link-document.ts';

import type { LinkDocument } from '../../proxy/link-document.ts';
import type { TunnelDocument } from '../../proxy/tunnel/tunnel-document.ts';
import type { Instance, Protocol, Refusal, Status } from '../../src/model/instance.ts';
import type { Weights } from '../../src/model/routes.ts';
import type { Balance } from '../../src/model/service.ts';
import type { FurtherSettings } from '../../src/model/service-settings.ts';
import type { TakenBack } from '../../src/model/taken-back.ts';
import type { PolicyStatusDocument } from './policy-documents.ts';

/** The JSON documents of the admin API; `--json` prints them as they are. Times are RFC 3339, durations milliseconds. */

export interface ErrorDocument {
  readonly error: { readonly code: string; readonly message: string; readonly hint: string };
}

export interface InstanceDocument extends Instance {
  /** What links of the host that answers dial for it: `10.77.0.1:8080`; null when they cannot or should not. */
  readonly dial?: string | null;
  /** Why they do not; null when they do. */
  readonly unreachable?: string | null;
  /** It is critical or lost and gets connections all the same, because the brake on mass withdrawal of its service holds. */
  readonly stillUsed?: true;
  /** Since when it has this status, where that is known. */
  readonly since?: string;
  /** Each check's own word; only of instances of the host that answers. */
  readonly checks?: readonly CheckDocument[];
  /** The last changes of its status in this run of the sidecar, at most ten, newest first; only as `checks`. */
  readonly history?: readonly HealthChangeDocument[];
}

export interface CheckDocument {
  readonly kind: string;
  /** What is asked: `GET http://172.17.0.2:80/health`, `exec pg_isready`. */
  readonly target: string;
  readonly status: Status;
  readonly output: string;
  readonly since: string;
}

export interface HealthChangeDocument {
  readonly at: string;
  readonly status: Status;
  readonly output: string;
}

/** A link that a container of this host declares with `legate.links`. */
export interface DeclaredLinkDocument {
  /** The container's name. */
  readonly container: string;
  /** Who it is when it calls; null: anonymous. */
  readonly consumer: string | null;
  readonly alias: string;
  readonly service: string;
  /** What the alias leads to: `240.77.118.4:6379`; null while there is nothing to dial. */
  readonly address: string | null;
  /** `waiting`: there is no such service yet, or it has no instances. `refusing`: nothing usable is behind it. `down`: `problem` says why. */
  readonly state: 'open' | 'refusing' | 'waiting' | 'down';
  readonly problem: string | null;
  /** Since when it waits; null when it does not. */
  readonly since: string | null;
}

/** Who a host is to the others of its mesh. */
export interface IdentityDocument {
  /** `none`: it was never initialised or joined; `outside`: its certificate comes from files of the configuration. */
  readonly role: 'authority' | 'member' | 'outside' | 'none';
  readonly certificateUntil: string | null;
  readonly serial: string | null;
  /** SHA-256 of the roots that it believes. */
  readonly roots: readonly string[];
  readonly problem: string | null;
  /** What the host with the authority is called; null where there is none or that is not known. */
  readonly authority?: string | null;
}

/** Answer of `POST /api/tokens`. */
export interface TokenDocument {
  readonly token: string;
  readonly expiresAt: string;
  readonly uses: number;
  /** What the new host names: `10.77.0.1`. */
  readonly address: string;
  /** The configuration file of this sidecar, where it was named with its whole path. */
  readonly config?: string;
}

/** Body of `POST /api/tokens`. */
export interface TokenRequest {
  readonly ttlMs?: number;
  readonly uses?: number;
}

/** Answer of `GET /api/ca` and `POST /api/ca/rotate`. */
export interface AuthorityDocument {
  /** The authority's host. */
  readonly host: string;
  /** `announcing`: hosts hear of a new root; `replacing`: it issues, and the old one is still believed. */
  readonly phase: 'none' | 'announcing' | 'replacing';
  readonly since: string | null;
  /** Names of the hosts that the phase waits for. */
  readonly waitingFor: readonly string[];
  readonly certificateLifeMs: number;
  readonly roots: readonly {
    readonly fingerprint: string;
    readonly state: 'issuing' | 'next' | 'old';
    readonly until: string;
    /** Of one that issues in the place of another: since when. Backups from before are of no use. */
    readonly since?: string;
  }[];
  readonly hosts: readonly {
    readonly id: string;
    readonly name: string;
    readonly address: string;
    readonly alive: boolean;
    readonly serial: string;
    readonly root: string;
    readonly rootState: 'issuing' | 'old' | 'gone';
    /** Set for hosts that were revoked. */
    readonly revokedAt?: string;
    readonly issuedAt: string;
    readonly until: string;
  }[];
}

/** Answer of `GET /api/links`. */
export interface LinksDocument {
  readonly links: readonly LinkDocument[];
  /** What containers of this host declare with `legate.links`. */
  readonly declared: readonly DeclaredLinkDocument[];
}

/** How well what is known of the mesh is confirmed; beside the tables of hosts and instances. */
export interface PictureDocument {
  readonly store: 'connecting' | 'connected' | 'away' | 'closed';
  /** Since the store last confirmed it; null when it never did. */
  readonly ageMs: number | null;
}

/** Answer of `GET /api/hosts`. */
export interface HostsDocument {
  readonly hosts: readonly HostDocument[];
  readonly picture?: PictureDocument;
}

/** Answer of `GET /api/instances`. */
export interface InstancesDocument {
  readonly instances: readonly InstanceDocument[];
  /** What hosts offer without a grant, and is left out. */
  readonly ungranted?: readonly { readonly id: string; readonly host: string; readonly service: string }[];
  readonly picture?: PictureDocument;
}

export interface HostDocument {
  readonly id: string;
  readonly name: string;
  readonly address: string;
  readonly version: string;
  readonly alive: boolean;
  /** Whether this is the host that answers. */
  readonly self: boolean;
  readonly instances: number;
  /** Where it stands; null where it does not say. */
  readonly zone?: string | null;
  /** Whether the mesh's authority is there. */
  readonly authority?: boolean;
  /** Set when it was revoked: no other host talks to it. */
  readonly revokedAt?: string;
  /** When its certificate ends, where the host that answers has seen it; RFC 3339. */
  readonly certificateUntil?: string;
  /** That should have been renewed by now: less than a third of its life is left. */
  readonly certificateLate?: true;
}

/** A service with the settings that somebody chose. */
export interface ServiceDocument extends FurtherSettings {
  readonly name: string;
  readonly port: number;
  readonly protocol: Protocol;
  readonly balance: Balance;
  /** The split before the present one; absent where there was none. */
  readonly formerSplit?: Weights;
  /** The side of the split that a rollout guard has taken back; absent where none has. */
  readonly takenBack?: string;
  /** Null when none is claimed. */
  readonly vip: string | null;
  readonly instances: readonly InstanceDocument[];
  readonly usable: number;
  /** How many of these the host that answers can dial. */
  readonly usableHere?: number;
  /** Set while instances that turned critical at once are still used: since when, and until when at the latest. */
  readonly brake: { readonly since: string; readonly until: string } | null;
  readonly faults: readonly string[];
}

/** Answer of `GET /api/splits/NAME`. What is counted is the traffic of the consumers of the host that answers. */
export interface SplitDocument {
  readonly service: string;
  readonly protocol: Protocol;
  /** Whether requests are divided at all, which they are for protocols http, http2 and grpc. */
  readonly splits: boolean;
  /** Weights by tag; null where requests are not divided. */
  readonly split: Weights | null;
  /** The split before; null where there was none. `{}`: requests were not divided. */
  readonly former: Weights | null;
  /** `off`, `cookie`, `cookie:NAME` or `header:NAME`. */
  readonly sticky: string;
  /** A side with so many times the errors of the heaviest side is taken back; 0: never. */
  readonly guard: number;
  /** Whose traffic is counted: the host that answers. */
  readonly host: string;
  readonly sides: readonly SplitSideDocument[];
  /** Instances that get nothing, because they have none of the tags; at most 20 of those that they have. */
  readonly without: { readonly instances: number; readonly tags: readonly string[] };
  /** Set while the split is as a guard left it. */
  readonly takenBack: TakenBackDocument | null;
}

export interface SplitSideDocument {
  readonly tag: string;
  readonly weight: number;
  /** Of all requests, from 0 to 1; a side without a usable instance gives its own to the others. */
  readonly share: number;
  readonly instances: number;
  readonly usable: number;
  /** In all, since this host's data plane began. */
  readonly requests: number;
  readonly errors: number;
  /** A second, over the last ten. */
  readonly rates: { readonly requests: number; readonly errors: number };
  /** From 0 to 1, over the last ten seconds; null without requests. */
  readonly errorRate: number | null;
  /** From a request to the end of its answer, on average over the last ten seconds; null without requests. */
  readonly latencyMs: number | null;
  /** What the guard of this host finds; `measure`: the others are compared with it. */
  readonly verdict: 'off' | 'measure' | 'few requests' | 'good' | 'failing' | 'taken back';
}

/** What a rollout guard did and had seen. */
export interface TakenBackDocument extends Omit<TakenBack, 'atMs'> {
  /** Its name. */
  readonly host: string;
  readonly at: string;
}

export interface ServicesDocument {
  readonly services: readonly ServiceDocument[];
  /** What asked to be registered on this host and was not, with the reason. */
  readonly refused: readonly Refusal[];
}

export interface ConditionDocument {
  readonly id: string;
  readonly severity: 'error' | 'warning' | 'note';
  readonly message: string;
  readonly hint: string;
  readonly since: string;
  readonly count: number;
}

export interface NameServerDocument {
  /** `127.0.0.1:7753`, `240.77.0.53:53`, `172.17.0.1:53`. */
  readonly listen: string;
  /** `configured`, `bridge docker0`, `virtual address`. */
  readonly purpose: string;
  readonly state: 'up' | 'down';
  readonly problem: string | null;
  readonly queries: number;
}

export type TunnelStatusDocument = Pick<TunnelDocument, 'host' | 'state' | 'since' | 'problem'>;

export interface StatusDocument {
  readonly host: { readonly id: string; readonly name: string; readonly address: string };
  readonly mesh: string;
  /** Null on a host that is in no mesh with an authority. */
  readonly policy: PolicyStatusDocument | null;
  /** Who this host is to the others; sidecars of an earlier version do not tell. */
  readonly identity: IdentityDocument;
  readonly version: string;
  readonly pid: number;
  readonly startedAt: string;
  readonly uptimeMs: number;
  /** The store in use; while there is none the one that is wanted. */
  readonly store: {
    readonly kind: string;
    /** For people: `etcd at http://10.77.0.1:2379`. */
    readonly where: string;
    readonly state: 'connecting' | 'connected' | 'away' | 'closed';
    readonly since: string;
    readonly revision: string;
    readonly snapshot: { readonly origin: 'none' | 'disk' | 'store'; readonly ageMs: number };
    readonly problem: string | null;
    /** Another store that is to be used, and what keeps this host from it; null when that is the one in use. */
    readonly wanted: { readonly kind: string; readonly where: string; readonly problem: string | null } | null;
  };
  readonly docker: {
    readonly state: 'off' | 'connecting' | 'connected' | 'away';
    readonly version: string | null;
    readonly problem: string | null;
  };
  readonly vip: { readonly state: 'on' | 'off'; readonly range: string; readonly reason: string | null };
  /** Whether containers are told apart when they call, and how many of their addresses are bound; else why not. */
  readonly callers: { readonly state: 'on' | 'off'; readonly reason: string | null; readonly bound: number };
  readonly here: {
    readonly containers: number;
    readonly instances: number;
    readonly services: number;
    readonly links: number;
  };
  readonly names: readonly NameServerDocument[];
  /** To the hosts that links ask for. A sidecar of an earlier version does not tell. */
  readonly tunnels?: readonly TunnelStatusDocument[];
  /** What is wrong now, worst first; empty when all is well. */
  readonly todo: readonly ConditionDocument[];
}

/** Body of `PUT /api/instances/<host>/<name>`; the same fields as an entry of `instances:`. */
export interface RegisterDocument {
  readonly service: string;
  readonly address: string;
  readonly port: number;
  readonly name?: string;
  readonly protocol?: string;
  readonly reach?: string;
  readonly tags?: readonly string[];
  readonly meta?: Readonly<Record<string, string>>;
  readonly weight?: number;
  readonly checks?: readonly unknown[];
}

/**
 * Body of `PUT /api/instances/<host>/<name>` without an instance: the word on how an instance of this host is, whatever it
 * comes from, for its checks of kind ttl.
 */
export interface RefreshDocument {
  /** `passing` (default), `warning` or `critical`. */
  readonly status?: string;
  readonly output?: string;
}

/** Body of `PUT /api/services/NAME`; the same fields as an entry of `services:`, at least one. The answer is the service. */
export type ServiceSettingsDocument = Readonly<Record<string, unknown>>;

/** Answer of `DELETE /api/services/NAME`. */
export interface ForgottenDocument {
  readonly forgotten: string;
  /** The virtual addresses that other services may get now; one, or none. */
  readonly vips: readonly string[];
}

/** Body of `POST /api/drain`: one of these. `undrain` ends it. */
export interface DrainDocument {
  readonly id?: string;
  readonly service?: string;
  readonly host?: boolean;
  readonly undrain?: boolean;
}

/** Answer of `POST /api/drain`: what it applies to, and the connections of this host's links that still run. */
export interface DrainResultDocument {
  readonly instances: readonly string[];
  readonly connections: number;
}

/** Body of `POST /api/store/copy`: where to, and the files on this host that it takes to get there. */
export interface StoreCopyRequest {
  readonly to: string;
  readonly prefix?: string;
  readonly ca?: string;
  readonly cert?: string;
  readonly key?: string;
  readonly credentialsFile?: string;
  readonly dryRun?: boolean;
}

/** Answer of `POST`, `GET` and `DELETE /api/store/copy`: what became of the last copy so far. */
export interface StoreCopyDocument {
  readonly state: 'none' | 'running' | 'done' | 'failed';
  readonly phase: 'connecting' | 'reading' | 'copying' | 'comparing' | 'ending' | 'following' | null;
  /** For people: `the embedded store`, `etcd at http://10.77.0.1:2379`. */
  readonly from: string | null;
  readonly to: string | null;
  readonly dryRun: boolean;
  readonly keys: number;
  readonly ofKeys: number;
  readonly bytes: number;
  /** Users' keys that vanish by themselves: copied with their whole time anew. */
  readonly leased: number;
  /** For how long users' writes were refused. */
  readonly refusedMs: number;
  /** Names of the hosts that use the new store, and of those that do not yet. */
  readonly moved: readonly string[];
  readonly waiting: readonly string[];
  readonly error: { readonly code: string; readonly message: string; readonly hint: string } | null;
}

/** Answer of `POST /api/store/restore`. */
export interface StoreRestoreDocument {
  /** Keys that were absent and are written. */
  readonly written: number;
  readonly replaced: number;
  readonly same: number;
  /** Keys that say something else and were left. */
  readonly different: number;
  /** Records of hosts that are alive, which are left to them. */
  readonly ofLivingHosts: number;
  /** The first of `different`. */
  readonly named: readonly string[];
}

/** Answer of `GET /api/kv/PREFIX?recurse=1`; values in base64. */
export interface KvListDocument {
  readonly revision: string;
  readonly entries: readonly { readonly key: string; readonly value: string; readonly revision: string }[];
}

/** The data of an event `reset` of `GET /api/kv/KEY?watch=1`: the watched keys that exist; their values follow. */
export interface KvResetDocument {
  readonly keys: readonly string[];
}

/** The data of an event `change`: the key's value in base64, or that it is absent. */
export type KvChangeDocument =
  | { readonly key: string; readonly value: string; readonly revision: string }
  | { readonly key: string; readonly deleted: true };

/** What `GET /api/resolve?name=&type=` adds to the name server's answer. */
export interface ResolveDocument {
  readonly name: string;
  readonly type: string;
  /** The name server that was asked. */
  readonly server: string;
  /** `NOERROR`, `NXDOMAIN`, … */
  readonly status: string;
  readonly answers: readonly {
    readonly name: string;
    readonly type: string;
    readonly ttl: number;
    readonly data: string;
  }[];
  readonly additionals: readonly {
    readonly name: string;
    readonly type: string;
    readonly ttl: number;
    readonly data: string;
  }[];
  /** `the snapshot, confirmed by the store 0.3 s ago`, `forwarded to 10.0.0.2:53`. */
  readonly origin: string;
  /** Instances that exist and are not in the answer. */
  readonly leftOut: readonly { readonly id: string; readonly reason: string }[];
  /** The extended error's text: `waits for the service redis`; null where there is none. */
  readonly note: string | null;
  /** What to ask instead; null where there is nothing better. */
  readonly hint: string | null;
}
