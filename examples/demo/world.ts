import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Commands } from './commands.ts';

/** What the demonstration's services run in: real containers where Docker answers, else plain processes. */
export interface World {
  readonly kind: 'containers' | 'processes';
  /** Starts an instance of the service; `name` is what it answers. */
  startDatabase(name: string): Promise<void>;
  /** SIGKILL for one instance; resolves when it is gone, and with it its listener. */
  killDatabase(name: string): Promise<void>;
  /** Asks HOST:PORT from a consumer; the JSON line that consumer.mjs printed. */
  consume(target: string, concurrency: number, count: number, milliseconds: number): Promise<Consumed>;
  /** Removes all that it started, also what is just being started. */
  close(): Promise<void>;
}

export interface Consumed {
  readonly asked: number;
  readonly answers: Readonly<Record<string, number>>;
  readonly failures: readonly { readonly beganAt: number; readonly endedAt: number; readonly problem: string }[];
  readonly unanswered: number;
}

/** A Docker Engine on this machine. */
export interface Engine {
  readonly version: string;
  readonly socket: string;
}

/** How long commands that still run at the end may take to come to theirs. */
const settleTimeoutMs = 30_000;

/** The engine that the command `docker` talks to, where that is one on this machine; undefined elsewhere. */
export async function localEngine(): Promise<Engine | undefined> {
  if (process.platform !== 'linux') return undefined;
  const commands = new Commands();
  try {
    const version = await commands.output('docker', 'version', '--format', '{{.Server.Version}}');
    const host = await commands.output('docker', 'context', 'inspect', '--format', '{{.Endpoints.docker.Host}}');
    return host.startsWith('unix://') ? { version, socket: host.slice('unix://'.length) } : undefined;
  } catch {
    return undefined;
  }
}

/** Whether containers that are not ours already call themselves `service`. */
export async function isServiceTaken(service: string): Promise<boolean> {
  const list = ['ps', '-aq', '--filter', `label=legate.service=${service}`];
  return (await new Commands().output('docker', ...list).catch(() => '')) !== '';
}

/**
 * Containers of an image made here from this machine's own node and its libraries, because the demonstration needs no
 * registry. Everything it made goes away with `close`.
 */
export class ContainerWorld implements World {
  readonly kind = 'containers';
  readonly #commands = new Commands();
  readonly #label = `legate-demo-${process.pid}`;
  readonly #image = `legate-demo:${process.pid}`;
  readonly #folder: string;
  readonly #service: string;
  /** Options of `docker run` that let the consumer find the name server; undefined: the consumer runs on the host. */
  readonly #consumerOptions: readonly string[] | undefined;

  constructor(options: {
    readonly folder: string;
    readonly service: string;
    readonly consumerOptions: readonly string[] | undefined;
  }) {
    this.#folder = options.folder;
    this.#service = options.service;
    this.#consumerOptions = options.consumerOptions;
  }

  async makeImage(): Promise<void> {
    const libraries = (await this.#commands.output('ldd', process.execPath))
      .split('\n')
      .map((line) => /(?:=> )?(\/[^ ]+) \(/.exec(line)?.[1])
      .filter((path) => path !== undefined);
    const files = [process.execPath, ...libraries].map((path) => path.slice(1));
    for (const extra of ['libnss_dns.so.2', 'libnss_files.so.2']) {
      const folder = libraries.find((path) => path.includes('libc.so'))?.replace(/[^/]+$/, '') ?? '/lib/';
      if (existsSync(folder + extra)) files.push((folder + extra).slice(1));
    }
    const tar = ['tar', '-chf', '-', '-C', '/', ...files, '-C', this.#folder, 'database.mjs', 'consumer.mjs'];
    await this.#commands.output(
      'sh',
      '-c',
      `${tar.map((word) => `'${word}'`).join(' ')} | docker import - ${this.#image}`,
    );
  }

  async startDatabase(name: string): Promise<void> {
    const labels = [
      '--label',
      this.#label,
      '--label',
      `legate.service=${this.#service}`,
      '--label',
      'legate.port=5432',
    ];
    const checks = ['--label', 'legate.check=tcp', '--label', 'legate.check.interval=1s'];
    const command = [this.#image, process.execPath, '/database.mjs', name];
    await this.#commands.output('docker', 'run', '-d', '--name', this.#name(name), ...labels, ...checks, ...command);
  }

  async killDatabase(name: string): Promise<void> {
    await this.#commands.output('docker', 'kill', this.#name(name));
  }

  async consume(target: string, concurrency: number, count: number, milliseconds: number): Promise<Consumed> {
    const words = consumerWords(target, concurrency, count, milliseconds);
    if (this.#consumerOptions === undefined) return consumeHere(this.#commands, this.#folder, words);
    const options = ['--rm', '--label', this.#label, ...this.#consumerOptions];
    const command = [this.#image, process.execPath, '/consumer.mjs', ...words];
    return JSON.parse(await this.#commands.output('docker', 'run', ...options, ...command)) as Consumed;
  }

  async close(): Promise<void> {
    // A `docker run` that was interrupted halfway would leave its container: each is let come to its end.
    await this.#commands.settle(() => this.#removeContainers(), settleTimeoutMs);
    this.#commands.kill();
    await this.#removeContainers();
    await new Commands().output('docker', 'rmi', '-f', this.#image).catch(() => '');
  }

  async #removeContainers(): Promise<void> {
    const docker = new Commands();
    const containers = await docker.output('docker', 'ps', '-aq', '--filter', `label=${this.#label}`).catch(() => '');
    if (containers !== '') await docker.output('docker', 'rm', '-f', '-v', ...containers.split('\n')).catch(() => '');
  }

  #name(name: string): string {
    return `legate-demo-${process.pid}-${name}`;
  }
}

/** Plain processes on loopback, registered through the command line as any service that is not a container. */
export class ProcessWorld implements World {
  readonly kind = 'processes';
  readonly #commands = new Commands();
  readonly #folder: string;
  readonly #address: string;
  readonly #freePort: (address: string) => Promise<number>;
  readonly #register: (name: string, port: number) => Promise<void>;
  readonly #children = new Map<string, ChildProcess>();
  #closed = false;

  constructor(options: {
    readonly folder: string;
    /** Of the host that they run on. */
    readonly address: string;
    readonly freePort: (address: string) => Promise<number>;
    readonly register: (name: string, port: number) => Promise<void>;
  }) {
    this.#folder = options.folder;
    this.#address = options.address;
    this.#freePort = options.freePort;
    this.#register = options.register;
  }

  async startDatabase(name: string): Promise<void> {
    const port = await this.#freePort(this.#address);
    if (this.#closed) return;
    const words = [join(this.#folder, 'database.mjs'), name, String(port), this.#address];
    this.#children.set(name, spawn(process.execPath, words, { stdio: 'ignore', detached: true }));
    await this.#register(name, port);
  }

  async killDatabase(name: string): Promise<void> {
    const child = this.#children.get(name);
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, 'exit');
    child.kill('SIGKILL');
    await gone;
  }

  consume(target: string, concurrency: number, count: number, milliseconds: number): Promise<Consumed> {
    return consumeHere(this.#commands, this.#folder, consumerWords(target, concurrency, count, milliseconds));
  }

  close(): Promise<void> {
    this.#closed = true;
    this.#commands.kill();
    for (const child of this.#children.values()) child.kill('SIGKILL');
    return Promise.resolve();
  }
}

function consumerWords(target: string, concurrency: number, count: number, milliseconds: number): string[] {
  return [target.replace(/:\d+$/, ''), target.replace(/^.*:/, ''), concurrency, count, milliseconds].map(String);
}

async function consumeHere(commands: Commands, folder: string, words: readonly string[]): Promise<Consumed> {
  return JSON.parse(await commands.output(process.execPath, join(folder, 'consumer.mjs'), ...words)) as Consumed;
}
