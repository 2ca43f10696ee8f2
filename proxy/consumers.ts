import type { CounterCell } from '../src/base/metrics.ts';
import type { Link } from './link.ts';
import type { LinkConsumerDocument } from './link-document.ts';
import type { Asked } from './permission.ts';

/** The connections of one consumer over one link; plain numbers that the relay adds to. */
export interface ConsumerTraffic {
  readonly link: Link;
  readonly name: string;
  active: number;
  total: number;
  /** The metric of the service and this consumer, over all links. */
  readonly cell: CounterCell;
}

/** What a connection is known by to policy, and counted under; one for all connections of which both are the same. */
export interface Carried extends Asked {
  readonly counted: ConsumerTraffic;
}

/** Who uses a link, by name; bounded. */
export class Consumers {
  /** Consumers that are told apart; all further ones together are `other`. */
  static readonly maxNames = 256;
  readonly #link: Link;
  readonly #cellOf: (consumer: string) => CounterCell;
  readonly #byName = new Map<string, ConsumerTraffic>();
  readonly #carried = new Map<string, Carried>();

  constructor(link: Link, cellOf: (consumer: string) => CounterCell) {
    this.#link = link;
    this.#cellOf = cellOf;
  }

  of(consumer: string): ConsumerTraffic {
    const known = this.#byName.get(consumer);
    if (known !== undefined) return known;
    // `_` is in no name of a service, so that none is taken for all the others.
    const name = this.#byName.size < Consumers.maxNames ? consumer : '_other';
    const traffic = this.#byName.get(name) ?? { link: this.#link, name, active: 0, total: 0, cell: this.#cellOf(name) };
    this.#byName.set(name, traffic);
    return traffic;
  }

  carried(asked: Asked): Carried {
    const key = asked.declared ? `+${asked.consumer}` : asked.consumer;
    let carried = this.#carried.get(key);
    if (carried === undefined) {
      carried = { ...asked, counted: this.of(asked.consumer) };
      if (this.#carried.size < 2 * Consumers.maxNames) this.#carried.set(key, carried);
    }
    return carried;
  }

  /** Those with the most connections first. */
  documents(): LinkConsumerDocument[] {
    return [...this.#byName.values()]
      .map(({ name, active, total }) => ({ name, active, total }))
      .sort((a, b) => b.total - a.total || (a.name < b.name ? -1 : 1));
  }
}
