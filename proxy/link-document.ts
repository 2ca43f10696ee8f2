import type { Status } from '../src/model/instance.ts';
import type { Balance } from '../src/model/service.ts';
import type { EjectionReason } from './outlier.ts';
import type { DenialDocument } from './permission.ts';

/** One place on this host where consumers reach a service, as the admin API shows it. Times are RFC 3339. */
export interface LinkDocument {
  readonly service: string;
  /**
   * `vip` for a virtual address at the service's port, `alias` for one at a port that containers declare, `listen` for a
   * listener of the configuration.
   */
  readonly kind: 'vip' | 'alias' | 'listen';
  /** What consumers dial: `240.77.118.4:5432`. */
  readonly address: string;
  /** The names of its certificates, and when the first of them ends; null where it is spoken to in the clear. */
  readonly tls: { readonly names: readonly string[]; readonly notAfter: string | null } | null;
  /**
   * `open`; `refusing`: nothing usable behind it; `holding`: neither, and connections wait for it for a while (`park`);
   * `down`: it cannot listen, `problem` says why.
   */
  readonly state: 'open' | 'refusing' | 'holding' | 'down';
  readonly problem: string | null;
  readonly balance: Balance;
  /** How many the service has, usable or not: without any it is refused as a matter of course. */
  readonly instances: number;
  readonly connections: {
    readonly active: number;
    readonly total: number;
    readonly failed: number;
    readonly retried: number;
    /** Wait now until there is something to connect to. */
    readonly held: number;
  };
  /** Who connected, those with the most connections first; `host` and `anonymous` among them. */
  readonly consumers: readonly LinkConsumerDocument[];
  readonly bytes: { readonly received: number; readonly sent: number };
  /** Bytes and connections a second, over the last ten. */
  readonly rates: { readonly received: number; readonly sent: number; readonly connections: number };
  readonly backends: readonly LinkBackendDocument[];
  /** The last connect failure, with its time; null when there was none. */
  readonly lastError: { readonly at: string; readonly message: string } | null;
  /** Connections that policy refused or cut; `last` is null when there were none. */
  readonly denied: { readonly total: number; readonly last: DenialDocument | null };
}

export interface LinkConsumerDocument {
  /** The consumer's name, `host`, `anonymous`, or `_other` for all beyond the first 256. */
  readonly name: string;
  readonly active: number;
  readonly total: number;
}

export interface LinkBackendDocument {
  /** The instance's id. */
  readonly id: string;
  /** What is dialled: `10.77.0.2:8080`, or `db-2 via tunnel`. */
  readonly address: string;
  /** The host's name. */
  readonly host: string;
  readonly via: 'direct' | 'tunnel';
  /** On this host, in its zone, or elsewhere. */
  readonly near: 'host' | 'zone' | 'other';
  readonly status: Status;
  /** How the tunnel to its host is; null where none is needed. */
  readonly tunnel: {
    readonly state: 'ready' | 'suspect' | 'connecting' | 'idle';
    readonly problem: string | null;
  } | null;
  readonly active: number;
  readonly total: number;
  /** Until when it is ejected; null when it is not. */
  readonly ejectedUntil: string | null;
  /** Why it is: it could not be connected to, answered with errors, or much slower than others; null when it is not. */
  readonly ejectedFor: EjectionReason | null;
  /** How often it was ejected lately: each time is twice as long as the one before, up to 5 minutes. */
  readonly ejections: number;
  /** Whether its host did not answer just now, so that it is tried last. */
  readonly suspect: boolean;
}

/** Why an instance is avoided, for people; a sidecar of an earlier version does not say. */
export function ejectionText(reason: EjectionReason | null | undefined): string {
  if (reason === 'errors') return 'it answers with errors';
  if (reason === 'slowness') return 'it is much slower';
  return 'connects kept failing';
}
