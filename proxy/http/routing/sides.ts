import type { Weights } from '../../../src/model/routes.ts';
import type { Backend } from '../../balance/backend.ts';
import { hashOfText, mixed } from '../../balance/hashing.ts';
import { cookieText, cookieValues } from './cookies.ts';

/** What a split asks of a service's instances. */
export interface Choosable {
  /** Changes whenever others are to be chosen from. */
  readonly arrangement: number;
  /** The best ones to try of those that `takes` says, as far as they can be tried now. */
  bestOf(takes: (backend: Backend) => boolean): readonly Backend[];
  /** The nearest of them. */
  nearest(backends: readonly Backend[]): readonly Backend[];
  /** One of them, by the service's balance. */
  balance(backends: readonly Backend[], key?: number): Backend | undefined;
  pick(tried: readonly Backend[], key?: number): Backend | undefined;
  hasOther(tried: readonly Backend[]): boolean;
}

/** One side of a split: the instances with its tag. */
export class Side {
  readonly tag: string;
  readonly weight: number;
  /** As cookies name it. */
  readonly cookie: string;
  /** Those of its instances to choose from now; none: it has no usable one, or all that it has are worse than others. */
  members: readonly Backend[] = [];
  /** The smooth weighted round-robin's credit. */
  credit = 0;
  readonly #hash: number;

  constructor(tag: string, weight: number) {
    this.tag = tag;
    this.weight = weight;
    this.cookie = cookieText(tag);
    this.#hash = hashOfText(this.cookie);
  }

  has({ instance }: Backend): boolean {
    return instance.tags.includes(this.tag);
  }

  /** The lower, the more this side is the one of a key: weighted rendezvous hashing. */
  distance(key: number): number {
    const point = ((mixed(key ^ this.#hash) >>> 0) + 0.5) / 2 ** 32;
    return -Math.log(point) / this.weight;
  }
}

/**
 * A split: which side of it a request goes to, and which instance there. A side without a usable instance yields its share to
 * the others, in proportion; where none of those with a weight has one, all of the service's instances serve. An instance
 * with several of the tags is on several sides.
 *
 * Sides take turns like the instances of a round-robin, so that shares are exact also for few requests. Where each
 * process of each host begins is left to chance: else a small side would have to wait for each of them.
 */
export class Sides {
  readonly #from: Choosable;
  readonly #sides: readonly Side[];
  /** Those that get requests at present. */
  #open: readonly Side[] = [];
  #sum = 0;
  #arrangement = -1;

  constructor(weights: Weights, from: Choosable, random: () => number) {
    this.#from = from;
    this.#sides = Object.entries(weights).map(([tag, weight]) => new Side(tag, weight));
    const weighted = this.#sides.filter(({ weight }) => weight > 0);
    const sum = weighted.reduce((all, { weight }) => all + weight, 0);
    const [first, ...others] = weighted;
    for (const side of others) {
      side.credit = (random() - 0.5) * sum;
      if (first !== undefined) first.credit -= side.credit;
    }
  }

  /** The side whose turn it is; undefined where there is none with a usable instance. */
  next(): Side | undefined {
    this.#refresh();
    let best: Side | undefined;
    for (const side of this.#open) {
      side.credit += side.weight;
      if (best === undefined || side.credit > best.credit) best = side;
    }
    if (best !== undefined) best.credit -= this.#sum;
    return best;
  }

  /** The same side for the same text. As few as possible change sides when weights do, or when a side comes or goes. */
  of(text: string): Side | undefined {
    this.#refresh();
    const key = mixed(hashOfText(text));
    let best: Side | undefined;
    let least = Number.POSITIVE_INFINITY;
    for (const side of this.#open) {
      const distance = side.distance(key);
      if (distance >= least) continue;
      best = side;
      least = distance;
    }
    return best;
  }

  /** The side that the cookie of this name says, where that may be used. Whatever else it says counts for nothing. */
  ofCookie(cookies: string, name: string): Side | undefined {
    this.#refresh();
    for (const value of cookieValues(cookies, name)) {
      for (const side of this.#open) if (side.cookie === value) return side;
    }
    return undefined;
  }

  /** On whose account it goes what an instance did that was asked for `side`: another's, where that had to step in. */
  answeredBy(backend: Backend | undefined, side: Side | undefined): Side | undefined {
    if (backend === undefined || side?.has(backend)) return side;
    return this.#sides.find((each) => each.has(backend)) ?? side;
  }

  /**
   * The next instance to try: one of the side's, then one of the others' with a weight, since an answer is worth more than
   * a share.
   */
  pick(side: Side | undefined, tried: readonly Backend[], key?: number): Backend | undefined {
    this.#refresh();
    if (side === undefined || this.#open.length === 0) return this.#from.pick(tried, key);
    if (tried.length === 0 && side.members.length > 0) return this.#from.balance(side.members, key);
    const best = this.#from.bestOf((backend) => this.#isWeighted(backend) && !tried.includes(backend));
    const own = best.filter((backend) => side.has(backend));
    return this.#from.balance(this.#from.nearest(own.length > 0 ? own : best), key);
  }

  hasOther(tried: readonly Backend[]): boolean {
    this.#refresh();
    if (this.#open.length === 0) return this.#from.hasOther(tried);
    return this.#from.bestOf((backend) => this.#isWeighted(backend) && !tried.includes(backend)).length > 0;
  }

  #isWeighted(backend: Backend): boolean {
    return this.#sides.some((side) => side.weight > 0 && side.has(backend));
  }

  #refresh(): void {
    const { arrangement } = this.#from;
    if (arrangement === this.#arrangement) return;
    this.#arrangement = arrangement;
    const best = this.#from.bestOf((backend) => this.#isWeighted(backend));
    this.#open = this.#sides.filter((side) => {
      side.members = side.weight > 0 ? this.#from.nearest(best.filter((backend) => side.has(backend))) : [];
      return side.members.length > 0;
    });
    this.#sum = this.#open.reduce((all, { weight }) => all + weight, 0);
  }
}
