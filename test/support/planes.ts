import { readFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import type { Agent, Teardown } from './agent.ts';

/** What tests of data-plane processes need: connections that are asked again and again, and the processes. */

/** Answers whatever it gets with itself. */
export async function echoServer(t: Teardown): Promise<number> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined).on('close', () => sockets.delete(socket));
    socket.pipe(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const address = server.address();
  return typeof address === 'object' && address !== null ? address.port : 0;
}

/** A connection that says something and waits for the echo, as often as it is asked. */
export class Client {
  readonly #socket: Socket;
  #ended: string | undefined;
  #heard: ((text: string) => void) | undefined;
  #failed: (() => void) | undefined;

  constructor(address: string, port: number) {
    this.#socket = connect(port, address);
    this.#socket.setNoDelay(true).setEncoding('utf8');
    this.#socket.on('data', (text: string) => this.#heard?.(text));
    this.#socket.on('error', (error: NodeJS.ErrnoException) => this.#end(error.code ?? error.message));
    this.#socket.on('close', () => this.#end('closed'));
  }

  /** How it ended; undefined while it lives. */
  get ended(): string | undefined {
    return this.#ended;
  }

  /** Resolves with what is wrong, or undefined when the echo came. */
  async ask(text = 'hello'): Promise<string | undefined> {
    if (this.#ended !== undefined) return this.#ended;
    return new Promise((resolve) => {
      let heard = '';
      const timer = setTimeout(() => resolve('no answer in 5 s'), 5000);
      const done = (problem: string | undefined): void => {
        clearTimeout(timer);
        resolve(problem);
      };
      this.#failed = () => done(this.#ended);
      this.#heard = (chunk) => {
        heard += chunk;
        if (heard === text) done(undefined);
      };
      this.#socket.write(text);
    });
  }

  close(): void {
    this.#socket.destroy();
  }

  #end(how: string): void {
    this.#ended ??= how;
    this.#failed?.();
  }
}

/** Connects, asks and closes, again and again, until it is stopped. */
export class Load {
  readonly failures: string[] = [];
  count = 0;
  longestMs = 0;
  readonly #pauseMs: number;
  #stopped = false;
  readonly #done: Promise<unknown>;

  constructor(address: string, port: number, atOnce = 2, pauseMs = 2) {
    this.#pauseMs = pauseMs;
    this.#done = Promise.all(Array.from({ length: atOnce }, () => this.#run(address, port)));
  }

  async stop(): Promise<this> {
    this.#stopped = true;
    await this.#done;
    return this;
  }

  async #run(address: string, port: number): Promise<void> {
    while (!this.#stopped) {
      const startedMs = performance.now();
      const client = new Client(address, port);
      const problem = await client.ask();
      client.close();
      this.count += 1;
      this.longestMs = Math.max(this.longestMs, performance.now() - startedMs);
      if (problem !== undefined) this.failures.push(problem);
      await new Promise((resolve) => setTimeout(resolve, this.#pauseMs));
    }
  }
}

/** The processes that are written down as workers of this sidecar or those before, and live. */
export function workersOf({ folder }: Agent): number[] {
  let text = '';
  try {
    text = readFileSync(join(folder, 'data', 'workers'), 'utf8');
  } catch {
    // None are.
  }
  return text
    .split('\n')
    .map((line) => Number(line.split(' ')[1]))
    .filter((pid) => pid > 1 && isWorker(pid));
}

export function isWorker(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('data-plane-worker');
  } catch {
    return false;
  }
}
