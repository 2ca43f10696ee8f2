import { readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type { Clock } from '../../src/base/clock.ts';
import { readFileIfAny } from '../../src/base/files.ts';
import { isRunning, processNameOf } from '../../src/base/processes.ts';

const lookEveryMs = 20;
const maxFormer = 1024;

/**
 * What a worker listens on for the sidecar that comes next: `sockets` gives its listening sockets away, `questions` is
 * answered for as long as it lives.
 */
export type Door = 'sockets' | 'questions';

/** Where a worker has its door, given the file that workers are written down in. */
export function doorOf(path: string, pid: number, door: Door): string {
  return `${path}.${pid}.${door}`;
}

/**
 * The data-plane processes of this host's sidecar, in a file of its data directory: those of the sidecar before live on
 * when it was killed or replaced, and are found there by the next one. A name holds pid and start time, so that no other
 * process is taken for one of them.
 */
export class FormerWorkers {
  /** The file. */
  readonly path: string;
  readonly #clock: Clock;
  #former: readonly string[];
  #present: readonly string[] = [];

  constructor({ path, clock }: { readonly path: string; readonly clock: Clock }) {
    this.path = path;
    this.#clock = clock;
    this.#former = readNames(path);
    this.#removeRemains();
  }

  /** How many of them still run. */
  get count(): number {
    this.#former = this.#former.filter((name) => isRunning(name) === true);
    return this.#former.length;
  }

  /** Where those that still run are to be reached. */
  doors(door: Door): string[] {
    return this.#former.filter((name) => isRunning(name) === true).map((name) => doorOf(this.path, pidOf(name), door));
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
        process.kill(pidOf(name), signal);
      } catch {
        // It ended just now.
      }
    }
  }

  /** Doors of those that were killed. */
  #removeRemains(): void {
    const [folder, start] = [dirname(this.path), `${basename(this.path)}.`];
    const living = new Set(this.#former.map((name) => String(pidOf(name))));
    try {
      for (const name of readdirSync(folder)) {
        const [pid = '', door] = name.startsWith(start) ? name.slice(start.length).split('.') : [];
        if (door !== undefined && /^\d+$/.test(pid) && !living.has(pid)) rmSync(join(folder, name), { force: true });
      }
    } catch {
      // They are in nobody's way: a process that gets the same id removes them itself.
    }
  }

  #write(): void {
    const names = [...this.#present, ...this.#former.slice(-maxFormer)];
    try {
      if (names.length === 0) rmSync(this.path, { force: true });
      else {
        writeFileSync(`${this.path}.new`, `${names.join('\n')}\n`, { mode: 0o600 });
        renameSync(`${this.path}.new`, this.path);
      }
    } catch {
      // A data directory that cannot be written to is told of elsewhere; at worst the next sidecar does not find them.
    }
  }
}

function pidOf(name: string): number {
  return Number(name.split(' ')[1]);
}

function readNames(path: string): readonly string[] {
  const lines = (readFileIfAny(path, 256 * 1024) ?? '').split('\n');
  return lines.filter((name) => isRunning(name) === true).slice(0, maxFormer);
}
