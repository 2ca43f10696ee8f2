import type { CounterCell } from '../src/base/metrics.ts';

/** Connections that wait until there is something to connect to, by service; bounded in their number. */
export class Lobby {
  /** Connections held at a time; further ones are refused. */
  static readonly maxHeld = 4096;
  readonly #full: CounterCell;
  readonly #held = new Map<string, Set<() => void>>();
  #count = 0;

  /** `full` counts those that found no room. */
  constructor(full: CounterCell) {
    this.#full = full;
  }

  /** How many are held now. */
  get count(): number {
    return this.#count;
  }

  countOf(service: string): number {
    return this.#held.get(service)?.size ?? 0;
  }

  /** Holds one; `resume` is called once, unless it leaves before. Undefined when there is no room. */
  enter(service: string, resume: () => void): (() => void) | undefined {
    if (this.#count >= Lobby.maxHeld) {
      this.#full.value += 1;
      return undefined;
    }
    const held = this.#held.get(service) ?? new Set();
    this.#held.set(service, held);
    // A function of its own for each, because the same may be held twice.
    const entry = (): void => resume();
    held.add(entry);
    this.#count += 1;
    return () => {
      if (!held.delete(entry)) return;
      this.#count -= 1;
      if (held.size === 0 && this.#held.get(service) === held) this.#held.delete(service);
    };
  }

  /** There may be something to connect to. */
  wake(service: string): void {
    const held = this.#held.get(service);
    if (held === undefined) return;
    this.#held.delete(service);
    this.#count -= held.size;
    const resumed = [...held];
    held.clear();
    for (const resume of resumed) resume();
  }
}
