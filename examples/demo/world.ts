import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

/** What the demonstration's services run in: real containers where Docker answers, else plain processes. */
export interface World {
  readonly kind: 'containers' | 'processes';
  /** Starts an instance of `db`; gives how it is named in answers. */
  startDatabase(name: string): Promise<void>;
  /** SIGKILL for one instance. */
  killDatabase(name: string): Promise<void>;
  /** Asks HOST:PORT from a consumer; the JSON line that consumer.mjs printed. */
  consume(target: string, concurrency: number, count: number, milliseconds: number): Promise<Consumed>;
  close(): Promise<void>;
}

export interface Consumed {
  readonly asked: number;
  readonly answers: Readonly<Record<string, number>>;
  readonly failures: readonly { readonly beganAt: number; readonly endedAt: number; readonly problem: string }[];
  readonly unanswered: number;
}

export function output(command: string, ...args: string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile(
      command,
      args,
      { encoding: 'utf8', maxBuffer: 16 * 1024 * 1024, timeout: 120_000 },
      (error, stdout, stderr) => {
        if (error === null) resolve(stdout.trim());
        else
          reject(
            new Error(`${command} ${args[0] ?? ''}: ${(stderr || error.message).trim().split('\n').at(-1) ?? ''}`),
          );
      },
    );
  });
}

/** The engine's version where Docker answers, undefined elsewhere. */
export async function dockerVersion(): Promise<string | undefined> {
  return output('docker', 'version', '--format', '{{.Server.Version}}').catch(() => undefined);
}

/**
 * Containers of an image made here from this machine's own node and its libraries, because the demonstration needs no
 * registry. Everything it made goes away with `close`.
 */
export class ContainerWorld implements World {
  readonly kind = 'containers';
  readonly #label = `legate-demo-${process.pid}`;
  readonly #image = `legate-demo:${process.pid}`;
  readonly #folder: string;
  /** Options of `docker run` that let the consumer find the name server; undefined: the consumer runs on the host. */
  readonly #consumerOptions: readonly string[] | undefined;

  constructor(folder: string, consumerOptions: readonly string[] | undefined) {
    this.#folder = folder;
    this.#consumerOptions = consumerOptions;
  }

  async makeImage(): Promise<void> {
    const libraries = (await output('ldd', process.execPath))
      .split('\n')
      .map((line) => /(?:=> )?(\/[^ ]+) \(/.exec(line)?.[1])
      .filter((path) => path !== undefined);
    const files = [process.execPath, ...libraries].map((path) => path.slice(1));
    for (const extra of ['libnss_dns.so.2', 'libnss_files.so.2']) {
      const folder = libraries.find((path) => path.includes('libc.so'))?.replace(/[^/]+$/, '') ?? '/lib/';
      if (existsSync(folder + extra)) files.push((folder + extra).slice(1));
    }
    const tar = ['tar', '-chf', '-', '-C', '/', ...files, '-C', this.#folder, 'database.mjs', 'consumer.mjs'];
    await output('sh', '-c', `${tar.map((word) => `'${word}'`).join(' ')} | docker import - ${this.#image}`);
  }

  async startDatabase(name: string): Promise<void> {
    const labels = ['--label', this.#label, '--label', 'legate.service=demo-db', '--label', 'legate.port=5432'];
    const checks = ['--label', 'legate.check=tcp', '--label', 'legate.check.interval=1s'];
    await output(
      'docker',
      'run',
      '-d',
      '--name',
      this.#name(name),
      ...labels,
      ...checks,
      this.#image,
      process.execPath,
      '/database.mjs',
      name,
    );
  }

  async killDatabase(name: string): Promise<void> {
    await output('docker', 'kill', this.#name(name));
  }

  async consume(target: string, concurrency: number, count: number, milliseconds: number): Promise<Consumed> {
    const words = [target.replace(/:\d+$/, ''), target.replace(/^.*:/, ''), concurrency, count, milliseconds].map(
      String,
    );
    if (this.#consumerOptions === undefined) return consumeHere(this.#folder, words);
    const options = ['--rm', '--label', this.#label, ...this.#consumerOptions];
    const text = await output('docker', 'run', ...options, this.#image, process.execPath, '/consumer.mjs', ...words);
    return JSON.parse(text) as Consumed;
  }

  async close(): Promise<void> {
    const containers = await output('docker', 'ps', '-aq', '--filter', `label=${this.#label}`).catch(() => '');
    if (containers !== '') await output('docker', 'rm', '-f', ...containers.split('\n')).catch(() => '');
    await output('docker', 'rmi', '-f', this.#image).catch(() => '');
  }

  #name(name: string): string {
    return `legate-demo-${process.pid}-${name}`;
  }
}

/** Plain processes on loopback, registered through the command line as any service that is not a container. */
export class ProcessWorld implements World {
  readonly kind = 'processes';
  readonly #folder: string;
  readonly #register: (name: string, port: number) => Promise<void>;
  readonly #children = new Map<string, ChildProcess>();
  #nextPort: number;

  constructor(folder: string, firstPort: number, register: (name: string, port: number) => Promise<void>) {
    this.#folder = folder;
    this.#nextPort = firstPort;
    this.#register = register;
  }

  async startDatabase(name: string): Promise<void> {
    const port = this.#nextPort++;
    const words = [join(this.#folder, 'database.mjs'), name, String(port), '127.0.0.1'];
    this.#children.set(name, spawn(process.execPath, words, { stdio: 'ignore' }));
    await this.#register(name, port);
  }

  killDatabase(name: string): Promise<void> {
    this.#children.get(name)?.kill('SIGKILL');
    return Promise.resolve();
  }

  consume(target: string, concurrency: number, count: number, milliseconds: number): Promise<Consumed> {
    const words = [target.replace(/:\d+$/, ''), target.replace(/^.*:/, ''), concurrency, count, milliseconds].map(
      String,
    );
    return consumeHere(this.#folder, words);
  }

  close(): Promise<void> {
    for (const child of this.#children.values()) child.kill('SIGKILL');
    return Promise.resolve();
  }
}

async function consumeHere(folder: string, words: readonly string[]): Promise<Consumed> {
  return JSON.parse(await output(process.execPath, join(folder, 'consumer.mjs'), ...words)) as Consumed;
}
