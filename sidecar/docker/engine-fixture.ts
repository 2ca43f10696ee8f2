import { execFile, execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';

/** Things that tests make on the real Docker Engine; all of them carry this process's prefix and are removed at the end. */
export class TestEngine {
  readonly prefix: string;
  readonly image: string;
  readonly #networks: string[] = [];
  readonly #containers: string[] = [];

  constructor(room: string) {
    this.prefix = `legate-test-${room}-${process.pid}`;
    this.image = `${this.prefix}:latest`;
    const root = mkdtempSync(`${tmpdir()}/${this.prefix}-`);
    mkdirSync(`${root}/bin`);
    copyFileSync('/bin/busybox', `${root}/bin/busybox`);
    symlinkSync('busybox', `${root}/bin/sh`);
    const tar = execFileSync('tar', ['-C', root, '-c', '.'], { maxBuffer: 64 << 20 });
    rmSync(root, { recursive: true });
    execFileSync('docker', ['import', '-', this.image], { input: tar, stdio: ['pipe', 'ignore', 'pipe'] });
  }

  docker(...args: string[]): Promise<string> {
    return new Promise((resolve, reject) => {
      execFile('docker', args, { timeout: 60_000 }, (error, stdout) =>
        error === null ? resolve(stdout.trim()) : reject(error),
      );
    });
  }

  name(short: string): string {
    return `${this.prefix}-${short}`;
  }

  /** Starts a container that sleeps and, as process 1, ignores SIGTERM; `script` runs something else. */
  async run(short: string, options: readonly string[], script?: string): Promise<string> {
    const name = this.name(short);
    this.#containers.push(name);
    const command = script === undefined ? ['sleep', '600'] : ['sh', '-c', script];
    return this.docker(
      'run',
      '-d',
      '--name',
      name,
      '--stop-timeout',
      '1',
      ...options,
      this.image,
      '/bin/busybox',
      ...command,
    );
  }

  async network(short: string, ...options: string[]): Promise<string> {
    const name = this.name(short);
    this.#networks.push(name);
    await this.docker('network', 'create', ...options, name);
    return name;
  }

  async remove(): Promise<void> {
    const left = await this.docker('ps', '-aq', '--filter', `name=${this.prefix}`);
    const ids = left.split('\n').filter((id) => id !== '');
    if (ids.length > 0) await this.docker('rm', '-f', ...ids).catch(() => undefined);
    for (const name of this.#networks) await this.docker('network', 'rm', name).catch(() => undefined);
    await this.docker('rmi', '-f', this.image).catch(() => undefined);
  }
}

/** A unix socket in front of the engine's, which can be made to fail in the ways that engines and networks fail. */
export class FaultyProxy {
  readonly path: string;
  readonly #folder: string;
  #server: Server | undefined;
  readonly #pairs = new Set<readonly [Socket, Socket]>();
  /** `drop`: what the engine sends on streams of events is lost; `hang`: nothing passes in any direction. */
  mode: 'pass' | 'drop-events' | 'hang' = 'pass';
  delayMs = 0;
  /** When bytes that contain this text were last passed on to the client. */
  watched = '';
  watchedAtMs = 0;

  constructor() {
    this.#folder = mkdtempSync(`${tmpdir()}/legate-proxy-`);
    this.path = `${this.#folder}/docker.sock`;
  }

  async open(): Promise<void> {
    this.#server = createServer((client) => this.#accept(client));
    const server = this.#server;
    await new Promise<void>((resolve) => server.listen(this.path, resolve));
  }

  /** Ends all connections; new ones are accepted. */
  cut(): void {
    for (const pair of this.#pairs) for (const socket of pair) socket.destroy();
  }

  /** Ends all connections and removes the socket. */
  async close(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    const closed = server === undefined ? undefined : new Promise((resolve) => server.close(resolve));
    this.cut();
    await closed;
  }

  async remove(): Promise<void> {
    await this.close();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  #accept(client: Socket): void {
    const engine = connect('/var/run/docker.sock');
    const pair = [client, engine] as const;
    this.#pairs.add(pair);
    let isEvents = false;
    const end = (): void => {
      this.#pairs.delete(pair);
      for (const socket of pair) socket.destroy();
    };
    for (const socket of pair) socket.on('error', end).on('close', end);
    client.on('data', (bytes) => {
      if (this.mode === 'hang') return;
      isEvents ||= bytes.includes('/events?');
      engine.write(bytes);
    });
    engine.on('data', (bytes) => {
      if (this.mode === 'hang' || (this.mode === 'drop-events' && isEvents)) return;
      const pass = (): void => {
        if (client.destroyed) return;
        if (this.watched !== '' && bytes.includes(this.watched)) this.watchedAtMs = performance.now();
        client.write(bytes);
      };
      if (this.delayMs > 0) setTimeout(pass, this.delayMs);
      else pass();
    });
  }
}
