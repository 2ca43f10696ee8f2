import type { Clock } from '../src/base/clock.ts';
import { formatEndpoint } from '../src/model/address.ts';
import { consumerName, type Identity } from '../src/model/caller.ts';
import type { DeclaredLink } from '../src/model/link.ts';
import { defaultBalance } from '../src/model/service.ts';
import type { Backend } from './balance/backend.ts';
import { Consumers, type LinkAsked } from './consumers.ts';
import type { Door } from './door/door.ts';
import { LinkRouting } from './http/routing/link-routing.ts';
import type { LinkDocument } from './link-document.ts';
import type { LinkTarget } from './link-target.ts';
import type { Asked, DenialDocument } from './permission.ts';
import { Rates } from './rates.ts';
import { TargetRoute } from './target-route.ts';
import type { TcpListener } from './tcp/listener.ts';
import type { AttemptFailure, Route, Traffic, TrafficCells } from './tcp/route.ts';

export interface LinkOptions {
  readonly kind: LinkDocument['kind'] | 'instance';
  readonly target: LinkTarget;
  /** The address that the listener listens on: the service's VIP, or the configured one. */
  readonly address: string;
  /** The instance that alone is behind it, and its port. */
  readonly instance?: { readonly id: string; readonly port: number };
  /** The port of the virtual address, where it is not the service's own: those who declare it have it, and nobody else. */
  readonly port?: number;
  readonly clock: Clock;
  readonly createListener: (link: Link) => TcpListener;
  readonly onExhausted: (error: unknown) => void;
  /** Whom its connections stand for, whoever makes them; undefined: whoever makes them. */
  readonly consumer?: string | undefined;
  /** What makes TLS of its connections. */
  readonly createDoor?: ((link: Link) => Door) | undefined;
}

/** One place on this host where consumers reach a service: a listener, and the route of what it accepts. */
export class Link extends TargetRoute implements Route {
  readonly kind: LinkDocument['kind'] | 'instance';
  readonly address: string;
  readonly port: number | undefined;
  readonly instance: LinkOptions['instance'];
  readonly listener: TcpListener;
  readonly traffic: Traffic = { active: 0, total: 0, failed: 0, retried: 0, received: 0, sent: 0 };
  readonly cells: TrafficCells;
  readonly consumer: string | undefined;
  readonly consumers: Consumers;
  readonly door: Door | undefined;
  /** Why it cannot listen; null while it can. */
  problem: string | null = null;
  /** The link to the service's former VIP, which serves until this one can. */
  predecessor: Link | undefined;
  readonly #clock: Clock;
  readonly #onExhausted: (error: unknown) => void;
  #routing: LinkRouting | undefined;
  #lastError: LinkDocument['lastError'] = null;
  readonly #rates = new Rates();
  #denied = 0;
  #lastDenial: DenialDocument | null = null;

  constructor(options: LinkOptions) {
    super(options.target);
    this.kind = options.kind;
    this.address = options.address;
    this.port = options.port;
    this.instance = options.instance;
    this.cells = options.target.cells;
    this.consumer = options.consumer;
    this.consumers = new Consumers(this, options.target.consumerCell);
    this.#clock = options.clock;
    this.#onExhausted = options.onExhausted;
    this.listener = options.createListener(this);
    this.door = options.createDoor?.(this);
    this.target.links.add(this);
  }

  get size(): number {
    const { backends } = this.target;
    if (this.instance === undefined) return backends.size;
    return backends.has(this.instance.id) ? 1 : 0;
  }

  /** Whether requests, and not connections, are spread over the instances. */
  get speaksHttp(): boolean {
    return this.target.service?.protocol === 'http' || this.speaksHttp2;
  }

  /** Whether those requests come as streams of HTTP/2, with prior knowledge (RFC 9113 section 3.3). */
  get speaksHttp2(): boolean {
    const protocol = this.target.service?.protocol;
    return protocol === 'http2' || protocol === 'grpc';
  }

  /** Routes and splits are the service's: who asks for one instance gets it. */
  get routing(): LinkRouting | undefined {
    const { routing } = this.target;
    if (routing === undefined || this.instance !== undefined) return undefined;
    if (this.#routing?.of !== routing) this.#routing = new LinkRouting(this, routing);
    return this.#routing;
  }

  pick(tried: readonly Backend[], key?: number): Backend | undefined {
    const { backends } = this.target;
    return this.instance === undefined ? backends.pick(tried, key) : backends.only(this.instance.id, tried);
  }

  hasOther(tried: readonly Backend[]): boolean {
    return this.instance === undefined && this.target.backends.hasOther(tried);
  }

  connected({ instance, latency }: Backend, elapsedMs: number): void {
    this.target.suspects.forgive(instance.hostId);
    if (!this.speaksHttp) latency.observe(elapsedMs, this.#clock.monotonicMs());
    this.target.connectSeconds.observe(elapsedMs / 1000);
  }

  /** Here and below `target` is the service whose instances were asked, which a route of this one may have led to. */
  attemptFailed(backend: Backend, { problem, blame, retried }: AttemptFailure, target = this.target): void {
    target.cells.failures.value += 1;
    if (retried) {
      this.traffic.retried += 1;
      target.cells.retries.value += 1;
    }
    this.#told(`${backend.id} ${at(backend)}: ${problem}`);
    if (blame !== 'way') target.backends.failed(backend, blame === 'host');
  }

  refused(problem?: string, target = this.target): void {
    this.traffic.failed += 1;
    target.cells.refused.value += 1;
    if (problem !== undefined) this.#told(problem);
  }

  refusedByHost({ instance: { host } }: Backend, { consumer }: Asked, problem: string, target = this.target): void {
    target.cells.denied.value += 1;
    const at = new Date(this.#clock.nowMs()).toISOString();
    this.denied({ at, consumer, by: 'host', host, intent: null, message: `${host} does not let it in: ${problem}` });
  }

  #told(message: string): void {
    this.#lastError = { at: new Date(this.#clock.nowMs()).toISOString(), message };
  }

  /** Policy refused a connection, or cut it. */
  denied(denial: DenialDocument): void {
    this.#denied += 1;
    this.#lastDenial = denial;
  }

  exhausted(error: unknown): void {
    this.#onExhausted(error);
  }

  /** The port of the virtual address that leads here; undefined while the service has none. */
  get mappedPort(): number | undefined {
    return this.instance?.port ?? this.port ?? this.target.service?.port;
  }

  /** Whether connections of this identity may use it. */
  admits(identity: Identity): boolean {
    if (this.port === undefined) return true;
    const { name } = this.target;
    return (
      identity.kind === 'container' &&
      identity.caller.links.some((link) => link.service === name && link.port === this.port)
    );
  }

  /** What policy is asked about a connection of this identity. */
  asks(identity: Identity): LinkAsked {
    const service = this.target.name;
    const links = identity.kind === 'container' ? identity.caller.links : noLinks;
    const declared = links.some((link) => link.service === service);
    return { consumer: consumerName(identity), service, declared, links };
  }

  /** Whether those who connect find anybody, or are held until they do. */
  get isOpen(): boolean {
    return this.size > 0 || this.target.parks;
  }

  /** What consumers dial; for a VIP the service's own port. */
  get dialled(): string {
    const port = this.kind === 'listen' ? this.listener.bound?.port : this.mappedPort;
    return port === undefined ? this.listener.toString() : formatEndpoint({ address: this.address, port });
  }

  /** To be called now and then, for the rates. */
  sample(nowMs: number): void {
    const { received, sent, total } = this.traffic;
    this.#rates.sample(nowMs, { received, sent, connections: total });
  }

  #state(): LinkDocument['state'] {
    if (this.listener.bound === undefined) return 'down';
    if (this.door?.problem !== undefined) return 'refusing';
    if (this.size > 0) return 'open';
    return this.target.parks ? 'holding' : 'refusing';
  }

  document(): LinkDocument {
    const { active, total, failed, retried, received, sent } = this.traffic;
    return {
      service: this.target.name,
      kind: this.kind === 'instance' ? 'vip' : this.kind,
      address: this.dialled,
      tls: this.door?.document ?? null,
      state: this.#state(),
      problem: this.problem ?? this.door?.problem ?? null,
      balance: this.target.service?.balance ?? defaultBalance,
      instances: this.target.service?.instances.length ?? 0,
      connections: { active, total, failed, retried, held: this.target.held },
      consumers: this.consumers.documents(),
      bytes: { received, sent },
      rates: this.#rates.since(this.#clock.monotonicMs(), { received, sent, connections: total }),
      backends: this.target.backendDocuments(),
      lastError: this.#lastError,
      denied: { total: this.#denied, last: this.#lastDenial },
    };
  }

  /** No further connections; those that run go on. */
  close(): Promise<void> {
    this.target.links.delete(this);
    this.door?.close();
    return Promise.all([this.listener.close(), this.predecessor?.close()]).then(() => undefined);
  }
}

const noLinks: readonly DeclaredLink[] = [];

/** Where a backend was tried, for people. */
function at({ dial, place }: Backend): string {
  return dial.via === 'direct' ? `at ${place}` : place;
}
