import { inRange } from '../../src/model/address.ts';
import type { Topology } from '../../src/model/topology.ts';
import type { Attachment, Container } from './container.ts';
import { quoted } from './label-values.ts';
import type { DockerNetwork } from './network.ts';

/** Where this host finds a container. */
export type Place =
  /** At an address of its own on a bridge of this host. */
  | { readonly kind: 'bridge'; readonly address: string }
  /** In the host's own network. */
  | { readonly kind: 'host' }
  /** Not at its own address; a published port may still lead to it unless `final`. */
  | { readonly kind: 'unreachable'; readonly reason: string; readonly hint: string; readonly final: boolean };

export interface Surroundings {
  /** The engine's networks by id. */
  readonly networks: ReadonlyMap<string, DockerNetwork>;
  /** What the host itself sees; undefined when nobody looks. */
  readonly topology: Topology | undefined;
}

/** The word that is shared network, or undefined: `--net container:x`. */
export function sharedNetworkOf(container: Container): string | undefined {
  return container.networkMode.startsWith('container:') ? container.networkMode.slice('container:'.length) : undefined;
}

/**
 * Where the host reaches `owner`, the container that has the network. With `wished` (`legate.network`) only there;
 * otherwise the default bridge first, then ordinary bridges, then internal ones, each by name.
 */
export function placeOf(owner: Container, wished: string | undefined, around: Surroundings): Place {
  if (wished !== undefined) return wishedPlace(owner, wished, around);
  if (owner.networkMode === 'host') return { kind: 'host' };
  const candidates = owner.attachments.map((attachment) => {
    const network = around.networks.get(attachment.networkId);
    const rank = attachment.network === 'bridge' ? 0 : network?.internal === true ? 2 : 1;
    return { rank, place: placeOn(attachment, around) };
  });
  candidates.sort((a, b) => a.rank - b.rank);
  const reachable = candidates.find((candidate) => candidate.place.kind !== 'unreachable');
  const first = reachable ?? candidates[0];
  return (
    first?.place ??
    unreachable('the container has no network', 'Attach it to a bridge network: docker network connect.')
  );
}

function wishedPlace(owner: Container, wished: string, around: Surroundings): Place {
  const attachment = owner.attachments.find(({ network, networkId }) => network === wished || networkId === wished);
  if (attachment === undefined) {
    const names = owner.attachments.map(({ network }) => network);
    const has =
      names.length === 0 ? 'it has none' : `it has ${names.map((name) => quoted(name).slice(1, -1)).join(', ')}`;
    const reason = `legate.network: the container is not attached to ${quoted(wished)}; ${has}`;
    return {
      kind: 'unreachable',
      reason,
      hint: 'Name one of its networks, or attach it: docker network connect.',
      final: true,
    };
  }
  const place = placeOn(attachment, around);
  return place.kind === 'unreachable' ? { ...place, reason: `legate.network: ${place.reason}`, final: true } : place;
}

function placeOn(attachment: Attachment, { networks, topology }: Surroundings): Place {
  const name = quoted(attachment.network);
  const network = networks.get(attachment.networkId);
  const address = attachment.ipv4 ?? attachment.ipv6;
  if (network?.driver === 'host' || (network === undefined && attachment.network === 'host')) return { kind: 'host' };
  if (network?.driver === 'null' || attachment.network === 'none') {
    return unreachable('the container has no network (none)', 'Attach it to a bridge network.');
  }
  if (address === undefined)
    return unreachable(`the container has no address on network ${name}`, 'Is it still starting?');
  const bridge = topology?.bridges.find((candidate) => inRange(candidate.subnet, address));
  if (network?.driver === 'bridge') {
    if (network.hostReachable && (bridge === undefined || bridge.gateway !== undefined))
      return { kind: 'bridge', address };
    const reason = `the host has no address on network ${name} (bridge ${network.interface ?? 'unknown'})`;
    return unreachable(reason, 'Attach the container to an ordinary bridge network too, or publish the port.');
  }
  if (bridge?.gateway !== undefined) return { kind: 'bridge', address };
  const reason = `this host cannot reach network ${name} (driver ${quoted(network?.driver ?? 'unknown').slice(1, -1)})`;
  return unreachable(reason, 'Attach the container to a bridge network too, or publish the port.');
}

function unreachable(reason: string, hint: string): Place {
  return { kind: 'unreachable', reason, hint, final: false };
}
