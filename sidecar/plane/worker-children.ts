import { type ChildProcess, fork } from 'node:child_process';
import { workerCommand } from './worker-command.ts';

/**
 * Starts the processes of workers. The first ones are started before it is known what they will carry, because a process
 * takes a while until it can be told anything.
 */
export class WorkerChildren {
  readonly #program: string;
  #prepared: ChildProcess[];

  /** `program`: what this process runs itself. */
  constructor(program: string, count: number) {
    this.#program = program;
    this.#prepared = Array.from({ length: count }, () => this.#fork());
  }

  /** One that is there already, or a new one. */
  take(): ChildProcess {
    const child = this.#prepared.shift();
    return child?.connected ? child : this.#fork();
  }

  /** Those that nobody took end when their channel does. */
  close(): void {
    for (const child of this.#prepared) if (child.connected) child.disconnect();
    this.#prepared = [];
  }

  #fork(): ChildProcess {
    // Nothing of the configuration is in its arguments or environment: the channel brings it.
    const child = fork(this.#program, [workerCommand], {
      serialization: 'advanced',
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    // Whoever takes it hears of its end; until then there is nobody to tell.
    child.on('error', () => undefined);
    return child;
  }
}
