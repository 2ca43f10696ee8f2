import { Backoff } from '../src/base/backoff.ts';
import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { describeError, isLegateError } from '../src/base/errors.ts';
import { Latest, type Observable } from '../src/base/feed.ts';
import type { Store } from '../src/store/store.ts';

const firstRetryMs = 250;
const retryCeilingMs = 15_000;
const condition = 'store.open';

export interface StoreSession {
  /** The opened store, undefined until it could be opened. */
  readonly store: Observable<Store | undefined>;
  /** Why it is not open, while it is not. */
  readonly problem: Observable<string | undefined>;
  /** Resolves after the first try to open it. */
  readonly tried: Promise<void>;
}

/**
 * Opens the store and runs what lives on it. A store that cannot be opened (damaged, no right, another mesh's) is a
 * condition with its cause; names and links go on from the last snapshot, and it is tried again with back-off.
 */
export function openSession(options: {
  readonly open: () => Promise<Store>;
  /** Checks the mesh's identity and starts what uses the store; rejects when this store must not be used. */
  readonly begin: (store: Store) => Promise<void>;
  readonly clock: Clock;
  readonly conditions: Conditions;
  readonly signal: AbortSignal;
}): StoreSession {
  const store = new Latest<Store | undefined>(undefined);
  const problem = new Latest<string | undefined>(undefined);
  const backoff = new Backoff(firstRetryMs, retryCeilingMs);
  const attempt = async (): Promise<boolean> => {
    let opened: Store | undefined;
    try {
      opened = await options.open();
      await options.begin(opened);
      store.set(opened);
      problem.set(undefined);
      options.conditions.clear(condition);
      return true;
    } catch (error) {
      await opened?.close().catch(() => undefined);
      problem.set(describeError(error));
      const hint = isLegateError(error) ? (error.hint ?? '') : '';
      options.conditions.raise(condition, 'error', describeError(error), hint);
      return false;
    }
  };
  const tried = (async () => {
    if (await attempt()) return;
    void (async () => {
      while (!options.signal.aborted) {
        await options.clock.sleep(backoff.nextMs(), options.signal);
        if (await attempt()) return;
      }
    })().catch(() => undefined);
  })();
  return { store, problem, tried };
}
