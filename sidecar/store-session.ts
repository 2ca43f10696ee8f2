import { Backoff } from '../src/base/backoff.ts';
import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { describeError, isLegateError } from '../src/base/errors.ts';
import type { Store } from '../src/store/store.ts';

const firstRetryMs = 250;
const retryCeilingMs = 15_000;
const condition = 'store.open';

export interface StoreSessionOptions {
  readonly open: () => Promise<Store>;
  /**
   * Checks that this store may be used, then starts what lives on it. Rejects when it must not be used. `signal` is aborted
   * when the session ends.
   */
  readonly begin: (store: Store, signal: AbortSignal) => Promise<void>;
  readonly clock: Clock;
  readonly conditions: Conditions;
  readonly signal: AbortSignal;
}

/**
 * Opens the store and keeps trying. A store that cannot be opened (damaged, no right, another mesh's) is a condition with
 * its cause; names and links go on from the last snapshot meanwhile.
 */
export class StoreSession {
  readonly #options: StoreSessionOptions;
  #store: Store | undefined;
  #problem: string | undefined;

  constructor(options: StoreSessionOptions) {
    this.#options = options;
  }

  /** The opened store, undefined until it could be opened. */
  get store(): Store | undefined {
    return this.#store;
  }

  /** Why it is not open, while it is not. */
  get problem(): string | undefined {
    return this.#problem;
  }

  /** Resolves after the first try to open it; further ones go on until the signal is aborted. */
  async start(): Promise<void> {
    const { clock, signal } = this.#options;
    if (await this.#attempt()) return;
    const backoff = new Backoff(firstRetryMs, retryCeilingMs);
    const retry = async (): Promise<void> => {
      while (!signal.aborted) {
        await clock.sleep(backoff.nextMs(), signal);
        if (await this.#attempt()) return;
      }
    };
    retry().catch((error: unknown) => {
      if (!signal.aborted) throw error;
    });
  }

  async close(): Promise<void> {
    await this.#store?.close();
  }

  async #attempt(): Promise<boolean> {
    const { open, begin, conditions, signal } = this.#options;
    let opened: Store | undefined;
    try {
      opened = await open();
      await begin(opened, signal);
      this.#store = opened;
      this.#problem = undefined;
      conditions.clear(condition);
      return true;
    } catch (error) {
      if (!isLegateError(error)) throw error;
      await opened?.close();
      this.#problem = describeError(error);
      conditions.raise(condition, 'error', this.#problem, error.hint ?? 'the log says more');
      return false;
    }
  }
}
