import { execFile } from 'node:child_process';
import { connect, type Socket } from 'node:net';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import type { ServiceDocument } from '../sidecar/admin/documents.ts';
import { Agent, must, run } from './support/agent.ts';
import { TestDocker } from './support/docker.ts';
import { unless } from './support/needs.ts';
import { isWorker, workersOf } from './support/planes.ts';
import { waitFor } from './support/wait.ts';

/**
 * Nobody's request fails while everything behind them is changed: five containers of an HTTP service, clients that keep
 * their connections, GET and POST in turn. LEGATE_HTTP_ROLLING=100000 asks for that many requests; the changes go on until
 * they are made.
 */
const wanted = Number(process.env.LEGATE_HTTP_ROLLING ?? '10000');
const skip = unless('docker', 'nft', 'busybox', 'command:musl-gcc', 'command:gcc', 'command:wrk');
const range = '240.207.0.0/16';
const table = 'legate_240_207_0_0_16';
const instances = 5;
const slow = { timeoutMs: 30_000, everyMs: 50 };

/** Clients that each ask again and again over a connection that they keep. Whatever is not answered with 200 has failed. */
class Load {
  count = 0;
  /** How often each reason was met, with the change during which it was. */
  readonly failures = new Map<string, number>();
  readonly answeredBy = new Map<string, number>();
  during = 'the start';
  #stopped = false;
  readonly #done: Promise<unknown>;

  constructor(address: string, port: number, atOnce = 16) {
    this.#done = Promise.all(Array.from({ length: atOnce }, (_, at) => this.#run(address, port, at)));
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#done;
  }

  async #run(address: string, port: number, at: number): Promise<void> {
    let socket: Socket | undefined;
    for (let turn = at; !this.#stopped; turn += 1) {
      // Closed while nothing was asked: what is written there now would never be answered, and nothing would say so.
      if (socket !== undefined && (socket.destroyed || socket.readableEnded)) {
        socket.destroy();
        socket = undefined;
      }
      const dialled = socket ?? (await dial(address, port));
      if (typeof dialled === 'string') {
        this.#failed('connecting', dialled);
        await new Promise((resolve) => setTimeout(resolve, 10));
        continue;
      }
      socket = dialled;
      const isPost = turn % 2 === 0;
      const body = isPost ? 'x'.repeat(turn % 100) : '';
      const length = isPost ? `Content-Length: ${body.length}\r\n` : '';
      const { problem, keeps, by } = await ask(
        socket,
        `${isPost ? 'POST' : 'GET'} / HTTP/1.1\r\nHost: web\r\n${length}\r\n${body}`,
        body.length,
      );
      this.count += 1;
      if (problem === undefined) this.answeredBy.set(by, (this.answeredBy.get(by) ?? 0) + 1);
      else this.#failed(isPost ? 'POST' : 'GET', problem);
      if (!keeps) {
        socket.destroy();
        socket = undefined;
      }
      await new Promise((resolve) => setTimeout(resolve, turn % 4));
    }
    socket?.destroy();
  }

  #failed(what: string, problem: string): void {
    const key = `${this.during}: ${what}: ${problem}`;
    this.failures.set(key, (this.failures.get(key) ?? 0) + 1);
  }
}

/** A connected socket, or why there is none. */
async function dial(address: string, port: number): Promise<Socket | string> {
  const socket = connect(port, address);
  socket.setNoDelay(true);
  let problem = '';
  socket.on('error', (error: NodeJS.ErrnoException) => {
    problem = error.code ?? error.message;
  });
  await new Promise((resolve) => socket.once('connect', resolve).once('close', resolve));
  return problem === '' ? socket : problem;
}

interface Told {
  readonly problem?: string;
  readonly keeps: boolean;
  readonly by: string;
}

function ask(socket: Socket, request: string, bodySize: number): Promise<Told> {
  return new Promise((resolve) => {
    let text = '';
    const done = (told: Partial<Told>): void => {
      clearTimeout(timer);
      socket.off('data', onData).off('error', onError).off('close', onClose);
      resolve({ keeps: false, by: '', ...told });
    };
    const onData = (chunk: Buffer): void => {
      text += chunk.toString('latin1');
      const end = text.indexOf('\r\n\r\n');
      const length = Number(/\r\ncontent-length: (\d+)/i.exec(text)?.[1] ?? Number.NaN);
      if (end < 0 || text.length < end + 4 + length) return;
      const [by = '', size] = text
        .slice(end + 4)
        .trim()
        .split(' ');
      const keeps = !/\r\nconnection: close/i.test(text);
      const isRight = text.startsWith('HTTP/1.1 200 ') && Number(size) === bodySize;
      const reason = /\r\nlegate-reason: ([^\r]*)/i.exec(text)?.[1] ?? '';
      done({ keeps, by, ...(!isRight && { problem: `${text.split('\r\n')[0]} ${reason}` }) });
    };
    const onError = (error: NodeJS.ErrnoException): void =>
      done({ problem: `${error.code} after ${text.length} bytes` });
    const onClose = (): void => done({ problem: `closed after ${text.length} bytes` });
    const timer = setTimeout(() => done({ problem: 'no answer in 10 s' }), 10_000);
    socket.on('data', onData).on('error', onError).on('close', onClose);
    socket.write(request);
  });
}

class Shop {
  readonly docker: TestDocker;
  readonly agent: Agent;
  readonly service = `web-${process.pid}`;
  readonly #pids = new Set<number>();
  #generation = 0;
  #containers: string[] = [];
  port = 8080;

  constructor(t: Test, docker: TestDocker) {
    this.docker = docker;
    t.teardown(async () => {
      for (const pid of this.#pids) if (isWorker(pid)) process.kill(pid, 'SIGKILL');
      await run('nft', ['delete', 'table', 'ip', table]);
      await run('nft', ['delete', 'table', 'bridge', table]);
      await run('ip', ['route', 'del', 'local', range, 'dev', 'lo']);
    });
    this.agent = new Agent(t, this.config());
  }

  config(more: Readonly<Record<string, unknown>> = {}): Readonly<Record<string, unknown>> {
    return {
      docker: { socket: '/var/run/docker.sock', expose: 'labelled' },
      vip: { mode: 'auto', range, local_range: '240.208.0.0/16' },
      workers: 2,
      drain: { timeout: '5s' },
      ...more,
    };
  }

  async begin(): Promise<string> {
    await this.agent.start();
    for (let at = 0; at < instances; at += 1) this.#containers.push(await this.#container());
    await this.usable(instances);
    const vip = await waitFor('a virtual address', async () => (await this.document()).vip ?? undefined, slow);
    const mapped = async (): Promise<boolean> => {
      const maps = await Promise.all([0, 1].map((slot) => must('nft', 'list', 'map', 'ip', table, `tcp_${slot}`)));
      return maps.every((map) => map.includes(vip));
    };
    await waitFor('it to be in the kernel', mapped, slow);
    this.#note();
    return vip;
  }

  document(): Promise<ServiceDocument> {
    return this.agent.json<ServiceDocument>(`/api/services/${this.service}`);
  }

  usable(count: number): Promise<unknown> {
    return waitFor(`${count} usable instances`, async () => (await this.document()).usable === count, slow);
  }

  #note(): void {
    for (const pid of workersOf(this.agent)) this.#pids.add(pid);
  }

  async #container(): Promise<string> {
    this.#generation += 1;
    const name = `web-${this.#generation}`;
    const labels = {
      service: this.service,
      port: this.port,
      protocol: 'http',
      check: 'http:/health',
      'check.interval': '500ms',
      'check.rise': 1,
      'check.fall': 2,
      // In turn, so that both sides of a split have some.
      tags: this.#generation % 2 === 0 ? 'even' : 'odd',
    };
    const options = Object.entries(labels).flatMap(([key, value]) => ['--label', `legate.${key}=${value}`]);
    await this.docker.start(name, options, ['http', String(this.port), name]);
    return this.docker.name(name);
  }

  /** A new one, and then `docker stop` of an old one, five times. */
  async rolling(): Promise<void> {
    for (const old of [...this.#containers]) {
      this.#containers.push(await this.#container());
      await this.usable(instances + 1);
      await this.docker.docker('stop', '-t', '10', old);
      await this.docker.docker('rm', '-f', old);
      this.#containers = this.#containers.filter((name) => name !== old);
      await this.usable(instances);
    }
  }

  async reload(): Promise<void> {
    const reloads = (): number => this.agent.log.filter((line) => /reload|configuration/i.test(line)).length;
    const before = reloads();
    this.agent.configure(
      this.config({ instances: [{ service: `${this.service}-other`, address: '127.0.0.1', port: 9 }] }),
    );
    process.kill(this.agent.pid, 'SIGHUP');
    await waitFor('the configuration to be taken over', () => reloads() > before, slow);
    this.agent.configure(this.config());
    process.kill(this.agent.pid, 'SIGHUP');
    await waitFor('the former one again', () => reloads() > before + 1, slow);
  }

  async unhealthy(): Promise<void> {
    const [one = ''] = this.#containers;
    await this.docker.docker('exec', one, 'touch', '/tmp/sick');
    await this.usable(instances - 1);
    await this.docker.docker('exec', one, 'rm', '/tmp/sick');
    await this.usable(instances);
  }

  /** To one side, and then in ten steps to the other one, which at the end has everything. */
  async split(load: Load): Promise<void> {
    await this.#mustSplit('odd=100', 'even=0');
    for (let even = 10; even <= 90; even += 10) {
      const path = `/api/services/${this.service}`;
      const { status, text } = await this.agent.api('PUT', path, { split: { odd: 100 - even, even } });
      if (status !== 200) throw new Error(`split at ${even}: ${status} ${text}`);
      const until = load.count + 50;
      await waitFor('requests under it', () => load.count > until, slow);
    }
    await this.#mustSplit('odd=0', 'even=100');
    const isOdd = (name: string): boolean => Number(name.slice(name.lastIndexOf('-') + 1)) % 2 === 1;
    const oddly = (): number => [...load.answeredBy].reduce((sum, [name, count]) => sum + (isOdd(name) ? count : 0), 0);
    // Every process has heard of it when for a good while nothing goes to the other side.
    let seen = oddly();
    let since = load.count;
    const isOver = (): boolean => {
      if (oddly() !== seen) [seen, since] = [oddly(), load.count];
      return load.count >= since + 200;
    };
    await waitFor('all requests to go to one side', isOver, slow);
    await this.#mustSplit('--off');
  }

  async #mustSplit(...words: string[]): Promise<void> {
    const { status, stderr } = await this.agent.cli('split', this.service, ...words);
    if (status !== 0) throw new Error(`legate split ${words.join(' ')}: ${stderr}`);
  }

  async replace(): Promise<void> {
    await this.agent.replace();
    this.#note();
    await this.usable(instances);
  }
}

/** What is done while the clients ask. */
const changes: Readonly<Record<string, (shop: Shop, load: Load) => Promise<void>>> = {
  'all five instances are replaced': (shop) => shop.rolling(),
  'the configuration is read again': (shop) => shop.reload(),
  'an instance is unhealthy and well again': (shop) => shop.unhealthy(),
  'the sidecar is replaced': (shop) => shop.replace(),
  'all requests are moved to one side of a split, in ten steps': (shop, load) => shop.split(load),
};

t.test('no request fails', { skip, timeout: Math.max(115_000, wanted * 5) }, async (t) => {
  const shop = new Shop(t, await TestDocker.open(t));
  const vip = await shop.begin();
  const load = new Load(vip, shop.port);
  t.teardown(() => load.stop());
  await waitFor('some load', () => load.count > 100);
  let wrk = '';
  for (let round = 1; round === 1 || load.count < wanted; round += 1) {
    const others = promisify(execFile)('wrk', ['-t', '1', '-c', '4', '-d', '10s', `http://${vip}:${shop.port}/`]);
    for (const [name, change] of Object.entries(changes)) {
      load.during = name;
      const before = load.count;
      await change(shop, load);
      await waitFor('requests behind it', () => load.count > before + 100);
    }
    wrk += (await others).stdout;
  }
  await load.stop();
  t.strictSame(Object.fromEntries(load.failures), {}, `${load.count} requests to ${load.answeredBy.size} containers`);
  t.notMatch(wrk, /Socket errors|Non-2xx/);
  t.ok(load.answeredBy.size >= 2 * instances, 'the replaced ones and those in their stead have all answered');
});
