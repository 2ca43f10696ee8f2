import type { PersistentMap } from '../base/persistent-map.ts';

/**
 * Which services have an instance at an address, for PTR, and what of that changed. Nearly every address belongs to one
 * instance of one service and then costs no more than that name.
 */
export class AddressIndex {
  /** A service's name stands for one instance of it; several are counted by service. */
  readonly #services = new Map<string, string | Map<string, number>>();
  readonly #dirty = new Set<string>();

  /** Addresses whose services changed since `changes` was asked last. */
  get dirty(): number {
    return this.#dirty.size;
  }

  add(address: string, service: string): void {
    const known = this.#services.get(address);
    if (known === undefined) this.#services.set(address, service);
    else {
      const counts = typeof known === 'string' ? new Map([[known, 1]]) : known;
      const count = counts.get(service) ?? 0;
      counts.set(service, count + 1);
      if (known !== counts) this.#services.set(address, counts);
      if (count > 0) return;
    }
    this.#dirty.add(address);
  }

  remove(address: string, service: string): void {
    const known = this.#services.get(address);
    if (known === service) this.#services.delete(address);
    else {
      if (known === undefined || typeof known === 'string') return;
      const count = known.get(service) ?? 0;
      if (count > 1) {
        known.set(service, count - 1);
        return;
      }
      known.delete(service);
      if (known.size === 0) this.#services.delete(address);
    }
    this.#dirty.add(address);
  }

  /** What differs from `before`, once: the names in order, frozen, and the same list where they are the same. */
  changes(before: PersistentMap<readonly string[]>): {
    readonly puts: readonly (readonly [string, readonly string[]])[];
    readonly deletes: readonly string[];
  } {
    const puts: [string, readonly string[]][] = [];
    const deletes: string[] = [];
    /** One list for all addresses of one service. */
    const single = new Map<string, readonly string[]>();
    for (const address of this.#dirty) {
      const known = this.#services.get(address);
      if (known === undefined) deletes.push(address);
      else if (typeof known === 'string') {
        const names = single.get(known) ?? sortedNames([known], before.get(address));
        single.set(known, names);
        puts.push([address, names]);
      } else puts.push([address, sortedNames(known.keys(), before.get(address))]);
    }
    this.#dirty.clear();
    return { puts, deletes };
  }
}

function sortedNames(names: Iterable<string>, before: readonly string[] | undefined): readonly string[] {
  const sorted = [...names].sort();
  const same = before?.length === sorted.length && before.every((name, index) => name === sorted[index]);
  return same && before !== undefined ? before : Object.freeze(sorted);
}
