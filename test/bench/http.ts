import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { unless } from '../support/needs.ts';
import { type Bench, type BenchOptions, chosenOf, type Figure } from './bench.ts';
import { findEnvoy } from './envoy.ts';
import { HttpLoads, h2load, type Latencies } from './http-loads.ts';
import { figuresOf, type HttpPart, HttpSamples, parts } from './http-parts.ts';
import { HttpPeers, type Origin, type ProxyName, proxyNames, type RunningProxy } from './http-peers.ts';
import type { Say } from './roles.ts';
import { loopback, memoryOf } from './tools.ts';
import { describeLoad, type Load, wrk } from './wrk.ts';

/** Interleaved rounds; figures are medians. */
const defaultRounds = 3;
const largeBytes = 65_536;
const pacedConnections = 64;
/** What part of the slower one's rate both are asked at. */
const pacedShare = 0.7;
const capacityMs = 1000;
/** Whoever has carried so many has its code and its buffers; they are asked before memory is looked at. */
const settlingConnections = 64;
const settlingMs = 500;
const http2Connections = 10;
const http2Streams = 32;
const http2WarmUp = 10_000;

interface Task {
  readonly rounds: number;
  readonly seconds: number;
  readonly idleClients: number;
  readonly parts: readonly HttpPart[];
  readonly proxies: readonly ProxyName[];
}

interface Plan {
  readonly part: HttpPart;
  readonly what: string;
  readonly path: '/' | '/large';
  readonly connections: number;
  readonly header?: string;
}

const plans: readonly Plan[] = [
  { part: 'requests', what: '64 clients', path: '/', connections: 64 },
  { part: 'requests', what: '512 clients', path: '/', connections: 512 },
  { part: 'large', what: '64 KiB', path: '/large', connections: 64 },
  { part: 'connections', what: 'new connections', path: '/', connections: 64, header: 'Connection: close' },
];

/** Legate's HTTP links beside reverse proxies, all on this host and before the same origin. */
export const httpBench: Bench = {
  name: 'http',
  skip: () => unless('command:haproxy', 'command:nginx', 'command:wrk', 'command:gcc', 'command:setpriv'),
  async run(say, options) {
    const task = taskOf(options);
    const folder = await mkdtemp(`${tmpdir()}/legate-bench-http-`);
    const envoy = task.proxies.includes('envoy') ? await findEnvoy(say) : undefined;
    const peers = new HttpPeers(folder, envoy);
    try {
      await writeFile(`${folder}/large`, Buffer.alloc(largeBytes, 'legate'));
      const loads = await HttpLoads.make(folder);
      const proxies = task.proxies.filter((name) => name !== 'envoy' || envoy !== undefined);
      const comparison = new Comparison({ ...task, proxies }, peers, loads, await peers.startOrigin(), say);
      return await comparison.run();
    } finally {
      await peers.end();
      await rm(folder, { recursive: true, force: true });
    }
  },
};

function taskOf({ rounds, quick, only }: BenchOptions): Task {
  const words: readonly string[] = [...parts, ...proxyNames];
  const unknown = only.find((word) => !words.includes(word));
  if (unknown !== undefined) throw new Error(`there is no part ${unknown}; there are ${words.join(', ')}`);
  const named = chosenOf(proxyNames, only);
  return {
    rounds: rounds ?? (quick ? 1 : defaultRounds),
    seconds: quick ? 1 : 3,
    idleClients: quick ? 1000 : 4000,
    parts: chosenOf(parts, only),
    // Peers alone are compared with nobody.
    proxies: named.includes('legate') ? named : ['legate', ...named],
  };
}

class Comparison {
  readonly #task: Task;
  readonly #peers: HttpPeers;
  readonly #loads: HttpLoads;
  readonly #origin: Origin;
  readonly #say: Say;
  readonly #samples = new HttpSamples();

  constructor(task: Task, peers: HttpPeers, loads: HttpLoads, origin: Origin, say: Say) {
    this.#task = task;
    this.#peers = peers;
    this.#loads = loads;
    this.#origin = origin;
    this.#say = say;
  }

  async run(): Promise<readonly Figure[]> {
    this.#say('every proxy has one process with one worker thread; Legate one data-plane process');
    if (this.#has('requests', 'large', 'connections', 'latency', 'http2')) await this.#underLoad();
    if (this.#has('memory')) {
      for (let round = 1; round <= this.#task.rounds; round += 1) await this.#memory(round);
    }
    return figuresOf(this.#samples);
  }

  #has(...some: readonly HttpPart[]): boolean {
    return some.some((part) => this.#task.parts.includes(part));
  }

  async #underLoad(): Promise<void> {
    const proxies: RunningProxy[] = [];
    for (const name of this.#task.proxies) proxies.push(await this.#peers.start(name, this.#origin));
    const noH2load = this.#has('http2') ? unless('command:h2load') : false;
    if (noH2load !== false) this.#say(`without HTTP/2: ${noH2load}`);
    const chosen = plans.filter(({ part }) => this.#has(part));
    // Compilers and caches warm up before anything counts.
    for (const proxy of proxies) for (const plan of chosen) await this.#ask(proxy, plan, 1);
    for (let round = 1; round <= this.#task.rounds; round += 1) {
      for (const plan of chosen) await this.#compare(`round ${round}`, plan, proxies);
      if (this.#has('latency')) await this.#latency(`round ${round}`, proxies);
      if (this.#has('http2') && noH2load === false) await this.#http2(`round ${round}`, proxies, round === 1);
    }
    for (const proxy of proxies) await proxy.end();
  }

  async #compare(round: string, plan: Plan, proxies: readonly RunningProxy[]): Promise<void> {
    const told: string[] = [];
    for (const proxy of proxies) {
      const load = await this.#ask(proxy, plan, this.#task.seconds);
      this.#samples.add(plan.what, proxy.name, load);
      told.push(describeLoad(proxy.name, load));
    }
    this.#say(`${round}, ${plan.what}: ${told.join('; ')}`);
  }

  #ask({ http, pid }: RunningProxy, { path, connections, header }: Plan, seconds: number): Promise<Load> {
    const url = `http://${loopback}:${http}${path}`;
    return wrk({ url, pid, connections, seconds, ...(header !== undefined && { header }) });
  }

  /** Of clients that ask again and again, and of requests at even times at a rate that both have to spare. */
  async #latency(round: string, proxies: readonly RunningProxy[]): Promise<void> {
    const ms = this.#task.seconds * 1000;
    const settled: string[] = [];
    const rates = new Map<ProxyName, number>();
    for (const { name, http } of proxies) {
      const latencies = await this.#loads.closed(http, 512, ms);
      this.#samples.add('512 settled', name, latencies);
      settled.push(describe(name, latencies));
      const { perSecond } = await this.#loads.closed(http, pacedConnections, capacityMs);
      rates.set(name, perSecond);
    }
    this.#say(`${round}, 512 settled clients: ${settled.join('; ')}`);
    const [ours, ...others] = proxies;
    if (ours === undefined) return;
    for (const peer of others) {
      const slower = Math.min(rates.get(ours.name) ?? 0, rates.get(peer.name) ?? 0);
      const rate = Math.round(slower * pacedShare);
      const told: string[] = [];
      for (const { name, http } of [ours, peer]) {
        const latencies = await this.#loads.paced(http, pacedConnections, ms, rate);
        this.#samples.add(`70 % ${peer.name}`, name, latencies);
        told.push(describe(name, latencies));
      }
      this.#say(`${round}, ${rate}/s due: ${told.join('; ')}`);
    }
  }

  async #http2(round: string, proxies: readonly RunningProxy[], warms: boolean): Promise<void> {
    const told: string[] = [];
    for (const { name, pid, http2 } of proxies) {
      if (http2 === undefined) continue;
      const options = { name, port: http2, pid, connections: http2Connections, streams: http2Streams };
      // Longer than with HTTP/1.1: most of it is the runtime's own.
      if (warms) await h2load({ ...options, limit: { requests: http2WarmUp } });
      const load = await h2load({ ...options, limit: { seconds: this.#task.seconds } });
      this.#samples.add('http2', name, load);
      told.push(describeLoad(name, load));
    }
    this.#say(`${round}, HTTP/2: ${told.join('; ')}`);
  }

  /** Each proxy is a new process: what it had before, and has to spare now, would be counted as nothing. */
  async #memory(round: number): Promise<void> {
    const { idleClients, proxies } = this.#task;
    const told: string[] = [];
    for (const name of proxies) {
      const proxy = await this.#peers.start(name, this.#origin, { collects: true });
      await this.#loads.closed(proxy.http, settlingConnections, settlingMs);
      await proxy.settle();
      const before = memoryOf(proxy.pid).anonymous;
      await this.#loads.idle(proxy.http, idleClients, async () => {
        await proxy.settle();
        const kilobytes = ((memoryOf(proxy.pid).anonymous - before) * 1000) / idleClients;
        this.#samples.add('memory', name, { kilobytes });
        told.push(`${name} ${kilobytes.toFixed(1)} KB`);
      });
      await proxy.end();
    }
    this.#say(`round ${round}, an idle client of ${idleClients}: ${told.join(', ')}`);
  }
}

function describe(name: string, { perSecond, p50Ms, p99Ms }: Latencies): string {
  return `${name} ${Math.round(perSecond)}/s, p50 ${p50Ms.toFixed(2)} ms, p99 ${p99Ms.toFixed(2)} ms`;
}
