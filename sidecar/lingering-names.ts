import { existsSync, rmSync, writeFileSync } from 'node:fs';
import type { Clock } from '../src/base/clock.ts';
import { readFileIfAny } from '../src/base/files.ts';
import { isRunning, processName } from '../src/base/processes.ts';

/** How long the one before may take to let go; names are tried all the same then. */
const letGoLimitMs = 1000;
const lookEveryMs = 1;

/**
 * A sidecar that hands over goes on answering names until the next one is ready to. A file in the data directory names it
 * meanwhile, and is gone when its sockets are.
 */
export class LingeringNames {
  readonly #path: string;
  readonly #clock: Clock;

  constructor({ path, clock }: { readonly path: string; readonly clock: Clock }) {
    this.#path = path;
    this.#clock = clock;
  }

  /** This process lingers. */
  begin(): void {
    try {
      writeFileSync(this.#path, `${processName()}\n`, { mode: 0o600 });
    } catch {
      // A data directory that cannot be written to is told of elsewhere; the next sidecar binds when this one has ended.
    }
  }

  /** Its sockets are closed. */
  end(): void {
    rmSync(this.#path, { force: true });
  }

  /** Has the sidecar that lingers, if there is one, let go. */
  async take(): Promise<void> {
    const name = (readFileIfAny(this.#path, 1024) ?? '').trim();
    if (name === '') return;
    try {
      if (isRunning(name) === true) process.kill(Number(name.split(' ')[1]), 'SIGTERM');
    } catch {
      // It ended just now.
    }
    const untilMs = this.#clock.monotonicMs() + letGoLimitMs;
    while (existsSync(this.#path) && isRunning(name) === true && this.#clock.monotonicMs() < untilMs)
      await this.#clock.sleep(lookEveryMs);
    rmSync(this.#path, { force: true });
  }
}
