/** The measuring process of the tunnel benchmark: the near host is its network namespace. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import type { Teardown } from '../support/agent.ts';
import type { Figure } from './bench.ts';
import { type Say, serveRole } from './roles.ts';
import { memoryOf } from './tools.ts';
import type { TunnelTask } from './tunnel.ts';
import { figuresOf, type Sample, Samples } from './tunnel-parts.ts';
import { makeIdentities, type Pair, type PairMaker, type PeerName, startPair } from './tunnel-peers.ts';
import {
  compilePrograms,
  type Load,
  type LoadMode,
  longWire,
  shortWire,
  TunnelWorld,
  type Wire,
} from './tunnel-world.ts';

/** At a time; with 20 ms of round trip one can have 50 a second. */
const newAtATime = 64;
const besideConnections = 16;
/** More than any could send meanwhile: it is stopped. */
const endlessMib = 1_000_000;
const wholeMib = 1024;
const bytesPerMib = 1_048_576;
const verifiedMib = 64;

interface Sizes {
  readonly loadMs: number;
  readonly bulkMib: number;
  readonly idle: number;
  /** How often a GiB is fetched whole. */
  readonly wholes: number;
}

const fullSizes: Sizes = { loadMs: 2000, bulkMib: 768, idle: 5000, wholes: 10 };
const quickSizes: Sizes = { loadMs: 1000, bulkMib: 256, idle: 5000, wholes: 2 };

class Bench {
  readonly #maker: PairMaker;
  readonly #task: TunnelTask;
  readonly #sizes: Sizes;
  readonly #say: Say;
  readonly #names: readonly PeerName[];
  readonly #samples = new Samples();
  readonly #completed = new Map<PeerName, number>();

  constructor(maker: PairMaker, task: TunnelTask, say: Say) {
    this.#maker = maker;
    this.#task = task;
    this.#sizes = { ...(task.quick ? quickSizes : fullSizes), ...(task.whole !== undefined && { wholes: task.whole }) };
    this.#say = say;
    this.#names = task.pairs.filter((name) => name !== 'envoy' || maker.envoy !== undefined);
  }

  async run(): Promise<readonly Figure[]> {
    const has = (part: TunnelTask['parts'][number]): boolean => this.#task.parts.includes(part);
    await this.#onShortWire(has);
    if (has('memory')) await this.#memory();
    if (has('rtt')) await this.#onLongWire();
    return figuresOf(this.#samples, this.#completed, this.#sizes.wholes);
  }

  async #onShortWire(has: (part: TunnelTask['parts'][number]) => boolean): Promise<void> {
    if (!['requests', 'connections', 'bulk', 'beside', 'complete'].some((part) => has(part as 'bulk'))) return;
    const pairs = await this.#startAll(shortWire);
    const proxies = pairs.filter(({ name }) => name !== 'direct');
    for (const pair of pairs) await this.#verify(pair);
    await this.#rounds(async (turn) => {
      if (has('requests')) {
        for (const connections of [1, 64, 512]) {
          await turn(`requests ${connections}`, pairs, (pair) => this.#requests(pair, connections));
        }
      }
      if (has('connections')) await turn('connections', pairs, (pair) => this.#connections(pair));
      if (has('bulk')) {
        for (const streams of [1, 4]) await turn(`bulk ${streams}`, pairs, (pair) => this.#bulk(pair, streams));
      }
      if (has('beside')) await turn('beside', proxies, (pair) => this.#beside(pair));
    });
    if (has('complete')) for (const pair of proxies) await this.#wholes(pair);
    for (const pair of pairs) await pair.end();
  }

  async #onLongWire(): Promise<void> {
    if (!this.#maker.world.wires.includes(longWire)) {
      this.#say('without a round trip of 20 ms: no /dev/net/tun');
      return;
    }
    const pairs = await this.#startAll(longWire);
    await this.#describeWire(pairs);
    for (const pair of pairs) await this.#warmUp(pair);
    await this.#rounds(async (turn) => {
      await turn('rtt requests', pairs, (pair) => this.#requests(pair, newAtATime));
      await turn('rtt connections', pairs, (pair) => this.#connections(pair));
    });
    for (const pair of pairs) await pair.end();
  }

  /** Pairs take turns within a round, and the next round begins with another one. */
  async #rounds(
    round: (
      turn: (plan: string, pairs: readonly Pair[], measure: (pair: Pair) => Promise<Sample>) => Promise<void>,
    ) => Promise<void>,
  ): Promise<void> {
    for (let index = 0; index < this.#task.rounds; index += 1) {
      await round(async (plan, pairs, measure) => {
        const first = index % pairs.length;
        const told: string[] = [];
        for (const pair of [...pairs.slice(first), ...pairs.slice(0, first)]) {
          const sample = await measure(pair);
          this.#samples.add(plan, pair.name, sample);
          told.push(`${pair.name} ${describe(sample)}`);
        }
        this.#say(`round ${index + 1}, ${plan}: ${told.join('; ')}`);
      });
    }
  }

  async #startAll(wire: Wire): Promise<Pair[]> {
    const pairs: Pair[] = [];
    for (const name of this.#names) pairs.push(await startPair(this.#maker, name, wire));
    return pairs;
  }

  async #load(pair: Pair, mode: LoadMode, count: number, limit: number): Promise<Load> {
    const { world } = this.#maker;
    const port = mode === 'fetch' ? pair.bulk : pair.http;
    return checked(pair, await world.startLoad(mode, pair.address, port, count, limit, pair.pids).report());
  }

  /** Compilers and caches of all warm up, and what comes through is what was sent. */
  async #verify(pair: Pair): Promise<void> {
    const { bytes, complete } = await this.#load(pair, 'fetch', 2, verifiedMib);
    if (complete !== 2) throw new Error(`${pair.name} delivered ${bytes} bytes of ${2 * verifiedMib} MiB`);
    await this.#warmUp(pair);
  }

  async #warmUp(pair: Pair): Promise<void> {
    await this.#load(pair, 'requests', 64, this.#sizes.loadMs);
    await this.#load(pair, 'requests', 1, this.#sizes.loadMs / 2);
    await this.#load(pair, 'connections', newAtATime, this.#sizes.loadMs / 2);
  }

  async #describeWire([...pairs]: readonly Pair[]): Promise<void> {
    const direct = pairs.find(({ name }) => name === 'direct');
    if (direct === undefined) return;
    const one = await this.#load(direct, 'requests', 1, 500);
    const bulk = await this.#load(direct, 'fetch', 4, 128);
    this.#say(
      `the long wire: ${ms(one.p50Us / 1000)} of round trip, ${Math.round(bulk.bytes / bulk.seconds / 1e6)} MB/s`,
    );
  }

  async #requests(pair: Pair, connections: number): Promise<Sample> {
    return requestSample(await this.#load(pair, 'requests', connections, this.#sizes.loadMs));
  }

  async #connections(pair: Pair): Promise<Sample> {
    return requestSample(await this.#load(pair, 'connections', newAtATime, this.#sizes.loadMs));
  }

  async #bulk(pair: Pair, streams: number): Promise<Sample> {
    const load = await this.#load(pair, 'fetch', streams, this.#sizes.bulkMib / streams);
    if (load.complete < streams)
      this.#say(`${pair.name} lost the end of ${streams - load.complete} of ${streams} streams`);
    return bulkSample(load);
  }

  async #beside(pair: Pair): Promise<Sample> {
    const { world } = this.#maker;
    const bulk = world.startLoad('fetch', pair.address, pair.bulk, 1, endlessMib, []);
    const load = await this.#load(pair, 'requests', besideConnections, this.#sizes.loadMs);
    bulk.stop();
    this.#samples.add('beside bulk', pair.name, bulkSample(checked(pair, await bulk.report())));
    return requestSample(load);
  }

  async #wholes(pair: Pair): Promise<void> {
    let completed = 0;
    for (let index = 0; index < this.#sizes.wholes; index += 1) {
      const { complete, bytes } = await this.#load(pair, 'fetch', 1, wholeMib);
      completed += complete;
      if (complete === 0) this.#say(`${pair.name} lost the last ${wholeMib * bytesPerMib - bytes} bytes of 1 GiB`);
    }
    this.#completed.set(pair.name, completed);
    this.#say(`${pair.name}: 1 GiB arrived whole ${completed} of ${this.#sizes.wholes} times`);
  }

  /** With fresh processes: none has room left over from earlier connections. */
  async #memory(): Promise<void> {
    for (const name of this.#names.filter((name) => name !== 'direct')) {
      const pair = await startPair(this.#maker, name, shortWire);
      await this.#warmUp(pair);
      const before = await residentKilobytes(pair);
      const idle = this.#maker.world.startLoad('idle', pair.address, pair.http, this.#sizes.idle, 0, []);
      const opened = checked(pair, await idle.report());
      const each = ((await residentKilobytes(pair)) - before) / this.#sizes.idle;
      idle.letGo();
      const asked = checked(pair, await idle.report());
      if (opened.complete + asked.complete !== 2 * this.#sizes.idle) throw new Error(`${name} lost idle connections`);
      const none = Number.NaN;
      this.#samples.add('memory', name, { perSecond: each, cpu: none, p50Ms: none, p99Ms: none });
      this.#say(`${name}: ${each.toFixed(1)} KB an idle connection, from ${Math.round(before / 1000)} MB on`);
      await pair.end();
    }
  }
}

async function residentKilobytes(pair: Pair): Promise<number> {
  await new Promise((resolve) => setTimeout(resolve, 1000));
  await pair.settle();
  await new Promise((resolve) => setTimeout(resolve, 500));
  return pair.pids.reduce((sum, pid) => sum + memoryOf(pid).megabytes * 1000, 0);
}

/** Fails where bytes were wrong, or connections failed. */
function checked({ name }: Pair, load: Load): Load {
  if (load.wrong > 0) throw new Error(`${name} delivered bytes that nobody sent, ${load.wrong} times`);
  if (load.failed > 0) throw new Error(`${name} failed ${load.failed} of ${load.requests + load.failed} connections`);
  return load;
}

function requestSample({ requests, seconds, cpuSeconds, p50Us, p99Us }: Load): Sample {
  return {
    perSecond: requests / seconds,
    cpu: (cpuSeconds * 1e6) / requests,
    p50Ms: p50Us / 1000,
    p99Ms: p99Us / 1000,
  };
}

function bulkSample({ bytes, seconds, cpuSeconds }: Load): Sample {
  return { perSecond: bytes / seconds, cpu: (cpuSeconds * 1e9) / bytes, p50Ms: Number.NaN, p99Ms: Number.NaN };
}

function describe({ perSecond, cpu, p50Ms, p99Ms }: Sample): string {
  if (Number.isNaN(p50Ms)) return `${Math.round(perSecond / 1e6)} MB/s, ${cpu.toFixed(2)} s of CPU a GB`;
  return `${Math.round(perSecond)}/s, ${cpu.toFixed(1)} us of CPU, p50 ${ms(p50Ms)}, p99 ${ms(p99Ms)}`;
}

function ms(value: number): string {
  return `${value.toPrecision(3)} ms`;
}

async function measure(_withVips: boolean, t: Teardown, say: Say): Promise<readonly Figure[]> {
  const task = JSON.parse(process.argv[3] ?? '{}') as TunnelTask;
  const folder = mkdtempSync(`${tmpdir()}/legate-bench-tunnel-`);
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  await compilePrograms(folder);
  const identities = await makeIdentities(folder);
  const world = await TunnelWorld.make(t, folder);
  const nodeFlags = (process.env.LEGATE_BENCH_NODE_FLAGS ?? '').split(' ').filter((flag) => flag !== '');
  return new Bench({ world, folder, identities, envoy: task.envoy, nodeFlags }, task, say).run();
}

// An interrupt goes to the whole group of processes: this one takes back what it started when its parent has gone.
process.on('SIGINT', () => undefined);
await serveRole(measure);
