import { writeSync } from 'node:fs';
import type { Server } from 'node:net';
import type { ConnectionFilter } from '../../proxy/link-plane.ts';
import { LocalDataPlane } from '../../proxy/local-plane.ts';
import { TcpListener } from '../../proxy/tcp/listener.ts';
import { systemClock } from '../../src/base/clock.ts';
import { createLog, type Log } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import { explainListenError } from '../../src/base/sockets.ts';
import { type Endpoint, formatEndpoint } from '../../src/model/address.ts';
import { FeedReceiver } from './feeds.ts';
import { LearnedReports } from './learned-reports.ts';
import { Peer } from './peer.ts';
import { type ControlCalls, toldValues, type WorkerCalls, type WorkerSetup } from './seam.ts';
import { wireOf } from './wires.ts';
import { WorkerCallers } from './worker-callers.ts';
import { WorkerConditions } from './worker-conditions.ts';
import { WorkerDoors } from './worker-doors.ts';

/** How long connections of a worker without control may go on when it is told to end. */
const lastDrainMs = 3_600_000;
/** How long a worker without control and without a connection waits for its end; between looks. */
const aloneLimitMs = 24 * 3_600_000;
const aloneLookMs = 60_000;

type Control = Peer<WorkerCalls, ControlCalls>;

/**
 * A data-plane process: links and tunnels, fed by control over a channel. It goes on with what it has when control is
 * gone, and ends when it is told to (SIGTERM then), or when nobody has needed it for a day.
 */
export async function runWorker(): Promise<void> {
  const clock = systemClock;
  const told = new FeedReceiver(toldValues);
  const metrics = new Metrics();
  let worker: Worker | undefined;
  let ending = false;
  let handedOver = false;
  const present = (): Worker => {
    if (worker === undefined) throw new Error('the worker was not set up');
    return worker;
  };
  const mine: WorkerCalls = {
    async setUp(setup) {
      worker = new Worker({ setup, control, told, metrics });
    },
    take: async (name, part) => told.take(name, part),
    start: () => present().plane.start(),
    listenWith: (endpoint, handle) => worker?.listenWith(endpoint, handle),
    cannotListen: (endpoint, code, message) => worker?.cannotListen(endpoint, code, message),
    links: () => present().plane.links(),
    sides: () => present().plane.sides(),
    tunnels: () => present().plane.tunnels(),
    probe: (probe) => present().plane.probe(probe),
    activeConnections: (filter) => present().plane.activeConnections(filter),
    figures: () => metrics.figures(),
    drain: (timeoutMs) => {
      ending = true;
      return present().plane.drain(timeoutMs);
    },
    handedOver: () => {
      handedOver = true;
    },
    end: () => process.exit(0),
  };
  const wire = wireOf(process);
  const control: Control = new Peer<WorkerCalls, ControlCalls>({ wire, clock, mine });
  let asked = false;
  const onSignal = (): void => {
    asked = true;
    // While control lives it decides; a signal to a whole group (a terminal's, a service manager's) reaches both.
    if (control.closed) void worker?.leave(lastDrainMs);
  };
  process.on('SIGTERM', onSignal);
  for (const signal of ['SIGINT', 'SIGHUP'] as const) process.on(signal, () => undefined);
  wire.onClose(() => {
    if (worker === undefined || ending) process.exit(0);
    worker.goOnAlone(handedOver);
    if (asked) void worker.leave(lastDrainMs);
  });
}

interface WorkerOptions {
  readonly setup: WorkerSetup;
  readonly control: Control;
  readonly told: FeedReceiver<typeof toldValues>;
  readonly metrics: Metrics;
}

class Worker {
  readonly plane: LocalDataPlane;
  readonly #log: Log;
  readonly #control: Control;
  /** Servers that wait for their shared handle, by endpoint. */
  readonly #unheard = new Map<string, Server>();
  /** Servers that have got it. */
  readonly #shared = new Map<string, Server>();
  #leaving = false;

  constructor({ setup, control, told, metrics }: WorkerOptions) {
    const { slot, logLevel, vips, desk, workersFile, ...slice } = setup;
    this.#control = control;
    // Whoever reads the log may end before this process does, which must not end it.
    this.#log = createLog(logLevel, { write: writeLine }).child({ worker: slot, 'process.pid': process.pid });
    const log = this.#log;
    const clock = systemClock;
    const conditions = new WorkerConditions({ log, clock, control });
    const learned = new LearnedReports({ clock, tell: (pairs) => control.tell('learned', pairs) });
    this.plane = new LocalDataPlane({
      ...slice,
      clock,
      log,
      metrics,
      conditions,
      snapshots: told.get('snapshots'),
      declared: told.get('declared'),
      callers: new WorkerCallers({
        table: told.get('callers'),
        clock,
        confirm: (connection) => control.call('confirmCaller', connection),
      }),
      topology: told.get('topology'),
      credentials: told.get('credentials'),
      policy: told.get('policy'),
      instanceAddresses: told.get('instanceAddresses'),
      // Without control nobody can change the kernel's table, and whoever comes next replaces it.
      portMap: vips
        ? { set: async (_owner, mappings) => (control.closed ? undefined : control.call('mapPorts', mappings)) }
        : undefined,
      ...(desk && {
        desk: { answer: (kind, request, from) => control.call('answerDesk', kind, request, from) },
      }),
      onLearned: (pair) => learned.add(pair),
      listenShared: (server, endpoint) => this.#listenShared(server, endpoint),
      explainListenError: (error, endpoint) => explainListenError(error, endpoint, 'tcp'),
    });
    const { plane } = this;
    const answers = {
      links: () => plane.links(),
      activeConnections: (filter: ConnectionFilter) => plane.activeConnections(filter),
    };
    new WorkerDoors({ path: workersFile, clock, log, servers: this.#shared, answers });
  }

  /** Control is gone; `inOrder`: another one is about to take over. */
  goOnAlone(inOrder: boolean): void {
    const message = 'control is gone, this worker goes on with what it knows';
    if (inOrder) this.#log.info(message);
    else this.#log.warn(message, { hint: 'start the sidecar again; it takes over' });
    let idleMs = 0;
    const look = async (): Promise<void> => {
      idleMs = (await this.plane.activeConnections()) === 0 ? idleMs + aloneLookMs : 0;
      if (idleMs >= aloneLimitMs) await this.leave(0);
    };
    // Listeners keep the process alive by themselves; this does where there are none.
    setInterval(() => void look(), aloneLookMs);
  }

  /** Takes nothing new and ends with its last connection, or when the time is over. */
  async leave(timeoutMs: number): Promise<void> {
    if (this.#leaving) return;
    this.#leaving = true;
    const connections = await this.plane.activeConnections();
    this.#log.info('this worker ends with its last connection', { 'link.connections': connections });
    const cut = await this.plane.drain(timeoutMs);
    this.#log.info('stopped', { 'link.connections_cut': cut });
    process.exit(0);
  }

  listenWith(endpoint: Endpoint, handle: unknown): void {
    const key = formatEndpoint(endpoint);
    const server = this.#unheard.get(key);
    this.#unheard.delete(key);
    if (server === undefined) return;
    this.#shared.set(key, server);
    server.listen(handle, TcpListener.backlog);
  }

  cannotListen(endpoint: Endpoint, code: string, message: string): void {
    const key = formatEndpoint(endpoint);
    const server = this.#unheard.get(key);
    this.#unheard.delete(key);
    server?.emit('error', Object.assign(new Error(message), { code }));
  }

  async #listenShared(server: Server, endpoint: Endpoint): Promise<void> {
    const key = formatEndpoint(endpoint);
    this.#unheard.set(key, server);
    await this.#control.call('shareListener', endpoint).catch((error: unknown) => {
      this.#unheard.delete(key);
      throw error;
    });
  }
}

function writeLine(line: string): void {
  try {
    writeSync(2, line);
  } catch {
    // Nobody reads it.
  }
}
