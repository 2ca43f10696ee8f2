/** One comparison of a benchmark: ours and a peer's figure, measured side by side in the same run. */
export interface Figure {
  /** `requests per CPU second, 64 connections`. */
  readonly what: string;
  readonly unit: string;
  readonly ours: number;
  /** Undefined where there is no peer (start-up time, restart gap). */
  readonly peer?: { readonly name: string; readonly value: number };
  readonly better: 'higher' | 'lower';
  /** The ratio ours/peer (or, without a peer, the value) that we aim at: at least when higher is better, else at most. */
  readonly aim?: number;
}

/** What was asked for on the command line, for the benches that can do more than one thing. */
export interface BenchOptions {
  /** Interleaved rounds; the bench's own number by default. */
  readonly rounds?: number;
  /** Smaller loads, for a look. */
  readonly quick: boolean;
  /** Parts of a bench; empty: all of them. */
  readonly only: readonly string[];
  /** How often a GiB is fetched to its last byte; the bench's own number by default. */
  readonly whole?: number;
}

export interface Bench {
  /** The word after `npm run bench --`. */
  readonly name: string;
  /** Why it cannot run here (a peer is not installed), or false. */
  readonly skip: () => false | string;
  /** Every load inside is bounded in time. `say` shows progress. */
  readonly run: (say: (line: string) => void, options: BenchOptions) => Promise<readonly Figure[]>;
}

/** Those that are named, or all where none is. */
export function chosenOf<T extends string>(all: readonly T[], only: readonly string[]): readonly T[] {
  const named = all.filter((word) => only.includes(word));
  return named.length === 0 ? all : named;
}
