import type { CounterCell } from '../src/base/metrics.ts';
import type { DeclaredLink } from '../src/model/link.ts';
import type { Link } from './link.ts';
import type { LinkConsumerDocument } from './link-document.ts';
import type { Asked, DenialDocument } from './permission.ts';
import type { Account } from './tcp/carried.ts';

/** The connections of one consumer over one link; plain numbers that the relay adds to. */
export interface ConsumerTraffic {
  readonly link: Link;
  readonly name: string;
  active: number;
  total: number;
  /** The metric of the service and this consumer, over all links. */
  readonly cell: CounterCell;
}

/** What is asked by those who come over a link, with all links that they declare. */
export interface LinkAsked extends Asked {
  readonly links?: readonly DeclaredLink[];
}

/** The account of connections over a link. */
export class LinkAccount implements Account {
  readonly consumer: string;
  readonly service: string;
  readonly declared: boolean;
  readonly peer = undefined;
  readonly #links: readonly DeclaredLink[];
  readonly #counted: ConsumerTraffic;

  constructor({ consumer, service, declared, links = [] }: LinkAsked, counted: ConsumerTraffic) {
    this.consumer = consumer;
    this.service = service;
    this.declared = declared;
    this.#links = links;
    this.#counted = counted;
  }

  get link(): Link {
    return this.#counted.link;
  }

  declares(service: string): boolean {
    return this.#links.some((link) => link.service === service);
  }

  /** Whether it stands for those who declare these links. */
  has(links: readonly DeclaredLink[] = []): boolean {
    if (links === this.#links) return true;
    return links.length === this.#links.length && links.every(({ service }) => this.declares(service));
  }

  begin(): void {
    const { link, cell } = this.#counted;
    link.traffic.active += 1;
    link.target.active += 1;
    this.#counted.active += 1;
    this.#counted.total += 1;
    cell.value += 1;
  }

  end(): void {
    const { link } = this.#counted;
    this.#counted.active -= 1;
    link.traffic.active -= 1;
    link.target.active -= 1;
  }

  denied(denial: DenialDocument): void {
    this.#counted.link.denied(denial);
  }
}

/** Who uses a link, by name; bounded. */
export class Consumers {
  /** Consumers that are told apart; all further ones together are `other`. */
  static readonly maxNames = 256;
  readonly #link: Link;
  readonly #cellOf: (consumer: string) => CounterCell;
  readonly #byName = new Map<string, ConsumerTraffic>();
  readonly #accounts = new Map<string, LinkAccount>();

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

  account(asked: LinkAsked): LinkAccount {
    const key = asked.declared ? `+${asked.consumer}` : asked.consumer;
    let account = this.#accounts.get(key);
    if (account?.has(asked.links) !== true) {
      account = new LinkAccount(asked, this.of(asked.consumer));
      if (this.#accounts.size < 2 * Consumers.maxNames) this.#accounts.set(key, account);
    }
    return account;
  }

  /** Those with the most connections first. */
  documents(): LinkConsumerDocument[] {
    return [...this.#byName.values()]
      .map(({ name, active, total }) => ({ name, active, total }))
      .sort((a, b) => b.total - a.total || (a.name < b.name ? -1 : 1));
  }
}
