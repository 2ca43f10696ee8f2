import { type ChildProcess, spawn } from 'node:child_process';
import { Backoff } from '../../src/base/backoff.ts';
import type { Clock } from '../../src/base/clock.ts';
import { toolEnvironment } from './command.ts';

/** Monitors write one event a line; a longer line is cut, for it is only looked at for what it mentions. */
const maxLineLength = 64 * 1024;
const firstRestartMs = 200;
const lastRestartMs = 30_000;
/** A child that ran so long was well; the next restart is quick again. */
const wellAfterMs = 10_000;

/**
 * The shell runs the monitor, gives it the only copy of standard output, and waits for the end of its own standard
 * input: when this process dies, however it dies, the monitor is ended, although it reads nothing itself.
 */
const wrapper = '"$@" 2>&1 & exec >/dev/null 2>&1; while read -r _; do :; done; kill $!';

export interface LineWatcherOptions {
  /** `['nft', 'monitor']`. */
  readonly command: readonly string[];
  readonly clock: Clock;
  readonly onLine: (line: string) => void;
  /** Called after each start but the first: what happened in between was missed. */
  readonly onGap: () => void;
}

/** Runs a program that reports events line by line until `close`, and starts it again when it ends. */
export class LineWatcher {
  readonly #options: LineWatcherOptions;
  readonly #backoff = new Backoff(firstRestartMs, lastRestartMs);
  #child: ChildProcess | undefined;
  #cancelRestart: (() => void) | undefined;
  #closed = false;
  #started = 0;

  constructor(options: LineWatcherOptions) {
    this.#options = options;
    this.#start();
  }

  /** How often the program was started again. */
  get restarts(): number {
    return Math.max(0, this.#started - 1);
  }

  close(): void {
    this.#closed = true;
    this.#cancelRestart?.();
    this.#child?.stdin?.end();
  }

  #start(): void {
    const { command, clock, onGap } = this.#options;
    // Without a free descriptor there is a child without pipes, which then reports the failure.
    const child: ChildProcess = spawn('sh', ['-c', wrapper, 'sh', ...command], {
      stdio: ['pipe', 'pipe', 'ignore'],
      env: toolEnvironment(),
      // A process group of its own: Ctrl-C in a terminal is for us, who then end the child in order.
      detached: true,
    });
    this.#child = child;
    const startedMs = clock.monotonicMs();
    let ended = false;
    const end = (): void => {
      if (ended) return;
      ended = true;
      child.stdin?.end();
      if (this.#closed) return;
      if (clock.monotonicMs() - startedMs > wellAfterMs) this.#backoff.reset();
      this.#cancelRestart = clock.after(this.#backoff.nextMs(), () => this.#start());
    };
    child.on('error', end);
    // Somebody who ends the shell alone would leave the monitor behind, with our pipe open.
    child.on('exit', () => endGroup(child));
    child.stdin?.on('error', () => undefined);
    child.stdout?.on('end', end);
    child.stdout?.on('error', end);
    this.#readLines(child);
    for (const handle of [child, child.stdin, child.stdout]) unref(handle);
    this.#started += 1;
    if (this.#started > 1) onGap();
  }

  #readLines(child: ChildProcess): void {
    let rest = '';
    child.stdout?.setEncoding('utf8');
    child.stdout?.on('data', (chunk: string) => {
      const lines = (rest + chunk).split('\n');
      rest = (lines.pop() ?? '').slice(0, maxLineLength);
      if (this.#closed) return;
      for (const line of lines) this.#options.onLine(line);
    });
  }
}

function endGroup({ pid }: ChildProcess): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, 'SIGTERM');
  } catch {
    // Nobody of the group is left, as it should be.
  }
}

/** Children and their pipes never keep the process alive. */
function unref(handle: object | null | undefined): void {
  if (handle && 'unref' in handle && typeof handle.unref === 'function') handle.unref();
}
