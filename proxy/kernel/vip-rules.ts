import type { Endpoint, Ipv4Range } from '../../src/model/address.ts';
import { numberToIpv4 } from '../../src/model/address.ts';
import type { PortMapping, Slot } from './port-map.ts';

/**
 * What the kernel is to hold: private ports by `tcp 240.77.0.5 5432`, or `tcp_0 240.77.0.5 5432` for those of a slot,
 * interfaces of clients, guarded endpoints.
 */
export interface TableContent {
  readonly ports: ReadonlyMap<string, number>;
  readonly clients: ReadonlySet<string>;
  readonly guarded: ReadonlySet<string>;
}

export interface Counters {
  readonly seen: number;
  readonly arrived: number;
}

/** What is read back from the kernel: the table's shape without contents and figures, its contents, its counters. */
export interface Listing {
  readonly shape: string;
  readonly content: TableContent;
  readonly counters: Counters;
}

const defaultRange = '240.77.0.0/16';

/**
 * The bit of a packet's mark that the bridge table sets on what new callers begin a connection with. What they may reach
 * is not yet in the map then, so that they are not refused but left to try again, which TCP does after a second.
 */
export const newcomerMark = '0x40000000';

/** `legate` for the default range; others are named after theirs, so that two sidecars of one host can live together. */
export function tableName(range: Ipv4Range): string {
  if (range.text === defaultRange) return 'legate';
  return `legate_${numberToIpv4(range.base).replaceAll('.', '_')}_${range.prefixLength}`;
}

export function portKey(transport: 'tcp' | 'udp', address: string, port: number, slot?: Slot): string {
  return `${transport}${slot === undefined ? '' : `_${slot}`} ${address} ${port}`;
}

export function guardKey({ address, port }: Endpoint): string {
  return `${address} . ${port}`;
}

/** Names that the kernel allows and nft would read otherwise (quotes, `*` as a wildcard) are not taken. */
export function isInterfaceName(name: string): boolean {
  return /^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,14}$/.test(name);
}

function mapKey(key: string): { map: string; address: string; element: string } {
  const [map = '', address = '', port = ''] = key.split(' ');
  return { map: map.includes('_') ? map : `${map}_vip`, address, element: `${address} . ${port}` };
}

/** Ranges as nft compares an address with them. */
export function rangesText(ranges: readonly Ipv4Range[]): string {
  const texts = ranges.map(({ text }) => text);
  return texts.length === 1 ? texts.join() : `{ ${texts.join(', ')} }`;
}

function elements(list: readonly string[]): string {
  return list.length === 0 ? '' : `elements = { ${list.join(', ')} };`;
}

/**
 * The whole table as one transaction, in place of the one that is there, if any: no packet ever sees half of it.
 *
 * Address translation comes before Docker's own (-100), whose LOCAL rules would otherwise take a virtual address's port
 * for any published one; the last rule of `vip` keeps them off all other ports. `guard` comes before connection
 * tracking: neither virtual addresses nor guarded endpoints are reached from elsewhere than the host and the bridges of
 * containers. The counters stand before and after the place of the host's own firewall (0).
 *
 * Where there are slots, new connections enter their chains in turn; each chain looks into its own slot's map and then into
 * the others', so that one without the port is passed over. Connection tracking keeps a connection where it began.
 */
export function buildScript(table: string, ranges: readonly Ipv4Range[], content: TableContent, slots = 0): string {
  const all = rangesText(ranges);
  const slotMaps = slots === 0 ? [] : [...Array.from({ length: slots }, (_, slot) => `tcp_${slot}`), 'tcp_former'];
  const lists = new Map<string, string[]>(['tcp_vip', 'udp_vip', ...slotMaps].map((map) => [map, []]));
  for (const [key, privatePort] of content.ports) {
    const { map, address, element } = mapKey(key);
    lists.get(map)?.push(`${element} : ${address} . ${privatePort}`);
  }
  const mapType = 'type ipv4_addr . inet_service : ipv4_addr . inet_service;';
  const newDelivered = `ip daddr ${all} ct status dnat ct state new iifname != "lo" counter name`;
  return `add table ip ${table}
delete table ip ${table}
table ip ${table} {
  counter seen { }
  counter arrived { }
${[...lists].map(([map, list]) => `  map ${map} { ${mapType} ${elements(list)} }\n`).join('')}  set clients { type ifname; ${elements([...content.clients].map((name) => `"${name}"`))} }
  set guarded { type ipv4_addr . inet_service; ${elements([...content.guarded])} }
  chain guard {
    type filter hook prerouting priority -300;
    ip daddr ${all} iifname != @clients drop
    ip saddr ${all} iifname != "lo" drop
    ip daddr . udp dport @guarded iifname != @clients drop
    ip daddr . tcp dport @guarded iifname != @clients drop
  }
${slotChains(slots)}  chain vip {
${spread(slots)}    dnat ip to ip daddr . tcp dport map @tcp_vip
    dnat ip to ip daddr . udp dport map @udp_vip
    dnat ip to ip daddr
  }
  chain pre {
    type nat hook prerouting priority -110;
    ip daddr ${all} jump vip
  }
  chain out {
    type nat hook output priority -110;
    ip daddr ${all} jump vip
  }
  chain entrance {
    type filter hook input priority -1;
    ${newDelivered} seen
    ip daddr ${all} ct status dnat accept
    ip daddr ${all} icmp type echo-request accept
    ip daddr ${all} ct state new meta mark & ${newcomerMark} == ${newcomerMark} drop
    ip daddr ${all} ct state new meta l4proto tcp reject with tcp reset
    ip daddr ${all} ct state new reject
  }
  chain inside {
    type filter hook input priority 50;
    ${newDelivered} arrived
  }
}
`;
}

/** For each slot a chain that tries all of them, beginning with it, and what was there before. */
function slotChains(slots: number): string {
  const order = Array.from({ length: slots }, (_, slot) => slot);
  return order
    .map((slot) => {
      const maps = [...order.slice(slot), ...order.slice(0, slot), 'former'];
      const rules = maps.map((map) => `    dnat ip to ip daddr . tcp dport map @tcp_${map}\n`).join('');
      return `  chain slot_${slot} {\n${rules}  }\n`;
    })
    .join('');
}

function spread(slots: number): string {
  if (slots === 0) return '';
  if (slots === 1) return '    meta l4proto tcp jump slot_0\n';
  const verdicts = Array.from({ length: slots }, (_, slot) => `${slot} : jump slot_${slot}`);
  return `    meta l4proto tcp numgen inc mod ${slots} vmap { ${verdicts.join(', ')} }\n`;
}

/** What leads from the content `before` to `after` at these port keys, and all clients and guarded endpoints. */
export interface Delta {
  /** Commands, to be run as one transaction; empty when nothing differs. */
  readonly commands: readonly string[];
  /** How many elements change. */
  readonly size: number;
  /** Where UDP flows that run must not lead any more, for they would go on to. */
  readonly staleUdp: readonly { readonly address: string; readonly port: string; readonly privatePort: number }[];
}

/** So many elements that leave a map are worth a look whether it is empty then. */
const flushFrom = 64;

function hasAny({ ports }: TableContent, wanted: string): boolean {
  for (const key of ports.keys()) if (mapKey(key).map === wanted) return true;
  return false;
}

export function deltaCommands(
  table: string,
  before: TableContent,
  after: TableContent,
  portKeys: Iterable<string>,
): Delta {
  const deletes = new Map<string, string[]>();
  const adds = new Map<string, string[]>();
  const staleUdp: { address: string; port: string; privatePort: number }[] = [];
  let size = 0;
  const note = (lists: Map<string, string[]>, set: string, element: string): void => {
    const list = lists.get(set);
    if (list === undefined) lists.set(set, [element]);
    else list.push(element);
    size += 1;
  };
  for (const key of portKeys) {
    const [old, next] = [before.ports.get(key), after.ports.get(key)];
    if (old === next) continue;
    const { map, address, element } = mapKey(key);
    if (old !== undefined) {
      note(deletes, map, element);
    }
    if (next !== undefined) note(adds, map, `${element} : ${address} . ${next}`);
    if (map === 'udp_vip') {
      const port = key.split(' ')[2] ?? '';
      // A flow from before the port was mapped goes to the port itself, for as long as the client goes on asking.
      staleUdp.push({ address, port, privatePort: old ?? Number(port) });
    }
  }
  for (const name of before.clients) if (!after.clients.has(name)) note(deletes, 'clients', `"${name}"`);
  for (const name of after.clients) if (!before.clients.has(name)) note(adds, 'clients', `"${name}"`);
  for (const endpoint of before.guarded) if (!after.guarded.has(endpoint)) note(deletes, 'guarded', endpoint);
  for (const endpoint of after.guarded) if (!before.guarded.has(endpoint)) note(adds, 'guarded', endpoint);
  for (const [set, list] of deletes) {
    // The map of a process that is gone is emptied at one stroke, however much it had.
    if (list.length < flushFrom || !/^tcp_/.test(set) || hasAny(after, set)) continue;
    deletes.set(set, []);
    size -= list.length;
  }
  const commands = [
    ...[...deletes].map(([set, list]) =>
      list.length === 0 ? `flush map ip ${table} ${set}` : `delete element ip ${table} ${set} { ${list.join(', ')} }`,
    ),
    ...[...adds].map(([set, list]) => `add element ip ${table} ${set} { ${list.join(', ')} }`),
  ];
  return { commands, size, staleUdp };
}

/** Reads what `nft list table ip <table>` prints (with `-t`, contents are left out and come back empty). */
export function parseListing(text: string): Listing {
  const ports = new Map<string, number>();
  for (const [, map = ''] of text.matchAll(/\n\tmap ((?:tcp|udp)_(?:vip|former|\d+)) \{/g)) {
    const elementPattern = /([\d.]+) \. (\d+) : [\d.]+ \. (\d+)/g;
    for (const [, address = '', port, privatePort] of block(text, `map ${map} {`).matchAll(elementPattern)) {
      ports.set(`${map.replace(/_vip$/, '')} ${address} ${port}`, Number(privatePort));
    }
  }
  const clients = new Set<string>();
  for (const [, name = ''] of elementsOf(block(text, 'set clients')).matchAll(/"([^"]+)"/g)) clients.add(name);
  const guarded = new Set<string>();
  for (const [element] of elementsOf(block(text, 'set guarded')).matchAll(/[\d.]+ \. \d+/g)) guarded.add(element);
  const count = (name: string): number => Number(/packets (\d+)/.exec(block(text, `counter ${name} {`))?.[1] ?? 0);
  return {
    shape: text.replace(/\n\s*elements = \{[^}]*\}/g, '').replace(/packets \d+ bytes \d+/g, ''),
    content: { ports, clients, guarded },
    counters: { seen: count('seen'), arrived: count('arrived') },
  };
}

/** From the declaration that begins with `head` to the empty line or the end after it. */
function block(text: string, head: string): string {
  const start = text.indexOf(`\n\t${head}`);
  if (start < 0) return '';
  const end = text.indexOf('\n\t}', start);
  return text.slice(start, end < 0 ? undefined : end);
}

function elementsOf(text: string): string {
  const start = text.indexOf('elements = {');
  return start < 0 ? '' : text.slice(start);
}

/** What processes of before are mapped to in a listing: one of them for each port. */
export function formerMappings({ ports }: TableContent): PortMapping[] {
  const found = new Map<string, PortMapping>();
  for (const [key, privatePort] of ports) {
    const [map = '', address = '', port = ''] = key.split(' ');
    if (map.startsWith('tcp_')) {
      found.set(`${address} ${port}`, { transport: 'tcp', address, port: Number(port), privatePort });
    }
  }
  return [...found.values()];
}

/** What a listing maps to the process that owned the table. */
export function plainMappings({ ports }: TableContent): PortMapping[] {
  const found: PortMapping[] = [];
  for (const [key, privatePort] of ports) {
    const [transport = '', address = '', port = ''] = key.split(' ');
    if (transport === 'tcp' || transport === 'udp') found.push({ transport, address, port: Number(port), privatePort });
  }
  return found;
}

export function sameContent(a: TableContent, b: TableContent): boolean {
  if (a.ports.size !== b.ports.size) return false;
  for (const [key, port] of a.ports) if (b.ports.get(key) !== port) return false;
  return sameSet(a.clients, b.clients) && sameSet(a.guarded, b.guarded);
}

function sameSet(a: ReadonlySet<string>, b: ReadonlySet<string>): boolean {
  if (a.size !== b.size) return false;
  for (const item of a) if (!b.has(item)) return false;
  return true;
}
