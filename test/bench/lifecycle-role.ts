/**
 * The process that measures the life of a sidecar: starts and restarts the real one, asks it all the while, and hands the
 * figures to the benchmark, its parent. It ends with that.
 */
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import type { ServiceDocument } from '../../sidecar/admin/documents.ts';
import type { Endpoint } from '../../src/model/address.ts';
import { Agent, type Teardown } from '../support/agent.ts';
import { waitFor } from '../support/wait.ts';
import type { Figure } from './bench.ts';
import { type Probe, probeConnect, probeName } from './probes.ts';
import { type Say, serveRole } from './roles.ts';
import { freeTcpPort, freeUdpPort, loopback, median, processorMsOf } from './tools.ts';

const rounds = 5;
const knownInstances = 1000;
const instancesPerService = 10;
const startAimMs = 400;
const gapAimMs = 1000;
const replacementAimMs = 100;
/** How long every probe must go well again before a restart counts as over. */
const steadyMs = 400;
const name = 'db.mesh.internal';

/** From the start of the process to its first right answer. */
interface Start {
  readonly elapsedMs: number;
  /** Processor time of all its threads until then, which tells more on a busy machine; children not counted. */
  readonly processorMs: number;
}

async function measure(withVips: boolean, t: Teardown, say: Say): Promise<Figure[]> {
  const backend = await greeter(t);
  const dns = { address: loopback, port: await freeUdpPort() };
  const vip = withVips
    ? { mode: 'auto', range: '240.93.0.0/16', local_range: '240.94.0.0/16' }
    : { mode: 'off', range: '240.93.0.0/16' };
  const base = { dns: { listen: [`${loopback}:${dns.port}`], bridges: 'off', upstream: 'off' }, vip };
  const db = { service: 'db', address: loopback, port: backend.port };

  const agent = new Agent(t);
  agent.configure({ ...base, instances: [db] });
  const fresh = await starts(agent, dns, true, (start) => say(`fresh start: ${describe(start)}`));
  await registerMany(agent);
  const known = await starts(agent, dns, false, (start) =>
    say(`start that knows ${knownInstances} instances: ${describe(start)}`),
  );
  const listen = { address: loopback, port: await freeTcpPort() };
  agent.configure({
    ...base,
    instances: [db],
    links: [{ service: 'db', listen: `${loopback}:${listen.port}` }],
  });
  const gaps = await around('restart', agent, { dns, listen, withVips }, say);
  agent.configure({
    ...base,
    instances: [db],
    links: [{ service: 'db', listen: `${loopback}:${listen.port}` }],
    workers: 2,
  });
  const replaced = await around('replacement', agent, { dns, listen, withVips }, say);
  return [
    ...startFigures('new data directory', fresh),
    ...startFigures(`${knownInstances} instances known`, known),
    ...[...gaps].map(([what, values]) => figure(`restart gap, ${what}`, values, gapAimMs)),
    ...[...replaced].map(([what, values]) => figure(`replacement gap, ${what}`, values, replacementAimMs)),
  ];
}

function startFigures(what: string, starts: readonly Start[]): Figure[] {
  const elapsed = starts.map(({ elapsedMs }) => elapsedMs);
  const processor = starts.map(({ processorMs }) => processorMs);
  return [
    figure(`start to first answer, ${what}`, elapsed, startAimMs),
    figure('processor time of that', processor, startAimMs),
  ];
}

function figure(what: string, values: readonly number[], aim: number): Figure {
  return { what, unit: 'ms', ours: median(values), better: 'lower', aim };
}

function describe({ elapsedMs, processorMs }: Start): string {
  return `first answer after ${Math.round(elapsedMs)} ms, ${processorMs} ms of processor time`;
}

/** Starts the sidecar and waits for its first right answer, once a round. */
async function starts(agent: Agent, dns: Endpoint, fresh: boolean, tell: (start: Start) => void): Promise<Start[]> {
  const results: Start[] = [];
  for (let round = 0; round < rounds; round += 1) {
    if (fresh) rmSync(join(agent.folder, 'data'), { recursive: true, force: true });
    const probe = probeName(dns, name);
    const startedMs = performance.now();
    await agent.start({ ready: false });
    const answered = (): number | undefined => {
      if (!agent.running) throw new Error(`the sidecar ended: ${agent.log.slice(-3).join('; ')}`);
      return probe.lastGoodMs;
    };
    const goodMs = await waitFor('the first answer', answered, { everyMs: 5 });
    const start = { elapsedMs: goodMs - startedMs, processorMs: processorMsOf(agent.pid) };
    probe.stop();
    results.push(start);
    tell(start);
    await settled(agent);
    await agent.kill();
  }
  return results;
}

/** Up with all that a start does, so that the next one finds what an ordinary run leaves behind. */
async function settled(agent: Agent): Promise<void> {
  const ready = async (): Promise<boolean> => (await agent.api('GET', '/readyz')).status === 200;
  await waitFor('the sidecar to be ready', ready);
}

/** The longest time without service around a restart or a replacement, by what was asked, once a round. */
async function around(
  event: 'restart' | 'replacement',
  agent: Agent,
  { dns, listen, withVips }: { dns: Endpoint; listen: Endpoint; withVips: boolean },
  say: Say,
): Promise<Map<string, number[]>> {
  await agent.start();
  const probes = new Map<string, Probe>([
    ['names', probeName(dns, name)],
    ['connections through a listen address', probeConnect(listen)],
  ]);
  if (withVips) {
    const service = await waitFor('a virtual address', async () => {
      const found = await agent.json<ServiceDocument>('/api/services/db');
      return found.vip !== null && found.port !== null ? { address: found.vip, port: found.port } : undefined;
    });
    probes.set('names at the virtual address', probeName({ address: '240.93.0.53', port: 53 }, name));
    probes.set('connections through a virtual address', probeConnect(service));
  }
  const gaps = new Map([...probes.keys()].map((what) => [what, [] as number[]]));
  await steady(probes);
  for (let round = 0; round < rounds; round += 1) {
    for (const probe of probes.values()) probe.reset();
    const startedMs = performance.now();
    if (event === 'restart') await agent.kill('SIGTERM');
    const endedMs = performance.now();
    await (event === 'restart' ? agent.start({ ready: false }) : agent.replace());
    await steady(probes);
    for (const [what, probe] of probes) gaps.get(what)?.push(probe.gapMs);
    const parts = [...probes].map(([what, probe]) => `${what} ${Math.round(probe.gapMs)} ms`);
    const ending = event === 'restart' ? `, ${Math.round(endedMs - startedMs)} ms of it to end` : '';
    say(`${event} ${round + 1}${ending}: ${parts.join(', ')}`);
  }
  for (const probe of probes.values()) probe.stop();
  await agent.kill();
  return gaps;
}

/** Waits until everything has gone well for a while, counted from now. */
async function steady(probes: ReadonlyMap<string, Probe>): Promise<void> {
  for (const [what, probe] of probes) {
    const fromMs = performance.now();
    await waitFor(what, () => (probe.lastGoodMs ?? 0) > fromMs);
  }
  const untilMs = performance.now() + steadyMs;
  for (const [what, probe] of probes) await waitFor(what, () => (probe.lastGoodMs ?? 0) > untilMs);
}

/** Registers instances by the API, as a file with as many would be measured by how long YAML takes to read. */
async function registerMany(agent: Agent): Promise<void> {
  await agent.start();
  for (let index = 0; index < knownInstances; index += 1) {
    const service = `service-${Math.floor(index / instancesPerService)}`;
    const address = `10.9.${index >> 8}.${index & 255}`;
    const body = { service, address, port: 8080, tags: ['bench'], meta: { zone: `zone-${index % 3}` } };
    const { status, text } = await agent.api('PUT', `/api/instances/web-1/many-${index}`, body);
    if (status >= 300) throw new Error(`an instance was not registered: ${text}`);
  }
  await agent.kill();
}

/** Greets whoever connects: what a link leads to. */
async function greeter(t: Teardown): Promise<AddressInfo> {
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.end('hello\n');
  }).listen(0, loopback);
  await once(server, 'listening');
  t.teardown(() => {
    server.close();
  });
  return server.address() as AddressInfo;
}

await serveRole(measure);
