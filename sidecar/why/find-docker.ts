import { isIP } from 'node:net';
import type { Service } from '../../src/catalog/snapshot.ts';
import type { Container } from '../docker/container.ts';
import type { ShadowFacts, WhyFacts } from './facts.ts';
import type { FoundConsumer, Running } from './find-consumer.ts';

/** Names of Docker's own that hide the asked one: in its user-made networks, and in the container's hosts file. */
export function findShadows(
  asked: string,
  { owner }: FoundConsumer,
  running: readonly Running[],
  service: { readonly view: Service | undefined; readonly hostId: string },
): ShadowFacts[] {
  if (owner === undefined) return [];
  const isInstance = (container: string | undefined, address: string | undefined): boolean =>
    service.view?.instances.some(
      (instance) =>
        instance.hostId === service.hostId &&
        (instance.source === `docker:${container ?? ''}` || instance.address === address),
    ) === true;
  const shadows: ShadowFacts[] = [];
  for (const { name, to } of owner.hostsEntries) {
    if (name !== asked) continue;
    const address = isIP(to) === 0 ? undefined : to;
    const what = `an entry of its /etc/hosts (--link, --add-host) for ${to}`;
    shadows.push({ what, network: undefined, address, isInstance: isInstance(to, address) });
  }
  const own = new Set(usersNetworks(owner));
  for (const { container } of running) {
    for (const { network, networkId, ipv4, aliases } of container.attachments) {
      if (!own.has(networkId)) continue;
      const name = container.name.toLowerCase();
      const isName = asked === name || asked === `${name}.${network.toLowerCase()}`;
      if (!isName && !aliases.includes(asked)) continue;
      const self = container.id === owner.id ? ', the consumer itself' : '';
      const what = isName ? `container ${container.name}${self}` : `an alias of container ${container.name}${self}`;
      shadows.push({ what, network, address: ipv4, isInstance: isInstance(container.name, ipv4) });
    }
  }
  // A wrong one first: it is what must be told.
  return shadows.sort((a, b) => Number(a.isInstance) - Number(b.isInstance));
}

/** User-made networks that the consumer shares with instances of this host. */
export function findBypasses(
  { owner }: FoundConsumer,
  running: readonly Running[],
  view: Service | undefined,
  hostId: string,
): WhyFacts['bypasses'] {
  if (owner === undefined || view === undefined) return [];
  const own = new Set(usersNetworks(owner));
  return view.instances.flatMap(({ hostId: of, source, id }) => {
    if (of !== hostId || !source.startsWith('docker:')) return [];
    const name = source.slice('docker:'.length);
    const container = running.find((each) => each.container.name === name && each.container.id !== owner.id)?.container;
    const shared = container?.attachments.find(({ networkId }) => own.has(networkId));
    return shared === undefined ? [] : [{ network: shared.network, instance: id }];
  });
}

/** Ids of the networks in which Docker answers names. */
function usersNetworks(container: Container): string[] {
  return container.attachments
    .filter(({ network }) => network !== 'bridge' && network !== 'host' && network !== 'none')
    .map(({ networkId }) => networkId);
}
