import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import { stringify } from 'yaml';
import type { LinkDocument, ServiceDocument, StatusDocument } from '../../sidecar/admin/documents.ts';
import { Commands } from './commands.ts';

const startTimeoutMs = 20_000;
const stopTimeoutMs = 20_000;

/** One of the two hosts that the demonstration plays on one machine, told apart by their loopback addresses. */
export interface DemoHost {
  readonly name: string;
  readonly address: string;
  readonly first: boolean;
}

/** The sidecar as a user runs it: a configuration file, `legate agent`, the command line and the admin socket. */
export class DemoSidecar {
  readonly socket: string;
  readonly host: DemoHost;
  /** Where its tunnel listens. */
  readonly tunnel: string;
  readonly #legate: string;
  readonly #folder: string;
  readonly #service: string;
  readonly #config: string;
  readonly #commands = new Commands();
  #child: ChildProcess | undefined;
  #errors = '';

  constructor(options: {
    readonly legate: string;
    readonly folder: string;
    readonly service: string;
    readonly linkPort: number;
    /** The Docker Engine's socket; undefined: no containers. */
    readonly dockerSocket: string | undefined;
    /** Which of the two hosts it stands for: the first has the store, which the second uses. */
    readonly host: DemoHost;
    readonly storePort: number;
    /** Where its tunnel listens. */
    readonly tunnelPort: number;
  }) {
    this.#legate = options.legate;
    this.#folder = options.folder;
    this.#service = options.service;
    const { name, address } = options.host;
    this.host = options.host;
    this.tunnel = `${address}:${options.tunnelPort}`;
    this.#config = join(options.folder, `${name}.yaml`);
    this.socket = join(options.folder, `${name}.sock`);
    const store = `127.0.0.1:${options.storePort}`;
    writeFileSync(
      this.#config,
      stringify({
        host: name,
        advertise: address,
        data_dir: join(options.folder, name),
        // The second host learns of the store when it joins.
        ...(options.host.first && { store: { listen: store } }),
        tunnel: { listen: this.tunnel },
        docker: options.dockerSocket === undefined ? { expose: 'off' } : { socket: options.dockerSocket },
        dns: { listen: [`${address}:0`], bridges: 'off' },
        ...(!options.host.first && { vip: { mode: 'off' } }),
        admin: { listen: [`unix:${this.socket}`] },
        // The port of the virtual address, whatever ports the instances have.
        services: { [options.service]: { port: 5432 } },
        links: [{ service: options.service, listen: `${address}:${options.linkPort}` }],
      }),
    );
  }

  /** Makes the mesh and its authority; what a further host needs to join. */
  async init(): Promise<string> {
    const printed = await this.#commands.output(process.execPath, this.#legate, 'init', '-c', this.#config);
    const token = /^legate join \S+ --token (\S+)/.exec(printed.trim().split('\n').at(-1) ?? '')?.[1];
    if (token === undefined) throw new Error(`init printed no token: ${printed}`);
    return token;
  }

  /** Joins the mesh of the host at `address`. */
  async join(address: string, token: string): Promise<void> {
    await this.#commands.input(
      `${token}\n`,
      process.execPath,
      this.#legate,
      'join',
      address,
      '--token',
      '-',
      '-c',
      this.#config,
    );
  }

  async start(): Promise<StatusDocument> {
    const child = spawn(process.execPath, [this.#legate, 'agent', '-c', this.#config], {
      stdio: ['ignore', 'ignore', 'pipe'],
      detached: true,
      env: environment(),
    });
    this.#child = child;
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#errors = (this.#errors + text).slice(-4000);
    });
    const until = performance.now() + startTimeoutMs;
    while (performance.now() < until) {
      if (!this.#runs()) throw new Error(`it ended: ${this.#errors.trim().split('\n').at(-1) ?? ''}`);
      const status = await this.#get<StatusDocument>('/api/status').catch(() => undefined);
      if (status?.store.state === 'connected' && status.docker.state !== 'connecting') return status;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    throw new Error(`no answer within ${startTimeoutMs / 1000} s`);
  }

  async register(name: string, port: number): Promise<void> {
    const file = join(this.#folder, `${name}.yaml`);
    const check = { kind: 'tcp', interval: '500ms', fall: 1 };
    writeFileSync(
      file,
      stringify({
        instances: [{ service: this.#service, name, address: this.host.address, port, reach: 'host', checks: [check] }],
      }),
    );
    await this.#commands.output(
      process.execPath,
      this.#legate,
      '--admin',
      `unix:${this.socket}`,
      'register',
      '-f',
      file,
    );
  }

  /** Waits until so many instances of the service are usable. */
  async usable(service: string, count: number): Promise<void> {
    const what = `${count} usable instances of ${service} at ${this.host.name}`;
    await this.until(what, `/api/services/${service}`, (found: ServiceDocument) => found.usable === count);
  }

  /** Waits until the document at `path` is as `condition` wants it. */
  async until<T>(what: string, path: string, condition: (document: T) => boolean): Promise<void> {
    const until = performance.now() + 15_000;
    while (performance.now() < until && this.#runs()) {
      const document = await this.#get<T>(path).catch(() => undefined);
      if (document !== undefined && condition(document)) return;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    throw new Error(`waited in vain for ${what}`);
  }

  /** Waits until the links to the service carried a few rounds of `connections`. */
  async busy(connections: number): Promise<void> {
    const before = await this.#carried();
    const until = performance.now() + 15_000;
    while ((await this.#carried()) < before + connections * 4) {
      if (performance.now() > until) throw new Error('the consumer did not begin');
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  /** Ends it as an operator would; one that does not end is killed. */
  async stop(): Promise<void> {
    this.#commands.kill();
    const child = this.#child;
    if (child === undefined || !this.#runs()) return;
    const end = once(child, 'exit');
    child.kill('SIGTERM');
    const timer = setTimeout(() => this.#killAll(child), stopTimeoutMs);
    await end;
    clearTimeout(timer);
  }

  /** The sidecar and its data-plane processes, which would live on without it: they are one process group. */
  #killAll({ pid }: ChildProcess): void {
    if (pid !== undefined) process.kill(-pid, 'SIGKILL');
  }

  #runs(): boolean {
    return this.#child !== undefined && this.#child.exitCode === null && this.#child.signalCode === null;
  }

  async #carried(): Promise<number> {
    const { links } = await this.#get<{ links: readonly LinkDocument[] }>('/api/links');
    return links
      .filter((link) => link.service === this.#service)
      .reduce((sum, link) => sum + link.connections.total, 0);
  }

  async #get<T>(path: string): Promise<T> {
    const text = await new Promise<string>((resolve, reject) => {
      request({ socketPath: this.socket, path, timeout: 5000 }, (response) => {
        let body = '';
        response.setEncoding('utf8').on('data', (chunk: string) => {
          body += chunk;
        });
        response.on('error', reject);
        response.on('end', () => (response.statusCode === 200 ? resolve(body) : reject(new Error(body))));
      })
        .on('error', reject)
        .end();
    });
    return JSON.parse(text) as T;
  }
}

/** Variables meant for the machine's own sidecar would lead this one into its data; only the range may be another. */
function environment(): NodeJS.ProcessEnv {
  const kept = Object.entries(process.env).filter(
    ([name]) => !name.startsWith('LEGATE_') || name.startsWith('LEGATE_VIP_'),
  );
  return Object.fromEntries(kept);
}
