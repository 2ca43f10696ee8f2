import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Client } from 'undici';
import { stringify } from 'yaml';
import { waitFor } from './wait.ts';

/** The checkout, seen from the compiled helper. */
export const checkout = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..', '..');
/** The command line as users run it. */
export const legateMain = join(checkout, 'build', 'sidecar', 'cli', 'main.js');

/** What a test registers its clean-up with; tap's `t` is one. */
export interface Teardown {
  teardown(run: () => void | Promise<void>): void;
}

export function temporaryFolder(t: Teardown, name = 'legate-test-'): string {
  const folder = mkdtempSync(join(tmpdir(), name));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/**
 * In front of every command: the test runner has its own module loaded into every Node process that is started, by
 * NODE_OPTIONS. That is for test files, not for what they start.
 */
const plain = ['env', '-u', 'NODE_OPTIONS'] as const;

export interface Ran {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a command to its end (at most `timeoutMs`), whatever its exit status. */
export function run(
  command: string,
  args: readonly string[],
  options: { timeoutMs?: number; input?: string; env?: NodeJS.ProcessEnv } = {},
): Promise<Ran> {
  return new Promise((resolve) => {
    const [first, ...words] = [...plain, command, ...args];
    const child = execFile(
      first,
      words,
      {
        timeout: options.timeoutMs ?? 60_000,
        maxBuffer: 64 * 1024 * 1024,
        encoding: 'utf8',
        env: options.env ?? process.env,
      },
      (error, stdout, stderr) =>
        resolve({ status: error === null ? 0 : typeof error.code === 'number' ? error.code : -1, stdout, stderr }),
    );
    // One that ends before it has read its input tells so by its exit status.
    child.stdin?.on('error', () => undefined);
    if (options.input !== undefined) child.stdin?.end(options.input);
  });
}

/** As `run`; anything but exit status 0 fails with what it printed. */
export async function must(command: string, ...args: string[]): Promise<string> {
  const ran = await run(command, args);
  if (ran.status !== 0) throw new Error(`${command} ${args.join(' ')}: ${ran.status}\n${ran.stderr}${ran.stdout}`);
  return ran.stdout.trim();
}

export interface AdminAnswer {
  readonly status: number;
  readonly text: string;
  readonly headers: Record<string, unknown>;
}

/** Asks the admin API that listens on a socket; a `body` that is no text is sent as JSON. */
export async function askAdmin(
  socketPath: string,
  method: 'GET' | 'PUT' | 'POST' | 'DELETE',
  path: string,
  body?: unknown,
): Promise<AdminAnswer> {
  const client = new Client('http://legate', { socketPath });
  try {
    const headers = body === undefined ? {} : { 'content-type': 'application/json' };
    const payload = body === undefined || typeof body === 'string' ? (body ?? null) : JSON.stringify(body);
    const answer = await client.request({
      method,
      path,
      headers,
      body: payload,
      headersTimeout: 10_000,
      bodyTimeout: 10_000,
    });
    return { status: answer.statusCode, text: await answer.body.text(), headers: answer.headers };
  } finally {
    await client.destroy();
  }
}

/** A sidecar as a process of its own, with a data directory and an admin socket that vanish with the test. */
export class Agent {
  readonly folder: string;
  readonly configFile: string;
  readonly socket: string;
  /** The lines it logged, over all its runs. */
  readonly log: string[] = [];
  #child: ChildProcess | undefined;

  constructor(t: Teardown, config: Readonly<Record<string, unknown>> = {}) {
    this.folder = temporaryFolder(t);
    this.socket = join(this.folder, 'admin.sock');
    this.configFile = join(this.folder, 'legate.yaml');
    this.configure(config);
    t.teardown(async () => {
      // In order, so that it takes its table and route back; one that does not end by itself is ended.
      const last = setTimeout(() => this.#child?.kill('SIGKILL'), 15_000);
      await this.kill('SIGTERM');
      clearTimeout(last);
      if (process.env.LEGATE_TEST_LOG !== undefined) process.stderr.write(`${this.log.join('\n')}\n`);
    });
  }

  /** Writes the configuration; sections given replace these defaults. */
  configure(config: Readonly<Record<string, unknown>>): void {
    const defaults = {
      host: 'web-1',
      advertise: '127.0.0.1',
      data_dir: join(this.folder, 'data'),
      docker: { expose: 'off' },
      dns: { listen: ['127.0.0.1:0'], bridges: 'off', upstream: 'off' },
      admin: { listen: [`unix:${this.socket}`] },
      vip: { mode: 'off' },
      // Data-plane processes outlive a sidecar that is killed, as tests do: those that want some say so, and end them.
      workers: 0,
    };
    writeFileSync(this.configFile, stringify({ ...defaults, ...config }));
  }

  get pid(): number {
    const pid = this.#child?.pid;
    if (pid === undefined) throw new Error('the sidecar does not run');
    return pid;
  }

  get running(): boolean {
    return this.#child !== undefined && this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** Starts another one in place of the one that runs, which hands over to it; how the former one ended. */
  async replace(): Promise<{ readonly former: number | string }> {
    const former = this.#child;
    this.#child = undefined;
    await this.start({ args: ['--replace'], ready: false });
    if (former !== undefined && former.exitCode === null && former.signalCode === null) await once(former, 'exit');
    // Asked earlier, the former one might answer.
    await this.#isReady();
    return { former: former?.exitCode ?? former?.signalCode ?? 0 };
  }

  /** Starts it and waits until it is ready (or, with `ready: false`, only starts it). */
  async start(
    options: { ready?: boolean; env?: NodeJS.ProcessEnv; prefix?: readonly string[]; args?: readonly string[] } = {},
  ): Promise<this> {
    if (this.running) throw new Error('the sidecar runs already');
    const [command, ...words] = [...plain, ...(options.prefix ?? []), process.execPath, legateMain, 'agent'];
    const child = spawn(command, [...words, ...(options.args ?? []), '-c', this.configFile], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...options.env },
    });
    this.#child = child;
    for (const stream of [child.stdout, child.stderr]) {
      let rest = '';
      stream.setEncoding('utf8').on('data', (text: string) => {
        const lines = (rest + text).split('\n');
        rest = lines.pop() ?? '';
        this.log.push(...lines);
      });
    }
    if (options.ready !== false) await this.#isReady();
    return this;
  }

  async #isReady(): Promise<void> {
    await waitFor(
      'the sidecar to be ready',
      async () => !this.running || (await this.api('GET', '/readyz')).status === 200,
      { timeoutMs: 20_000, everyMs: 10 },
    );
    if (!this.running) throw new Error(`the sidecar ended: ${this.log.slice(-15).join('\n')}`);
  }

  /** Sends a signal and waits for the end; the exit status, or the signal that ended it. */
  async kill(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | string> {
    const child = this.#child;
    if (child === undefined) return 0;
    if (child.exitCode === null && child.signalCode === null) {
      const end = once(child, 'exit');
      child.kill(signal);
      await end;
    }
    return child.exitCode ?? child.signalCode ?? 0;
  }

  /** Waits until it ended by itself; its exit status. */
  async ended(): Promise<number | string> {
    const child = this.#child;
    if (child !== undefined && child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    return child?.exitCode ?? child?.signalCode ?? 0;
  }

  /** Asks the admin API over the socket. */
  api(method: 'GET' | 'PUT' | 'POST' | 'DELETE', path: string, body?: unknown): Promise<AdminAnswer> {
    return askAdmin(this.socket, method, path, body);
  }

  /** The JSON document at `path`; an error status fails. */
  async json<T>(path: string): Promise<T> {
    const answer = await this.api('GET', path);
    if (answer.status !== 200) throw new Error(`GET ${path}: ${answer.status} ${answer.text}`);
    return JSON.parse(answer.text) as T;
  }

  /** Runs `legate …` against this sidecar. */
  cli(...args: string[]): Promise<Ran> {
    return run(process.execPath, [legateMain, '--admin', `unix:${this.socket}`, ...args]);
  }
}
