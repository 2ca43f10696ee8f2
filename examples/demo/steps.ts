import ora from 'ora';

/** Columns that a line may fill before the time at its end. */
const width = 92;

/** The lines of the demonstration: what was done and really observed, with the time it took. */
export class Steps {
  readonly #stopped: AbortSignal;
  #failed = 0;

  /** `stopped`: Ctrl-C; a step that still runs ends at once, and no other begins. */
  constructor(stopped: AbortSignal) {
    this.#stopped = stopped;
  }

  get failed(): number {
    return this.#failed;
  }

  /** Shows `doing` while it runs, then the lines that it returned; a failure is shown with its reason and counted. */
  async step(doing: string, run: () => Promise<readonly string[]>): Promise<boolean> {
    if (this.#stopped.aborted) return false;
    const beganAt = performance.now();
    const seconds = (): string => `${((performance.now() - beganAt) / 1000).toFixed(1)} s`;
    // A terminal that does not know its width cannot be redrawn.
    const terminal = process.stdout.isTTY && process.stdout.columns >= 40;
    const spinner = terminal ? ora({ text: doing, stream: process.stdout, discardStdin: false }).start() : undefined;
    try {
      const [first = doing, ...more] = await unlessStopped(run(), this.#stopped);
      spinner?.stop();
      console.log(`${` ✔ ${first}`.padEnd(width)} ${seconds()}`);
      for (const line of more) console.log(` ✔ ${line}`);
      return true;
    } catch (error) {
      spinner?.stop();
      this.#failed += 1;
      const reason = error instanceof Error ? error.message : String(error);
      console.log(`${` ✘ ${doing}: ${reason}`.padEnd(width)} ${seconds()}`);
      return false;
    }
  }

  /** A remark, broken between words. */
  note(text: string): void {
    let line = '  ';
    for (const word of text.split(' ')) {
      if (line.length + word.length >= width && line !== '  ') {
        console.log(line);
        line = '  ';
      }
      line += ` ${word}`;
    }
    console.log(line);
  }
}

/** Gives what `work` gives, or fails as soon as `stopped` is aborted; `work` then goes on unheard. */
async function unlessStopped<T>(work: Promise<T>, stopped: AbortSignal): Promise<T> {
  let onAbort: (() => void) | undefined;
  const abort = new Promise<never>((_, reject) => {
    onAbort = () => reject(new Error('interrupted'));
    if (stopped.aborted) onAbort();
    else stopped.addEventListener('abort', onAbort, { once: true });
  });
  try {
    return await Promise.race([work, abort]);
  } finally {
    if (onAbort !== undefined) stopped.removeEventListener('abort', onAbort);
    work.catch(() => undefined);
  }
}

/** Fails a step when what was observed is not what the step claims. */
export function observe(condition: boolean, otherwise: string): void {
  if (!condition) throw new Error(otherwise);
}
