import type { DataPlane } from '../../proxy/data-plane.ts';
import type { LinkDocument } from '../../proxy/link-document.ts';
import type { ConnectionFilter } from '../../proxy/link-plane.ts';
import type { DataPlaneOptions } from '../../proxy/local-plane.ts';
import type { SidesOfProcess } from '../../proxy/side-document.ts';
import type { Probe, ProbeResult } from '../../proxy/tunnel/probe.ts';
import type { TunnelDocument } from '../../proxy/tunnel/tunnel-document.ts';
import { Backoff } from '../../src/base/backoff.ts';
import { describeError, LegateError } from '../../src/base/errors.ts';
import { Latest } from '../../src/base/feed.ts';
import type { LogLevel } from '../../src/base/log.ts';
import { addFigures, type CounterCell, type Figures, lastingFigures } from '../../src/base/metrics.ts';
import { PersistentMap } from '../../src/base/persistent-map.ts';
import type { Endpoint } from '../../src/model/address.ts';
import { noCallers } from '../../src/model/caller.ts';
import { emptyTopology } from '../../src/model/topology.ts';
import type { FormerWorkers } from './former-workers.ts';
import { countOf, mergeLinks, mergeTunnels, withFormer } from './merge.ts';
import { takeSockets } from './passed-sockets.ts';
import { askQuestion } from './questions.ts';
import type { ControlCalls, ToldValues } from './seam.ts';
import { SharedListeners } from './shared-listeners.ts';
import type { WorkerChildren } from './worker-children.ts';
import { WorkerFaults } from './worker-faults.ts';
import { WorkerProcess } from './worker-process.ts';

/** How long an answer for people or for a scrape is waited for. */
const answerLimitMs = 2000;
/** How often each worker is looked after, and so many silences in a row end it. */
const lookEveryMs = 5000;
const maxSilences = 6;
/** The pause before a worker that ended is replaced, and its ceiling. One that ran so long has been well. */
const firstPauseMs = 10;
const pauseCeilingMs = 10_000;
const wellAfterMs = 30_000;
/** So many ends in a row, without a worker that was well, are told to people. */
const loopFrom = 3;
/** How long the start waits for workers. */
const startLimitMs = 20_000;
/** How long workers of the sidecar before may take to give their listening sockets. */
const socketsLimitMs = 2000;
/** Those of them that are asked something, at most. */
const maxAsked = 64;
/** How long the present workers may take to listen for what is in the first picture of the mesh; it is heavy at first. */
const settleMs = 1000;
const condition = 'plane.workers';

export interface WorkerPlaneOptions extends DataPlaneOptions {
  readonly workers: number;
  readonly logLevel: LogLevel;
  /** What the sidecar before left running. */
  readonly former: FormerWorkers;
  /** The kernel holds nothing of the sidecar before any more than the present workers have. */
  readonly forgetFormer: () => Promise<void>;
  readonly children: WorkerChildren;
}

interface Place {
  worker: WorkerProcess | undefined;
  readonly backoff: Backoff;
  cancel: (() => void) | undefined;
}

/**
 * The data plane in processes of its own: control feeds them, adds up what they tell, and replaces those that end. Each
 * listens on ports of its own for virtual addresses, over which the kernel spreads connections, and all of them share the
 * listeners of the configuration.
 */
export class WorkerPlane implements DataPlane {
  readonly #options: WorkerPlaneOptions;
  readonly #told: ToldValues;
  readonly #places: readonly Place[];
  readonly #listeners: SharedListeners;
  readonly #faults: WorkerFaults;
  readonly #deaths: CounterCell;
  /** Figures of workers that have ended. */
  #past: Figures = [];
  #cancelLook: (() => void) | undefined;
  #cancelTakeOver: (() => void) | undefined;
  #leaving = false;
  #closed: Promise<void> | undefined;

  constructor(options: WorkerPlaneOptions) {
    const { clock, metrics, conditions, former } = options;
    this.#options = options;
    this.#told = {
      snapshots: options.snapshots,
      declared: options.declared ?? new Latest(PersistentMap.empty()),
      callers: (options.callers ?? noCallers).table,
      topology: options.topology ?? new Latest(emptyTopology),
      credentials: options.credentials,
      policy: options.policy,
      instanceAddresses: options.instanceAddresses ?? new Latest(PersistentMap.empty()),
    };
    this.#places = Array.from({ length: options.workers }, () => ({
      worker: undefined,
      backoff: new Backoff(firstPauseMs, pauseCeilingMs),
      cancel: undefined,
    }));
    this.#faults = new WorkerFaults(conditions);
    this.#listeners = new SharedListeners({
      clock,
      held: former.count > 0,
      send: (slot, endpoint, handle) => this.#worker(slot)?.peer.tellWith(handle, 'listenWith', endpoint),
      refuse: (slot, endpoint, code, text) => this.#worker(slot)?.peer.tell('cannotListen', endpoint, code, text),
    });
    this.#deaths = metrics.counter('legate_process_worker_ends_total', 'Data-plane processes that ended unasked.');
    metrics.gauge('legate_process_workers_count', 'Data-plane processes that run now.', [], () => [
      [[], this.#workers().length],
    ]);
    metrics.gauge(
      'legate_process_former_workers_count',
      'Those of the sidecar before that still carry something.',
      [],
      () => [[[], former.count]],
    );
    metrics.addOthers(() => this.#figures());
  }

  async start(): Promise<void> {
    const { clock, former, snapshots } = this.#options;
    const started = this.#places.map((_, slot) => this.#launch(slot));
    await Promise.race([Promise.all(started), clock.sleep(startLimitMs)]);
    this.#look();
    if (former.count === 0) return;
    if (snapshots.value.origin !== 'none') return this.#takeOver();
    // These workers know of no service yet, and those before do: they go on until there is a picture of the mesh.
    const unsubscribe = snapshots.subscribe(({ origin }) => {
      if (origin === 'none') return;
      unsubscribe();
      this.#cancelTakeOver = clock.after(settleMs, () => void this.#takeOver());
    });
    this.#cancelTakeOver = unsubscribe;
  }

  /** Whatever is new goes to these workers from now on; what runs goes on where it is. */
  async #takeOver(): Promise<void> {
    const { former, forgetFormer, log } = this.#options;
    const count = former.count;
    await this.#adoptSockets();
    await forgetFormer().catch(() => undefined);
    if (this.#leaving) return;
    former.leave();
    await this.#listeners.letGo();
    log.info('this sidecar has taken over', { 'plane.former_workers': count });
  }

  /** All workers of one sidecar have the same sockets, and those that are about to end have none. */
  async #adoptSockets(): Promise<void> {
    const { former, clock, log } = this.#options;
    const doors = former.doors('sockets').slice(0, maxAsked);
    const asked = doors.map((door) => takeSockets(door, { clock, timeoutMs: socketsLimitMs }));
    const refused = (await Promise.allSettled(asked)).flatMap((answer) => {
      if (answer.status === 'fulfilled') this.#listeners.adopt(answer.value);
      return answer.status === 'fulfilled' ? [] : [describeError(answer.reason)];
    });
    const [reason] = refused;
    if (reason === undefined || !this.#listeners.isAwaited) return;
    const message = 'listeners of the sidecar before are bound anew: for a moment they refuse new connections';
    log.warn(message, { reason });
  }

  async links(): Promise<readonly LinkDocument[]> {
    const [present, former] = await Promise.all([
      this.#ask((peer) => peer.callWithin(answerLimitMs, 'links')),
      this.#askFormer(['links']),
    ]);
    return withFormer(mergeLinks(present), former);
  }

  /** Those of workers that belong to the sidecar before are not among them. */
  async sides(): Promise<readonly SidesOfProcess[]> {
    const asked = this.#workers().map(async ({ peer, pid, slot }) => {
      const lists = await peer.callWithin(answerLimitMs, 'sides');
      return { from: `${slot}.${pid}`, sides: lists.flatMap(({ sides }) => sides) };
    });
    const answers = await Promise.allSettled(asked);
    return answers.flatMap((answer) => (answer.status === 'fulfilled' ? [answer.value] : []));
  }

  async tunnels(): Promise<readonly TunnelDocument[]> {
    return mergeTunnels(await this.#ask((peer) => peer.callWithin(answerLimitMs, 'tunnels')));
  }

  async probe(probe: Probe): Promise<ProbeResult> {
    const results = await this.#ask((peer) => peer.call('probe', probe));
    const silent: ProbeResult = { ok: false, reason: 'silent', detail: 'no data-plane process answers' };
    return results.find(({ ok }) => ok) ?? results[0] ?? silent;
  }

  listenerOf(service: string): Endpoint | undefined {
    for (const link of this.#options.links) {
      const bound = link.service === service ? this.#listeners.boundOf(link.listen) : undefined;
      if (bound !== undefined) return bound;
    }
    return undefined;
  }

  async activeConnections(filter?: ConnectionFilter): Promise<number> {
    const [present, former] = await Promise.all([
      this.#ask((peer) => peer.callWithin(answerLimitMs, 'activeConnections', filter)),
      this.#askFormer(['activeConnections', filter ?? {}]),
    ]);
    return sum([...present, ...former.map(countOf)]);
  }

  async drain(timeoutMs: number): Promise<number> {
    this.#leave();
    return sum(await this.#ask((peer) => peer.call('drain', timeoutMs)));
  }

  close(): Promise<void> {
    this.#closed ??= this.#end();
    return this.#closed;
  }

  /** The workers go on without this process: another one takes over. */
  leaveAlone(): void {
    this.#leave();
    this.#closed ??= Promise.resolve();
    for (const worker of this.#workers()) worker.leaveAlone();
  }

  async #end(): Promise<void> {
    this.#leave();
    const { portMap, former } = this.#options;
    // What the kernel keeps may be the sidecar before's: of these workers nothing is to stay in it.
    const unmap = this.#places.map((_, slot) => portMap?.set(ownerOf(slot), [], slot).catch(() => undefined));
    await Promise.all(unmap);
    await Promise.all(this.#workers().map((worker) => worker.end()));
    former.remember([]);
    this.#faults.forgetAll();
  }

  #leave(): void {
    this.#leaving = true;
    this.#cancelLook?.();
    this.#cancelTakeOver?.();
    for (const { cancel } of this.#places) cancel?.();
    this.#listeners.close();
  }

  /** Resolves when the worker listens, or has ended. */
  async #launch(slot: number): Promise<void> {
    const {
      links,
      self,
      zone,
      clearUnderlay,
      vipRange,
      localRange,
      tunnel,
      maxConnections,
      workers,
      accessLog = 0,
      clock,
      log,
    } = this.#options;
    const place = this.#place(slot);
    const slice = {
      links,
      self,
      clearUnderlay,
      tunnel,
      zone,
      workers,
      accessLog,
      ...(vipRange && { vipRange }),
      ...(localRange && { localRange }),
      ...(maxConnections && { maxConnections }),
    };
    const worker: WorkerProcess = new WorkerProcess({
      setup: {
        ...slice,
        slot,
        logLevel: this.#options.logLevel,
        workersFile: this.#options.former.path,
        vips: this.#options.portMap !== undefined,
        desk: this.#options.desk !== undefined,
      },
      told: this.#told,
      mine: this.#callsOf(slot, () => !worker.gone),
      clock,
      child: this.#options.children.take(),
    });
    place.worker = worker;
    this.#remember();
    void worker.ended.then((how) => this.#hasEnded(place, worker, how));
    const cancelWell = clock.after(wellAfterMs, () => {
      place.backoff.reset();
      this.#tellLoop();
    });
    void worker.ended.then(cancelWell);
    try {
      await worker.start();
      log.debug('worker started', { worker: slot, 'worker.pid': worker.pid });
    } catch (error) {
      log.warn('worker not started', { worker: slot, reason: describeError(error) });
      if (!worker.gone) worker.kill();
    }
  }

  #hasEnded(place: Place, worker: WorkerProcess, how: string): void {
    const { slot } = worker;
    place.worker = undefined;
    this.#past = addFigures([this.#past, lastingFigures(worker.figures)]);
    this.#faults.forget(slot);
    if (this.#leaving) return;
    // First of all, so that no further connection is sent there.
    void this.#options.portMap?.set(ownerOf(slot), [], slot).catch(() => undefined);
    this.#deaths.value += 1;
    const pauseMs = place.backoff.nextMs();
    const about = { worker: slot, 'worker.pid': worker.pid, 'worker.end': how, 'worker.pause_ms': Math.round(pauseMs) };
    this.#options.log.error('a worker ended, its connections are lost; another one takes its place', about);
    this.#tellLoop();
    place.cancel = this.#options.clock.after(pauseMs, () => void this.#launch(slot));
  }

  #tellLoop(): void {
    const { conditions } = this.#options;
    const worst = Math.max(...this.#places.map(({ backoff }) => backoff.failures));
    if (worst < loopFrom) conditions.clear(condition);
    else {
      const message = `a data-plane process ended ${worst} times in a row; connections through it are lost each time`;
      conditions.raise(condition, 'error', message, 'look into the log for its last words; report it with them');
    }
  }

  #callsOf(slot: number, lives: () => boolean): ControlCalls {
    const { portMap, callers, desk, onLearned } = this.#options;
    return {
      mapPorts: async (mappings) => {
        // Its last wish may arrive after its end.
        if (lives()) await portMap?.set(ownerOf(slot), mappings, slot);
      },
      confirmCaller: async (connection) => (await callers?.confirm(connection)) === true,
      answerDesk: (kind, request, from) => {
        if (desk === undefined) throw new LegateError('E_NOT_FOUND', 'this host lets nobody in');
        return desk.answer(kind, request, from);
      },
      shareListener: async (endpoint) => this.#listeners.ask(slot, endpoint),
      raise: (id, severity, message, hint) => {
        if (lives()) this.#faults.raise(slot, id, severity, message, hint);
      },
      clear: (id) => this.#faults.clear(slot, id),
      learned: (pairs) => {
        for (const pair of pairs) onLearned?.(pair);
      },
    };
  }

  /** Asks all workers; one that does not answer is left out. */
  async #ask<T>(question: (peer: WorkerProcess['peer']) => Promise<T>): Promise<T[]> {
    const answers = await Promise.allSettled(this.#workers().map((worker) => question(worker.peer)));
    return answers.flatMap((answer) => (answer.status === 'fulfilled' ? [answer.value] : []));
  }

  /** Asks those of the sidecar before, which may be of another version. */
  async #askFormer(question: readonly [string, ...unknown[]]): Promise<unknown[]> {
    const { former, clock } = this.#options;
    const doors = former.doors('questions').slice(0, maxAsked);
    const asked = doors.map((door) => askQuestion(door, question, { clock, timeoutMs: answerLimitMs }));
    const answers = await Promise.allSettled(asked);
    return answers.flatMap((answer) => (answer.status === 'fulfilled' ? [answer.value] : []));
  }

  async #figures(): Promise<Figures> {
    await Promise.all(this.#workers().map((worker) => this.#refresh(worker)));
    return addFigures([this.#past, ...this.#workers().map(({ figures }) => figures)]);
  }

  async #refresh(worker: WorkerProcess): Promise<void> {
    worker.figures = await worker.peer.callWithin(answerLimitMs, 'figures').catch(() => worker.figures);
  }

  /** Looks after all workers from time to time: figures outlive the one they are of, and one that stands still is ended. */
  #look(): void {
    if (this.#leaving) return;
    this.#cancelLook = this.#options.clock.after(lookEveryMs, () => {
      for (const worker of this.#workers()) void this.#lookAfter(worker);
      this.#look();
    });
  }

  async #lookAfter(worker: WorkerProcess): Promise<void> {
    const known = worker.figures;
    await this.#refresh(worker);
    worker.silences = worker.figures === known ? worker.silences + 1 : 0;
    if (worker.silences < maxSilences || worker.gone) return;
    this.#options.log.error('a worker does not answer any more and is ended', { worker: worker.slot });
    worker.kill();
  }

  #remember(): void {
    this.#options.former.remember(this.#workers().flatMap(({ pid }) => (pid === undefined ? [] : [pid])));
  }

  #workers(): WorkerProcess[] {
    return this.#places.flatMap(({ worker }) => (worker === undefined || worker.gone ? [] : [worker]));
  }

  #worker(slot: number): WorkerProcess | undefined {
    return this.#workers().find((worker) => worker.slot === slot);
  }

  #place(slot: number): Place {
    const place = this.#places[slot];
    if (place === undefined) throw new Error(`there is no worker ${slot}`);
    return place;
  }
}

function ownerOf(slot: number): string {
  return `links/${slot}`;
}

function sum(counts: readonly number[]): number {
  return counts.reduce((total, count) => total + count, 0);
}
