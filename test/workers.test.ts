import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { LinksDocument } from '../sidecar/admin/documents.ts';
import { Agent, must, run } from './support/agent.ts';
import { freePort } from './support/faults.ts';
import { legate, served } from './support/mesh-host.ts';
import { unless } from './support/needs.ts';
import { Client, echoServer, isWorker, Load, workersOf } from './support/planes.ts';
import { waitFor } from './support/wait.ts';

/** Whole sidecars whose links are carried by processes of their own, which are killed, outlive them and are replaced. */

/** What takes processes of its own is waited for longer on a loaded machine. */
const slow = { timeoutMs: 30_000, everyMs: 100 };
const needs = { skip: unless('root', 'nft') };

class Plane {
  readonly agent: Agent;
  readonly port: number;
  readonly #range: number;
  readonly #pids = new Set<number>();
  vip = '';

  constructor(t: Test, range: number, port: number, config: Readonly<Record<string, unknown>> = {}) {
    this.port = port;
    this.#range = range;
    // Registered before the sidecar's own, so that it comes after that.
    t.teardown(async () => {
      for (const pid of this.#pids) if (isWorker(pid)) process.kill(pid, 'SIGKILL');
      await run('nft', ['delete', 'table', 'ip', this.table]);
      await run('nft', ['delete', 'table', 'bridge', this.table]);
      await run('ip', ['route', 'del', 'local', `240.${range}.0.0/16`, 'dev', 'lo']);
    });
    this.agent = new Agent(t, this.config(config));
  }

  config(more: Readonly<Record<string, unknown>> = {}): Readonly<Record<string, unknown>> {
    return {
      vip: { range: `240.${this.#range}.0.0/16`, local_range: `240.${this.#range + 1}.0.0/16` },
      workers: 2,
      instances: [{ service: 'db', address: '127.0.0.1', port: this.port }],
      drain: { timeout: '2s' },
      ...more,
    };
  }

  get table(): string {
    return `legate_240_${this.#range}_0_0_16`;
  }

  async up(): Promise<this> {
    const open = async (): Promise<boolean> => {
      const link = (await this.links()).links.find(({ kind, state }) => kind === 'vip' && state === 'open');
      this.vip = link?.address.split(':')[0] ?? '';
      return this.vip !== '';
    };
    await waitFor('the virtual address', open, slow);
    const mapped = async (): Promise<boolean> => {
      const maps = await Promise.all([0, 1].map((slot) => must('nft', 'list', 'map', 'ip', this.table, `tcp_${slot}`)));
      return maps.every((map) => map.includes(this.vip));
    };
    await waitFor('both workers in the kernel', mapped, slow);
    this.workers();
    return this;
  }

  links(): Promise<LinksDocument> {
    return this.agent.json<LinksDocument>('/api/links');
  }

  async link(): Promise<LinksDocument['links'][number] | undefined> {
    return (await this.links()).links.find(({ kind }) => kind === 'vip');
  }

  /** The processes that are written down as workers of this sidecar or those before, and live. */
  workers(): number[] {
    const pids = workersOf(this.agent);
    for (const pid of pids) this.#pids.add(pid);
    return pids;
  }

  client(): Client {
    return new Client(this.vip, this.port);
  }

  load(): Load {
    return new Load(this.vip, this.port);
  }

  async metric(name: string): Promise<number> {
    const { text } = await this.agent.api('GET', '/metrics');
    const line = text.split('\n').find((each) => each.startsWith(name) && !each.startsWith('#'));
    return Number(line?.split(' ').pop() ?? Number.NaN);
  }
}

async function hold(plane: Plane, count: number): Promise<Client[]> {
  const clients = Array.from({ length: count }, () => plane.client());
  const problems = await Promise.all(clients.map((client) => client.ask()));
  if (problems.some((problem) => problem !== undefined)) throw new Error(`not connected: ${problems.join(' ')}`);
  return clients;
}

t.test('two workers carry links as one, and a killed one is replaced', needs, async (t) => {
  const port = await echoServer(t);
  const plane = new Plane(t, 170, port, { links: [{ service: 'db', listen: '127.0.0.1:0' }] });
  await plane.agent.start();
  await plane.up();
  t.equal(plane.workers().length, 2);

  const held = await hold(plane, 8);
  const listen = (await plane.links()).links.find(({ kind }) => kind === 'listen');
  const [address = '', listenPort] = (listen?.address ?? '').split(':');
  const direct = new Client(address, Number(listenPort));
  t.equal(await direct.ask(), undefined, 'a listener of the configuration works, too');
  t.match(await plane.link(), {
    connections: { active: 8, total: 8 },
    consumers: [{ name: 'host', active: 8, total: 8 }],
    backends: [{ active: 9, total: 9 }],
  });
  t.equal(await plane.metric('legate_link_connections_total{service="db"}'), 9);
  t.equal(await plane.metric('legate_process_workers_count'), 2);

  const load = plane.load();
  await waitFor('some load', () => load.count > 20);
  const before = await plane.metric('legate_link_connections_total{service="db"}');
  const [victim = 0] = plane.workers();
  process.kill(victim, 'SIGKILL');
  await waitFor('another one', () => plane.workers().filter((pid) => pid !== victim).length === 2, slow);
  await plane.up();
  const replacedAt = load.count;
  await waitFor('more load', () => load.count > replacedAt + 20);
  await load.stop();
  const alive = held.filter(({ ended }) => ended === undefined);
  t.equal(alive.length, 4, 'connections were spread evenly, and only its own are lost');
  for (const client of alive) t.equal(await client.ask(), undefined);
  // Those that were in its hands at that moment, one for each loop; how many find nobody until the kernel knows is time.
  const lost = load.failures.filter((failure) => failure !== 'ECONNREFUSED');
  t.ok(lost.length <= 2, `${load.failures.length} of ${load.count} failed: ${load.failures.join(' ')}`);
  t.ok((await plane.metric('legate_link_connections_total{service="db"}')) >= before, 'counters do not go back');
  t.equal(await plane.metric('legate_process_worker_ends_total'), 1);

  for (const client of [...held, direct]) client.close();
  t.equal(await plane.agent.kill('SIGTERM'), 0);
  t.same(plane.workers(), [], 'no process is left');
  t.notMatch(await must('nft', 'list', 'tables'), plane.table);
  t.equal((await run('sh', ['-c', `ss -ltn | grep -c ' 240.170' `])).stdout.trim(), '0', 'no socket');
});

t.test('workers outlive a killed control, and the next one takes over', needs, async (t) => {
  const port = await echoServer(t);
  const plane = new Plane(t, 172, port);
  await plane.agent.start();
  await plane.up();
  // What the next one begins with.
  const picture = join(plane.agent.folder, 'data', 'snapshot.json');
  await waitFor('the picture on disk', () => existsSync(picture), slow);
  const former = plane.workers();
  const held = await hold(plane, 4);
  const load = plane.load();
  await waitFor('some load', () => load.count > 10);
  await plane.agent.kill('SIGKILL');
  const killedAt = load.count;
  await waitFor('load without control', () => load.count > killedAt + 20);
  t.same(plane.workers(), former, 'the workers live');
  for (const client of held) t.equal(await client.ask(), undefined, 'existing connections go on');

  await plane.agent.start();
  await waitFor('its own workers', () => plane.workers().length === 4, slow);
  await plane.up();
  const takenAt = load.count;
  await waitFor('load through the new ones', () => load.count > takenAt + 20);
  await load.stop();
  t.same(load.failures, [], `of ${load.count} connections`);
  for (const client of held) t.equal(await client.ask(), undefined, 'still the same connections');
  for (const client of held) client.close();
  await waitFor('the former ones end with their last connections', () => plane.workers().length === 2, slow);
  t.notOk(plane.workers().some((pid) => former.includes(pid)));
  t.equal((await plane.link())?.connections.failed, 0);

  const last = await hold(plane, 2);
  const again = plane.load();
  await plane.agent.kill('SIGKILL');
  // As one that is killed before it writes it for the first time: what is mapped stays until the store is open.
  rmSync(picture);
  const takenOver = (): number => plane.agent.log.filter((line) => line.includes('has taken over')).length;
  const before = takenOver();
  await plane.agent.start();
  await waitFor('it has taken over', () => takenOver() > before, slow);
  await plane.up();
  const afterAt = again.count;
  await waitFor('load through the new ones', () => again.count > afterAt + 20);
  await again.stop();
  t.same(again.failures, [], `of ${again.count} connections`);
  t.equal(await last[0]?.ask(), undefined);
  t.match(await plane.link(), { connections: { active: 2 } }, 'what former ones carry is shown');
  t.equal(await plane.agent.kill('SIGTERM'), 0, 'a stop ends the former ones, too');
  t.same(plane.workers(), []);
  t.notMatch(await must('nft', 'list', 'tables'), plane.table);
  for (const client of last) client.close();
});

t.test('--replace hands over under load', needs, async (t) => {
  const port = await echoServer(t);
  const plane = new Plane(t, 174, port);
  await plane.agent.start();
  await plane.up();
  const held = await hold(plane, 4);
  const load = plane.load();
  await waitFor('some load', () => load.count > 10);
  const former = plane.workers();
  const next = await plane.agent.replace();
  await plane.up();
  const replacedAt = load.count;
  await waitFor('load through the new one', () => load.count > replacedAt + 20);
  await load.stop();
  t.same(load.failures, [], `of ${load.count} connections, the slowest ${Math.round(load.longestMs)} ms`);
  for (const client of held) t.equal(await client.ask(), undefined, 'the same connections');
  t.equal(next.former, 0, 'the former control ended in order');
  for (const client of held) client.close();
  await waitFor('the former ones end', () => !plane.workers().some((pid) => former.includes(pid)), slow);
  t.equal(
    (await plane.agent.json<{ instances: { status: string }[] }>('/api/instances?service=db')).instances.length,
    1,
  );
});

/** Handshakes at a tunnel's port, again and again, until it is told to end; resolves with what went wrong. */
async function handshakes(
  port: number,
  roots: string,
  signal: AbortSignal,
): Promise<{ count: number; failures: string[] }> {
  const done = { count: 0, failures: [] as string[] };
  const loop = async (): Promise<void> => {
    while (!signal.aborted) {
      await served(port, roots).catch((error: Error) => done.failures.push(error.message));
      done.count += 1;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  };
  await Promise.all([loop(), loop()]);
  return done;
}

t.test('--replace loses no connection where listeners are shared', { ...needs, timeout: 110_000 }, async (t) => {
  const [port, listen, tunnel, store] = [await echoServer(t), await freePort(), await freePort(), await freePort()];
  const plane = new Plane(t, 200, port, {
    links: [{ service: 'db', listen: `127.0.0.1:${listen}` }],
    tunnel: { listen: `127.0.0.1:${tunnel}` },
    store: { kind: 'embedded', listen: `127.0.0.1:${store}` },
  });
  t.equal((await legate(['init', '-c', plane.agent.configFile])).status, 0);
  await plane.agent.start();
  await plane.up();
  const held = new Client('127.0.0.1', listen);
  t.equal(await held.ask(), undefined);
  const load = new Load('127.0.0.1', listen, 16, 60);
  const greeting = new AbortController();
  const greeted = handshakes(tunnel, join(plane.agent.folder, 'data', 'pki', 'roots.pem'), greeting.signal);
  t.teardown(() => {
    greeting.abort();
    return load.stop().then(() => greeted);
  });
  const before = performance.now();
  for (let turn = 1; turn <= 5; turn += 1) {
    t.match(await plane.agent.replace(), { former: 0 }, 'the former control ended in order');
    const replacedAt = load.count;
    await waitFor('load through the new one', () => load.count > replacedAt + 20, slow);
  }
  const tookMs = performance.now() - before;
  await load.stop();
  greeting.abort();
  const { count, failures } = await greeted;
  t.comment(`${load.count} connections and ${count} handshakes in ${Math.round(tookMs)} ms`);
  t.same(load.failures, [], `of ${load.count} connections, the slowest ${Math.round(load.longestMs)} ms`);
  t.same(failures, [], `of ${count} handshakes`);
  t.notMatch(plane.agent.log.join('\n'), 'bound anew');

  t.equal(await held.ask(), undefined, 'still the same connection');
  const shown = (await plane.links()).links.find(({ kind }) => kind === 'listen');
  t.match(shown, { connections: { active: 1 }, consumers: [{ name: 'host', active: 1 }], backends: [{ active: 1 }] });
  held.close();
  await waitFor('those before end', () => plane.workers().length === 2, slow);
  t.equal(await plane.agent.kill('SIGTERM'), 0);
  const left = readdirSync(join(plane.agent.folder, 'data')).filter((name) => name.startsWith('workers'));
  t.same(left, [], 'no door is left');
});
