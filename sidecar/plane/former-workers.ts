import { renameSync, rmSync, writeFileSync } from 'node:fs';
import type { Clock } from '../../src/base/clock.ts';
import { readFileIfAny } from '../../src/base/files.ts';
import { isRunning, processNameOf } from '../../src/base/processes.ts';

const lookEveryMs = 20;
const maxFormer = 1024;

/**
 * The data-plane processes of this host's sidecar, in a file of its data directory: those of the sidecar before live on
 * when it was killed or replaced, and are found there by the next one. A name holds pid and start time, so that no other
 * process is taken for one of them.
 */
export class FormerWorkers {
  readonly #path: string;
  readonly #clock: Clock;
  #former: readonly string[];
  #present: readonly string[] = [];

  constructor({ path, clock }: { readonly path: string; readonly clock: Clock }) {
    this.#path = path;
    this.#clock = clock;
    this.#former = readNames(path);
  }

  /** How many of them still run. */
  get count(): number {
    this.#former = this.#former.filter((name) => isRunning(name) === true);
    return this.#former.length;
  }

  /** Writes down which processes are workers now. At once, for a crash may follow. */
  remember(pids: readonly number[]): void {
    this.#present = pids.map(processNameOf);
    this.#write();
  }

  /** They take no new connections from now on, and end with their last one. */
  leave(): void {
    this.#signal('SIGTERM');
  }

  /** Waits for their end; those that are left then are ended. */
  async end(timeoutMs: number): Promise<void> {
    const untilMs = this.#clock.monotonicMs() + timeoutMs;
    while (this.count > 0 && this.#clock.monotonicMs() < untilMs) await this.#clock.sleep(lookEveryMs);
    this.#signal('SIGKILL');
    this.#former = [];
    this.#write();
  }

  #signal(signal: NodeJS.Signals): void {
    for (const name of this.#former) {
      if (isRunning(name) !== true) continue;
      try {
        process.kill(Number(name.split(' ')[1]), signal);
      } catch {
        // It ended just now.
      }
    }
  }

  #write(): void {
    const names = [...this.#present, ...this.#former.slice(-maxFormer)];
    try {
      if (names.length === 0) rmSync(this.#path, { force: true });
      else {
        writeFileSync(`${this.#path}.new`, `${names.join('\n')}\n`, { mode: 0o600 });
        renameSync(`${this.#path}.new`, this.#path);
      }
    } catch {
      // A data directory that cannot be written to is told of elsewhere; at worst the next sidecar does not find them.
    }
  }
}

function readNames(path: string): readonly string[] {
  const lines = (readFileIfAny(path, 256 * 1024) ?? '').split('\n');
  return lines.filter((name) => isRunning(name) === true).slice(0, maxFormer);
}
