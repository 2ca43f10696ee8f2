/** Wakes one waiting loop. Rings while nobody waits are remembered as one, so that no change is missed. */
export class Bell {
  #rung = false;
  #wake: (() => void) | undefined;

  ring(): void {
    this.#rung = true;
    this.#wake?.();
  }

  /** Resolves at the next ring, at once if it has rung since the last wait, and when the signal is aborted. */
  async wait(signal: AbortSignal): Promise<void> {
    if (!this.#rung && !signal.aborted) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        signal.addEventListener('abort', this.#onAbort, { once: true });
      });
      signal.removeEventListener('abort', this.#onAbort);
      this.#wake = undefined;
    }
    this.#rung = false;
  }

  readonly #onAbort = (): void => this.#wake?.();
}
