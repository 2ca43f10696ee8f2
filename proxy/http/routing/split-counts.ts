import type { CounterCell } from '../../../src/base/metrics.ts';
import type { RequestEnd } from '../request-metrics.ts';
import { SplitSide } from '../split-side.ts';

/** What the sides of one service's splits have carried, by tag; bounded. */
export class SplitCounts {
  /** Tags that are remembered; beyond, the ones that came first are forgotten. */
  static readonly maxTags = 64;
  readonly sides = new Map<string, SplitSide>();
  readonly #cellOf: (tag: string, end: RequestEnd) => CounterCell;
  readonly #cells = new Map<string, Map<RequestEnd, CounterCell>>();

  constructor(cellOf: (tag: string, end: RequestEnd) => CounterCell) {
    this.#cellOf = cellOf;
  }

  /** A request has ended. */
  add(tag: string, end: RequestEnd, isError: boolean, seconds: number): void {
    const side = this.sides.get(tag) ?? this.#addTag(tag);
    side.requests += 1;
    if (isError) side.errors += 1;
    side.seconds += seconds;
    const cells = this.#cells.get(tag);
    let cell = cells?.get(end);
    if (cell === undefined) {
      cell = this.#cellOf(tag, end);
      cells?.set(end, cell);
    }
    cell.value += 1;
  }

  #addTag(tag: string): SplitSide {
    const [oldest] = this.sides.keys();
    if (this.sides.size >= SplitCounts.maxTags && oldest !== undefined) {
      this.sides.delete(oldest);
      this.#cells.delete(oldest);
    }
    const side = new SplitSide(tag);
    this.sides.set(tag, side);
    this.#cells.set(tag, new Map());
    return side;
  }
}
