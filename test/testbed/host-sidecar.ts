import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { type AdminAnswer, askAdmin, type Ran } from '../support/agent.ts';
import { waitFor } from '../support/wait.ts';
import type { TestbedHost } from './host.ts';
import type { HostProcess } from './host-process.ts';

const startTimeoutMs = 30_000;

export interface SidecarOptions {
  /** false: returns as soon as the process runs. */
  readonly ready?: boolean;
  /** In front of `legate agent`, as `setpriv …`. */
  readonly prefix?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

/** A sidecar on a host: a plain process (`start`), or whatever else listens on its admin socket, such as a container. */
export class HostSidecar {
  readonly host: TestbedHost;
  /** Its admin socket, reached from inside and outside under the same path. */
  readonly socket: string;
  /** Seen by the host, and on its disk, as /etc/legate/legate.yaml. */
  readonly configFile: string;
  #process: HostProcess | undefined;

  constructor(host: TestbedHost) {
    this.host = host;
    this.socket = join(host.folder, 'admin.sock');
    this.configFile = join(host.folder, 'disk', 'etc', 'legate', 'legate.yaml');
  }

  /**
   * Writes the configuration. What it does not say is the product's default, but for `host` (the host's name),
   * `advertise`, `admin` (a second socket, `this.socket`) and `dns.upstream` (off).
   */
  configure(config: Readonly<Record<string, unknown>>): void {
    const defaults = {
      host: this.host.name,
      advertise: this.host.address,
      admin: { listen: ['unix:/run/legate/admin.sock', `unix:${this.socket}`] },
      dns: { upstream: 'off' },
    };
    writeFileSync(this.configFile, stringify({ ...defaults, ...config }));
  }

  /** Starts it as a plain process and waits until it is ready. */
  async start(config?: Readonly<Record<string, unknown>>, options: SidecarOptions = {}): Promise<this> {
    if (this.#process?.running === true) throw new Error(`the sidecar of ${this.host.name} runs already`);
    if (config !== undefined) this.configure(config);
    const environment = Object.entries(options.env ?? {}).map(([name, value]) => `${name}=${value}`);
    // Node itself, not a shell in front of it: signals go to this process.
    const agent = ['legate', 'agent', '-c', '/etc/legate/legate.yaml'];
    this.#process = await this.host.spawn('env', ...environment, ...(options.prefix ?? []), ...agent);
    if (options.ready !== false) await this.isReady();
    return this;
  }

  /** Starts another one that takes over from the one that runs, as an upgrade does. */
  async replace(): Promise<void> {
    const former = this.#process;
    if (former?.running !== true) throw new Error(`the sidecar of ${this.host.name} does not run`);
    this.#process = await this.host.spawn('legate', 'agent', '--replace', '-c', '/etc/legate/legate.yaml');
    await waitFor(`the former sidecar of ${this.host.name} to end`, () => !former.running, {
      timeoutMs: startTimeoutMs,
    });
    await this.isReady();
  }

  /** Waits until it says that it is ready. */
  async isReady(timeoutMs = startTimeoutMs): Promise<void> {
    const ended = (): boolean => this.#process !== undefined && !this.#process.running;
    await waitFor(
      `the sidecar of ${this.host.name} to be ready`,
      async () => ended() || (await this.api('GET', '/readyz')).status === 200,
      { timeoutMs },
    );
    if (ended()) throw new Error(`the sidecar of ${this.host.name} ended: ${this.log.slice(-15).join('\n')}`);
  }

  /** The lines it logged. */
  get log(): readonly string[] {
    return this.#process?.lines ?? [];
  }

  get running(): boolean {
    return this.#process?.running === true;
  }

  /** As the machine sees it. */
  get pid(): number {
    if (this.#process?.running !== true) throw new Error(`the sidecar of ${this.host.name} does not run`);
    return this.#process.pid;
  }

  /** Sends a signal and waits for the end; the exit status, or the signal that ended it. */
  async kill(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | string> {
    return (await this.#process?.kill(signal)) ?? 0;
  }

  /** Asks the admin API; over the host's disk, so also while its network is cut. */
  api(method: 'GET' | 'PUT' | 'POST' | 'DELETE', path: string, body?: unknown): Promise<AdminAnswer> {
    return askAdmin(this.socket, method, path, body);
  }

  /** The JSON document at `path`; an error status fails. */
  async json<T>(path: string): Promise<T> {
    const answer = await this.api('GET', path);
    if (answer.status !== 200) throw new Error(`GET ${path} of ${this.host.name}: ${answer.status} ${answer.text}`);
    return JSON.parse(answer.text) as T;
  }

  /** Runs `legate …` on the host. */
  legate(...args: string[]): Promise<Ran> {
    return this.host.tryRun('legate', '--admin', `unix:${this.socket}`, ...args);
  }
}
