import type { Backend } from './balance/backend.ts';

/** How finely answer times are told apart: so many steps for each doubling. */
const stepsPerDoubling = 4;
/** Up to 2 ** 20 ms, a quarter of an hour; what took longer counts as that. */
const steps = 20 * stepsPerDoubling + 1;

/** How long answers of one instance took within one window. An answer costs an increment; the median is right to a tenth. */
export class AnswerTimes {
  readonly #counts = new Uint32Array(steps);
  count = 0;

  add(ms: number): void {
    const step = ms <= 1 ? 0 : Math.min(Math.round(Math.log2(ms) * stepsPerDoubling), steps - 1);
    this.#counts[step] = (this.#counts[step] ?? 0) + 1;
    this.count += 1;
  }

  /** In milliseconds, not below 1. */
  median(): number {
    let left = this.count / 2;
    let step = -1;
    while (left > 0 && step < steps - 1) {
      step += 1;
      left -= this.#counts[step] ?? 0;
    }
    return 2 ** (Math.max(step, 0) / stepsPerDoubling);
  }

  clear(): void {
    if (this.count === 0) return;
    this.#counts.fill(0);
    this.count = 0;
  }
}

/** Judges who answers much slower than the others, window by window. */
export const slowness = {
  /** As long as a window is at least: it ends with the first choice after that. */
  windowMs: 5000,
  /** Who answered less often within a window is not judged, and none is by it. */
  minAnswers: 20,
  /** However many times slower, by so much at least. */
  minGapMs: 50,
} as const;

/**
 * Those whose median in the window that ends is more than `factor` times that of the others', the slowest first. The others'
 * is the median of their medians, the higher one of two. Who is ejected is neither judged nor compared with.
 */
export function slowOnes(backends: readonly Backend[], factor: number): readonly Backend[] {
  const judged = backends
    .filter(({ times, ejectedUntilMs }) => ejectedUntilMs === undefined && (times?.count ?? 0) >= slowness.minAnswers)
    .map((backend) => ({ backend, ms: backend.times?.median() ?? 0 }))
    .sort((a, b) => a.ms - b.ms);
  const slow: Backend[] = [];
  for (let index = judged.length - 1; index > 0; index -= 1) {
    const own = judged[index];
    // Without this one, the middle of those that are left.
    const middle = (judged.length - 1) >> 1;
    const others = judged[middle < index ? middle : middle + 1];
    if (own === undefined || others === undefined) break;
    if (own.ms <= factor * others.ms || own.ms - others.ms <= slowness.minGapMs) break;
    slow.push(own.backend);
  }
  return slow;
}
