import { type Ipv4Range, inRange, isLoopback } from './address.ts';

/** A bridge of this host that containers are attached to. */
export interface Bridge {
  /** The interface: `docker0`, `br-5e2b1e990156`. */
  readonly interface: string;
  /** Docker's name for the network: `bridge`, `shop_default`. */
  readonly network: string;
  readonly subnet: Ipv4Range;
  /** The host's own address on it; undefined when it has none there. */
  readonly gateway: string | undefined;
  /** Docker's `--internal`: no route beyond the bridge. */
  readonly internal: boolean;
}

/** What this host looks like from the inside; an immutable value that changes as bridges come and go. */
export interface Topology {
  /** All addresses of the host's own interfaces, bridge gateways included. */
  readonly addresses: ReadonlySet<string>;
  readonly bridges: readonly Bridge[];
}

export const emptyTopology: Topology = { addresses: new Set(), bridges: [] };

/**
 * Who asks, by the address that the question comes from: the host itself (also host-network containers), a container on
 * one of its bridges, or somebody elsewhere.
 */
export type Asker =
  | { readonly kind: 'host' }
  | { readonly kind: 'container'; readonly bridge: Bridge }
  | { readonly kind: 'elsewhere' };

const hostAsker: Asker = { kind: 'host' };
const elsewhereAsker: Asker = { kind: 'elsewhere' };

export function askerOf(topology: Topology, address: string, vipRange?: Ipv4Range): Asker {
  if (isLoopback(address) || topology.addresses.has(address)) return hostAsker;
  for (const bridge of topology.bridges) if (inRange(bridge.subnet, address)) return { kind: 'container', bridge };
  if (vipRange !== undefined && inRange(vipRange, address)) return hostAsker;
  return elsewhereAsker;
}

/** Where an endpoint lies, and how far it may be dialled. */
export interface Place {
  readonly address: string;
  readonly reach: 'host' | 'mesh';
  /** Whether it is an instance of this very host. */
  readonly own: boolean;
  /** Whether links to other hosts may go in the clear (`network.underlay` trusted or encrypted). */
  readonly clearUnderlay: boolean;
}

/**
 * Why `asker` cannot or should not dial the endpoint itself, or undefined when it can. Docker isolates its bridges from
 * each other, loopback addresses mean another machine inside a container, and another host's addresses are dialled only
 * when they have reach `mesh` and the underlay is declared.
 */
export function undialable(asker: Asker, topology: Topology, place: Place): string | undefined {
  if (!place.own) {
    if (place.reach !== 'mesh') return 'its address is known only to its own host';
    return place.clearUnderlay ? undefined : 'the underlay is not declared trusted or encrypted';
  }
  if (asker.kind === 'host') return undefined;
  if (isLoopback(place.address)) return 'it listens on loopback of the host';
  const bridge = topology.bridges.find((candidate) => inRange(candidate.subnet, place.address));
  if (asker.kind === 'container') {
    if (bridge === undefined || bridge.interface === asker.bridge.interface) return undefined;
    return `it is on bridge ${bridge.interface}, which Docker isolates from ${asker.bridge.interface}`;
  }
  if (bridge !== undefined) return 'its address is known only to its own host';
  return place.reach === 'mesh' ? undefined : 'its address is known only to its own host';
}
