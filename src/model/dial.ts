import { isIP } from 'node:net';
import { type Endpoint, formatEndpoint } from './address.ts';
import type { Instance } from './instance.ts';
import { emptyTopology, undialable } from './topology.ts';

/** The host that dials. */
export interface Dialler {
  readonly hostId: string;
  /** Whether links to other hosts may go in the clear. */
  readonly clearUnderlay: boolean;
  /** Whether this host has tunnels to the others. */
  readonly tunnels: boolean;
}

/** How an instance is reached: at an address, or through the tunnel to its host, which then dials it. */
export type Dial = { readonly via: 'direct'; readonly endpoint: Endpoint } | { readonly via: 'tunnel' };

const throughTunnel: Dial = { via: 'tunnel' };

/**
 * What a host's links dial for an instance, or, for people, why they cannot or should not. Where an instance of another
 * host can be dialled itself, because the underlay is declared, there is no need of a tunnel.
 */
export function dialOf(instance: Instance, { hostId, clearUnderlay, tunnels }: Dialler): Dial | string {
  const own = instance.hostId === hostId;
  const { address, port } = own ? instance : (instance.published ?? instance);
  const fault =
    undialable({ kind: 'host' }, emptyTopology, { address, reach: instance.reach, own, clearUnderlay }) ??
    (isIP(address) === 0 ? 'it has no IP address' : undefined);
  if (fault === undefined) return { via: 'direct', endpoint: { address, port } };
  return tunnels && !own ? throughTunnel : fault;
}

/** What is dialled, for people: `10.77.0.2:8080`, or `db-2 via tunnel`. */
export function formatDial(dial: Dial, instance: Pick<Instance, 'host'>): string {
  return dial.via === 'direct' ? formatEndpoint(dial.endpoint) : `${instance.host} via tunnel`;
}
