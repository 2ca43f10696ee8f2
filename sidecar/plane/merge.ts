import type { LinkBackendDocument, LinkConsumerDocument, LinkDocument } from '../../proxy/link-document.ts';
import type { TunnelDocument } from '../../proxy/tunnel/tunnel-document.ts';

/** What several workers say of the same links as one list; traffic is added up. */
export function mergeLinks(lists: readonly (readonly LinkDocument[])[]): readonly LinkDocument[] {
  return mergedBy(lists, ({ service, kind, address }) => `${service} ${kind} ${address}`, mergedLink);
}

/**
 * Adds the connections that workers of the sidecar before still carry, by what they say of their links; those of links
 * that are no more are left out. They may be of another version: what is not as expected counts as nothing.
 */
export function withFormer(links: readonly LinkDocument[], former: readonly unknown[]): readonly LinkDocument[] {
  const lists = former.flatMap(listOf);
  if (lists.length === 0) return links;
  return links.map((link) =>
    lists
      .filter((each) =>
        (['service', 'kind', 'address'] as const).every((field) => fieldOf(each, field) === link[field]),
      )
      .reduce<LinkDocument>(withFormerLink, link),
  );
}

function withFormerLink(link: LinkDocument, former: unknown): LinkDocument {
  const { active, held } = link.connections;
  const more = fieldOf(former, 'connections');
  const running = countOf(fieldOf(more, 'active'));
  const total = link.connections.total + running;
  const connections = {
    ...link.connections,
    active: active + running,
    total,
    held: held + countOf(fieldOf(more, 'held')),
  };
  const consumers = new Map(link.consumers.map((consumer) => [consumer.name, consumer]));
  for (const consumer of listOf(fieldOf(former, 'consumers'))) {
    const [name, count] = [fieldOf(consumer, 'name'), countOf(fieldOf(consumer, 'active'))];
    if (typeof name !== 'string' || count === 0) continue;
    consumers.set(
      name,
      mergedConsumer(consumers.get(name) ?? { name, active: 0, total: 0 }, { name, active: count, total: count }),
    );
  }
  const backends = link.backends.map((backend) => {
    const its = listOf(fieldOf(former, 'backends')).find((each) => fieldOf(each, 'id') === backend.id);
    const count = countOf(fieldOf(its, 'active'));
    return { ...backend, active: backend.active + count, total: backend.total + count };
  });
  return { ...link, connections, consumers: [...consumers.values()], backends };
}

function listOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

function fieldOf(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null ? Reflect.get(value, name) : undefined;
}

/** A number of things, 0 for what is none. */
export function countOf(value: unknown): number {
  return Number.isSafeInteger(value) ? Math.max(0, Number(value)) : 0;
}

/** What several workers say of their tunnels as one for each host. */
export function mergeTunnels(lists: readonly (readonly TunnelDocument[])[]): readonly TunnelDocument[] {
  return mergedBy(lists, ({ hostId }) => hostId, mergedTunnel);
}

/** In the order in which they come first. */
function mergedBy<T>(
  lists: readonly (readonly T[])[],
  keyOf: (item: T) => string,
  merge: (a: T, b: T) => T,
): readonly T[] {
  const [first = []] = lists;
  if (lists.length <= 1) return first;
  const merged = new Map<string, T>();
  for (const item of lists.flat()) {
    const key = keyOf(item);
    const known = merged.get(key);
    merged.set(key, known === undefined ? item : merge(known, item));
  }
  return [...merged.values()];
}

const linkStates = ['open', 'holding', 'refusing', 'down'] as const;

function mergedLink(a: LinkDocument, b: LinkDocument): LinkDocument {
  return {
    ...a,
    ...b,
    state: best(linkStates, a.state, b.state),
    problem: a.problem ?? b.problem,
    connections: sum(a.connections, b.connections),
    bytes: sum(a.bytes, b.bytes),
    rates: sum(a.rates, b.rates),
    consumers: [...mergedBy<LinkConsumerDocument>([a.consumers, b.consumers], ({ name }) => name, mergedConsumer)].sort(
      (one, other) => other.total - one.total || (one.name < other.name ? -1 : 1),
    ),
    backends: mergedBy<LinkBackendDocument>([a.backends, b.backends], ({ id }) => id, mergedBackend),
    lastError: (a.lastError?.at ?? '') > (b.lastError?.at ?? '') ? a.lastError : b.lastError,
    denied: {
      total: a.denied.total + b.denied.total,
      last: (a.denied.last?.at ?? '') > (b.denied.last?.at ?? '') ? a.denied.last : b.denied.last,
    },
  };
}

function mergedConsumer(a: LinkConsumerDocument, b: LinkConsumerDocument): LinkConsumerDocument {
  return { ...a, active: a.active + b.active, total: a.total + b.total };
}

function mergedBackend(a: LinkBackendDocument, b: LinkBackendDocument): LinkBackendDocument {
  // Each worker ejects for itself: what one of them leaves out is shown, and until when at the latest.
  const { ejectedUntil, ejectedFor } = (a.ejectedUntil ?? '') > (b.ejectedUntil ?? '') ? a : b;
  return {
    ...a,
    ...b,
    active: a.active + b.active,
    total: a.total + b.total,
    ejectedUntil,
    ejectedFor,
    ejections: Math.max(a.ejections, b.ejections),
    suspect: a.suspect || b.suspect,
  };
}

const tunnelStates = ['ready', 'suspect', 'connecting', 'idle'] as const;

function mergedTunnel(a: TunnelDocument, b: TunnelDocument): TunnelDocument {
  const state = best(tunnelStates, a.state, b.state);
  const shown = a.state === state ? a : b;
  const times = [a.roundTripMs, b.roundTripMs].filter((each) => each !== null);
  return {
    ...a,
    ...shown,
    connections: sum(a.connections, b.connections),
    streams: sum(a.streams, b.streams),
    bytes: sum(a.bytes, b.bytes),
    roundTripMs: times.length === 0 ? null : Math.min(...times),
    peerCertificateUntil: a.peerCertificateUntil ?? b.peerCertificateUntil,
  };
}

function best<S extends string>(order: readonly S[], a: S, b: S): S {
  return order.indexOf(a) <= order.indexOf(b) ? a : b;
}

function sum<F extends object>(a: F, b: F): F {
  const fields = Object.keys({ ...a, ...b }).map((field) => {
    const [one, other] = [Reflect.get(a, field), Reflect.get(b, field)].map((each) => Number(each ?? 0));
    return [field, (one ?? 0) + (other ?? 0)] as const;
  });
  return Object.fromEntries(fields) as F;
}
