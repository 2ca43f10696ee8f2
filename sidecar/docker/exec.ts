import { describeError, isLegateError } from '../../src/base/errors.ts';
import type { CommandResult, RunInContainer } from '../../src/health/exec.ts';
import type { DockerClient } from './client.ts';
import { ExecOutput } from './exec-output.ts';

/** How long it may take to end what was cut; after that it is left to itself. */
const killLimitMs = 3000;
/** Between questions whether a command that closed its outputs has ended. */
const askAgainMs = 50;

/**
 * The shell tells its process id and then becomes the command's. The engine starts it as the leader of a session of its
 * own (runc calls setsid), so that the id is also that of the process group of all that it starts. The engine reads two
 * outputs in no certain order: joined into one, the id comes first.
 */
const announced = 'exec 2>&1; echo "$$"; exec /bin/sh -c "$0"';

/** Runs commands inside containers through the engine's exec API. */
export function execThrough(client: DockerClient): RunInContainer {
  return (container, command, signal, onBegun) => new Execution(client, container).run(command, signal, onBegun);
}

class Execution {
  readonly #client: DockerClient;
  readonly #container: string;
  /** Ends the connection on which the outputs come. */
  readonly #hangUp = new AbortController();
  #begun: () => void = () => undefined;
  #isStarted = false;
  #hasEnded = false;

  constructor(client: DockerClient, container: string) {
    this.#client = client;
    this.#container = container;
  }

  async run(command: string, signal: AbortSignal, onBegun: (printed: () => string) => void): Promise<CommandResult> {
    const begun = new Promise<void>((resolve) => {
      this.#begun = resolve;
    });
    let cut = (): void => undefined;
    const interrupted = new Promise<undefined>((resolve) => {
      cut = () => resolve(undefined);
    });
    let flooding = false;
    const output = new ExecOutput(
      () => {
        this.#begun();
        onBegun(() => output.text);
      },
      () => {
        flooding = true;
        cut();
      },
    );
    if (signal.aborted) cut();
    else signal.addEventListener('abort', cut, { once: true });
    const work = this.#work(command, output, signal);
    const result = await Promise.race([work, interrupted]);
    signal.removeEventListener('abort', cut);
    if (result === undefined && this.#isStarted) await this.#kill(output, begun, work);
    this.#hangUp.abort(new Error('the command was cut'));
    if (result !== undefined) return result;
    return flooding ? { kind: 'flooding', output: output.text } : { kind: 'refused', reason: 'cut off' };
  }

  async #work(command: string, output: ExecOutput, signal: AbortSignal): Promise<CommandResult> {
    try {
      const id = await this.#client.createExec(this.#container, ['/bin/sh', '-c', announced, command], signal);
      if (signal.aborted) return { kind: 'refused', reason: 'cut off' };
      this.#isStarted = true;
      const { ended } = await this.#client.startExec(id, (bytes) => output.push(bytes), this.#hangUp.signal);
      await ended;
      const exitStatus = await this.#exitStatus(id);
      this.#hasEnded = true;
      if (output.isBroken) return { kind: 'refused', reason: 'the Docker Engine sent something else than output' };
      if (output.pid === undefined) return { kind: 'refused', reason: notStarted(output.text) };
      return { kind: 'ended', exitStatus, output: output.text };
    } catch (error) {
      return failure(error);
    }
  }

  /** It may go on after it has closed its outputs, and the engine may learn of its end a little later than of theirs. */
  async #exitStatus(id: string): Promise<number> {
    const { signal } = this.#hangUp;
    for (;;) {
      const exitStatus = await this.#client.exitStatusOf(id, signal);
      if (exitStatus !== undefined) return exitStatus;
      await new Promise((resolve) => setTimeout(resolve, askAgainMs).unref());
      signal.throwIfAborted();
    }
  }

  /** Ends it and all of its process group, if it can be reached. */
  async #kill(output: ExecOutput, begun: Promise<void>, work: Promise<unknown>): Promise<void> {
    const until = AbortSignal.timeout(killLimitMs);
    const late = new Promise<void>((resolve) => until.addEventListener('abort', () => resolve(), { once: true }));
    await Promise.race([begun, work, late]);
    const { pid } = output;
    if (this.#hasEnded || pid === undefined || pid <= 1) return;
    try {
      const id = await this.#client.createExec(this.#container, ['/bin/sh', '-c', `kill -KILL -${pid}`], until);
      await this.#client.startExecDetached(id, until);
    } catch {
      // The container or the engine is gone, and the command with it or out of reach.
      return;
    }
    await Promise.race([work, late]);
  }
}

/** What people are told when the engine could not even start the shell. */
function notStarted(said: string): string {
  if (/\/bin\/sh.*no such file/is.test(said)) return 'the container has no /bin/sh to run it with';
  return said === '' ? 'the Docker Engine did not start it' : `the Docker Engine did not start it: ${said}`;
}

function failure(error: unknown): CommandResult {
  if (isLegateError(error, 'E_NOT_FOUND')) return { kind: 'refused', reason: 'the container is gone' };
  if (isLegateError(error, 'E_CONFLICT')) {
    const paused = /paused/i.test(error.message);
    return { kind: 'refused', reason: paused ? 'the container is paused' : 'the container does not run' };
  }
  if (!isLegateError(error)) return { kind: 'refused', reason: describeError(error) };
  // With a cause it is the connection that failed; otherwise the engine has answered.
  return error.cause === undefined
    ? { kind: 'refused', reason: notStarted(error.message) }
    : { kind: 'away', reason: error.message };
}
