import { type ChildProcess, spawn } from 'node:child_process';

const commandTimeoutMs = 120_000;

/**
 * Runs commands to their ends and knows which still run. They are in process groups of their own, so that Ctrl-C reaches
 * only the demonstration, which then takes everything back in order.
 */
export class Commands {
  readonly #running = new Map<ChildProcess, Promise<unknown>>();

  /** What a command printed, without the last line end; a failure carries its last line. */
  output(command: string, ...args: string[]): Promise<string> {
    return this.input('', command, ...args);
  }

  /** As `output`, with something to read for it: what is secret is in no list of processes then. */
  input(text: string, command: string, ...args: string[]): Promise<string> {
    const child = spawn(command, args, {
      detached: true,
      stdio: ['pipe', 'pipe', 'pipe'],
      timeout: commandTimeoutMs,
    });
    // What it does not read, it does not need.
    child.stdin.on('error', () => undefined).end(text);
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr = (stderr + text).slice(-4000);
    });
    const ended = new Promise<string>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', (code, signal) => {
        if (code === 0) resolve(stdout.trim());
        else reject(new Error(`${command} ${args[0] ?? ''}: ${stderr.trim().split('\n').at(-1) || (signal ?? code)}`));
      });
    });
    const settled = ended.then(
      () => this.#running.delete(child),
      () => this.#running.delete(child),
    );
    this.#running.set(child, settled);
    return ended;
  }

  /** Waits until none runs, calling `hurry` now and then, which may end what they wait for; at most `timeoutMs`. */
  async settle(hurry: () => Promise<unknown>, timeoutMs: number): Promise<void> {
    const until = performance.now() + timeoutMs;
    while (this.#running.size > 0 && performance.now() < until) {
      const ended = Promise.all(this.#running.values());
      await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, 300))]);
      if (this.#running.size > 0) await hurry();
    }
  }

  /** Ends those that still run. */
  kill(): void {
    for (const child of this.#running.keys()) child.kill('SIGKILL');
  }
}
