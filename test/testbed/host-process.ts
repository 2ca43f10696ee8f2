import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { waitFor } from '../support/wait.ts';
import { childrenOf } from './processes.ts';

/** Lines kept of what a process prints; the oldest go first. */
const maxLines = 10_000;

/** A process on a host. It ends with the host, at the latest. */
export class HostProcess {
  /** What it printed, to both outputs. */
  readonly lines: string[] = [];
  /** Its id as the machine sees it. */
  readonly pid: number;
  readonly #entry: ChildProcess;

  private constructor(entry: ChildProcess, pid: number, lines: string[]) {
    this.#entry = entry;
    this.pid = pid;
    this.lines = lines;
  }

  /** `command` begins with what enters the host's namespaces (`TestbedHost.inside`), which stays as the parent. */
  static async start(command: readonly string[]): Promise<HostProcess> {
    const [first = '', ...words] = command;
    const entry = spawn(first, words, { stdio: ['ignore', 'pipe', 'pipe'] });
    const lines: string[] = [];
    for (const stream of [entry.stdout, entry.stderr]) {
      let rest = '';
      stream.setEncoding('utf8').on('data', (text: string) => {
        const whole = (rest + text).split('\n');
        rest = whole.pop() ?? '';
        lines.push(...whole);
        if (lines.length > maxLines) lines.splice(0, lines.length - maxLines);
      });
      // What ends without a line end is a line, too.
      stream.on('end', () => {
        if (rest !== '') lines.push(rest);
      });
    }
    const ended = (): boolean => entry.exitCode !== null || entry.signalCode !== null;
    const pid = await waitFor('a process to start', () => childrenOf(entry.pid ?? 0)[0] ?? (ended() ? -1 : undefined), {
      everyMs: 2,
    });
    return new HostProcess(entry, pid, lines);
  }

  get running(): boolean {
    return this.#entry.exitCode === null && this.#entry.signalCode === null;
  }

  /** Waits until it has ended; its exit status, or the signal that ended it. */
  async ended(): Promise<number | string> {
    if (this.running) await once(this.#entry, 'exit');
    return this.#entry.exitCode ?? this.#entry.signalCode ?? 0;
  }

  /** Sends a signal and does not wait. */
  signal(signal: NodeJS.Signals): void {
    if (this.running && this.pid > 0) process.kill(this.pid, signal);
  }

  /** Sends a signal and waits for the end. */
  kill(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | string> {
    this.signal(signal);
    return this.ended();
  }
}
