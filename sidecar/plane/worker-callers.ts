import type { Clock } from '../../src/base/clock.ts';
import type { Observable } from '../../src/base/feed.ts';
import type { Callers, CallerTable } from '../../src/model/caller.ts';

/** Who calls, as a worker knows it: the table is told by control, and only control can confirm. */
export class WorkerCallers implements Callers {
  /**
   * How long an address counts as fresh here. The kernel records for 1 s from the binding on, which is heard of here a
   * little later: whatever is confirmed must still have been recorded.
   */
  static readonly freshMs = 800;
  readonly table: Observable<CallerTable>;
  readonly #clock: Clock;
  readonly #confirm: Callers['confirm'];
  /** Monotonic, until when, by address. */
  readonly #fresh = new Map<string, number>();
  #known: CallerTable['bound'];

  constructor(options: {
    readonly table: Observable<CallerTable>;
    readonly clock: Clock;
    readonly confirm: Callers['confirm'];
  }) {
    this.table = options.table;
    this.#clock = options.clock;
    this.#confirm = options.confirm;
    this.#known = options.table.value.bound;
    this.table.subscribe(({ bound }) => this.#compare(bound));
  }

  isFresh(address: string): boolean {
    if (this.#fresh.size === 0) return false;
    const untilMs = this.#fresh.get(address);
    return untilMs !== undefined && untilMs > this.#clock.monotonicMs();
  }

  confirm({ source, destination }: Parameters<Callers['confirm']>[0]): Promise<boolean> {
    // No more than that: what else hangs on it may not be of a kind that travels.
    return this.#confirm({ source, destination }).catch(() => false);
  }

  #compare(bound: CallerTable['bound']): void {
    const nowMs = this.#clock.monotonicMs();
    for (const [address, untilMs] of this.#fresh) if (untilMs <= nowMs) this.#fresh.delete(address);
    for (const { key, after } of bound.changesSince(this.#known)) {
      if (after === undefined) this.#fresh.delete(key);
      else this.#fresh.set(key, nowMs + WorkerCallers.freshMs);
    }
    this.#known = bound;
  }
}
