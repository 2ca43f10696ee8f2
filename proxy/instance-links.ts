import { PersistentMap } from '../src/base/persistent-map.ts';
import type { InstanceAddress } from '../src/catalog/instance-addresses.ts';
import type { Link } from './link.ts';

export interface InstanceLinksOptions {
  /** A link to one instance at its address here; it does not listen yet. */
  readonly create: (id: string, at: InstanceAddress) => Link;
  /** It has left the map; it closes when the kernel knows. */
  readonly retire: (link: Link) => void;
}

/** The links to single instances of other hosts, at the addresses that this host hands out for them. */
export class InstanceLinks implements Iterable<Link> {
  readonly #options: InstanceLinksOptions;
  readonly #links = new Map<string, Link>();
  #table: PersistentMap<InstanceAddress> = PersistentMap.empty();

  constructor(options: InstanceLinksOptions) {
    this.#options = options;
  }

  [Symbol.iterator](): IterableIterator<Link> {
    return this.#links.values();
  }

  /** Brings them to the table. Gives the new ones. */
  update(table: PersistentMap<InstanceAddress>): Link[] {
    const before = this.#table;
    this.#table = table;
    const fresh: Link[] = [];
    for (const { key, after } of table.changesSince(before)) {
      const known = this.#links.get(key);
      if (known !== undefined) this.#options.retire(known);
      this.#links.delete(key);
      if (after === undefined) continue;
      const link = this.#options.create(key, after);
      this.#links.set(key, link);
      fresh.push(link);
    }
    return fresh;
  }
}
