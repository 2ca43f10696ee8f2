import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { StoreUrl } from '../../src/config/config.ts';
import { type Teardown, temporaryFolder } from './agent.ts';
import { waitFor } from './wait.ts';

/** Where test/support/fetch-consul puts it, unless LEGATE_TEST_CONSUL names another. */
const fetched = join(tmpdir(), 'legate-consul', 'usr', 'bin', 'consul');

function program(): string | undefined {
  const named = process.env.LEGATE_TEST_CONSUL;
  const inPath = (process.env.PATH ?? '').split(':').map((folder) => join(folder, 'consul'));
  return [...(named === undefined ? [] : [named]), ...inPath, fetched].find((path) => existsSync(path));
}

/** The path of `consul`; to be asked for where `unlessConsul` found nothing missing. */
export function consulProgram(): string {
  const path = program();
  if (path === undefined) throw new Error('there is no Consul');
  return path;
}

/** For tap's `skip`: false when there is a Consul, else the reason; with CI=true a missing one is a failure. */
export function unlessConsul(): false | string {
  if (program() !== undefined) return false;
  const reason = 'needs Consul: test/support/fetch-consul fetches it, or LEGATE_TEST_CONSUL names it';
  if (process.env.CI === 'true') throw new Error(`with CI=true nothing may be missing: ${reason}`);
  return reason;
}

export interface ConsulOptions {
  /** How many servers; they form one cluster. */
  readonly servers?: 1 | 3;
  /** With this token as that of the management, and without it nothing allowed. */
  readonly managementToken?: string;
  readonly tls?: { readonly ca: string; readonly cert: string; readonly key: string };
  /** More of Consul's configuration. */
  readonly config?: Readonly<Record<string, unknown>>;
}

interface Ports {
  readonly http: number;
  readonly dns: number;
  readonly server: number;
  readonly serf: number;
}

/** A real server of Consul with a data directory of its own. */
class ConsulServer {
  readonly name: string;
  readonly ports: Ports;
  readonly url: StoreUrl;
  readonly #folder: string;
  readonly #log: string[] = [];
  #child: ChildProcess | undefined;

  constructor(name: string, ports: Ports, folder: string, secure: boolean) {
    this.name = name;
    this.ports = ports;
    this.#folder = folder;
    const text = `http${secure ? 's' : ''}://127.0.0.1:${ports.http}`;
    this.url = { secure, host: '127.0.0.1', port: ports.http, text };
  }

  get log(): string {
    return this.#log.join('');
  }

  start(): void {
    const command = [program() ?? 'consul', 'agent', `-config-file=${join(this.#folder, 'consul.json')}`];
    // It dies with this process, also when that is killed.
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', ...command], { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#child = child;
    for (const stream of [child.stdout, child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => {
        if (this.#log.push(text) > 500) this.#log.shift();
      });
    }
    child.on('error', (error) => this.#log.push(String(error)));
  }

  get ended(): boolean {
    const child = this.#child;
    return child !== undefined && (child.exitCode !== null || child.signalCode !== null);
  }

  signal(signal: NodeJS.Signals): void {
    this.#child?.kill(signal);
  }

  /** Ends it the hard way and waits until it is gone. */
  async kill(): Promise<void> {
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise((resolve) => child.once('close', resolve));
    child.kill('SIGCONT');
    child.kill('SIGKILL');
    await ended;
  }

  async ask(path: string, init: RequestInit = {}): Promise<Response> {
    return await fetch(`http://127.0.0.1:${this.ports.http}/v1${path}`, {
      ...init,
      signal: AbortSignal.timeout(10_000),
    });
  }
}

/** A cluster of real servers that ends with the test. */
export class TestConsul {
  readonly servers: readonly ConsulServer[];
  readonly #folder: string;
  readonly #options: ConsulOptions;

  private constructor(servers: readonly ConsulServer[], folder: string, options: ConsulOptions) {
    this.servers = servers;
    this.#folder = folder;
    this.#options = options;
  }

  /** Resolves when there is a leader. A port that was free may be taken meanwhile: then others are tried. */
  static async start(t: Teardown, options: ConsulOptions = {}): Promise<TestConsul> {
    for (let tries = 0; ; tries += 1) {
      const consul = await TestConsul.#make(t, options);
      try {
        consul.startAll();
        await consul.hasLeader();
        return consul;
      } catch (error) {
        await consul.stop();
        if (tries >= 2) throw error;
      }
    }
  }

  static async #make(t: Teardown, options: ConsulOptions): Promise<TestConsul> {
    const folder = temporaryFolder(t, 'legate-consul-');
    const names = Array.from({ length: options.servers ?? 1 }, (_, index) => `consul-${index + 1}`);
    const ports = await freePorts(names.length * 4);
    const servers = names.map((name, index) => {
      const [http = 0, dns = 0, server = 0, serf = 0] = ports.slice(index * 4, index * 4 + 4);
      return new ConsulServer(name, { http, dns, server, serf }, join(folder, name), options.tls !== undefined);
    });
    const consul = new TestConsul(servers, folder, options);
    t.teardown(() => consul.stop());
    for (const server of servers) consul.#configure(server);
    return consul;
  }

  get urls(): readonly StoreUrl[] {
    return this.servers.map(({ url }) => url);
  }

  get first(): ConsulServer {
    const [server] = this.servers;
    if (server === undefined) throw new Error('there is no server');
    return server;
  }

  startAll(): void {
    for (const server of this.servers) server.start();
  }

  async stop(): Promise<void> {
    await Promise.all(this.servers.map((server) => server.kill()));
  }

  /** The server that leads. */
  async leader(): Promise<ConsulServer> {
    return await waitFor(
      'a leader',
      async () => {
        for (const server of this.servers) {
          const text = await server.ask('/status/leader').then(
            (response) => response.text(),
            () => '',
          );
          const port = Number(/:(\d+)"/.exec(text)?.[1]);
          const leader = this.servers.find(({ ports }) => ports.server === port);
          if (leader !== undefined) return leader;
        }
        return undefined;
      },
      { timeoutMs: 60_000, everyMs: 100 },
    );
  }

  async hasLeader(): Promise<void> {
    try {
      const ready = async (): Promise<boolean | 'ended'> =>
        this.servers.some(({ ended }) => ended) ? 'ended' : await this.#leads();
      const state = await waitFor<boolean | 'ended'>('a leader that takes writes', ready, {
        timeoutMs: 40_000,
        everyMs: 50,
      });
      if (state === 'ended') throw new Error('a server ended');
    } catch (error) {
      throw new Error(`Consul did not start: ${this.first.log.slice(-2000)}`, { cause: error });
    }
  }

  /** All data is lost: the servers begin anew, at the same addresses. */
  async wipe(): Promise<void> {
    await this.stop();
    for (const server of this.servers) this.#configure(server, `${Date.now()}`);
    this.startAll();
    await this.hasLeader();
  }

  async #leads(): Promise<boolean> {
    if (this.#options.tls !== undefined) return /cluster leadership acquired/i.test(this.first.log);
    const headers = { 'x-consul-token': this.#options.managementToken ?? '' };
    const written = await Promise.all(
      this.servers.map((server) => server.ask('/kv/test-began', { method: 'PUT', body: '1', headers })),
    );
    return written.every(({ ok }) => ok);
  }

  #configure(server: ConsulServer, generation = 'data'): void {
    const { managementToken, tls, config } = this.#options;
    const folder = join(this.#folder, server.name);
    mkdirSync(folder, { recursive: true });
    const { http, dns, server: rpc, serf } = server.ports;
    const content = {
      server: true,
      bootstrap_expect: this.servers.length,
      node_name: server.name,
      data_dir: join(folder, generation),
      bind_addr: '127.0.0.1',
      client_addr: '127.0.0.1',
      retry_join: this.servers.filter((other) => other !== server).map(({ ports }) => `127.0.0.1:${ports.serf}`),
      retry_interval: '1s',
      ports: {
        http: tls ? -1 : http,
        https: tls ? http : -1,
        dns,
        server: rpc,
        serf_lan: serf,
        serf_wan: -1,
        grpc: -1,
      },
      performance: { raft_multiplier: 1 },
      disable_update_check: true,
      leave_on_terminate: false,
      ...(tls && { ca_file: tls.ca, cert_file: tls.cert, key_file: tls.key }),
      ...(managementToken !== undefined && {
        acl: { enabled: true, default_policy: 'deny', tokens: { master: managementToken } },
      }),
      ...config,
    };
    writeFileSync(join(folder, 'consul.json'), JSON.stringify(content), { mode: 0o600 });
  }
}

async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer();
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      return server;
    }),
  );
  const ports = servers.map((server) => {
    const address = server.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  });
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}
