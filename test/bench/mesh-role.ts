import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { openStore } from '../../src/store/backends.ts';
import { Agent, type Teardown } from '../support/agent.ts';
import { unless } from '../support/needs.ts';
import { parts } from '../support/records.ts';
import { waitFor } from '../support/wait.ts';
import type { Figure } from './bench.ts';
import type { FromHosts, ToHosts } from './mesh-hosts.ts';
import { fillStore, hosts, leaseTtlMs, meshName } from './mesh-records.ts';
import { embeddedProcess, etcdProcess, type StoreProcess } from './mesh-stores.ts';
import { type Say, serveRole } from './roles.ts';
import { loopback, memoryOf, percentile, processorMsOf } from './tools.ts';

const processes = 2;
const quietMs = 4 * leaseTtlMs;
const singleChanges = 40;
const perSecond = 100;
const sustainedMs = 15_000;
const startLimitMs = 120_000;

/** The processes that hold the hosts, and what they tell. */
class Hosts {
  readonly children: ChildProcess[] = [];
  /** Delays from a change to the moment at which each host's catalog showed it, milliseconds. */
  delays: number[] = [];
  readonly #changed = new Map<number, number>();
  readonly #seen = new Map<number, { times: number[]; processes: number }>();
  readonly #states = new Map<ChildProcess, { connected: number; alive: number }>();
  #ready = 0;
  #round = 1;

  constructor(t: Teardown, port: number) {
    for (let index = 0; index < processes; index += 1) {
      const script = fileURLToPath(new URL('./mesh-hosts.js', import.meta.url));
      const child = fork(script, [], { execArgv: ['--max-old-space-size=6144'] });
      this.children.push(child);
      t.teardown(async () => {
        if (child.exitCode !== null || child.signalCode !== null) return;
        const ended = once(child, 'exit');
        child.kill('SIGKILL');
        await ended;
      });
      child.on('message', (message: FromHosts) => this.#take(child, message));
      const share = hosts / processes;
      this.#tell(child, { kind: 'start', from: index * share, to: (index + 1) * share, port });
    }
  }

  async ready(): Promise<void> {
    await waitFor('all hosts to see all others', () => this.#ready === processes, {
      timeoutMs: startLimitMs,
      everyMs: 50,
    });
  }

  /** One host changes; resolves when every host has seen it. */
  async change(): Promise<void> {
    const round = this.begin();
    await waitFor(`round ${round} to be seen`, () => !this.#seen.has(round), { timeoutMs: 30_000, everyMs: 1 });
  }

  /** One host changes; another one each time. */
  begin(): number {
    this.#round += 1;
    const round = this.#round;
    this.#seen.set(round, { times: [], processes: 0 });
    for (const child of this.children) this.#tell(child, { kind: 'change', host: (round * 37) % hosts, round });
    return round;
  }

  async settled(): Promise<void> {
    await waitFor('all changes to be seen', () => this.#seen.size === 0, { timeoutMs: 60_000, everyMs: 5 });
  }

  /** How many hosts' clients are connected, and the fewest that any of those asked sees alive. */
  get state(): { readonly connected: number; readonly alive: number } {
    const states = [...this.#states.values()];
    const connected = states.reduce((sum, state) => sum + state.connected, 0);
    return { connected, alive: Math.min(...states.map(({ alive }) => alive)) };
  }

  /** Counts the changes begun. */
  get rounds(): number {
    return this.#round;
  }

  #tell(child: ChildProcess, message: ToHosts): void {
    child.send(message);
  }

  #take(child: ChildProcess, message: FromHosts): void {
    if (message.kind === 'ready') this.#ready += 1;
    else if (message.kind === 'state') this.#states.set(child, message);
    else if (message.kind === 'changed') this.#changed.set(message.round, message.atMs);
    else {
      const round = this.#seen.get(message.round);
      if (round === undefined) return;
      round.times.push(...message.atMs);
      round.processes += 1;
      const beganMs = this.#changed.get(message.round);
      if (round.processes < processes || beganMs === undefined) return;
      for (const time of round.times) this.delays.push(time - beganMs);
      this.#seen.delete(message.round);
      this.#changed.delete(message.round);
    }
  }
}

/** All that is measured on one store. */
async function measure(t: Teardown, store: StoreProcess, say: Say): Promise<Figure[]> {
  const on = `on ${store.name}`;
  await fill(store);
  say(`${on}: ${hosts} hosts start`);
  const beganMs = performance.now();
  const mesh = new Hosts(t, store.port);
  await mesh.ready();
  const startSeconds = (performance.now() - beganMs) / 1000;
  const agent = await realSidecar(t, store);
  say(`${on}: at rest for ${quietMs / 1000} s`);
  const before = await usage(store, agent, mesh);
  await new Promise((resolve) => setTimeout(resolve, quietMs));
  const rest = since(before, await usage(store, agent, mesh));
  say(`${on}: ${singleChanges} changes one by one, then ${perSecond} a second`);
  for (let round = 0; round < singleChanges; round += 1) await mesh.change();
  const single = mesh.delays.splice(0);
  const beforeLoad = await usage(store, agent, mesh);
  await sustain(mesh);
  const load = since(beforeLoad, await usage(store, agent, mesh));
  await mesh.settled();
  const sustained = mesh.delays.splice(0);
  say(`${on}: the store is killed and started again`);
  const herd = await restart(store, mesh);
  const megabytes = memoryOf(agent.pid).megabytes;
  const sidecars = hosts + 1;
  const thirds = rest.seconds / (leaseTtlMs / 3000);
  await agent.kill();
  const lower = 'lower' as const;
  return [
    { what: `all hosts started, ${on}`, unit: 's', ours: startSeconds, better: lower },
    {
      what: 'requests per host and third of the TTL, at rest',
      unit: '',
      ours: rest.requests / sidecars / thirds,
      better: lower,
      aim: 1,
    },
    {
      what: 'bytes/s per sidecar, both ways, at rest',
      unit: 'B/s',
      ours: rest.bytes / sidecars / rest.seconds,
      better: lower,
    },
    { what: 'the store’s CPU, at rest', unit: '% of a core', ours: rest.storeCpu, better: lower },
    { what: 'one sidecar’s CPU, at rest', unit: '% of a core', ours: rest.agentCpu, better: lower },
    { what: 'one change until a host sees it, p50', unit: 'ms', ours: percentile(single, 0.5), better: lower },
    { what: '… p99', unit: 'ms', ours: percentile(single, 0.99), better: lower, aim: 1000 },
    {
      what: `the same while ${perSecond} changes/s go on, p50`,
      unit: 'ms',
      ours: percentile(sustained, 0.5),
      better: lower,
    },
    { what: '… p99', unit: 'ms', ours: percentile(sustained, 0.99), better: lower, aim: 1000 },
    { what: '… changes/s that were made', unit: '/s', ours: load.changes / load.seconds, better: 'higher' },
    { what: '… bytes/s per sidecar', unit: 'B/s', ours: load.bytes / sidecars / load.seconds, better: lower },
    { what: '… the store’s CPU', unit: '% of a core', ours: load.storeCpu, better: lower },
    { what: '… one sidecar’s CPU', unit: '% of a core', ours: load.agentCpu, better: lower },
    { what: 'store killed: from its answer until all are connected', unit: 's', ours: herd.seconds, better: lower },
    { what: '… hosts that were taken for lost meanwhile', unit: '', ours: hosts - herd.alive, better: lower, aim: 0 },
    { what: 'one sidecar’s memory', unit: 'MB', ours: megabytes, better: lower, aim: 150 },
    { what: 'the store’s memory', unit: 'MB', ours: memoryOf(store.pid).megabytes, better: lower },
  ];
}

async function fill(store: StoreProcess): Promise<void> {
  const text = `http://${loopback}:${store.port}`;
  const endpoints = [{ secure: false, host: loopback, port: store.port, text }];
  const remote = { leaseTtlMs, endpoints, prefix: '/legate', tls: {}, credentialsFile: undefined };
  const client = await openStore({ kind: 'etcd', ...remote }, { ...parts(), dataDir: '/nonexistent' });
  await waitFor('the store', () => client.status.value.state === 'connected', { timeoutMs: 10_000 });
  await fillStore(client);
  await client.close();
}

/** One sidecar as users have it, beside the others. */
async function realSidecar(t: Teardown, store: StoreProcess): Promise<Agent> {
  const endpoints = [`http://${loopback}:${store.port}`];
  const agent = new Agent(t, { mesh: meshName, store: { kind: 'etcd', endpoints, lease_ttl: '10s' } });
  await agent.start();
  await waitFor('the sidecar to have a picture', async () => {
    const { hosts: list } = await agent.json<{ hosts: unknown[] }>('/api/hosts');
    return list.length > hosts;
  });
  return agent;
}

/** Changes at a fixed rate, whatever becomes of them. */
async function sustain(mesh: Hosts): Promise<void> {
  const beganMs = performance.now();
  for (let made = 0; performance.now() - beganMs < sustainedMs; ) {
    const due = Math.floor(((performance.now() - beganMs) * perSecond) / 1000);
    for (; made < due; made += 1) mesh.begin();
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

async function restart(store: StoreProcess, mesh: Hosts): Promise<{ seconds: number; alive: number }> {
  await store.kill();
  await waitFor('the loss to be noticed', () => mesh.state.connected < hosts / 2, { timeoutMs: 30_000 });
  await store.start();
  const beganMs = performance.now();
  let alive = hosts;
  await waitFor(
    'all to be connected again',
    () => {
      alive = Math.min(alive, mesh.state.alive);
      return mesh.state.connected === hosts;
    },
    { timeoutMs: 60_000, everyMs: 20 },
  );
  const seconds = (performance.now() - beganMs) / 1000;
  await mesh.change();
  mesh.delays.splice(0);
  return { seconds, alive: Math.min(alive, mesh.state.alive) };
}

interface Usage {
  readonly atMs: number;
  readonly requests: number;
  readonly bytes: number;
  readonly storeMs: number;
  readonly agentMs: number;
  readonly round: number;
}

async function usage(store: StoreProcess, agent: Agent, mesh: Hosts): Promise<Usage> {
  const requests = await store.requests();
  // Whatever is sent over loopback is counted once as sent and once as received.
  const lo = /lo:\s*(\d+)/.exec(readFileSync('/proc/net/dev', 'utf8'))?.[1];
  return {
    atMs: performance.now(),
    requests,
    bytes: Number(lo),
    storeMs: processorMsOf(store.pid),
    agentMs: processorMsOf(agent.pid),
    round: mesh.rounds,
  };
}

interface Used {
  readonly seconds: number;
  readonly requests: number;
  readonly bytes: number;
  readonly storeCpu: number;
  readonly agentCpu: number;
  readonly changes: number;
}

function since(before: Usage, after: Usage): Used {
  const elapsedMs = after.atMs - before.atMs;
  return {
    seconds: elapsedMs / 1000,
    requests: after.requests - before.requests,
    bytes: after.bytes - before.bytes,
    storeCpu: ((after.storeMs - before.storeMs) * 100) / elapsedMs,
    agentCpu: ((after.agentMs - before.agentMs) * 100) / elapsedMs,
    changes: after.round - before.round,
  };
}

await serveRole(async (_withVips, t, say) => {
  const figures: Figure[] = [];
  const noEtcd = unless('command:etcd');
  if (noEtcd !== false) say(`without etcd: ${noEtcd}`);
  for (const open of noEtcd === false ? [embeddedProcess, etcdProcess] : [embeddedProcess]) {
    const ends: (() => unknown)[] = [];
    const own = { teardown: (end: () => unknown): void => void ends.push(end) };
    t.teardown(async () => {
      for (const end of ends.splice(0).reverse()) await end();
    });
    figures.push(...(await measure(own, await open(own), say)));
    for (const end of ends.splice(0).reverse()) await end();
  }
  return figures;
});
