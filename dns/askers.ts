import type { Observable } from '../src/base/feed.ts';
import type { Ipv4Range } from '../src/model/address.ts';
import { type CallerTable, identityAt } from '../src/model/caller.ts';
import { type Asker, askerOf, type Topology } from '../src/model/topology.ts';
import { AliasSet } from './alias-set.ts';

/** Addresses whose entry is remembered. */
const maxKnownAskers = 4096;
/** Classes of single askers begin here, far behind the host's bridges. */
const firstOwnClass = 1_000_000;

/** How the questions of one address are to be answered. */
export interface AskerEntry {
  readonly asker: Asker;
  /** Askers of one class get the same answers: 0 the host, 1 elsewhere, from 2 on the bridges. */
  readonly class: number;
  /** The aliases that only this asker has; undefined for most. */
  readonly aliases: AliasSet | undefined;
  /** An address of a container bridge that nobody is known to have yet: it may turn out to have aliases. */
  readonly isUnknown: boolean;
}

export interface AskersOptions {
  readonly topology: Observable<Topology>;
  readonly callers: Observable<CallerTable>;
  readonly vipRange: Ipv4Range;
}

/** Who asks, by address. A caller that comes or goes costs its own entry, and nobody's encoded answers. */
export class Askers {
  readonly #options: AskersOptions;
  readonly #entries = new Map<string, AskerEntry>();
  #table: CallerTable;
  #topology: Topology;
  #nextClass = firstOwnClass;

  constructor(options: AskersOptions) {
    this.#options = options;
    this.#table = options.callers.value;
    this.#topology = options.topology.value;
  }

  /** The entry of an address, IPv4 in its own form. */
  of(address: string): AskerEntry {
    const { callers, topology } = this.#options;
    if (callers.value !== this.#table || topology.value !== this.#topology) this.#renew();
    return this.#entries.get(address) ?? this.#classify(address);
  }

  /** Forgets the addresses that have another caller now. */
  #renew(): void {
    const { callers, topology } = this.#options;
    const table = callers.value;
    if (topology.value !== this.#topology || table.off !== this.#table.off) this.#entries.clear();
    else for (const { key } of table.bound.changesSince(this.#table.bound)) this.#entries.delete(key);
    this.#table = table;
    this.#topology = topology.value;
  }

  #classify(address: string): AskerEntry {
    const topology = this.#topology;
    const { vipRange } = this.#options;
    const asker = askerOf(topology, address, vipRange);
    const askerClass =
      asker.kind === 'host' ? 0 : asker.kind === 'elsewhere' ? 1 : 2 + topology.bridges.indexOf(asker.bridge);
    const identity = identityAt(this.#table, topology, address, vipRange);
    const links = identity?.kind === 'container' ? identity.caller.links : [];
    const aliases = links.length === 0 ? undefined : new AliasSet(links, this.#nextClass++);
    const entry: AskerEntry = { asker, class: askerClass, aliases, isUnknown: identity === undefined };
    if (this.#entries.size >= maxKnownAskers) this.#entries.clear();
    this.#entries.set(address, entry);
    return entry;
  }
}
