import { type ChildProcess, spawn } from 'node:child_process';
import type { Clock } from '../../src/base/clock.ts';
import { LegateError } from '../../src/base/errors.ts';
import type { Log } from '../../src/base/log.ts';
import { printable, truncate } from '../../src/base/text.ts';
import { runCommand, toolEnvironment } from './command.ts';

/** Measured: one line of 100 elements takes as long as a process of its own that reads them. */
const maxElementsAtOnce = 256;
/** `nft -i` keeps what it was told: after 20,000 changes one takes five times as long as at first. */
const maxCommandsPerChild = 2000;
const answerTimeoutMs = 5000;
/** An nft built without its command line interface ends at once; then each change is a process. */
const maxFailedStarts = 3;
const maxRememberedPids = 64;
const maxAnswerLength = 64 * 1024;

/** Asks for nothing from the kernel and prints one line of its own: the sign that all before it is done. */
const question = 'describe ipv4_addr';
const answer = /^datatype ipv4_addr.*\n/m;

interface Waiting {
  readonly resolve: () => void;
  readonly reject: (error: LegateError) => void;
  readonly cancelTimeout: () => void;
}

/**
 * Carries commands to nftables through one `nft -i` that stays (0.6 ms a change), or a process of their own where they
 * are many. One at a time: the caller waits for each. A child that dies fails the command under way; the next command
 * starts another. It ends by itself when this process does, for its standard input closes then.
 */
export class NftSession {
  readonly #log: Log;
  readonly #clock: Clock;
  readonly #pids: number[] = [];
  #child: ChildProcess | undefined;
  #waiting: Waiting | undefined;
  #output = '';
  #commands = 0;
  #failedStarts = 0;

  constructor({ log, clock }: { readonly log: Log; readonly clock: Clock }) {
    this.#log = log;
    this.#clock = clock;
  }

  /** Whether this process id is of a child of ours, also of one that has just ended. */
  isOwn(pid: number): boolean {
    return this.#pids.includes(pid);
  }

  /** Runs the commands, which change `size` elements, as one transaction. */
  async run(commands: readonly string[], size: number): Promise<void> {
    if (size > maxElementsAtOnce || this.#failedStarts >= maxFailedStarts) return this.load(`${commands.join('\n')}\n`);
    await this.#ask(commands.join('; '));
    if (this.#commands >= maxCommandsPerChild) this.#retire();
  }

  /** Runs a script of any size as one transaction, in a process of its own. */
  async load(script: string): Promise<void> {
    await runCommand('nft', ['-f', '-'], { input: script, onStart: (pid) => this.#remember(pid) });
  }

  /**
   * Lists tables (`ip legate`); without contents of their maps and sets when `terse`. Rejects with E_INVALID when one is
   * not there. nft 1.0.6 finds only the last of several tables of one name that one process is to list.
   */
  async list(tables: readonly string[], terse: boolean): Promise<string> {
    const option = terse ? ['-t'] : [];
    return (await Promise.all(tables.map((table) => runCommand('nft', [...option, `list table ${table}`])))).join('');
  }

  /** Starts the child, so that the first command need not wait for it. */
  warm(): void {
    if (this.#failedStarts < maxFailedStarts) this.#child ??= this.#start();
  }

  close(): void {
    this.#retire();
  }

  #retire(): void {
    this.#child?.stdin?.end();
    this.#child = undefined;
    this.#commands = 0;
  }

  #remember(pid: number): void {
    this.#pids.push(pid);
    if (this.#pids.length > maxRememberedPids) this.#pids.shift();
  }

  #ask(line: string): Promise<void> {
    if (this.#waiting !== undefined) throw new Error('nft was asked while it works');
    this.#child ??= this.#start();
    const child = this.#child;
    return new Promise((resolve, reject) => {
      const cancelTimeout = this.#clock.after(answerTimeoutMs, () => child.kill('SIGKILL'));
      this.#waiting = { resolve, reject, cancelTimeout };
      this.#output = '';
      this.#commands += 1;
      keepAlive(child.stdout, true);
      child.stdin?.write(`${line}\n${question}\n`);
    });
  }

  #start(): ChildProcess {
    // Errors and answers in one stream, so that their order is known.
    // Without a free descriptor there is a child without pipes, which then reports the failure.
    const child: ChildProcess = spawn('sh', ['-c', 'exec nft -i 2>&1'], {
      stdio: ['pipe', 'pipe', 'ignore'],
      env: toolEnvironment(),
      detached: true,
    });
    this.#commands = 0;
    if (child.pid !== undefined) this.#remember(child.pid);
    let ended = false;
    const end = (): void => {
      if (ended) return;
      ended = true;
      if (this.#child === child) this.#onEnd();
    };
    child.on('error', end);
    child.on('exit', end);
    child.stdin?.on('error', () => undefined);
    child.stdout?.setEncoding('utf8');
    child.stdout?.on('data', (chunk: string) => {
      if (this.#child === child) this.#onOutput(chunk);
    });
    for (const handle of [child, child.stdin, child.stdout]) keepAlive(handle, false);
    return child;
  }

  #onEnd(): void {
    this.#child = undefined;
    this.#failedStarts += 1;
    if (this.#failedStarts === maxFailedStarts) {
      this.#log.warn('nft does not stay, each change is a process of its own', { 'nft.failures': this.#failedStarts });
    }
    const failure = new LegateError('E_CLOSED', 'nft ended while it was asked');
    this.#settle((waiting) => waiting.reject(failure));
  }

  #onOutput(chunk: string): void {
    if (this.#output.length < maxAnswerLength) this.#output += chunk;
    else this.#output = this.#output.slice(-1024) + chunk;
    if (!answer.test(this.#output)) return;
    this.#failedStarts = 0;
    const error = /^(?:.*: )?Error: (.*)$/m.exec(this.#output);
    if (error === null) this.#settle((waiting) => waiting.resolve());
    else {
      const text = printable(truncate(error[1] ?? '', 300));
      this.#settle((waiting) => waiting.reject(new LegateError('E_INVALID', `nft refuses a change: ${text}`)));
    }
  }

  #settle(finish: (waiting: Waiting) => void): void {
    const waiting = this.#waiting;
    this.#waiting = undefined;
    if (waiting === undefined) return;
    keepAlive(this.#child?.stdout, false);
    waiting.cancelTimeout();
    finish(waiting);
  }
}

/** A pipe keeps the process alive only while an answer is awaited on it. */
function keepAlive(handle: object | null | undefined, alive: boolean): void {
  if (handle === null || handle === undefined) return;
  const name = alive ? 'ref' : 'unref';
  const method: unknown = Reflect.get(handle, name);
  if (typeof method === 'function') method.call(handle);
}
