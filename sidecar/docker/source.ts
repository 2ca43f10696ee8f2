import { setMaxListeners } from 'node:events';
import { Backoff } from '../../src/base/backoff.ts';
import type { Clock } from '../../src/base/clock.ts';
import type { Conditions } from '../../src/base/conditions.ts';
import { describeError, isLegateError, LegateError } from '../../src/base/errors.ts';
import { type Change, Latest, type Observable } from '../../src/base/feed.ts';
import type { Log } from '../../src/base/log.ts';
import type { Metrics } from '../../src/base/metrics.ts';
import type { DockerConfig } from '../../src/config/config.ts';
import type { RunInContainer } from '../../src/health/exec.ts';
import type { Caller } from '../../src/model/caller.ts';
import type { DesiredInstance, Refusal } from '../../src/model/instance.ts';
import type { Topology } from '../../src/model/topology.ts';
import type { CallerGroup } from './caller-groups.ts';
import { DockerClient } from './client.ts';
import { shortId } from './container.ts';
import { Drains } from './draining.ts';
import { EventRouter } from './event-router.ts';
import type { DockerEvent } from './events.ts';
import { execThrough } from './exec.ts';
import { declaresAnything } from './identity.ts';
import { ImageCache } from './images.ts';
import { Inspections } from './inspections.ts';
import { InternalRoutes } from './internal-routes.ts';
import { Inventory } from './inventory.ts';
import type { DockerNetwork } from './network.ts';
import { NetworkWatch } from './network-watch.ts';
import { sharedNetworkOf } from './place.ts';
import { Session } from './session.ts';
import { type SourceCounters, sourceMetrics } from './source-metrics.ts';

/** Requests and waits at a time that end with a connection to the engine; more would be a leak. */
const maxRequests = 32;
const firstRetryMs = 100;
const maxRetryMs = 5000;
/** Between questions whether the engine still answers. */
const askEveryMs = 5000;
/** A comparison that found something waits this long for an event before it takes the stream for dead. */
const silenceMs = 5000;
/** The first stream begins this long ago, so that a `docker stop` that is under way is seen. */
const lookBackMs = 60_000;
/** Times of events pass through a double, which is exact to some hundred nanoseconds only. */
const slackNano = 1_000_000n;

export interface DockerState {
  /** `connecting` until everything that runs is known for the first time. */
  readonly state: 'off' | 'connecting' | 'connected' | 'away';
  /** Of the engine; null before it was reached. */
  readonly version: string | null;
  readonly problem: string | null;
  /** Containers that run. */
  readonly containers: number;
}

export interface DockerSourceOptions {
  readonly config: DockerConfig;
  /** The address under which other hosts know this one. */
  readonly advertise: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  readonly topology?: Observable<Topology>;
  /** How long one request to the engine may take; default 10 s. */
  readonly requestTimeoutMs?: number;
  /** First a reset, once everything that runs is known; then deltas. Called in the turn in which an event arrives. */
  readonly onChange: (change: Change<DesiredInstance>) => void;
  /** Who calls from one network namespace has changed; undefined: nobody any more. Called in the turn of the change. */
  readonly onCaller?: (id: string, group: CallerGroup | undefined) => void;
}

/**
 * The containers of this host's Docker Engine as desired instances. Events are hints to look again; what counts is
 * what inspecting tells, and a full comparison once a minute and after each reconnection makes up for all that was
 * missed. While the engine is away the last instances stay.
 */
export class DockerSource {
  readonly #options: DockerSourceOptions;
  readonly #client: DockerClient;
  readonly #inventory: Inventory;
  readonly #drains: Drains;
  readonly #routes: InternalRoutes;
  readonly #images: ImageCache;
  readonly #networks: NetworkWatch;
  readonly #state: Latest<DockerState>;
  readonly #router: EventRouter;
  readonly #counters: SourceCounters;
  #session: Session | undefined;

  constructor(options: DockerSourceOptions) {
    this.#options = options;
    const { config, clock, conditions, topology } = options;
    const off = config.expose === 'off';
    this.#state = new Latest<DockerState>({
      state: off ? 'off' : 'connecting',
      version: null,
      problem: null,
      containers: 0,
    });
    const { requestTimeoutMs } = options;
    const limit = requestTimeoutMs === undefined ? {} : { timeoutMs: requestTimeoutMs };
    this.#client = new DockerClient({ socket: config.socket, ...limit });
    this.#images = new ImageCache((id, signal) => this.#client.inspectImage(id, signal));
    this.#networks = new NetworkWatch((signal) => this.#client.networks(signal));
    this.#routes = new InternalRoutes(options.conditions, () => this.#networks.byId);
    this.#drains = new Drains(clock, (id) => this.#inventory.refresh(id));
    this.#inventory = new Inventory({
      expose: config.expose === 'published' ? 'published' : 'labelled',
      advertise: options.advertise,
      surroundings: () => ({ networks: this.#networks.byId, topology: topology?.value }),
      isDraining: (id) => this.#drains.isDraining(id),
      onChange: options.onChange,
      ...(options.onCaller && { onCaller: options.onCaller }),
      conditions,
    });
    this.#counters = sourceMetrics(options.metrics, {
      containers: () => this.#inventory.containers,
      instances: () => this.#inventory.instances,
      refusals: () => this.#inventory.refusals.value.length,
      draining: () => this.#drains.size,
      waiting: () => this.#session?.inspections.waiting ?? 0,
      images: () => this.#images.size,
      connected: () => (this.#state.value.state === 'connected' ? 1 : 0),
    });
    this.#router = new EventRouter({
      inventory: this.#inventory,
      drains: this.#drains,
      networks: this.#networks,
      counters: this.#counters,
      onGone: (id) => this.#gone(id),
    });
  }

  /** Runs commands inside this engine's containers, for their checks. */
  get runInContainer(): RunInContainer {
    return execThrough(this.#client);
  }

  get refusals(): Observable<readonly Refusal[]> {
    return this.#inventory.refusals;
  }

  get state(): Observable<DockerState> {
    return this.#state;
  }

  /** The engine's networks, by name; the last known ones while it is away. */
  get networks(): Observable<readonly DockerNetwork[]> {
    return this.#networks.all;
  }

  /** All running containers, each with who it is when it calls; those of another one's network too. */
  consumers(): ReturnType<Inventory['consumers']> {
    return this.#inventory.consumers();
  }

  /** Running containers that declare links and do not share another one's network. */
  declaring(): Caller[] {
    return this.#inventory
      .consumers()
      .filter(({ container, consumer }) => consumer.links.length > 0 && sharedNetworkOf(container) === undefined)
      .map(({ container, consumer: { name, links } }) => ({ container: container.name, consumer: name, links }));
  }

  /** The name of the container whose addresses a container has, by the beginning of its id. */
  networkNameOf(idStart: string): string | undefined {
    return this.#inventory.networkNameOf(idStart);
  }

  /** Runs until the signal is aborted, then resolves. To be called once. */
  async run(signal: AbortSignal): Promise<void> {
    if (this.#options.config.expose === 'off') {
      this.#inventory.load();
      await new Promise<void>((resolve) => {
        if (signal.aborted) resolve();
        else signal.addEventListener('abort', () => resolve(), { once: true });
      });
      return;
    }
    const unsubscribe = this.#options.topology?.subscribe(() => this.#inventory.refreshAll());
    const backoff = new Backoff(firstRetryMs, maxRetryMs);
    try {
      while (!signal.aborted) {
        const lastedMs = await this.#attempt(signal);
        // One that does not last must not be tried again and again at once: each try costs a full comparison.
        if (lastedMs > maxRetryMs) backoff.reset();
        await this.#options.clock.sleep(backoff.nextMs(), signal).catch(() => undefined);
      }
    } finally {
      unsubscribe?.();
      this.#drains.close();
      await this.#client.close();
    }
  }

  /** One connection to the engine, from its beginning until it fails. Returns how long it served, in milliseconds. */
  async #attempt(signal: AbortSignal): Promise<number> {
    const { clock } = this.#options;
    const controller = new AbortController();
    const end = (): void => controller.abort(signal.reason);
    signal.addEventListener('abort', end, { once: true });
    let connectedMs: number | undefined;
    try {
      const session = await this.#connect(controller);
      connectedMs = clock.monotonicMs();
      await this.#keepComparing(session);
    } catch (error) {
      if (signal.aborted) return 0;
      if (!isLegateError(error)) throw error;
      this.#away(error);
    } finally {
      this.#session = undefined;
      controller.abort(new LegateError('E_CLOSED', 'the connection to the Docker Engine was given up'));
      signal.removeEventListener('abort', end);
    }
    return connectedMs === undefined ? 0 : clock.monotonicMs() - connectedMs;
  }

  /** Opens the stream of events and takes stock of everything that runs. */
  async #connect(controller: AbortController): Promise<Session> {
    const { signal } = controller;
    setMaxListeners(maxRequests, signal);
    const { clock } = this.#options;
    const version = await this.#client.negotiate(signal);
    const inspections = new Inspections({
      fetch: (id) => this.#fetch(id, signal),
      onFailed: (id, error) => this.#inspectionFailed(id, error),
      signal,
      clock,
    });
    const session = new Session(signal, inspections, clock);
    this.#session = session;
    // The stream comes first: what happens while the list is read is then known to be newer than the list.
    const sink = {
      onEvent: (event: DockerEvent) => this.#router.route(event, session),
      onGarbage: () => {
        this.#counters.garbage.value += 1;
        session.compareSoon();
      },
    };
    const stream = await this.#client.openEvents(this.#since(version.nowMs), sink, signal);
    stream.ended.catch((error: unknown) => controller.abort(error));
    this.#watch(signal).catch((error: unknown) => controller.abort(error));
    await this.#compare(session);
    this.#inventory.load();
    this.#connected(version.engine);
    return session;
  }

  /** Compares every minute, and ends by throwing what ended the connection. */
  async #keepComparing(session: Session): Promise<never> {
    const { clock } = this.#options;
    for (;;) {
      await session.pause();
      const { revision } = this.#inventory;
      const events = this.#counters.events.value;
      await this.#compare(session);
      this.#setState({});
      if (this.#inventory.revision === revision) continue;
      this.#counters.differences.value += 1;
      await clock.sleep(silenceMs, session.signal);
      if (this.#counters.events.value === events) {
        throw new LegateError('E_DOCKER', 'the Docker Engine no longer sends events', {
          hint: 'The connection is made anew.',
        });
      }
    }
  }

  /** Asks a small question now and then: an engine that hangs sends no events either, and nothing else would tell. */
  async #watch(signal: AbortSignal): Promise<void> {
    for (;;) {
      await this.#options.clock.sleep(askEveryMs, signal);
      await this.#client.negotiate(signal);
    }
  }

  /** The engine's time from which on events are wanted. */
  #since(engineNowMs: number): bigint {
    const { lastNano } = this.#router;
    const from =
      lastNano > 0 ? BigInt(Math.trunc(lastNano)) - slackNano : BigInt(engineNowMs - lookBackMs) * 1_000_000n;
    return from > 0n ? from : 0n;
  }

  /** Asks about everything that runs, and everything that we think runs. Fails when the engine answers nothing. */
  async #compare({ inspections, signal }: Session): Promise<void> {
    this.#counters.comparisons.value += 1;
    await this.#networks.refresh(signal);
    const running = await this.#client.runningContainers(signal);
    const ids = new Set([...running, ...this.#inventory.ids()]);
    const results = await Promise.all([...ids].map((id) => inspections.check(id)));
    signal.throwIfAborted();
    if (results.length > 0 && results.every((ok) => !ok)) {
      throw new LegateError('E_DOCKER', 'the Docker Engine answers no question about any container', {
        hint: 'Is it stuck? Try docker inspect; restart it if that hangs too.',
      });
    }
  }

  /** Everything that has to be known of a container, and what takes it over. */
  async #fetch(id: string, signal: AbortSignal): Promise<() => void> {
    this.#counters.inspections.value += 1;
    const container = await this.#client.inspectContainer(id, signal);
    if (container === undefined || !container.running) return () => this.#gone(id);
    const looksAtImage = !this.#options.config.imageLabels && declaresAnything(container.declarations);
    const image = looksAtImage ? await this.#images.get(container.imageId, signal) : undefined;
    if (container.attachments.some(({ networkId }) => !this.#networks.byId.has(networkId)))
      await this.#networks.refresh(signal);
    return () => {
      this.#drains.inspected(container);
      this.#routes.inspected(container);
      this.#inventory.put({ container, image });
      this.#options.conditions.clear(`docker.inspect.${shortId(id)}`);
      this.#setState({});
    };
  }

  #gone(id: string): void {
    this.#drains.forget(id);
    this.#routes.forget(id);
    this.#inventory.remove(id);
    this.#options.conditions.clear(`docker.inspect.${shortId(id)}`);
    this.#setState({});
  }

  #inspectionFailed(id: string, error: unknown): void {
    const name = this.#inventory.get(id)?.name ?? shortId(id);
    const message = `container ${name} cannot be inspected: ${describeError(error)}`;
    const hint = 'What was known of it stays. Try docker inspect; restart the container if that hangs.';
    this.#options.conditions.raise(`docker.inspect.${shortId(id)}`, 'warning', message, hint);
  }

  #connected(version: string): void {
    this.#options.conditions.clear('docker.engine');
    this.#setState({ state: 'connected', version, problem: null });
    this.#options.log.info('docker connected', {
      'docker.version': version,
      'docker.containers': this.#inventory.containers,
      'docker.instances': this.#inventory.instances,
    });
  }

  #away(error: LegateError): void {
    this.#counters.lost.value += 1;
    this.#setState({ state: this.#inventory.isLoaded ? 'away' : 'connecting', problem: error.message });
    const severity = this.#inventory.isLoaded ? 'error' : 'warning';
    this.#options.conditions.raise('docker.engine', severity, error.message, error.hint ?? '');
  }

  #setState(change: Partial<DockerState>): void {
    const old = this.#state.value;
    const next = { ...old, ...change, containers: this.#inventory.containers };
    if (Object.keys(next).some((key) => next[key as keyof DockerState] !== old[key as keyof DockerState]))
      this.#state.set(next);
  }
}
