import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { checkout, must } from '../support/agent.ts';
import { loopback, processorMsOf } from './tools.ts';
import { type Load, output } from './wrk.ts';

/** What clients of `http-load` have seen. */
interface Seen {
  readonly seconds: number;
  readonly requests: number;
  readonly failed: number;
  readonly p50Us: number;
  readonly p99Us: number;
}

export interface Latencies {
  readonly perSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

const longestMs = 120_000;

/** The clients of `http-load.c`, and h2load. */
export class HttpLoads {
  readonly #program: string;

  private constructor(program: string) {
    this.#program = program;
  }

  /** Compiles the program into the folder. */
  static async make(folder: string): Promise<HttpLoads> {
    const program = `${folder}/http-load`;
    await must('gcc', '-O2', '-Wall', '-o', program, `${checkout}/test/bench/http-load.c`);
    return new HttpLoads(program);
  }

  /** Each client asks again when it has its answer. */
  closed(port: number, connections: number, ms: number): Promise<Latencies> {
    return this.#latencies(['closed', loopback, port, connections, ms]);
  }

  /** Requests are due at even times, and count from then. */
  paced(port: number, connections: number, ms: number, rate: number): Promise<Latencies> {
    return this.#latencies(['paced', loopback, port, connections, ms, Math.round(rate)]);
  }

  /** Clients that have asked once and wait while `during` runs. */
  async idle(port: number, connections: number, during: () => Promise<void>): Promise<void> {
    const child = this.#start(['idle', loopback, port, connections]);
    const ended = once(child, 'exit');
    try {
      await reportOf(child);
      await during();
    } finally {
      child.stdin?.end();
      await ended;
    }
  }

  async #latencies(args: readonly (string | number)[]): Promise<Latencies> {
    const { seconds, requests, failed, p50Us, p99Us } = await reportOf(this.#start(args));
    if (failed > 0) throw new Error(`${failed} of ${requests} requests failed (${args.join(' ')})`);
    return { perSecond: requests / seconds, p50Ms: p50Us / 1000, p99Ms: p99Us / 1000 };
  }

  #start(args: readonly (string | number)[]): ChildProcess {
    const words = ['--pdeathsig', 'KILL', '--', this.#program, ...args.map(String)];
    return spawn('setpriv', words, { stdio: ['pipe', 'pipe', 'inherit'], timeout: longestMs, killSignal: 'SIGKILL' });
  }
}

async function reportOf(child: ChildProcess): Promise<Seen> {
  if (child.stdout === null) throw new Error('a load client without output');
  const lines = createInterface({ input: child.stdout });
  const ended = once(child, 'exit').then(([status]) => {
    throw new Error(`a load client ended with ${status}: ${child.spawnargs.slice(5).join(' ')}`);
  });
  const [line] = (await Promise.race([once(lines, 'line'), ended])) as [string];
  return JSON.parse(line) as Seen;
}

export interface StreamsOptions {
  /** For messages: the proxy. */
  readonly name: string;
  readonly port: number;
  /** The proxy whose processor time counts. */
  readonly pid: number;
  readonly connections: number;
  /** At once on each. */
  readonly streams: number;
  readonly limit: { readonly requests: number } | { readonly seconds: number };
}

/** Asks over HTTP/2 with prior knowledge. Throws when a request failed. */
export async function h2load({ name, port, pid, connections, streams, limit }: StreamsOptions): Promise<Load> {
  const beforeMs = processorMsOf(pid);
  const until = 'requests' in limit ? `-n${limit.requests}` : `-D${limit.seconds}`;
  const text = await output('h2load', [
    '-t1',
    `-c${connections}`,
    `-m${streams}`,
    until,
    `http://${loopback}:${port}/`,
  ]);
  const cpuMs = processorMsOf(pid) - beforeMs;
  const [, succeeded, failed] = / (\d+) succeeded, (\d+) failed/.exec(text) ?? [];
  if (!(Number(succeeded) > 0) || Number(failed) > 0)
    throw new Error(`requests over HTTP/2 to ${name} failed: ${text}`);
  const perSecond = Number(/, ([\d.]+) req\/s/.exec(text)?.[1]);
  return { perSecond, perCpuSecond: (Number(succeeded) * 1000) / cpuMs, p99Ms: Number.NaN };
}
