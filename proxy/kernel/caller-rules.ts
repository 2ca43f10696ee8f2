import type { Ipv4Range } from '../../src/model/address.ts';
import type { Binding, Contact } from './caller-filter.ts';
import { newcomerMark, rangesText } from './vip-rules.ts';

/** What the bridge table holds. */
interface CallerContent {
  /** Elements of the set of bindings, by address. */
  readonly bindings: Map<string, string>;
  /** Bound addresses whose segments are recorded. */
  readonly fresh: Set<string>;
  ranges: ReadonlySet<string>;
  endpoints: ReadonlySet<string>;
}

export interface CallerCounters {
  readonly spoofed: number;
  readonly unrecorded: number;
}

/** How many connections of addresses that are new or nobody's may be recorded at a time; further ones are dropped. */
export const maxContacts = 65_536;
/** How long the record of one outlives its last segment: longer than anybody waits for it. */
const contactSeconds = 6;

function elementOf({ address, interface: name, mac }: Binding): string {
  return `"${name}" . ${mac} . ${address}`;
}

/**
 * The bridge table as text: it sees frames with the container's own interface, which the ip table does not. It comes
 * before everything else on bridges. Segments of addresses that are nobody's, or that were bound a moment ago, are
 * recorded, all but resets, which a host also sends for connections that it knows nothing of; what cannot be recorded
 * does not pass, so that a connection without a record is one that cannot have come before its binding.
 * The first segment is marked, so that a port that waits for its caller to be known does not refuse it.
 * A frame with two VLAN tags is no IPv4 packet to these rules, while the host would take off tags of the number 0 and
 * accept it (IEEE 802.1Q, priority tags): none comes in from a container.
 */
function callerScript(table: string, ranges: readonly Ipv4Range[], content: CallerContent): string {
  const lines = (list: Iterable<string>): string => {
    const items = [...list];
    return items.length === 0 ? '' : `elements = { ${items.join(', ')} };`;
  };
  return `add table bridge ${table}
delete table bridge ${table}
table bridge ${table} {
  counter spoofed { }
  counter unrecorded { }
  set bound { type ipv4_addr; ${lines(content.bindings.keys())} }
  set fresh { type ipv4_addr; ${lines(content.fresh)} }
  set bindings { type ifname . ether_addr . ipv4_addr; ${lines(content.bindings.values())} }
  set ranges { type ipv4_addr; flags interval; auto-merge; ${lines(content.ranges)} }
  set endpoints { type ipv4_addr . inet_service; ${lines(content.endpoints)} }
  set contacts {
    type ifname . ether_addr . ipv4_addr . inet_service . ipv4_addr
    size ${maxContacts}
    flags dynamic,timeout
    timeout ${contactSeconds}s
  }
  chain record {
    tcp flags & rst == rst accept
    tcp flags & (syn | ack) == syn meta mark set meta mark | ${newcomerMark}
    update @contacts { iifname . ether saddr . ip saddr . tcp sport . ip daddr } accept
    counter name unrecorded drop
  }
  chain caller {
    iifname . ether saddr . ip saddr @bindings ip saddr != @fresh accept
    iifname . ether saddr . ip saddr != @bindings ip saddr @bound counter name spoofed drop
    ip saddr @ranges meta l4proto tcp goto record
  }
  chain entrance {
    type filter hook prerouting priority -300;
    iifname "veth*" meta protocol { vlan, 0x88a8 } counter name spoofed drop
    ip daddr ${rangesText(ranges)} goto caller
    ip daddr . udp dport @endpoints goto caller
    ip daddr . tcp dport @endpoints goto caller
  }
}
`;
}

/** What the bridge table should hold, what it holds, and the commands that lead from the one to the other. */
export class CallerRules {
  readonly #table: string;
  readonly #vips: readonly Ipv4Range[];
  readonly #bindings = new Map<string, string>();
  readonly #fresh = new Set<string>();
  #callerRanges: ReadonlySet<string> = new Set();
  #telling = true;
  #ranges: ReadonlySet<string> = new Set();
  #guarded: readonly string[] = [];
  #watched: readonly string[] = [];
  /** What the kernel has, and the addresses at which that may differ. */
  #applied: CallerContent = { bindings: new Map(), fresh: new Set(), ranges: new Set(), endpoints: new Set() };
  readonly #dirty = new Set<string>();

  /** `vips`: the ranges of virtual addresses, which may grow before `script` is asked again. */
  constructor(table: string, vips: readonly Ipv4Range[]) {
    this.#table = table;
    this.#vips = vips;
  }

  bind(puts: readonly Binding[], deletes: readonly string[]): void {
    for (const address of deletes) {
      this.#bindings.delete(address);
      this.#fresh.delete(address);
      this.#dirty.add(address);
    }
    for (const binding of puts) {
      const { address } = binding;
      const element = elementOf(binding);
      if (this.#bindings.get(address) === element && this.#applied.bindings.get(address) === element) continue;
      this.#bindings.set(address, element);
      this.#fresh.add(address);
      this.#dirty.add(address);
    }
  }

  settle(addresses: readonly string[]): void {
    for (const address of addresses) if (this.#fresh.delete(address)) this.#dirty.add(address);
  }

  setRanges(ranges: readonly string[]): void {
    this.#callerRanges = new Set(ranges);
    this.setTelling(this.#telling);
  }

  setTelling(on: boolean): void {
    this.#telling = on;
    this.#ranges = on ? this.#callerRanges : new Set();
  }

  setGuarded(elements: readonly string[]): void {
    this.#guarded = elements;
  }

  setWatched(elements: readonly string[]): void {
    this.#watched = elements;
  }

  /** The whole table as text; it counts as what the kernel has when `built` is called. */
  script(): { readonly text: string; readonly built: () => void } {
    const content: CallerContent = {
      bindings: new Map(this.#bindings),
      fresh: new Set(this.#fresh),
      ranges: this.#ranges,
      endpoints: new Set([...this.#guarded, ...this.#watched]),
    };
    this.#dirty.clear();
    return {
      text: callerScript(this.#table, this.#vips, content),
      built: () => {
        this.#applied = content;
      },
    };
  }

  /** Commands for what differs now, and how many elements they change; `done` is to be called when the kernel has run them. */
  delta(): { readonly commands: readonly string[]; readonly size: number; readonly done: () => void } {
    const before = this.#applied;
    const deletes = new Map<string, string[]>();
    const adds = new Map<string, string[]>();
    let size = 0;
    const note = (lists: Map<string, string[]>, set: string, element: string | undefined): void => {
      if (element === undefined) return;
      const list = lists.get(set);
      if (list === undefined) lists.set(set, [element]);
      else list.push(element);
      size += 1;
    };
    const change = (set: string, old: string | undefined, next: string | undefined): void => {
      if (old === next) return;
      note(deletes, set, old);
      note(adds, set, next);
    };
    const presence = (set: ReadonlySet<string>, element: string): string | undefined =>
      set.has(element) ? element : undefined;
    const changed = [...this.#dirty].map((address) => {
      const [old, next] = [before.bindings.get(address), this.#bindings.get(address)];
      const fresh = presence(this.#fresh, address);
      change('bindings', old, next);
      change('bound', old && address, next && address);
      change('fresh', presence(before.fresh, address), fresh);
      return [address, next, fresh] as const;
    });
    const endpoints = new Set([...this.#guarded, ...this.#watched]);
    for (const element of new Set([...before.endpoints, ...endpoints])) {
      change('endpoints', presence(before.endpoints, element), presence(endpoints, element));
    }
    const ranges = this.#ranges;
    const commands: string[] = [];
    if (ranges !== before.ranges && !sameSet(ranges, before.ranges)) {
      // Ranges that overlap are merged by the kernel, so that none can be taken out by itself.
      commands.push(`flush set bridge ${this.#table} ranges`);
      for (const range of ranges) note(adds, 'ranges', range);
    }
    this.#dirty.clear();
    for (const [verb, lists] of [
      ['delete', deletes],
      ['add', adds],
    ] as const) {
      for (const [set, list] of lists) {
        commands.push(`${verb} element bridge ${this.#table} ${set} { ${list.join(', ')} }`);
      }
    }
    return { commands, size, done: () => this.#done(changed, endpoints, ranges) };
  }

  get size(): number {
    return this.#applied.bindings.size;
  }

  /** Whether a full listing of the table shows what the kernel should have. */
  isAsApplied(text: string): boolean {
    const { bindings, fresh, endpoints, ranges } = this.#applied;
    const listed = (set: string, pattern: RegExp): Set<string> =>
      new Set([...elementsOf(text, set).matchAll(pattern)].map(([element]) => element));
    return (
      sameSet(listed('bindings', /"[^"]+" \. [0-9a-f:]{17} \. [\d.]+/g), new Set(bindings.values())) &&
      sameSet(listed('bound', /[\d.]+/g), new Set(bindings.keys())) &&
      sameSet(listed('fresh', /[\d.]+/g), fresh) &&
      sameSet(listed('endpoints', /[\d.]+ \. \d+/g), endpoints) &&
      (elementsOf(text, 'ranges') === '') === (ranges.size === 0)
    );
  }

  #done(
    changed: readonly (readonly [string, string | undefined, string | undefined])[],
    endpoints: ReadonlySet<string>,
    ranges: ReadonlySet<string>,
  ): void {
    const applied = this.#applied;
    for (const [address, binding, fresh] of changed) {
      if (binding === undefined) applied.bindings.delete(address);
      else applied.bindings.set(address, binding);
      if (fresh === undefined) applied.fresh.delete(address);
      else applied.fresh.add(address);
    }
    applied.endpoints = endpoints;
    applied.ranges = ranges;
  }
}

/** Reads the counters from a listing of the table, terse or not. */
export function callerCounters(text: string): CallerCounters {
  const count = (name: string): number =>
    Number(new RegExp(`counter ${name} \\{\\s*packets (\\d+)`).exec(text)?.[1] ?? 0);
  return { spoofed: count('spoofed'), unrecorded: count('unrecorded') };
}

/** Reads what `nft list set bridge <table> contacts` prints. */
export function parseContacts(text: string): Contact[] {
  const pattern = /"([^"]+)" \. ([0-9a-f:]{17}) \. ([\d.]+) \. (\d+) \. ([\d.]+)/g;
  return [...text.matchAll(pattern)].map(([, name = '', mac = '', address = '', port, destination = '']) => ({
    interface: name,
    mac,
    source: { address, port: Number(port) },
    destination,
  }));
}

function elementsOf(text: string, set: string): string {
  const start = text.indexOf(`\n\tset ${set} {`);
  const end = text.indexOf('\n\t}', start);
  return start < 0 ? '' : (/elements = \{([^}]*)\}/.exec(text.slice(start, end))?.[1] ?? '');
}

function sameSet(a: ReadonlySet<string>, b: ReadonlySet<string>): boolean {
  if (a.size !== b.size) return false;
  for (const item of a) if (!b.has(item)) return false;
  return true;
}
