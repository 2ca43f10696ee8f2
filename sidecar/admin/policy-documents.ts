import type { Decision } from '../../src/model/policy.ts';

/** The policy in the admin API. Times are RFC 3339. */

/** Answer of `GET` and `PUT /api/policy`, and of changes of intents. */
export interface PolicyDocument {
  readonly version: number;
  readonly setAt: string;
  readonly default: 'allow' | 'deny';
  readonly mode: 'enforce' | 'learn';
  /** Whether links that containers declare are permission. */
  readonly fromLinks: boolean;
  readonly intents: readonly IntentDocument[];
  readonly grants: readonly GrantDocument[];
  readonly external: readonly { readonly service: string; readonly targets: readonly string[] }[];
  readonly revoked: readonly RevokedHostDocument[];
  /** The host on which the policy is changed; its name is null while it is not known. */
  readonly authority: { readonly id: string; readonly name: string | null; readonly self: boolean };
  /** Whether the store has this one; null on other hosts than the authority's. */
  readonly stored: boolean | null;
  /** Of the answer to a change of an intent: names that may be mistyped. */
  readonly notes?: readonly string[];
}

export interface IntentDocument {
  readonly consumer: string;
  readonly service: string;
  readonly action: 'allow' | 'deny';
  readonly setAt: string;
}

export interface GrantDocument {
  readonly hostId: string;
  /** Null while it is not known. */
  readonly host: string | null;
  /** `*` for any. */
  readonly service: string;
  readonly setAt: string;
}

export interface RevokedHostDocument {
  readonly hostId: string;
  readonly host: string;
  readonly revokedAt: string;
}

/** Body of `PUT /api/policy`: what is given is set. */
export interface PolicySettingsDocument {
  readonly default?: unknown;
  readonly mode?: unknown;
  readonly fromLinks?: unknown;
}

/** Answer of `GET /api/intents/CONSUMER/SERVICE`. */
export interface IntentCheckDocument {
  readonly consumer: string;
  readonly service: string;
  readonly allowed: boolean;
  readonly by: Decision['by'];
  /** The intent that decides, or would have. */
  readonly intent: IntentDocument | null;
  readonly message: string;
  /** Whether a container of the host that answers declares such a link. */
  readonly declared: boolean;
  /** Names that may be mistyped. */
  readonly notes?: readonly string[];
}

/** Answer of `GET /api/learned`: what would be refused if the mode were not `learn`. */
export interface LearnedDocument {
  readonly mode: 'enforce' | 'learn';
  readonly pairs: readonly {
    readonly consumer: string;
    readonly service: string;
    readonly count: number;
    readonly since: string;
    readonly last: string;
    /** Names of the hosts that saw it; ids where they have none. */
    readonly hosts: readonly string[];
  }[];
}

/** Instances that a change of grants leaves out everywhere but on their own host, or lets in. */
export interface OfferDocument {
  readonly host: string;
  readonly service: string;
  readonly instances: number;
}

/** Answer of `PUT` and `DELETE /api/hosts/NAME/grants/SERVICE`. */
export interface GrantChangeDocument {
  readonly host: string;
  readonly hostId: string;
  readonly service: string;
  readonly changed: boolean;
  /** What the host may offer now; null: any service that is granted to nobody. */
  readonly offers: readonly string[] | null;
  /** The hosts that may offer the service now; null: any host to which nothing is granted. */
  readonly offeredBy: readonly string[] | null;
  readonly leftOut: readonly OfferDocument[];
  /** The commands that together give back what was left out; null: they are too many. */
  readonly keep?: readonly string[] | null;
  readonly letIn: readonly OfferDocument[];
  readonly stored: boolean;
  /** Names that may be mistyped. */
  readonly notes?: readonly string[];
}

/** Answer of `POST /api/hosts/NAME/revoke`. */
export interface RevocationDocument extends RevokedHostDocument {
  /** False: it had been revoked before. */
  readonly changed: boolean;
  readonly stored: boolean;
}

/** The policy in `GET /api/status`; null on a host that is in no mesh with an authority. */
export interface PolicyStatusDocument {
  readonly version: number;
  /** Null while this host has none that it can read, and allows nothing. */
  readonly setAt: string | null;
  readonly default: 'allow' | 'deny';
  readonly mode: 'enforce' | 'learn';
  readonly fromLinks: boolean;
  readonly intents: number;
  /** `any`: every host may offer every service. */
  readonly grants: 'any' | number;
  readonly revoked: number;
}
