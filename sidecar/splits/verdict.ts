/**
 * When a side of a split is failing, by what one host has seen of its requests within a window. All of this must hold:
 *
 * - at least `leastErrors` of its requests failed;
 * - its error rate is more than `factor` times that of the side it is compared with, and at least `leastGap` above it;
 * - with that side's error rate, so many failures would come by chance at most once in 1 / `chance` windows.
 *
 * It is compared with the heaviest side, or of several equally heavy ones with that of the lowest error rate, which is
 * never found failing itself. Where fewer than `leastCompared` requests went there, nothing is known to compare with.
 */
export const guardRule = {
  /** As many in a row have an instance left out for a while (`Outlier.failuresToEject`), so that more may be long in coming. */
  leastErrors: 5,
  leastGap: 0.05,
  leastCompared: 20,
  chance: 1e-6,
} as const;

/** What is known of a side of a split within a window. */
export interface SideSeen {
  readonly tag: string;
  readonly weight: number;
  readonly requests: number;
  readonly errors: number;
  /** Whether an instance of it can be used now. */
  readonly usable: boolean;
}

/** A side that fails, and the one that it was compared with. */
export interface Failing {
  readonly side: SideSeen;
  readonly against: SideSeen;
}

/** The side that the others are compared with; undefined where there are too few requests to say anything. */
export function measureOf(sides: readonly SideSeen[]): SideSeen | undefined {
  const most = Math.max(0, ...sides.map(({ weight }) => weight));
  const [best] = sides
    .filter(({ weight, requests, usable }) => weight === most && usable && requests >= guardRule.leastCompared)
    .sort((a, b) => rateOf(a) - rateOf(b) || b.requests - a.requests);
  return most > 0 ? best : undefined;
}

/** The side that fails most, if any does. */
export function failingSide(sides: readonly SideSeen[], factor: number): Failing | undefined {
  const against = measureOf(sides);
  if (against === undefined || factor <= 0) return undefined;
  const [side] = sides
    .filter((each) => each !== against && each.weight > 0 && isFailing(each, against, factor))
    .sort((a, b) => rateOf(b) - rateOf(a));
  return side && { side, against };
}

function isFailing(side: SideSeen, against: SideSeen, factor: number): boolean {
  if (side.errors < guardRule.leastErrors) return false;
  const rate = rateOf(side);
  const usual = rateOf(against);
  if (rate <= factor * usual || rate < usual + guardRule.leastGap) return false;
  // Laplace's estimate: few requests of the other side do not pass for proof that it never fails.
  const expected = (against.errors + 1) / (against.requests + 2);
  return chanceBound(side, expected) <= guardRule.chance;
}

/**
 * A bound of the chance that at least so many of the requests fail where each does with the probability `expected`
 * (Chernoff: exp(-n D(rate ‖ expected)), with D the relative entropy).
 */
function chanceBound(side: SideSeen, expected: number): number {
  const rate = rateOf(side);
  if (rate <= expected) return 1;
  const entropy = part(rate, expected) + part(1 - rate, 1 - expected);
  return Math.exp(-side.requests * entropy);
}

function part(share: number, expected: number): number {
  return share === 0 ? 0 : share * Math.log(share / expected);
}

/** The share of requests that failed. */
export function rateOf({ requests, errors }: Pick<SideSeen, 'requests' | 'errors'>): number {
  return requests === 0 ? 0 : Math.min(1, errors / requests);
}
