import { readdirSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import t from 'tap';
import { Pool } from 'undici';
import type { InstanceDocument, LinksDocument, ServicesDocument, StatusDocument } from '../sidecar/admin/documents.ts';
import { Agent, must } from './support/agent.ts';
import { TestDocker } from './support/docker.ts';
import { descendantsOf } from './support/faults.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

/**
 * Containers that are started and killed in a row leave nothing behind: no instance, no refusal, no mapping or binding in
 * the kernel, no memory, descriptor, timer or process. Some end by themselves at once, some cannot be registered. `LEGATE_TEST_CHURN` says how many; 1,000 need more than tap's own limit of a file
 * (`--timeout=1200`) on a busy machine.
 */
const skip = unless('docker', 'nft', 'busybox', 'command:musl-gcc', 'command:gcc');
const count = Number(process.env.LEGATE_TEST_CHURN || 100);
/** These run before the first look at memory: caches are filled and code is compiled by then. */
const warmUp = Math.ceil(Math.min(100, count / 2));
const atATime = 2 * availableParallelism();
const serviceCount = 10;
/** What the sidecar may have grown by: a tenth of what a leak of each container's own documents would be. */
const memoryGrowthMb = 30;
const handleGrowth = 10;
/** An engine that has not answered by then does not answer any more, and the test says which request it was. */
const requestLimitMs = 60_000;
const table = 'legate_240_116_0_0_16';

interface Footprint {
  readonly megabytes: number;
  /** Beside one for each link: other tests' containers may be on the same engine, and their services keep theirs. */
  readonly descriptors: number;
  readonly timers: number;
}

/** A small client of the engine: `docker` as a process for each step would take most of the time. */
class Engine {
  readonly #pool = new Pool('http://docker', { socketPath: '/var/run/docker.sock', connections: atATime });
  readonly #prefix: string;
  readonly #image: string;
  readonly #left = new Set<string>();

  constructor(docker: TestDocker) {
    this.#prefix = docker.name('churn');
    this.#image = docker.image;
  }

  async start(index: number): Promise<string> {
    const name = `${this.#prefix}-${index}`;
    const kind = kindOf(index);
    this.#left.add(name);
    await this.#ask('POST', `/containers/create?name=${name}`, {
      Image: this.#image,
      Cmd: kind === 'ends' ? ['true'] : ['sleep', '600'],
      Labels: { 'legate.service': serviceName(index), ...(kind === 'refused' ? {} : { 'legate.port': '80' }) },
    });
    await this.#ask('POST', `/containers/${name}/start`);
    return name;
  }

  async kill(name: string, index: number): Promise<void> {
    if (kindOf(index) !== 'ends') await this.#ask('POST', `/containers/${name}/kill`);
    await this.#ask('DELETE', `/containers/${name}?force=1`);
    this.#left.delete(name);
  }

  /** Of all containers that run, whosever they are. */
  async addresses(): Promise<ReadonlySet<string>> {
    const text = await this.#ask('GET', '/containers/json');
    return new Set([...text.matchAll(/"IPAddress":"([^"]+)"/g)].map(([, address = '']) => address));
  }

  async close(): Promise<void> {
    for (const name of this.#left) await this.#ask('DELETE', `/containers/${name}?force=1`).catch(() => undefined);
    await this.#pool.close();
  }

  async #ask(method: 'GET' | 'POST' | 'DELETE', path: string, body?: object): Promise<string> {
    const headers = { 'content-type': 'application/json' };
    const limits = { headersTimeout: requestLimitMs, bodyTimeout: requestLimitMs };
    const answer = await this.#pool.request({
      method,
      path,
      headers,
      body: method === 'GET' ? null : JSON.stringify(body ?? {}),
      ...limits,
    });
    const text = await answer.body.text();
    if (answer.statusCode >= 300) throw new Error(`${method} ${path}: ${answer.statusCode} ${text}`);
    return text;
  }
}

/** Ten in a row are alike, one of each service. */
function kindOf(index: number): 'serves' | 'ends' | 'refused' {
  const row = Math.floor(index / serviceCount) % 5;
  return row === 1 ? 'ends' : row === 2 ? 'refused' : 'serves';
}

function serviceName(index: number): string {
  return `churn-${process.pid}-${index % serviceCount}`;
}

t.test('containers come and go', { skip, timeout: 60_000 + 1000 * count }, async (t) => {
  const docker = await TestDocker.open(t);
  const agent = await new Agent(t, {
    docker: { socket: '/var/run/docker.sock', expose: 'labelled' },
    vip: { mode: 'auto', range: '240.116.0.0/16', local_range: '240.117.0.0/16' },
  }).start();
  const status = await agent.json<StatusDocument>('/api/status');
  t.equal(status.vip.state, 'on', status.vip.reason ?? '');
  const engine = new Engine(docker);
  t.teardown(() => engine.close());

  const startedMs = performance.now();
  await churn(engine, agent, 0, warmUp);
  const before = await footprint(agent);
  const eventsBefore = await metric(agent, 'legate_docker_events_total');
  await churn(engine, agent, warmUp, count);
  const seconds = Math.round((performance.now() - startedMs) / 1000);
  await settled(agent);
  const after = await footprint(agent);
  t.comment(`${count} containers in ${seconds} s; before ${JSON.stringify(before)}, after ${JSON.stringify(after)}`);

  t.ok(after.megabytes < before.megabytes + memoryGrowthMb, `${before.megabytes} MB before, ${after.megabytes} after`);
  t.ok(after.descriptors < before.descriptors + handleGrowth, 'no descriptors are left open');
  t.ok(after.timers < before.timers + handleGrowth, 'no timers are left');

  const events = (await metric(agent, 'legate_docker_events_total')) - eventsBefore;
  // At least a start and a die for each.
  t.ok(events >= 2 * (count - warmUp), `${events} events of the engine`);
  t.equal(await metric(agent, 'legate_docker_events_garbage_total'), 0);
  t.equal(await metric(agent, 'legate_docker_connections_lost_total'), 0);
  t.equal(await metric(agent, 'legate_docker_inspections_waiting_count'), 0);

  const { services, refused } = await agent.json<ServicesDocument>('/api/services');
  const mine = services.filter(({ name }) => name.startsWith(`churn-${process.pid}-`));
  t.same(
    mine.map(({ name }) => name).sort(),
    Array.from({ length: serviceCount }, (_, index) => serviceName(index)),
  );
  t.ok(
    mine.every(({ instances, vip }) => instances.length === 0 && vip !== null),
    'services keep their virtual address, and nothing else',
  );
  t.same(
    refused.filter(({ source }) => source.includes(docker.prefix)),
    [],
  );
  const { todo } = await agent.json<StatusDocument>('/api/status');
  t.same(
    todo.filter(({ id, message }) => `${id} ${message}`.includes(`churn-${process.pid}`)),
    [],
  );
  t.same(await mapped(mine.flatMap(({ vip }) => vip ?? [])), [], 'the kernel’s map holds none of them');
  await waitFor('no binding to be left', async () => (await boundForNobody(engine)).length === 0, {
    timeoutMs: 30_000,
  });
  const helpers = descendantsOf(agent.pid);
  t.same(
    helpers.filter(({ state }) => state === 'Z'),
    [],
    'no child waits to be buried',
  );
  t.ok(helpers.length <= 12, 'no more helpers than before');
  t.equal(await agent.kill(), 0);
  t.same(
    agent.log.filter((line) => line.includes('"level":"error"')),
    [],
  );
  const warnings = agent.log.filter((line) => !/"level":"(info|debug)"/.test(line) && !line.includes('churn'));
  t.ok(warnings.length < 100, `${warnings.length} lines of other warnings`);
});

/** Starts and kills the containers of these numbers, a few at a time; the last of each ten is seen before it goes. */
async function churn(engine: Engine, agent: Agent, from: number, to: number): Promise<void> {
  let next = from;
  const worker = async (): Promise<void> => {
    while (next < to) {
      const index = next;
      next += 1;
      const name = await engine.start(index);
      if (index % 100 < serviceCount) await waitFor(`${name} to be registered`, () => isShown(agent, name, index));
      await engine.kill(name, index);
    }
  };
  await Promise.all(Array.from({ length: atATime }, worker));
  await waitFor('no instance to be left', async () => (await shown(agent)).length === 0, { timeoutMs: 30_000 });
}

async function shown(agent: Agent): Promise<InstanceDocument[]> {
  const { instances } = await agent.json<{ instances: InstanceDocument[] }>('/api/instances');
  return instances.filter(({ service }) => service.startsWith(`churn-${process.pid}-`));
}

/** Whether it is registered, and its service has its virtual address, which is claimed a moment later. */
async function isShown(agent: Agent, container: string, index: number): Promise<boolean> {
  const { services } = await agent.json<ServicesDocument>('/api/services');
  const service = services.find(({ name }) => name === serviceName(index));
  return service?.vip != null && service.instances.some(({ source }) => source === `docker:${container}`);
}

/** Which of these addresses the kernel's map names; waits until it holds none, or gives them. */
async function mapped(addresses: readonly string[]): Promise<readonly string[]> {
  let left: readonly string[] = addresses;
  await waitFor('the map', async () => {
    const listing = await must('nft', 'list', 'map', 'ip', table, 'tcp_vip');
    left = addresses.filter((address) => listing.includes(`${address} .`));
    return left.length === 0;
  }).catch(() => undefined);
  return left;
}

/** Addresses that the kernel holds to a container, or lets in as a newcomer's, and that no running container has. */
async function boundForNobody(engine: Engine): Promise<string[]> {
  const listings = ['bound', 'bindings', 'fresh'].map((set) => must('nft', 'list', 'set', 'bridge', table, set));
  const elements = (await Promise.all(listings)).map((listing) => /elements = \{([^}]*)\}/.exec(listing)?.[1] ?? '');
  const running = await engine.addresses();
  const held = elements.join().match(/\b(?:\d{1,3}\.){3}\d{1,3}\b/g) ?? [];
  return held.filter((address) => !running.has(address));
}

/** Until nothing waits to be asked or written any more. */
async function settled(agent: Agent): Promise<void> {
  await waitFor(
    'the sidecar to be at rest',
    async () =>
      (await metric(agent, 'legate_docker_inspections_waiting_count')) === 0 &&
      (await metric(agent, 'legate_registrar_pending_count')) === 0 &&
      (await metric(agent, 'legate_docker_draining_count')) === 0,
    { timeoutMs: 30_000, everyMs: 100 },
  );
}

async function footprint(agent: Agent): Promise<Footprint> {
  await settled(agent);
  const { links } = await agent.json<LinksDocument>('/api/links');
  const status = readFileSync(`/proc/${agent.pid}/status`, 'utf8');
  return {
    megabytes: Math.round(Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1]) / 1024),
    descriptors: readdirSync(`/proc/${agent.pid}/fd`).length - links.length,
    timers: await metric(agent, 'legate_nodejs_active_resources{type="Timeout"}'),
  };
}

/** A value of /metrics by its name with labels; 0 where there is none. */
async function metric(agent: Agent, name: string): Promise<number> {
  const { text } = await agent.api('GET', '/metrics');
  const line = text.split('\n').find((candidate) => candidate.startsWith(`${name} `));
  return line === undefined ? 0 : Number(line.slice(name.length + 1));
}
