import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';

/** Runs a command to its end, for arranging a test; its output. Throws with what it wrote when it fails. */
export function run(command: string, ...args: string[]): string {
  return execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], timeout: 20_000 });
}

/** Makes a network namespace with `lo` up; `remove` ends what runs in it and takes it away. */
export function makeNamespace(name: string): { readonly name: string; remove(): void } {
  run('ip', 'netns', 'add', name);
  run('ip', '-n', name, 'link', 'set', 'lo', 'up');
  return {
    name,
    remove() {
      for (const pid of run('ip', 'netns', 'pids', name).split('\n')) {
        if (pid !== '') run('kill', '-9', pid);
      }
      run('ip', 'netns', 'del', name);
    },
  };
}

export interface Outcome {
  /** Connections that got the greeting of the listener, by greeting. */
  readonly greetings: Readonly<Record<string, number>>;
  /** Failures by their code (`ECONNREFUSED`, `TIMEOUT`). */
  readonly failures: Readonly<Record<string, number>>;
  readonly slowestMs: number;
}

/** Connects again and again, one after the other, until standard input ends or `count` is reached; prints an Outcome. */
const connector = `
const net = require('node:net');
const [, address, port, count, timeoutMs] = process.argv;
const outcome = { greetings: {}, failures: {}, slowestMs: 0 };
let stopped = false;
process.stdin.on('end', () => { stopped = true; }).resume();
const once = () => new Promise((resolve) => {
  const socket = net.connect(Number(port), address);
  let text = '';
  const end = (kind, key) => { kind[key] = (kind[key] ?? 0) + 1; clearTimeout(timer); socket.destroy(); resolve(); };
  const timer = setTimeout(() => end(outcome.failures, 'TIMEOUT'), Number(timeoutMs));
  socket.on('data', (chunk) => { text += chunk; });
  socket.on('end', () => end(outcome.greetings, text));
  socket.on('error', (error) => end(outcome.failures, error.code));
});
(async () => {
  console.log('ready');
  for (let made = 0; made < Number(count) && !stopped; made += 1) {
    const startedMs = performance.now();
    await once();
    outcome.slowestMs = Math.max(outcome.slowestMs, performance.now() - startedMs);
  }
  console.log(JSON.stringify(outcome));
  process.exit(0);
})();
`;

/** A client in `namespace` that connects up to `count` times; `stop` ends it early and gives what happened. */
export class Connector {
  readonly #child: ChildProcess;
  #output = '';

  constructor(namespace: string | undefined, address: string, port: number, count = 1, timeoutMs = 1500) {
    const node = [process.execPath, '-e', connector, address, String(port), String(count), String(timeoutMs)];
    const [command = '', ...args] = namespace === undefined ? node : ['ip', 'netns', 'exec', namespace, ...node];
    this.#child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'], env: { PATH: process.env.PATH } });
    this.#child.stdout?.setEncoding('utf8').on('data', (chunk: string) => {
      this.#output += chunk;
    });
  }

  /** Whether it connects by now. */
  get started(): boolean {
    return this.#output.includes('ready');
  }

  /** Waits until it has made all its connections. */
  async result(): Promise<Outcome> {
    if (this.#child.exitCode === null) await once(this.#child, 'close');
    return JSON.parse(this.#output.split('\n')[1] ?? '');
  }

  stop(): Promise<Outcome> {
    this.#child.stdin?.end();
    return this.result();
  }
}
