import type { DeclaredLink } from '../../src/model/link.ts';
import type { Container } from './container.ts';
import type { Consumer } from './desired.ts';
import type { DockerNetwork } from './network.ts';

/** An address of a container on a bridge of this host. */
export interface CallerAddress {
  readonly networkId: string;
  readonly ipv4: string;
  readonly mac: string;
}

/** The running containers of one network namespace, which nobody can tell apart by what they send. */
export interface CallerGroup {
  /** Of the container that has the network. */
  readonly id: string;
  readonly name: string;
  readonly pid: number;
  readonly addresses: readonly CallerAddress[];
  /** The different names that its containers have as consumers; sorted. */
  readonly consumers: readonly string[];
  readonly links: readonly DeclaredLink[];
}

/** More than that share a network only by mistake. */
const maxLinks = 1024;

export function groupOf(
  owner: Container,
  consumers: readonly Consumer[],
  networks: ReadonlyMap<string, DockerNetwork>,
): CallerGroup {
  const addresses = owner.attachments.flatMap(({ networkId, ipv4, mac }) =>
    networks.get(networkId)?.driver === 'bridge' && ipv4 !== undefined && mac !== undefined
      ? [{ networkId, ipv4, mac }]
      : [],
  );
  const names = new Set(consumers.map(({ name }) => name).filter((name) => name !== undefined));
  return {
    id: owner.id,
    name: owner.name,
    pid: owner.pid,
    addresses,
    consumers: [...names].sort(),
    links: consumers.flatMap(({ links }) => links).slice(0, maxLinks),
  };
}
