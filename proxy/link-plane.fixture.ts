import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import type { Test } from 'tap';
import { type Clock, systemClock } from '../src/base/clock.ts';
import { Conditions } from '../src/base/conditions.ts';
import { Latest } from '../src/base/feed.ts';
import { silentLog } from '../src/base/log.ts';
import { Metrics } from '../src/base/metrics.ts';
import { emptySnapshot, type Service, type Snapshot } from '../src/catalog/snapshot.ts';
import type { Instance } from '../src/model/instance.ts';
import { shownInstance } from '../test/support/records.ts';
import { waitFor } from '../test/support/wait.ts';
import type { PortMap, PortMapping } from './kernel/port-map.ts';
import { LinkPlane, type LinkPlaneOptions } from './link-plane.ts';

export const ownHost = '00000000000000aa';
export const otherHost = '00000000000000bb';

export function instanceOf(fields: Partial<Instance> & { readonly name: string }): Instance {
  return shownInstance({ host: 'here', hostId: ownHost, address: '127.0.0.1', port: 1, ...fields });
}

export function serviceOf(instances: readonly Instance[], fields: Partial<Service> = {}): Service {
  const service: Service = {
    name: 'db',
    port: 5432,
    protocol: 'tcp',
    balance: 'round-robin',
    vip: undefined,
    instances,
    usable: instances.filter((instance) => instance.status === 'passing' && !instance.draining),
    faults: [],
    ...fields,
  };
  return service;
}

/** Records what was set; refuses while `failing`. */
export class RecordingPortMap implements PortMap {
  readonly sets: (readonly PortMapping[])[] = [];
  failing = false;

  get last(): readonly PortMapping[] {
    return this.sets.at(-1) ?? [];
  }

  async set(owner: string, mappings: readonly PortMapping[]): Promise<void> {
    if (owner !== 'links') throw new Error(`unexpected owner ${owner}`);
    if (this.failing) throw new Error('the table is gone');
    this.sets.push(mappings);
  }
}

/** A link plane with everything around it; `set` publishes a snapshot of these services. */
export class Bed {
  readonly snapshots: Latest<Snapshot>;
  readonly metrics = new Metrics();
  readonly conditions: Conditions;
  readonly portMap: RecordingPortMap;
  readonly plane: LinkPlane;

  constructor(options: Partial<LinkPlaneOptions> & { readonly services: readonly Service[] }) {
    const clock: Clock = options.clock ?? systemClock;
    this.snapshots = new Latest(emptySnapshot);
    this.conditions = new Conditions(silentLog, clock, this.metrics);
    this.portMap = new RecordingPortMap();
    this.set(...options.services);
    const { conditions, metrics, snapshots, portMap } = this;
    const self = { hostId: ownHost };
    const links = [{ service: 'db', listen: { address: '127.0.0.1', port: 0 } }];
    const defaults = { self, clearUnderlay: false, links, clock, log: silentLog };
    this.plane = new LinkPlane({ ...defaults, portMap, ...options, snapshots, metrics, conditions });
  }

  set(...services: readonly Service[]): void {
    const before = this.snapshots.value;
    const gone = [...before.services.keys()].filter((name) => services.every((service) => service.name !== name));
    const puts = services.map((service) => [service.name, service] as const);
    const next = before.services.with(puts, gone);
    this.snapshots.set({ ...before, version: before.version + 1, origin: 'store', services: next });
  }

  /** Of the configured listener for `db`. */
  get port(): number {
    return this.plane.listenerOf('db')?.port ?? 0;
  }

  async metric(name: string): Promise<number> {
    const line = (await this.metrics.exposition())
      .split('\n')
      .find((text) => text.startsWith(`${name}`) && !text.startsWith('#'));
    return Number(line?.split(' ').at(-1));
  }
}

export async function startBed(t: Test, options: ConstructorParameters<typeof Bed>[0]): Promise<Bed> {
  const bed = new Bed(options);
  await bed.plane.start();
  t.teardown(() => bed.plane.close());
  return bed;
}

export interface Backend {
  readonly server: Server;
  readonly port: number;
  readonly sockets: Set<Socket>;
}

/** A server with half-close on loopback; errors of its sockets are left to `serve`. */
export async function startBackend(t: Test, serve: (socket: Socket) => void, port = 0): Promise<Backend> {
  const sockets = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => sockets.delete(socket));
    serve(socket);
  });
  await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve));
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  });
  return { server, port: (server.address() as AddressInfo).port, sockets };
}

/** Says who it is and ends. */
export function naming(name: string): (socket: Socket) => void {
  return (socket) => {
    socket.resume();
    socket.end(name);
  };
}

/** A port at which nobody listens. */
export async function deadPort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

export function dial(t: Test, port: number, address = '127.0.0.1'): Socket {
  const socket = connect({ port, host: address, allowHalfOpen: true });
  t.teardown(() => socket.destroy());
  return socket;
}

/** A port where connections are neither accepted nor refused: a process that listens and sleeps, its queue full. */
export async function blackHole(t: Test): Promise<number> {
  const script = `require('net').createServer().listen({ port: 0, host: '127.0.0.1', backlog: 1 }, function () {
    require('fs').writeSync(1, this.address().port + '\\n');
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 60_000);
  })`;
  const child = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  const port = Number(line);
  let connected = 0;
  const fillers = Array.from({ length: 4 }, () => dial(t, port));
  for (const filler of fillers) {
    filler.on('error', () => undefined);
    filler.on('connect', () => {
      connected += 1;
    });
  }
  await waitFor('its queue is full', () => connected >= 2);
  return port;
}

export interface Outcome {
  readonly data: Buffer;
  /** `end`, or the code of the error. */
  readonly how: string;
}

/** Everything that a socket gives until its end or error. */
export function outcome(socket: Socket): Promise<Outcome> {
  const chunks: Buffer[] = [];
  return new Promise((resolve) => {
    const done = (how: string) => () => resolve({ data: Buffer.concat(chunks), how });
    socket.on('data', (chunk: Buffer) => chunks.push(chunk));
    // The runtime reports a reset that comes together with data as an end; see `wasReset` in tcp/relay.ts.
    socket.on('end', () => done(socket.remotePort === undefined && !socket.writableEnded ? 'ECONNRESET' : 'end')());
    socket.on('error', (error) => done('code' in error ? String(error.code) : error.message)());
  });
}

/** What one new connection to `port` gets. */
export async function ask(t: Test, port: number, address?: string): Promise<string> {
  const socket = dial(t, port, address);
  const { data, how } = await outcome(socket);
  socket.destroy();
  return how === 'end' ? data.toString() : how;
}
