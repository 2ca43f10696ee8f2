import type { Service, Snapshot } from '../../src/catalog/snapshot.ts';
import { formatEndpoint } from '../../src/model/address.ts';
import { transportOf } from '../../src/model/instance.ts';
import type { Declaration } from '../declared-links.ts';
import type { DeclaredLinkDocument, LinkDocument } from './documents.ts';

export interface DeclaredSurroundings {
  readonly snapshot: Snapshot;
  /** This host's links, as they are shown. */
  readonly links: readonly LinkDocument[];
  readonly vip: { readonly on: boolean; readonly reason: string | null };
}

type Outcome = Pick<DeclaredLinkDocument, 'address' | 'state' | 'problem'>;

/** What containers declare, each with what it leads to now. Pure. */
export function declaredDocuments(
  declarations: readonly Declaration[],
  surroundings: DeclaredSurroundings,
): DeclaredLinkDocument[] {
  const byAddress = new Map(surroundings.links.map((link) => [link.address, link]));
  return declarations.map((declaration) => {
    const { caller, link, waitingSinceMs } = declaration;
    const outcome = outcomeOf(declaration, surroundings, byAddress);
    return {
      container: caller.container,
      consumer: caller.consumer ?? null,
      alias: link.alias,
      service: link.service,
      ...outcome,
      since: outcome.state === 'waiting' ? new Date(waitingSinceMs).toISOString() : null,
    };
  });
}

function outcomeOf(
  { link, beatenBy, unknown }: Declaration,
  { snapshot, links, vip }: DeclaredSurroundings,
  byAddress: ReadonlyMap<string, LinkDocument>,
): Outcome {
  if (unknown !== undefined) return down(unknown);
  if (beatenBy !== undefined) {
    const { alias, service, port } = beatenBy;
    const meant = port === undefined ? service : `${service}@${port}`;
    return down(`another container that shares its network means ${meant} by ${alias}`);
  }
  const service = snapshot.services.get(link.service);
  if (service === undefined) return { address: null, state: 'waiting', problem: null };
  const port = link.port ?? service.port;
  const isTcp = transportOf(service.protocol) === 'tcp';
  const address = vip.on && isTcp && service.vip !== undefined ? formatEndpoint({ address: service.vip, port }) : null;
  if (service.instances.length === 0) return { address, state: 'waiting', problem: null };
  if (address !== null) {
    const linked = byAddress.get(address);
    if (linked === undefined) return down(`${address} is not open: legate status says why`);
    return { address, state: stateOf(linked), problem: linked.problem };
  }
  if (port !== service.port) return down(whyNotAt(port, service, isTcp, vip));
  return withoutVip(service, links);
}

/** Those who connect to a service that holds them wait, as the container does. */
function stateOf({ state }: LinkDocument): Outcome['state'] {
  return state === 'holding' ? 'waiting' : state;
}

/** Where the name leads without a virtual address: to this host's listener, else to the instances. */
function withoutVip(service: Service, links: readonly LinkDocument[]): Outcome {
  const listener = links.find((link) => link.kind === 'listen' && link.service === service.name);
  if (listener !== undefined) {
    return { address: listener.address, state: stateOf(listener), problem: listener.problem };
  }
  const [instance] = service.usable;
  if (instance === undefined) return { address: null, state: 'refusing', problem: null };
  const { address, port } = instance;
  return { address: formatEndpoint({ address, port }), state: 'open', problem: null };
}

function whyNotAt(port: number, service: Service, isTcp: boolean, vip: DeclaredSurroundings['vip']): string {
  const own = `use ${service.name} at its own port ${service.port}`;
  if (!isTcp) return `port ${port} would need a virtual address, which UDP services do not have: ${own}`;
  if (vip.on) return `port ${port} needs a virtual address, which ${service.name} does not have yet`;
  return `port ${port} needs a virtual address, and there are none (${vip.reason ?? 'off'}): ${own}, or see legate status`;
}

function down(problem: string): Outcome {
  return { address: null, state: 'down', problem };
}
