import type { PortMapping } from './kernel/port-map.ts';
import type { Link } from './link.ts';

/**
 * What the kernel should map for these links of virtual addresses: those that listen and have somebody to connect to.
 * One mapping per address and port; where an address moved from one service to another, its present owner has it.
 */
export function mappingsOf(links: Iterable<Link>): PortMapping[] {
  const mappings = new Map<string, PortMapping>();
  for (const link of links) {
    const { predecessor } = link;
    if (predecessor !== undefined && link.listener.bound === undefined) addMapping(mappings, predecessor, false);
    addMapping(mappings, link, true);
  }
  return [...mappings.values()];
}

function addMapping(mappings: Map<string, PortMapping>, link: Link, replaces: boolean): void {
  const privatePort = link.listener.bound?.port;
  const port = link.mappedPort;
  // The kernel takes all mappings or none, and none to the very same port.
  if (privatePort === undefined || port === undefined || port === privatePort || !link.isOpen) return;
  const key = `${link.address} ${port}`;
  if (replaces || !mappings.has(key)) {
    mappings.set(key, { transport: 'tcp', address: link.address, port, privatePort });
  }
}
