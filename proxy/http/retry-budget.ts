/** What share of requests may be repeats. */
const share = 0.2;
/** Repeats that are always allowed to begin with, so that a service with few requests has some too. */
const reserve = 10;

/** Keeps repeats from becoming a load of their own: when all fails, at most a fifth more is asked. */
export class RetryBudget {
  #tokens = reserve;

  /** A request came. */
  add(): void {
    if (this.#tokens < reserve) this.#tokens = Math.min(reserve, this.#tokens + share);
  }

  /** Whether one may be repeated. */
  take(): boolean {
    if (this.#tokens < 1) return false;
    this.#tokens -= 1;
    return true;
  }
}

/** One for each service. */
export class RetryBudgets {
  readonly #budgets = new Map<string, RetryBudget>();

  of(service: string): RetryBudget {
    let budget = this.#budgets.get(service);
    if (budget === undefined) {
      budget = new RetryBudget();
      this.#budgets.set(service, budget);
    }
    return budget;
  }
}
