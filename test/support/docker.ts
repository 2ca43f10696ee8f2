import { mkdirSync, copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { must, run, type Teardown, temporaryFolder } from './agent.ts';

/** Containers, networks and one image of a test, all of which vanish with it. */
export class TestDocker {
  readonly prefix = `legate-test-${process.pid}-${Math.random().toString(36).slice(2, 8)}`;
  readonly image = `${this.prefix}:busybox`;
  readonly #host: readonly string[];
  readonly #containers = new Set<string>();
  readonly #networks = new Set<string>();

  private constructor(socket: string | undefined) {
    this.#host = socket === undefined ? [] : ['-H', `unix://${socket}`];
  }

  /** Imports an image that holds busybox alone. `socket`: another engine than the machine's own. */
  static async open(t: Teardown, socket?: string): Promise<TestDocker> {
    const docker = new TestDocker(socket);
    const root = temporaryFolder(t);
    mkdirSync(join(root, 'bin'));
    copyFileSync('/bin/busybox', join(root, 'bin', 'busybox'));
    for (const folder of ['tmp', 'www']) mkdirSync(join(root, folder));
    await must('busybox', '--install', '-s', join(root, 'bin')).catch(() => undefined);
    for (const tool of ['sh', 'nc', 'httpd', 'nslookup', 'sleep', 'cat', 'echo', 'ping', 'ip', 'kill', 'test', 'touch', 'rm', 'mkdir', 'hostname', 'timeout', 'wget', 'head', 'true', 'false']) {
      await run('ln', ['-sf', 'busybox', join(root, 'bin', tool)]);
    }
    await must('sh', '-c', `tar -C ${root} -c . | docker ${docker.#host.join(' ')} import - ${docker.image}`);
    t.teardown(() => docker.#clean());
    return docker;
  }

  docker(...args: string[]): Promise<string> {
    return must('docker', ...this.#host, ...args);
  }

  /** `docker run -d`; gives the container's id. Its name is `<prefix>-<name>`. */
  async start(name: string, options: readonly string[], command: readonly string[]): Promise<string> {
    const full = this.name(name);
    this.#containers.add(full);
    return this.docker('run', '-d', '--name', full, ...options, this.image, ...command);
  }

  /** `docker run --rm`; gives what it printed. */
  runOnce(options: readonly string[], ...command: string[]): Promise<string> {
    return this.docker('run', '--rm', ...options, this.image, ...command);
  }

  async network(name: string, ...options: string[]): Promise<string> {
    const full = this.name(name);
    this.#networks.add(full);
    await this.docker('network', 'create', ...options, full);
    return full;
  }

  name(name: string): string {
    return `${this.prefix}-${name}`;
  }

  async #clean(): Promise<void> {
    if (this.#containers.size > 0) await run('docker', [...this.#host, 'rm', '-f', '-v', ...this.#containers]);
    for (const network of this.#networks) await run('docker', [...this.#host, 'network', 'rm', network]);
    await run('docker', [...this.#host, 'rmi', '-f', this.image]);
  }
}

/** A busybox command that answers every connection to `port` with `text` and a line end. */
export function sayOn(port: number, text: string): string[] {
  return ['nc', '-lk', '-p', String(port), '-e', 'echo', text];
}
