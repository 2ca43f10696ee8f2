import { isIPv4 } from 'node:net';
import t, { type Test } from 'tap';
import type { InstanceDocument, ServicesDocument, StatusDocument } from '../sidecar/admin/documents.ts';
import { parseContainer, parseDeclarations } from '../sidecar/docker/container.ts';
import { desiredOf } from '../sidecar/docker/desired.ts';
import type { DockerNetwork } from '../sidecar/docker/network.ts';
import { type RawRecord, rawField, rawList, rawRecord, rawText } from '../sidecar/docker/raw.ts';
import { formatDuration } from '../src/base/duration.ts';
import { printable } from '../src/base/text.ts';
import type { CheckSpec } from '../src/model/check.ts';
import { Agent, run, type Teardown } from './support/agent.ts';
import { TestDocker } from './support/docker.ts';
import { cases, images, type LabelCase } from './support/label-cases.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

/** Every case of the table with a real `docker run`, read back from a real sidecar: see support/label-cases.ts. */
const skip = unless('docker', 'busybox', 'command:musl-gcc', 'command:gcc');
const atOnce = 6;
/** Where other hosts find this one; an address of nobody, so that it is told from all others. */
const advertise = '203.0.113.7';

function sidecar(t: Teardown, docker: Readonly<Record<string, unknown>>): Promise<Agent> {
  const common = { socket: '/var/run/docker.sock' };
  return new Agent(t, { advertise, docker: { ...common, ...docker }, vip: { mode: 'off' } }).start();
}

/** Containers of the table, with what the engine says of them. */
class World {
  readonly docker: TestDocker;
  readonly #tags: string[] = [];
  readonly #inspected = new Map<string, RawRecord>();
  readonly #images = new Map<string, RawRecord>();

  constructor(t: Teardown, docker: TestDocker) {
    this.docker = docker;
    t.teardown(() => this.#clean());
  }

  /** Words of the table with what they stand for: `@` is the suffix of this run. */
  filled(text: string): string {
    return text.replaceAll('@', `-${process.pid}`).replaceAll('IMAGE', this.docker.prefix);
  }

  async prepare(): Promise<void> {
    const built = Object.entries(images).map(([name, lines]) => this.#build(name, lines));
    await Promise.all([this.docker.network('shop'), this.docker.network('inner', '--internal'), ...built]);
  }

  async #build(name: string, lines: readonly string[]): Promise<void> {
    const tag = `${this.docker.prefix}/${name}`;
    const input = [`FROM ${this.docker.image}`, ...lines, ''].join('\n');
    const env = { ...process.env, DOCKER_BUILDKIT: '0' };
    const built = await run('docker', ['build', '-q', '-t', tag, '-'], { input, env });
    if (built.status !== 0) throw new Error(`${name}: ${built.stderr}`);
    this.#tags.push(tag);
  }

  async start({ name, run: options, image }: LabelCase): Promise<void> {
    const words = options.map((word) => this.filled(word.replaceAll('NET-', `${this.docker.prefix}-`)));
    const last = image === undefined ? this.docker.image : `${this.docker.prefix}/${image}`;
    // TestDocker knows its own image only; the name is what it cleans up by, and so do we.
    await this.docker.docker('run', '-d', '--name', this.docker.name(name), ...words, last, 'sleep', '600');
  }

  async inspect(table: readonly LabelCase[]): Promise<void> {
    const names = table.map(({ name }) => this.docker.name(name));
    const documents: unknown = JSON.parse(await this.docker.docker('inspect', ...names));
    for (const [index, document] of rawList(documents).entries()) {
      this.#inspected.set(table[index]?.name ?? '', rawRecord(document));
    }
    const ids = [...new Set([...this.#inspected.values()].map((document) => rawText(rawField(document, 'Image'))))];
    const found: unknown = JSON.parse(await this.docker.docker('image', 'inspect', ...ids));
    for (const image of rawList(found)) this.#images.set(rawText(rawField(rawRecord(image), 'Id')), rawRecord(image));
  }

  of(name: string): RawRecord {
    return this.#inspected.get(name) ?? {};
  }

  /** The addresses of a container, by network. */
  addresses(name: string): ReadonlyMap<string, string> {
    const networks = rawRecord(rawField(rawRecord(rawField(this.of(name), 'NetworkSettings')), 'Networks'));
    const pairs = Object.entries(networks).map(([network, settings]): [string, string] => [
      rawText(rawField(rawRecord(settings), 'IPAddress')),
      network.replace(`${this.docker.prefix}-`, ''),
    ]);
    return new Map(pairs.filter(([address]) => isIPv4(address)));
  }

  /** The checks of a container's instances, by name, of its real documents; the admin API does not tell all of them. */
  checks(name: string, imageLabels: boolean): ReadonlyMap<string, readonly CheckSpec[]> {
    const container = parseContainer(this.of(name));
    if (container === undefined) throw new Error(`${name} cannot be inspected`);
    const config = rawRecord(rawField(this.#images.get(container.imageId) ?? {}, 'Config'));
    const { instances } = desiredOf(container, {
      expose: imageLabels ? 'published' : 'labelled',
      advertise,
      image: imageLabels ? undefined : parseDeclarations(config),
      networks: new Map(container.attachments.map(({ networkId, network }) => [networkId, bridge(networkId, network)])),
      topology: undefined,
      networkOwner: parseContainer(this.of('owner')),
    });
    return new Map(instances.map((instance) => [instance.name, instance.checks]));
  }

  /** Containers first: an image in use stays. */
  async #clean(): Promise<void> {
    const ids = await run('docker', ['ps', '-aq', '--filter', `name=${this.docker.prefix}`]);
    const list = ids.stdout.split('\n').filter((id) => id !== '');
    await inParallel(list, (id) => run('docker', ['rm', '-f', '-v', id]));
    if (this.#tags.length > 0) await run('docker', ['rmi', '-f', ...this.#tags]);
  }
}

function bridge(id: string, name: string): DockerNetwork {
  const driver = name === 'host' ? 'host' : name === 'none' ? 'null' : 'bridge';
  const unknown = { interface: undefined, subnets: [], gateway: undefined };
  return { id, name, driver, internal: false, hostReachable: true, ...unknown };
}

/** What a sidecar tells at one moment. */
interface Told {
  readonly instances: readonly InstanceDocument[];
  readonly refused: ServicesDocument['refused'];
  readonly todo: StatusDocument['todo'];
}

async function told(agent: Agent): Promise<Told> {
  const [{ services, refused }, { todo }] = await Promise.all([
    agent.json<ServicesDocument>('/api/services'),
    agent.json<StatusDocument>('/api/status'),
  ]);
  return { instances: services.flatMap(({ instances }) => instances), refused, todo };
}

/** What a sidecar made of one container, one line for each instance, refusal and note. */
function lines(world: World, { name }: LabelCase, { instances, refused, todo }: Told, imageLabels = false): string[] {
  const source = `docker:${world.docker.name(name)}`;
  const checks = world.checks(name, imageLabels);
  const own = instances.filter((instance) => instance.source === source);
  own.sort((a, b) => a.port - b.port || (a.protocol < b.protocol ? -1 : 1));
  const notes = todo.filter(
    ({ severity, message }) => severity === 'note' && new RegExp(`^${source}[ :]`).test(message),
  );
  return [
    ...own.map((instance) => line(world, name, instance, checks.get(instance.name) ?? [])),
    ...refused
      .filter((refusal) => refusal.source === source)
      .map(({ service, reason }) => `refused ${service ?? '-'}: ${reason}`),
    ...notes.map(({ message }) =>
      message.replace(/^docker:[^ :]+(?: \(service ([^ )]+)\))?: /, (_, service = '-') => `note ${service}: `),
    ),
  ].map((text) => text.replaceAll(world.docker.prefix, 'IMAGE').replaceAll(`-${process.pid}`, '@'));
}

function line(world: World, container: string, instance: InstanceDocument, checks: readonly CheckSpec[]): string {
  const { id, service, port, protocol, tags, meta, weight } = instance;
  const parts = [service, String(port)];
  if (protocol !== 'tcp') parts.push(protocol);
  parts.push(...place(world, container, instance));
  const short = rawText(rawField(world.of(container), 'Id')).slice(0, 12);
  const name = id.split('/')[1] ?? '';
  if (name !== `${short}-${port}${protocol === 'udp' ? '-udp' : ''}`) parts.push(`id ${name}`);
  if (weight !== 1) parts.push(`weight ${weight}`);
  if (tags.length > 0) parts.push(`tags ${tags.join('|')}`);
  if (Object.keys(meta).length > 0) parts.push(`meta ${JSON.stringify(meta)}`);
  for (const check of checks) parts.push(`check ${checkText(check)}`);
  return parts.join(' ');
}

/** Where it is dialled: nothing for the default bridge, and whether other hosts may. */
function place(world: World, container: string, { address, port, reach, published }: InstanceDocument): string[] {
  const network =
    world.addresses(container).get(address) ?? (world.addresses('owner').has(address) ? 'owner' : undefined);
  const where = address === advertise ? ['host'] : network === 'bridge' ? [] : [`at ${network ?? address}`];
  if (address === advertise) return reach === 'mesh' ? where : [...where, `reach ${reach}`];
  if (published === undefined) return reach === 'host' ? where : [...where, `reach ${reach}`];
  const ports = rawRecord(
    rawField(rawRecord(rawField(world.of(network === 'owner' ? 'owner' : container), 'NetworkSettings')), 'Ports'),
  );
  const bindings = ['tcp', 'udp'].flatMap((transport) => rawList(rawField(ports, `${port}/${transport}`)));
  const own = bindings.some((binding) => rawText(rawField(rawRecord(binding), 'HostPort')) === String(published.port));
  const at = published.address === advertise ? '' : ` on ${published.address}`;
  return [
    ...where,
    own && reach === 'mesh' ? `published${at}` : `published wrongly at ${published.address}:${published.port}`,
  ];
}

function checkText({ kind, intervalMs, timeoutMs, rise, fall, ...more }: CheckSpec): string {
  const { tls, method, port, path, grpcService, command, warningExit, initialStatus, deregisterAfterMs } = more;
  const parts = [
    kind,
    tls,
    method,
    port,
    path,
    grpcService,
    command === undefined ? undefined : `[${command.replace(/\b(?:\d{1,3}\.){3}\d{1,3}\b/g, 'IP')}]`,
    `${formatDuration(intervalMs)}/${formatDuration(timeoutMs)} ${rise}/${fall}`,
    warningExit === undefined ? undefined : `warns ${warningExit}`,
    initialStatus === undefined ? undefined : `first ${initialStatus}`,
    deregisterAfterMs === undefined ? undefined : `leaves ${formatDuration(deregisterAfterMs)}`,
  ];
  return parts.filter((part) => part !== undefined).join(' ');
}

/** A few at a time, in order; the first failure ends it. */
async function inParallel<T>(list: readonly T[], each: (item: T) => Promise<unknown>): Promise<void> {
  const queue = [...list];
  const worker = async (): Promise<void> => {
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) await each(next);
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
}

/** Waits until all is as expected, or for long enough; what then differs is shown by the assertions. */
async function settled(differs: () => Promise<boolean>): Promise<void> {
  await waitFor('all to be as expected', async () => !(await differs()), { timeoutMs: 20_000, everyMs: 250 }).catch(
    () => undefined,
  );
}

const same = (a: readonly string[], b: readonly string[]): boolean => JSON.stringify(a) === JSON.stringify(b);

t.test('what labels and environment mean, with docker run', { skip, timeout: 300_000 }, async (t) => {
  const world = new World(t, await TestDocker.open(t));
  await world.prepare();
  const labelled = await sidecar(t, { expose: 'labelled' });
  const everything = await sidecar(t, { expose: 'published', image_labels: true });
  const [owners, others] = [cases.filter(({ name }) => name === 'owner'), cases.filter(({ name }) => name !== 'owner')];
  await inParallel(owners, (entry) => world.start(entry));
  await inParallel(others, (entry) => world.start(entry));
  await world.inspect(cases);
  t.ok(cases.length >= 60, `${cases.length} cases`);

  await compare(t, world, 'by label', labelled, (entry) => entry.expect, false);
  await compare(t, world, 'everything that is published', everything, (entry) => entry.published, true);

  await t.test('is shown harmlessly', async (t) => {
    for (const command of ['services', 'instances', 'status']) {
      const ran = await labelled.cli(command);
      t.equal(ran.status, 0, `${command} ${ran.stderr}`);
      const odd = ran.stdout.split('\n').find((row) => row !== printable(row));
      t.equal(odd, undefined, `legate ${command} prints nothing but text`);
    }
    for (const path of ['/api/services', '/api/status', '/api/links', '/metrics']) {
      const { text } = await labelled.api('GET', path);
      if (path !== '/metrics') t.doesNotThrow(() => JSON.parse(text), `${path} is JSON`);
      t.notMatch(text, /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202e]/, path);
    }
    const json = await labelled.cli('services', '--json');
    t.doesNotThrow(() => JSON.parse(json.stdout), 'legate services --json is JSON');
    t.equal(
      labelled.log.find((row) => /[\u0000-\u001f\u007f]/.test(row)),
      undefined,
      'nor does the log',
    );
  });
});

async function compare(
  t: Test,
  world: World,
  title: string,
  agent: Agent,
  expected: (entry: LabelCase) => readonly string[] | undefined,
  imageLabels: boolean,
): Promise<void> {
  const table = cases.flatMap((entry) => {
    const wanted = expected(entry);
    return wanted === undefined ? [] : [{ entry, wanted }];
  });
  let seen = await told(agent);
  await settled(async () => {
    seen = await told(agent);
    return table.some(({ entry, wanted }) => !same(lines(world, entry, seen, imageLabels), wanted));
  });
  for (const { entry, wanted } of table)
    t.same(lines(world, entry, seen, imageLabels), wanted, `${title}: ${entry.name}`);
}
