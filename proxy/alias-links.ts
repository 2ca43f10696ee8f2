import type { Conditions } from '../src/base/conditions.ts';
import type { DeclaredPorts } from '../src/model/link.ts';
import type { Link } from './link.ts';

/** Where a service is reached: its virtual address, and the port that leads to it without any alias. */
export interface OwnPlace {
  readonly address: string;
  readonly port: number;
}

export interface AliasLinksOptions {
  readonly conditions: Conditions;
  /** A link at a further port of the service's virtual address; it does not listen yet. */
  readonly create: (service: string, address: string, port: number) => Link;
  /** It has left the map; it closes when the kernel knows. */
  readonly retire: (link: Link) => void;
}

/**
 * The further ports of virtual addresses at which single containers want a service (`legate.links=cache=redis@6379`): one
 * link for each service and port, however many containers want it. A port that is the service's own needs none.
 */
export class AliasLinks implements Iterable<Link> {
  /** Listeners at a time: each costs a descriptor, and who may label a container may ask for many. */
  static readonly maxLinks = 512;
  static readonly limitCondition = 'link.aliases';
  readonly #options: AliasLinksOptions;
  readonly #links = new Map<string, ReadonlyMap<number, Link>>();
  /** Services for which there was no room. */
  readonly #leftOut = new Map<string, OwnPlace>();
  #count = 0;

  constructor(options: AliasLinksOptions) {
    this.#options = options;
  }

  *[Symbol.iterator](): IterableIterator<Link> {
    for (const links of this.#links.values()) yield* links.values();
  }

  /** Brings one service's links in order; `place` is undefined while it has no virtual address. Gives the new ones. */
  update(name: string, place: OwnPlace | undefined, wanted: DeclaredPorts): Link[] {
    const before = this.#links.get(name);
    const ports = place === undefined ? undefined : wanted.get(name);
    if (before === undefined && ports === undefined) {
      this.#leftOut.delete(name);
      this.#tellLimit();
      return [];
    }
    const kept = new Map<number, Link>();
    for (const [port, link] of before ?? []) {
      if (link.address === place?.address && port !== place.port && ports?.includes(port)) kept.set(port, link);
      else {
        this.#count -= 1;
        this.#options.retire(link);
      }
    }
    const fresh = place === undefined ? [] : this.#create(name, place, ports ?? [], kept);
    if (kept.size === 0) this.#links.delete(name);
    else this.#links.set(name, kept);
    return [...fresh, ...this.#retry(name, wanted)];
  }

  #create(name: string, place: OwnPlace, ports: readonly number[], links: Map<number, Link>): Link[] {
    const missing = ports.filter((port) => port !== place.port && !links.has(port));
    const some = missing.slice(0, Math.max(0, AliasLinks.maxLinks - this.#count));
    if (some.length < missing.length) this.#leftOut.set(name, place);
    else this.#leftOut.delete(name);
    this.#tellLimit();
    return some.map((port) => {
      const link = this.#options.create(name, place.address, port);
      links.set(port, link);
      this.#count += 1;
      return link;
    });
  }

  /** Room may have become free for another service. */
  #retry(except: string, wanted: DeclaredPorts): Link[] {
    if (this.#count >= AliasLinks.maxLinks) return [];
    for (const [name, place] of this.#leftOut) if (name !== except) return this.update(name, place, wanted);
    return [];
  }

  #tellLimit(): void {
    const { conditions } = this.#options;
    const [name] = this.#leftOut.keys();
    if (name === undefined) {
      conditions.clear(AliasLinks.limitCondition);
      return;
    }
    const message = `containers want more than ${AliasLinks.maxLinks} ports of their own (legate.links=…@port), ${name}’s among them`;
    conditions.raise(AliasLinks.limitCondition, 'error', message, 'let containers use the ports that services have');
  }
}
