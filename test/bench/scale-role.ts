/**
 * The process that measures a sidecar with a large mesh: fills its store, starts the real one, asks and changes, and hands
 * the figures to the benchmark, its parent.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Client } from 'undici';
import { askUdp, decode, queryPacket } from '../../dns/test-support.ts';
import type { InstanceDocument } from '../../sidecar/admin/documents.ts';
import type { Endpoint } from '../../src/model/address.ts';
import { Agent, type Teardown } from '../support/agent.ts';
import { waitFor } from '../support/wait.ts';
import type { Figure } from './bench.ts';
import { linkLatencies, nameLatencies } from './latency.ts';
import { probeName } from './probes.ts';
import { type Say, serveRole } from './roles.ts';
import type { Flapping } from './scale-helpers.ts';
import { catalogFigures, storeFigures } from './scale-inside.ts';
import {
  allInstances,
  fillDataDir,
  perService,
  realInstances,
  realServices,
  serviceName,
  services,
} from './scale-mesh.ts';
import { freeTcpPort, freeUdpPort, loopback, median, memoryOf, percentile, processorMsOf } from './tools.ts';

const mesh = 'legate';
const starts = 5;
const settleMs = 8000;
const restMs = 8000;
const phaseMs = 3000;
const phases = 3;
const endToEndChanges = 100;
/** Real instances whose check alternates while changes arrive: each of them changes at every check. */
const flapping = 200;
const checkEveryMs = 2000;
const memoryAim = 150;
const dataPlaneAim = 80;
const startAimMs = 1000;

interface Bed {
  readonly agent: Agent;
  readonly dns: Endpoint;
  readonly link: Endpoint;
  readonly backends: ChildProcess;
}

async function measure(withVips: boolean, t: Teardown, say: Say): Promise<Figure[]> {
  const bed = await prepare(withVips, t, say);
  const { agent } = bed;
  await agent.start();
  await wholeMesh(bed);
  say(`the sidecar has ${allInstances} instances, ${realInstances} of them its own with a check`);
  await pause(settleMs);
  const settled = memoryOf(agent.pid);
  const rest = await processorAtRest(agent.pid);
  say(`${Math.round(settled.megabytes)} MB, at rest ${rest.toFixed(1)} % of a core`);
  const changed = await endToEnd(bed);
  say('changed instances one by one');
  const latencies = await underChanges(bed, say);
  const loaded = memoryOf(agent.pid);
  const restarted = await restarts(bed, say);
  const stopped = await agent.kill();
  if (stopped !== 0) throw new Error(`the sidecar ended with ${stopped}: ${agent.log.slice(-5).join('\n')}`);
  bed.backends.disconnect();
  const plane = await dataPlane(t);
  say(`stand-in for a data-plane process: ${Math.round(plane)} MB`);
  const inside = await catalogFigures();
  say('catalog measured');
  const store = await storeFigures(t);
  const mb = { unit: 'MB', better: 'lower' } as const;
  return [
    { ...mb, what: 'memory of the sidecar, settled', ours: settled.megabytes, aim: memoryAim },
    { ...mb, what: '… after all changes and questions', ours: loaded.megabytes, aim: memoryAim },
    { ...mb, what: '… the most it ever had', ours: loaded.peak },
    { ...mb, what: '… after a start from disk', ours: restarted.megabytes, aim: memoryAim },
    { ...mb, what: 'stand-in: snapshot, names and links alone', ours: plane, aim: dataPlaneAim },
    { what: `at rest with ${realInstances} checks`, unit: '% of a core', ours: rest, better: 'lower' },
    ...inside,
    ...changed,
    ...restarted.figures,
    ...latencies,
    ...store,
  ];
}

/** A data directory with the whole mesh in it, and what stands behind the real instances. */
async function prepare(withVips: boolean, t: Teardown, say: Say): Promise<Bed> {
  const { child: backends, first: ports } = await helper(t, 'backends');
  const dns = { address: loopback, port: await freeUdpPort() };
  const link = { address: loopback, port: await freeTcpPort() };
  const agent = new Agent(t, {
    mesh,
    dns: { listen: [`${loopback}:${dns.port}`], bridges: 'off', upstream: 'off' },
    network: { underlay: 'trusted' },
    links: [{ service: serviceName(0), listen: `${loopback}:${link.port}` }],
    vip: { mode: withVips ? 'auto' : 'off', range: '240.114.0.0/16', local_range: '240.115.0.0/16' },
  });
  await agent.start();
  const client = new Client('http://legate', { socketPath: agent.socket });
  for (let index = 0; index < realInstances; index += 1) {
    const path = `/${index % perService < flapping / realServices ? 'flap' : 'well'}/${index}`;
    const often = { interval: `${checkEveryMs}ms`, rise: 1, fall: 1 };
    const check = index % 2 === 0 || path.startsWith('/flap') ? { kind: 'http', path } : { kind: 'tcp' };
    const body = {
      service: serviceName(Math.floor(index / perService)),
      address: loopback,
      port: ports[index % ports.length],
      checks: [{ ...check, ...often }],
    };
    await put(client, `real-${index}`, body);
  }
  await client.close();
  await agent.kill();
  await fillDataDir(join(agent.folder, 'data'), mesh);
  say('the store is filled');
  return { agent, dns, link, backends };
}

async function put(client: Client, name: string, body: object): Promise<void> {
  const { statusCode, body: answer } = await client.request({
    method: 'PUT',
    path: `/api/instances/web-1/${name}`,
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  const text = await answer.text();
  if (statusCode >= 300) throw new Error(`an instance was not registered: ${text}`);
}

/** Until all instances are known and usable. */
async function wholeMesh({ agent }: Bed): Promise<void> {
  const all = async (): Promise<boolean> => {
    const { instances } = await agent.json<{ instances: InstanceDocument[] }>('/api/instances');
    return instances.filter(({ status }) => status === 'passing').length === allInstances;
  };
  await waitFor('the whole mesh', all, { timeoutMs: 20_000, everyMs: 200 });
}

async function processorAtRest(pid: number): Promise<number> {
  const beforeMs = processorMsOf(pid);
  const startedMs = performance.now();
  await pause(restMs);
  return ((processorMsOf(pid) - beforeMs) / (performance.now() - startedMs)) * 100;
}

/** From sending a changed instance to the API until a name shows it. */
async function endToEnd({ agent, dns }: Bed): Promise<Figure[]> {
  const client = new Client('http://legate', { socketPath: agent.socket });
  const packet = queryPacket('late.service.mesh.internal', 'A');
  const answered: number[] = [];
  const seen: number[] = [];
  for (let round = 1; round <= endToEndChanges; round += 1) {
    const address = `127.0.2.${round}`;
    const beganMs = performance.now();
    const done = put(client, 'late', { service: 'late', address, port: 80 }).then(() =>
      answered.push(performance.now() - beganMs),
    );
    for (;;) {
      const { answers = [] } = decode(await askUdp(dns, packet));
      if (answers.some((answer) => 'data' in answer && answer.data === address)) break;
      if (performance.now() - beganMs > 5000) throw new Error('a change was never seen');
    }
    seen.push(performance.now() - beganMs);
    await done;
  }
  await client.close();
  return [
    time('a change from the API into a DNS answer, p50', median(seen)),
    time('… p99', percentile(seen, 0.99)),
    time('… until the API answers, p50', median(answered)),
  ];
}

/** Names and links at rest and while checks of 200 instances alternate, in turns. */
async function underChanges({ agent, dns, link, backends }: Bed, say: Say): Promise<Figure[]> {
  const names = Array.from(
    { length: services },
    (_, index) => `${serviceName((index * 7) % services)}.service.mesh.internal`,
  );
  const measured = {
    quiet: { names: [] as number[], links: [] as number[] },
    busy: { names: [] as number[], links: [] as number[] },
  };
  let changes = 0;
  let busyMs = 0;
  for (let phase = 0; phase < phases; phase += 1) {
    for (const kind of ['quiet', 'busy'] as const) {
      const message: Flapping = { flapping: kind === 'busy' };
      backends.send(message);
      // The first round of checks after a turn belongs to neither.
      await pause(checkEveryMs * 1.2);
      const before = await changesOf(agent);
      const startedMs = performance.now();
      const [asked, connected] = await Promise.all([
        nameLatencies(dns, names, { durationMs: phaseMs, everyMs: 2 }),
        linkLatencies(link, { durationMs: phaseMs, everyMs: 10 }),
      ]);
      measured[kind].names.push(...asked);
      measured[kind].links.push(...connected);
      if (kind === 'quiet') continue;
      changes += (await changesOf(agent)) - before;
      busyMs += performance.now() - startedMs;
    }
  }
  backends.send({ flapping: false } satisfies Flapping);
  const rate = changes / (busyMs / 1000);
  say(`${Math.round(rate)} changes a second arrived`);
  const { quiet, busy } = measured;
  const compared = (what: string, ours: number, value: number): Figure => ({
    what,
    unit: 'ms',
    ours,
    peer: { name: 'at rest', value },
    better: 'lower',
  });
  return [
    { what: 'changes of health that arrived, meanwhile', unit: 'changes/s', ours: rate, better: 'higher' },
    compared('DNS, p50', median(busy.names), median(quiet.names)),
    compared('DNS, p99', percentile(busy.names, 0.99), percentile(quiet.names, 0.99)),
    compared('link, connect to first byte, p50', median(busy.links), median(quiet.links)),
    compared('link, connect to first byte, p99', percentile(busy.links, 0.99), percentile(quiet.links, 0.99)),
  ];
}

/** Records of this host that were written, which each change of health is. */
async function changesOf(agent: Agent): Promise<number> {
  const { text } = await agent.api('GET', '/metrics');
  return Number(/^legate_registrar_writes_total (\d+)/m.exec(text)?.[1]);
}

/** Start with the snapshot of the last run, until another host's service and an own one are answered whole. */
async function restarts({ agent, dns }: Bed, say: Say): Promise<{ figures: Figure[]; megabytes: number }> {
  const elapsed: number[] = [];
  const processor: number[] = [];
  for (let round = 0; round < starts; round += 1) {
    await agent.kill();
    const probes = [services - 1, 1].map((index) =>
      probeName(dns, `_${serviceName(index)}._tcp.mesh.internal`, 'SRV', perService),
    );
    const startedMs = performance.now();
    await agent.start({ ready: false });
    const answered = (): number | false => {
      if (!agent.running) throw new Error(`the sidecar ended: ${agent.log.slice(-3).join('; ')}`);
      const good = probes.map(({ lastGoodMs }) => lastGoodMs);
      return good.every((ms) => ms !== undefined) && Math.max(...good.map((ms) => ms ?? 0));
    };
    const goodMs = await waitFor('the first answers', answered, { everyMs: 2, timeoutMs: 20_000 });
    processor.push(processorMsOf(agent.pid));
    elapsed.push(goodMs - startedMs);
    for (const probe of probes) probe.stop();
    say(
      `start from disk: first answers after ${Math.round(elapsed.at(-1) ?? 0)} ms, ${processor.at(-1)} ms of processor time`,
    );
    await waitFor('the sidecar to be ready', async () => (await agent.api('GET', '/readyz')).status === 200);
  }
  await pause(settleMs);
  return {
    megabytes: memoryOf(agent.pid).megabytes,
    figures: [
      time(`start with ${allInstances} instances on disk to the first answers`, median(elapsed), startAimMs),
      time('… processor time of that', median(processor), startAimMs),
    ],
  };
}

/** What a process takes that has nothing but snapshot, name server and link plane, after it was asked for everything. */
async function dataPlane(t: Teardown): Promise<number> {
  const { child, first } = await helper(t, 'data-plane');
  const dns = { address: loopback, port: first[0] ?? 0 };
  const names = Array.from({ length: services }, (_, index) => `${serviceName(index)}.service.mesh.internal`);
  const [answer] = [decode(await askUdp(dns, queryPacket(names[0] ?? '', 'A')))];
  if (answer.answers?.length !== perService) throw new Error('the stand-in does not answer');
  await nameLatencies(dns, names, { durationMs: 3000, everyMs: 2 });
  const { megabytes } = memoryOf(child.pid ?? 0);
  child.disconnect();
  return megabytes;
}

async function helper(t: Teardown, role: string): Promise<{ child: ChildProcess; first: readonly number[] }> {
  const script = fileURLToPath(new URL('./scale-helpers.js', import.meta.url));
  const child = fork(script, [role], { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
  t.teardown(() => void child.kill());
  const [first] = await once(child, 'message', { signal: AbortSignal.timeout(10_000) });
  return { child, first: first as readonly number[] };
}

function time(what: string, ours: number, aim?: number): Figure {
  return { what, unit: 'ms', ours, better: 'lower', ...(aim !== undefined && { aim }) };
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

await serveRole(measure);
