import { nearest } from '../../src/base/text.ts';
import type { Snapshot } from '../../src/catalog/snapshot.ts';
import { formatEndpoint } from '../../src/model/address.ts';
import type { CallerTable } from '../../src/model/caller.ts';
import type { DeclaredLink, LinkListener } from '../../src/model/link.ts';
import { type Container, shortId } from '../docker/container.ts';
import type { Consumer } from '../docker/desired.ts';
import type { DockerNetwork } from '../docker/network.ts';
import { sharedNetworkOf } from '../docker/place.ts';
import type { ConsumerFacts, ContainerFacts, NetworkFacts } from './facts.ts';

/** `--net container:x` of a container that does so itself, at most this deep. */
const maxSharingDepth = 4;

/** A running container with who it is when it calls. */
export interface Running {
  readonly container: Container;
  readonly consumer: Consumer;
}

export interface ConsumerSources {
  readonly running: readonly Running[];
  readonly networks: readonly DockerNetwork[];
  readonly callers: CallerTable;
  readonly snapshot: Snapshot;
  readonly configured: readonly LinkListener[];
  readonly hostId: string;
  readonly dockerProblem: string | undefined;
  readonly dockerOff: boolean;
}

export interface FoundConsumer {
  readonly facts: ConsumerFacts;
  /** The container that has the network, where it is one. */
  readonly owner: Container | undefined;
  /** What it declares. */
  readonly links: readonly DeclaredLink[];
}

/** Who is meant: a container by name or id, a consumer by its name, a service, or a listener that stands for one. */
export function findConsumer(name: string | undefined, sources: ConsumerSources): FoundConsumer {
  if (name === undefined || name === 'host') return plain({ kind: 'host' });
  const matches = containersCalled(name, sources.running);
  if (matches.length > 0) return ofContainer(matches, sources);
  const listeners = sources.configured.filter(({ consumer }) => consumer === name);
  const listens = listeners.map(({ service, listen }) => ({ service, at: formatEndpoint(listen) }));
  if (listens.length > 0) return plain({ kind: 'listener', name, listens });
  const { snapshot, hostId, running, dockerProblem, dockerOff } = sources;
  const instances = snapshot.services.get(name)?.instances ?? [];
  if (instances.some((instance) => instance.hostId === hostId)) return plain({ kind: 'process', name });
  const hosts = [...new Set(instances.map(({ host }) => host))];
  if (hosts.length > 0) return plain({ kind: 'elsewhere', name, hosts });
  const known = running.flatMap(({ container, consumer }) => [container.name, consumer.name ?? container.name]);
  const near = nearest(name, [...known, ...snapshot.services.keys()]);
  return plain({ kind: 'unknown', name, near, dockerProblem, dockerOff });
}

function plain(facts: ConsumerFacts): FoundConsumer {
  return { facts, owner: undefined, links: [] };
}

function containersCalled(name: string, running: readonly Running[]): readonly Running[] {
  const wanted = name.toLowerCase();
  const sorted = [...running].sort((a, b) => (a.container.name < b.container.name ? -1 : 1));
  const named = sorted.filter(({ container }) => container.name === name);
  if (named.length > 0) return named;
  const isId = /^[0-9a-f]{12,64}$/.test(wanted);
  const byId = isId ? sorted.filter(({ container }) => container.id.startsWith(wanted)) : [];
  return byId.length > 0 ? byId : sorted.filter(({ consumer }) => consumer.name === wanted);
}

function ofContainer(matches: readonly Running[], sources: ConsumerSources): FoundConsumer {
  const { running, callers } = sources;
  // Of several the first that is known when it calls speaks for all.
  const all = matches.map((each) => ({ ...each, owner: ownerOf(each.container, running) }));
  const isBound = (owner: Container | undefined): boolean =>
    owner?.attachments.some(({ ipv4 }) => ipv4 !== undefined && callers.bound.has(ipv4)) === true;
  const chosen = all.find(({ owner }) => isBound(owner)) ?? all[0];
  if (chosen === undefined) throw new Error('no container to choose from');
  const { container, consumer, owner } = chosen;
  const networks = (owner?.attachments ?? []).map((attachment) => networkFacts(attachment, sources.networks));
  const reachable = networks.filter(({ address, interface: name }) => address !== undefined && name !== undefined);
  const best =
    reachable.find(({ address, hasGateway }) => hasGateway && callers.bound.has(address ?? '')) ??
    reachable.find(({ hasGateway }) => hasGateway) ??
    reachable[0];
  const address = best?.address;
  const caller = address === undefined ? undefined : callers.bound.get(address);
  const facts: ContainerFacts = {
    kind: 'container',
    container: container.name,
    shortId: shortId(owner?.id ?? container.id),
    others: matches.filter((each) => each.container !== container).map((each) => each.container.name),
    identity: caller === undefined ? consumer.name : caller.consumer,
    inHostNetwork: owner?.networkMode === 'host',
    networks,
    address,
    bound: caller !== undefined,
    callersOff: callers.off,
  };
  return { facts, owner, links: caller?.links ?? consumer.links };
}

/** The container whose network it has: itself for most. */
function ownerOf(container: Container, running: readonly Running[]): Container | undefined {
  let owner: Container | undefined = container;
  for (let depth = 0; depth < maxSharingDepth && owner !== undefined; depth += 1) {
    const shared = sharedNetworkOf(owner);
    if (shared === undefined) return owner;
    owner = running.find((each) => each.container.id === shared || each.container.name === shared)?.container;
  }
  return undefined;
}

function networkFacts(attachment: Container['attachments'][number], known: readonly DockerNetwork[]): NetworkFacts {
  const { network: name, networkId: id, ipv4: address, gateway } = attachment;
  const network = known.find((each) => each.id === id);
  const isBridge = network?.driver === 'bridge';
  return {
    id,
    name,
    address,
    interface: isBridge && network.hostReachable ? network.interface : undefined,
    internal: network?.internal === true,
    hasGateway: gateway !== undefined,
    isUsers: name !== 'bridge' && name !== 'host' && name !== 'none',
  };
}
