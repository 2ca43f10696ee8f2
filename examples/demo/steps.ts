import ora from 'ora';

/** One line of the demonstration: what was done and really observed, with the time it took. */
export class Steps {
  #failed = 0;

  get failed(): number {
    return this.#failed;
  }

  /** Shows `doing` while it runs, then what it returned; a failure is shown with its reason and counted. */
  async step(doing: string, run: () => Promise<string>): Promise<boolean> {
    const beganAt = performance.now();
    const seconds = (): string => `${((performance.now() - beganAt) / 1000).toFixed(1)} s`;
    const spinner = process.stdout.isTTY
      ? ora({ text: doing, stream: process.stdout, discardStdin: false }).start()
      : undefined;
    try {
      const observed = await run();
      spinner?.stop();
      console.log(`${` ✔ ${observed}`.padEnd(92)} ${seconds()}`);
      return true;
    } catch (error) {
      spinner?.stop();
      this.#failed += 1;
      console.log(
        `${` ✘ ${doing}: ${error instanceof Error ? error.message : String(error)}`.padEnd(92)} ${seconds()}`,
      );
      return false;
    }
  }

  note(text: string): void {
    console.log(`   ${text}`);
  }
}

/** Fails a step when what was observed is not what the step claims. */
export function observe(condition: boolean, otherwise: string): void {
  if (!condition) throw new Error(otherwise);
}
