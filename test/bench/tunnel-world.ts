import { type ChildProcess, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { checkout, must, type Teardown } from '../support/agent.ts';

/** Half of the round trip of the long wire. */
const oneWayUs = 10_000;
const longestLoadMs = 150_000;
/** Room for many short connections to the same address, alike on both hosts. */
const manyPorts = [
  ['net/ipv4/ip_local_port_range', '1024 65535'],
  // Those of the pairs, which are started anew while others' connections go out.
  ['net/ipv4/ip_local_reserved_ports', '11000-13999'],
  ['net/ipv4/tcp_tw_reuse', '1'],
] as const;

/** A wire between the two hosts and the far one's address on it. */
export interface Wire {
  readonly name: string;
  readonly nearAddress: string;
  readonly farAddress: string;
}

export const shortWire: Wire = { name: 'short', nearAddress: '10.99.0.1', farAddress: '10.99.0.2' };
export const longWire: Wire = { name: '20 ms', nearAddress: '10.99.1.1', farAddress: '10.99.1.2' };

export interface Load {
  readonly seconds: number;
  readonly requests: number;
  readonly bytes: number;
  readonly cpuSeconds: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly failed: number;
  /** Pieces that were not what was asked for. */
  readonly wrong: number;
  /** Connections that came to their end, or that had an answer. */
  readonly complete: number;
}

export type LoadMode = 'requests' | 'connections' | 'fetch' | 'idle';

export interface RunningLoad {
  /** The next line that it reports. */
  report(): Promise<Load>;
  /** By its standard input. */
  letGo(): void;
  /** Now, and it reports what it has. */
  stop(): void;
}

/**
 * Two hosts: this process's network namespace, with the clients and the near proxies, and one for the far proxies and the
 * origin. Both live as long as the processes in them, so that nothing is left behind; every process ends with this one.
 */
export class TunnelWorld {
  readonly #folder: string;
  readonly #children = new Set<ChildProcess>();
  #far: readonly string[] = [];
  #farPid = 0;
  origin = { http: 0, bulk: 0 };
  /** The short one, and the long one where there are TUN devices. */
  readonly wires: Wire[] = [shortWire];

  private constructor(folder: string) {
    this.#folder = folder;
  }

  static async make(t: Teardown, folder: string): Promise<TunnelWorld> {
    const world = new TunnelWorld(folder);
    t.teardown(() => world.#end());
    await world.#makeHosts();
    await world.#joinShort();
    if (existsSync('/dev/net/tun')) await world.#joinLong();
    const origin = world.start('far', `${folder}/load-origin`, []);
    world.origin = JSON.parse(await firstLine(origin)) as { http: number; bulk: number };
    return world;
  }

  /** Starts a program on one of the hosts; it is killed at the end. */
  start(host: 'near' | 'far', command: string, args: readonly string[]): ChildProcess {
    const [first = '', ...words] = [...this.#wrap(host), command, ...args];
    return this.#keep(spawn(first, words, { stdio: ['pipe', 'pipe', 'inherit'] }));
  }

  /** Starts one of the bench's own modules on one of the hosts. */
  fork(host: 'near' | 'far', script: string, args: readonly string[], flags: readonly string[]): ChildProcess {
    const [execPath = '', ...words] = [...this.#wrap(host), process.execPath];
    const execArgv = [...words, ...flags];
    return this.#keep(fork(script, args, { execPath, execArgv, stdio: ['ignore', 'ignore', 'inherit', 'ipc'] }));
  }

  async end(children: readonly ChildProcess[]): Promise<void> {
    for (const child of children) {
      this.#children.delete(child);
      if (child.exitCode !== null || child.signalCode !== null) continue;
      const gone = once(child, 'exit');
      child.kill('SIGKILL');
      await gone;
    }
  }

  startLoad(
    mode: LoadMode,
    address: string,
    port: number,
    count: number,
    limit: number,
    pids: readonly number[],
  ): RunningLoad {
    const child = this.start('near', `${this.#folder}/load-client`, [
      mode,
      address,
      ...[port, count, limit, ...pids].map(String),
    ]);
    const timer = setTimeout(() => child.kill('SIGKILL'), longestLoadMs);
    child.once('exit', () => {
      clearTimeout(timer);
      this.#children.delete(child);
    });
    if (child.stdout === null || child.stdin === null) throw new Error('a load client without pipes');
    const { stdin } = child;
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    return {
      async report() {
        const { value, done } = await lines.next();
        if (done === true) throw new Error(`a load client (${mode}) ended without a report`);
        return JSON.parse(value) as Load;
      },
      letGo: () => stdin.end(),
      stop: () => child.kill('SIGTERM'),
    };
  }

  #wrap(host: 'near' | 'far'): string[] {
    return ['setpriv', '--pdeathsig', 'KILL', '--', ...(host === 'far' ? this.#far : [])];
  }

  #keep(child: ChildProcess): ChildProcess {
    child.on('error', () => undefined);
    this.#children.add(child);
    return child;
  }

  async #makeHosts(): Promise<void> {
    const holder = this.start('near', 'unshare', ['--net', '--', 'sh', '-c', 'echo made; read rest']);
    await firstLine(holder);
    this.#farPid = holder.pid ?? 0;
    this.#far = ['nsenter', `--net=/proc/${this.#farPid}/ns/net`, '--'];
    await must('ip', 'link', 'set', 'lo', 'up');
    await this.#onFar('ip', 'link', 'set', 'lo', 'up');
    for (const [name, value] of manyPorts) {
      await writeFile(`/proc/sys/${name}`, value);
      await this.#onFar('sh', '-c', `echo ${value} > /proc/sys/${name}`);
    }
  }

  async #joinShort(): Promise<void> {
    await must('ip', 'link', 'add', 'near0', 'type', 'veth', 'peer', 'name', 'far0', 'netns', String(this.#farPid));
    await this.#address(shortWire, 'near0', 'far0');
  }

  async #joinLong(): Promise<void> {
    const pids = [String(process.pid), String(this.#farPid)];
    const line = this.start('near', `${this.#folder}/delay`, [...pids, String(oneWayUs)]);
    await firstLine(line);
    await this.#address(longWire, 'delay0', 'delay0');
    this.wires.push(longWire);
  }

  async #address(wire: Wire, near: string, far: string): Promise<void> {
    await must('ip', 'addr', 'add', `${wire.nearAddress}/24`, 'dev', near);
    await must('ip', 'link', 'set', near, 'txqueuelen', '10000', 'up');
    await this.#onFar('ip', 'addr', 'add', `${wire.farAddress}/24`, 'dev', far);
    await this.#onFar('ip', 'link', 'set', far, 'txqueuelen', '10000', 'up');
  }

  async #onFar(...command: string[]): Promise<void> {
    const [first = '', ...words] = [...this.#far, ...command];
    await must(first, ...words);
  }

  async #end(): Promise<void> {
    await this.end([...this.#children]);
  }
}

/** The C programs of the bench, compiled into a folder. */
export async function compilePrograms(folder: string): Promise<void> {
  for (const name of ['delay', 'load-origin', 'load-client']) {
    await must('gcc', '-O2', '-Wall', '-o', `${folder}/${name}`, `${checkout}/test/bench/${name}.c`);
  }
}

async function firstLine(child: ChildProcess): Promise<string> {
  if (child.stdout === null) throw new Error('a child without output');
  const lines = createInterface({ input: child.stdout });
  const ended = once(child, 'exit').then(([status]) => {
    throw new Error(`${child.spawnargs.join(' ')} ended with ${status}`);
  });
  const [line] = (await Promise.race([once(lines, 'line'), ended])) as [string];
  return line;
}
