import type { Observable } from '../base/feed.ts';
import { PersistentMap } from '../base/persistent-map.ts';
import type { Endpoint, Ipv4Range } from './address.ts';
import type { DeclaredLink } from './link.ts';
import { askerOf, type Topology } from './topology.ts';

/** Who is behind an address of a container bridge: all containers of one network namespace together. */
export interface Caller {
  /** Undefined: `anonymous`, because it is several services or none, and no `legate.consumer` says which. */
  readonly consumer: string | undefined;
  /** The container's name, for people. */
  readonly container: string;
  readonly links: readonly DeclaredLink[];
}

/** Which caller has which address now. An immutable value that changes as containers come and go. */
export interface CallerTable {
  /** Undefined: callers are told apart. Else why not; everyone but the host is then anonymous, and nobody waits. */
  readonly off: string | undefined;
  /** By IPv4 address. An address is here only while the kernel holds it to one interface and one MAC address. */
  readonly bound: PersistentMap<Caller>;
}

/**
 * The seam between who watches containers and who serves them. Readers look an address up in `table`; one on a container
 * bridge that is not there is new or was just reused, and is waited for, at most `callerWaitMs`.
 */
export interface Callers {
  readonly table: Observable<CallerTable>;
  /**
   * Whether the address was bound so recently that a connection accepted now may be older than that, so that it has to be
   * confirmed. Cheap.
   */
  isFresh(address: string): boolean;
  /**
   * Whether a TCP connection from a fresh address, or one that was accepted before its source address was bound, really
   * came from the container that the address is bound to now. Resolves false when that cannot be known any more; never
   * rejects.
   */
  confirm(connection: { readonly source: Endpoint; readonly destination: Endpoint }): Promise<boolean>;
}

/** Where nobody watches containers. */
export const noCallers: Callers = {
  table: {
    value: { off: 'nobody watches containers', bound: PersistentMap.empty() },
    subscribe: () => () => undefined,
  },
  isFresh: () => false,
  confirm: () => Promise.resolve(false),
};

/** How long an address of a container bridge that nobody is known to have is waited for. */
export const callerWaitMs = 2000;

/** Who is at the other end. `host` includes containers in the host's own network, whatever their labels say. */
export type Identity =
  | { readonly kind: 'host' }
  | { readonly kind: 'container'; readonly caller: Caller }
  | { readonly kind: 'anonymous' };

const host: Identity = { kind: 'host' };
const anonymous: Identity = { kind: 'anonymous' };

/** Who has the address now; undefined while that is not known yet and is worth waiting for. */
export function identityAt(
  table: CallerTable,
  topology: Topology,
  address: string,
  vipRange?: Ipv4Range,
): Identity | undefined {
  const caller = table.bound.get(address);
  if (caller !== undefined) return { kind: 'container', caller };
  const asker = askerOf(topology, address, vipRange);
  if (asker.kind === 'host') return host;
  return asker.kind === 'container' && table.off === undefined ? undefined : anonymous;
}

/** The name that policy and figures know the caller by. */
export function consumerName(identity: Identity): string {
  if (identity.kind === 'container') return identity.caller.consumer ?? 'anonymous';
  return identity.kind;
}
