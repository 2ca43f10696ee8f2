import { pingBudget, resetBudget, settingsBudget } from './bounds.ts';

/** What a client can have too much of without ever asking for anything. */
export type Flood = 'settings' | 'ping' | 'reset';

interface Budget {
  readonly burst: number;
  readonly perSecond: number;
}

const budgets: Readonly<Record<Flood, Budget>> = {
  settings: settingsBudget,
  ping: pingBudget,
  reset: resetBudget,
};

/** Counts what costs its sender next to nothing and us more: one for each client's connection. */
export class FloodGuard {
  readonly #left: Record<Flood, number> = {
    settings: settingsBudget.burst,
    ping: pingBudget.burst,
    reset: resetBudget.burst,
  };
  readonly #atMs: Record<Flood, number>;

  constructor(nowMs: number) {
    this.#atMs = { settings: nowMs, ping: nowMs, reset: nowMs };
  }

  /** One more came; false when it is too many. */
  take(what: Flood, nowMs: number): boolean {
    const { burst, perSecond } = budgets[what];
    const earned = ((nowMs - this.#atMs[what]) / 1000) * perSecond;
    this.#atMs[what] = nowMs;
    const left = Math.min(burst, this.#left[what] + earned);
    this.#left[what] = left - 1;
    return left >= 1;
  }

  /** Something happened that makes one more of them likely. */
  earn(what: Flood): void {
    if (this.#left[what] < budgets[what].burst) this.#left[what] += 1;
  }
}
