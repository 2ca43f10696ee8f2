import type { Backend } from './backend.ts';
import type { Balancer } from './balancer.ts';

/** How fast a good time makes up for a bad one: by 63 % in so many milliseconds. */
const decayMs = 10_000;
/** What an instance counts for that has been asked and has not yet answered anything. */
const unknownMs = 1000;

/**
 * The quicker one of two chosen at random (power of two choices), where quick is how long answers took lately times how
 * many are being waited for. A slow answer counts in full at once, and is forgotten step by step.
 */
export class P2cLatency implements Balancer {
  readonly #random: () => number;
  readonly #nowMs: () => number;

  constructor(random: () => number, nowMs: () => number) {
    this.#random = random;
    this.#nowMs = nowMs;
  }

  pick(candidates: readonly Backend[]): Backend | undefined {
    const count = candidates.length;
    const first = Math.floor(this.#random() * count);
    const a = candidates[first];
    if (a === undefined || count === 1) return a;
    const b = candidates[(first + 1 + Math.floor(this.#random() * (count - 1))) % count];
    if (b === undefined) return a;
    const nowMs = this.#nowMs();
    return cost(b, nowMs) < cost(a, nowMs) ? b : a;
  }
}

function cost(backend: Backend, nowMs: number): number {
  const { latency, active, instance } = backend;
  const ms = latency.at(nowMs) ?? (active > 0 ? unknownMs : 0);
  return (ms * (active + 1)) / (instance.weight || 1);
}

/** How long an instance takes to answer, as an average that follows peaks at once and forgets them slowly. */
export class Latency {
  #ms: number | undefined;
  #sinceMs = 0;

  /** In milliseconds; undefined while nothing is known. */
  at(nowMs: number): number | undefined {
    return this.#ms === undefined ? undefined : this.#ms * Math.exp((this.#sinceMs - nowMs) / decayMs);
  }

  /** An answer took `ms`; `nowMs` is monotonic. */
  observe(ms: number, nowMs: number): void {
    const before = this.#ms;
    const kept = Math.exp((this.#sinceMs - nowMs) / decayMs);
    this.#ms = before === undefined || ms > before ? ms : before * kept + ms * (1 - kept);
    this.#sinceMs = nowMs;
  }

  /** Nobody waits any longer for an answer that has taken `ms` already. */
  atLeast(ms: number, nowMs: number): void {
    if (ms > (this.at(nowMs) ?? 0)) this.observe(ms, nowMs);
  }
}
