import { copyFileSync, mkdirSync, symlinkSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { checkout, must, run, type Teardown, temporaryFolder } from './agent.ts';

const tools = [
  'sh',
  'nc',
  'httpd',
  'sleep',
  'cat',
  'echo',
  'ping',
  'ip',
  'kill',
  'touch',
  'rm',
  'true',
  'false',
  'test',
];

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

  /**
   * Imports an image that holds busybox, `serve`, `http` and `spoof` (see serve.c, http.c, spoof.c), and `ask` (see ask.c), which is built against musl as
   * `ask-musl` and against glibc, with its library, as `ask-glibc`. `socket`: another engine than the machine's own.
   */
  static async open(t: Teardown, socket?: string): Promise<TestDocker> {
    const docker = new TestDocker(socket);
    const root = temporaryFolder(t);
    for (const folder of ['bin', 'tmp', 'www']) mkdirSync(join(root, folder));
    copyFileSync('/bin/busybox', join(root, 'bin', 'busybox'));
    for (const tool of tools) symlinkSync('busybox', join(root, 'bin', tool));
    const source = (name: string): string => join(checkout, 'test', 'support', name);
    const compile = (tool: string, name: string, ...compiler: string[]): Promise<string> =>
      must(compiler[0] ?? '', ...compiler.slice(1), '-O1', '-o', join(root, 'bin', tool), source(`${name}.c`));
    await Promise.all([
      compile('ask-musl', 'ask', 'musl-gcc', '-static'),
      compile('serve', 'serve', 'musl-gcc', '-static'),
      compile('spoof', 'spoof', 'musl-gcc', '-static'),
      compile('http', 'http', 'musl-gcc', '-static'),
      compile('ask-glibc', 'ask', 'gcc'),
    ]);
    const libraries = await must('ldd', join(root, 'bin', 'ask-glibc'));
    for (const [, path = ''] of libraries.matchAll(/(\/[^ ]+) \(/g)) {
      mkdirSync(join(root, dirname(path)), { recursive: true });
      copyFileSync(path, join(root, path));
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

/** A command that answers every connection to `port` with `text` and a line end; `-` sends the line back. */
export function sayOn(port: number, text: string, onTerm: 'graceful' | 'ignore' | 'abrupt' = 'graceful'): string[] {
  return ['serve', String(port), text, onTerm];
}
