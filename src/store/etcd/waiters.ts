/** Those who wait until something is so. They look again whenever they are woken, and once at the beginning. */
export class Waiters {
  readonly #looks = new Set<() => void>();

  wake(): void {
    for (const look of [...this.#looks]) look();
  }

  /** Resolves with what `check` gives first that is not undefined; rejects with what it throws. `signal` wakes, too. */
  until<T>(check: () => T | undefined, signal: AbortSignal): Promise<T> {
    return new Promise((resolve, reject) => {
      const done = (): void => {
        this.#looks.delete(look);
        signal.removeEventListener('abort', look);
      };
      const look = (): void => {
        try {
          const found = check();
          if (found === undefined) return;
          done();
          resolve(found);
        } catch (error) {
          done();
          reject(error);
        }
      };
      this.#looks.add(look);
      signal.addEventListener('abort', look);
      look();
    });
  }
}

/** Resolves when the signal is aborted. */
export function ended(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
