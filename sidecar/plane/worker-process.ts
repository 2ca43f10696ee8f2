import type { ChildProcess } from 'node:child_process';
import type { Clock } from '../../src/base/clock.ts';
import { LegateError } from '../../src/base/errors.ts';
import type { Figures } from '../../src/base/metrics.ts';
import { FeedSender } from './feeds.ts';
import { Peer } from './peer.ts';
import { type ControlCalls, type ToldValues, toldValues, type WorkerCalls, type WorkerSetup } from './seam.ts';
import { wireOf } from './wires.ts';

/** How long a worker that was told to end may take; it is killed then. */
const endLimitMs = 2000;

export interface WorkerProcessOptions {
  readonly setup: WorkerSetup;
  readonly told: ToldValues;
  readonly mine: ControlCalls;
  readonly clock: Clock;
  readonly child: ChildProcess;
}

/** One data-plane process, seen from control. */
export class WorkerProcess {
  readonly slot: number;
  readonly pid: number | undefined;
  readonly peer: Peer<ControlCalls, WorkerCalls>;
  /** Resolves with how it ended; never rejects. */
  readonly ended: Promise<string>;
  /** Its figures when they were last asked for. */
  figures: Figures = [];
  /** How often in a row it did not answer. */
  silences = 0;
  readonly #options: WorkerProcessOptions;
  readonly #child: ChildProcess;
  readonly #senders: readonly FeedSender<unknown>[];
  #gone = false;

  constructor(options: WorkerProcessOptions) {
    const { setup, told, mine, clock, child } = options;
    this.#options = options;
    this.slot = setup.slot;
    this.#child = child;
    this.pid = this.#child.pid;
    this.ended = new Promise((resolve) => {
      const end = (how: string): void => {
        if (this.#gone) return;
        this.#gone = true;
        for (const sender of this.#senders) sender.close();
        resolve(how);
      };
      child.once('exit', (code, signal) => end(signal ?? `status ${code}`));
      // Without a process there is no exit to wait for.
      if (child.pid === undefined) setImmediate(() => end('not started'));
      else if (child.exitCode !== null || child.signalCode !== null) setImmediate(() => end('ended at once'));
    });
    this.peer = new Peer<ControlCalls, WorkerCalls>({ wire: wireOf(this.#child), clock, mine });
    this.#senders = Object.entries(toldValues).map(
      ([name, codec]) =>
        new FeedSender<unknown>({
          source: told[name as keyof ToldValues],
          codec,
          send: (part) => this.peer.call('take', name, part),
        }),
    );
  }

  get gone(): boolean {
    return this.#gone;
  }

  /** Resolves when it listens wherever it can. */
  async start(): Promise<void> {
    const told = this.peer.call('setUp', this.#options.setup);
    await Promise.all([told, ...this.#senders.map((sender) => sender.flush())]);
    if (this.#gone) throw new LegateError('E_CLOSED', 'the worker ended while it was told what there is');
    await this.peer.call('start');
  }

  /** Ends it and what it carries. */
  async end(): Promise<void> {
    this.peer.tell('end');
    const cancel = this.#options.clock.after(endLimitMs, () => this.kill());
    await this.ended;
    cancel();
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }

  /** It goes on without this process. */
  leaveAlone(): void {
    for (const sender of this.#senders) sender.close();
    this.peer.tell('handedOver');
    if (this.#child.connected) this.#child.disconnect();
    this.#child.unref();
  }
}
