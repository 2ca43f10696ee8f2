import type { Socket } from 'node:net';
import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { describeError, type LegateError } from '../src/base/errors.ts';
import { Latest, type Observable } from '../src/base/feed.ts';
import type { Log } from '../src/base/log.ts';
import type { Metrics } from '../src/base/metrics.ts';
import { PersistentMap } from '../src/base/persistent-map.ts';
import type { InstanceAddress } from '../src/catalog/instance-addresses.ts';
import { emptySnapshot, type Service, type Snapshot } from '../src/catalog/snapshot.ts';
import { type Endpoint, formatEndpoint, type Ipv4Range } from '../src/model/address.ts';
import { type Callers, noCallers } from '../src/model/caller.ts';
import type { Credentials } from '../src/model/credentials.ts';
import { type Dial, dialOf } from '../src/model/dial.ts';
import { type Instance, transportOf } from '../src/model/instance.ts';
import type { CertificateFiles, DeclaredPorts, LinkListener } from '../src/model/link.ts';
import { emptyTopology, type Topology } from '../src/model/topology.ts';
import { AccessLog } from './access-log.ts';
import { AliasLinks, type OwnPlace } from './alias-links.ts';
import type { Distance } from './balance/backend.ts';
import { LinkAccount } from './consumers.ts';
import { Door } from './door/door.ts';
import { InstanceLinks } from './instance-links.ts';
import type { PortMap } from './kernel/port-map.ts';
import { Link, type LinkOptions } from './link.ts';
import type { LinkDocument } from './link-document.ts';
import { mappingsOf } from './link-mappings.ts';
import { LinkMetrics } from './link-metrics.ts';
import { LinkPublisher } from './link-publisher.ts';
import { LinkTarget } from './link-target.ts';
import { Lobby } from './lobby.ts';
import { Permission } from './permission.ts';
import { Rates } from './rates.ts';
import type { SideDocument } from './side-document.ts';
import { Suspects } from './suspects.ts';
import { CallerGate } from './tcp/caller-gate.ts';
import { connectionLimit } from './tcp/limits.ts';
import { type ListenShared, TcpListener } from './tcp/listener.ts';
import { RelayCrowd } from './tcp/relay-crowd.ts';
import { Acceptor } from './tunnel/acceptor.ts';
import { TunnelWants } from './tunnel/tunnel-wants.ts';
import type { AcceptStream, Tunnels } from './tunnel/tunnels.ts';

/** Services whose links are made at the start before the event loop gets its turn, in which names are answered. */
const startSlice = 25;

export interface LinkPlaneOptions {
  readonly snapshots: Observable<Snapshot>;
  readonly self: { readonly hostId: string };
  /** Where this host stands, where it says so. */
  readonly zone?: string | undefined;
  /** Whether links to other hosts may go in the clear (`network.underlay` trusted or encrypted). */
  readonly clearUnderlay: boolean;
  /** Listeners of the configuration. */
  readonly links: readonly LinkListener[];
  /** The ports that containers want of services; without it they get the services' own. */
  readonly declared?: Observable<DeclaredPorts>;
  /** The addresses at which single instances of other hosts are served. */
  readonly instanceAddresses?: Observable<PersistentMap<InstanceAddress>>;
  /** What steers virtual addresses; without it only `links` are served. */
  readonly portMap: PortMap | undefined;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  readonly random?: () => number;
  /** Who has which address; without it only the host is told from others. */
  readonly callers?: Callers;
  /** Whether connections are logged at their end: one of so many, and those that failed; 0, the default: none. */
  readonly accessLog?: number;
  /** Who may call whom; without it everybody may. */
  readonly permission?: Permission;
  /** Which addresses are the host's own and which are containers'. */
  readonly topology?: Observable<Topology>;
  /** The range of virtual addresses, from which the host itself connects to them. */
  readonly vipRange?: Ipv4Range;
  /** The range of `instanceAddresses`. */
  readonly localRange?: Ipv4Range;
  /** Connections at a time; the default is what this process has descriptors for. */
  readonly maxConnections?: number;
  /** How many processes carry this host's links, this one among them; default 1. */
  readonly workers?: number;
  /** The ways to other hosts; without them links reach only what can be dialled. */
  readonly tunnels?: Tunnels;
  /** Without a certificate tunnels lead nowhere. */
  readonly credentials?: Observable<Credentials | undefined>;
  /** Where several processes share the listeners of the configuration: who makes their handles. */
  readonly listenShared?: ListenShared;
  /** Finds out who holds an address that cannot be listened on. */
  readonly explainListenError?: (error: Error, endpoint: Endpoint) => Promise<LegateError>;
}

/** Which connections: all when nothing is named. */
export interface ConnectionFilter {
  readonly service?: string;
  /** An instance's id. */
  readonly instance?: string;
}

/**
 * The ambassador's links: for each TCP service with a virtual address a listener on a private port of it, mapped in the
 * kernel while something usable is behind it, and the listeners of the configuration. Follows the snapshots at the cost
 * of what changed. Listeners outlive every change of what is behind them.
 */
export class LinkPlane {
  readonly #options: LinkPlaneOptions;
  readonly #random: () => number;
  readonly #metrics: LinkMetrics;
  readonly #publisher: LinkPublisher;
  readonly #suspects: Suspects;
  readonly #permission: Permission;
  readonly #crowd: RelayCrowd;
  readonly #lobby: Lobby;
  readonly #acceptor: Acceptor;
  readonly #wants: TunnelWants | undefined;
  readonly #targets = new Map<string, LinkTarget>();
  readonly #configured: Link[] = [];
  readonly #vips = new Map<string, Link>();
  readonly #aliases: AliasLinks;
  readonly #instances: InstanceLinks;
  #retired: Link[] = [];
  #declared: DeclaredPorts = PersistentMap.empty();
  #snapshot: Snapshot = emptySnapshot;
  #unsubscribe: (() => void)[] = [];
  #cancelSample: (() => void) | undefined;
  #phase: 'new' | 'starting' | 'running' | 'leaving' = 'new';

  constructor(options: LinkPlaneOptions) {
    const { clock, conditions, portMap } = options;
    this.#options = options;
    this.#random = options.random ?? Math.random;
    this.#suspects = new Suspects({ clock, selfId: options.self.hostId });
    this.#metrics = new LinkMetrics(options.metrics, {
      suspects: () => this.#suspects.count,
      active: () => this.#activeByService(),
      queued: () => this.#queuedByService(),
      bufferBytes: () => this.#crowd.bufferBytes,
      held: () => this.#lobby.count,
    });
    this.#lobby = new Lobby(this.#metrics.lobbyFull);
    const permission = options.permission ?? new Permission({ ...options, policy: new Latest(undefined) });
    this.#permission = permission;
    const { hostId } = options.self;
    const snapshot = (): Snapshot => options.snapshots.value;
    const nameOf = (id: string): string | undefined => snapshot().hosts.get(id)?.name;
    const { accessLog: sample = 0 } = options;
    const accessLog = sample > 0 ? new AccessLog({ ...options, hostId, nameOf, sample }) : undefined;
    this.#crowd = new RelayCrowd({
      clock,
      conditions,
      overLimit: this.#metrics.overLimit,
      gate: new CallerGate({
        callers: options.callers ?? noCallers,
        topology: () => options.topology?.value ?? emptyTopology,
        vipRange: options.vipRange,
        localRange: options.localRange,
        clock,
        metrics: options.metrics,
      }),
      permission,
      tunnels: options.tunnels,
      metrics: options.metrics,
      accessLog,
      maxConnections: options.maxConnections ?? connectionLimit(),
      ended: (account) => {
        if (account instanceof LinkAccount) this.#forgetUnused(account.link.target);
      },
    });
    const { metrics } = options;
    this.#acceptor = new Acceptor({ hostId, snapshot, permission, crowd: this.#crowd, metrics, accessLog });
    this.#wants = options.tunnels && new TunnelWants(options.tunnels);
    this.#aliases = new AliasLinks({
      conditions,
      create: (name, address, port) => this.#createLink('alias', this.#target(name), { address, port: 0 }, { port }),
      retire: (link) => this.#retired.push(link),
    });
    this.#instances = new InstanceLinks({
      create: (id, { service, address, port }) =>
        this.#createLink('instance', this.#target(service), { address, port: 0 }, { instance: { id, port } }),
      retire: (link) => this.#retired.push(link),
    });
    this.#publisher = new LinkPublisher({
      portMap,
      clock,
      conditions,
      random: this.#random,
      mappings: () =>
        this.#phase === 'leaving' ? [] : mappingsOf([...this.#vips.values(), ...this.#aliases, ...this.#instances]),
      onPublished: () => this.#closeRetired(),
    });
  }

  /** Resolves when every listener of the present snapshot listens or has a condition, and the kernel has been told. */
  async start(): Promise<void> {
    if (this.#phase !== 'new') throw new Error('a link plane starts once');
    this.#phase = 'starting';
    const started: Promise<void>[] = [];
    for (const { service, listen, consumer, tls } of this.#options.links) {
      const createDoor = tls && ((link: Link) => this.#createDoor(link, listen, tls));
      const link = this.#createLink('listen', this.#target(service), listen, { consumer, createDoor });
      this.#configured.push(link);
      started.push(link.listener.start());
    }
    const { snapshots, declared } = this.#options;
    this.#declared = declared?.value ?? this.#declared;
    this.#followTunnels();
    this.#unsubscribe.push(snapshots.subscribe((snapshot) => this.#apply(snapshot)));
    if (declared !== undefined) this.#unsubscribe.push(declared.subscribe((ports) => this.#want(ports)));
    // Whatever changes meanwhile is taken over as a change; to take a service over twice changes nothing.
    this.#snapshot = snapshots.value;
    let taken = 0;
    for (const [name] of this.#snapshot.services) {
      if (taken > 0 && taken % startSlice === 0) await nextTurn();
      if (this.#phase !== 'starting') break;
      taken += 1;
      started.push(...this.#take(name));
    }
    this.#followInstances();
    await Promise.all(started);
    if (this.#phase !== 'starting') return;
    this.#phase = 'running';
    this.#sampleLater();
    await this.#publisher.publish();
  }

  /** Listens at the addresses of single instances, where there are virtual addresses. */
  #followInstances(): void {
    const { instanceAddresses, portMap } = this.#options;
    if (instanceAddresses === undefined || portMap === undefined) return;
    const take = (table: PersistentMap<InstanceAddress>): void => {
      for (const link of this.#instances.update(table)) {
        link.target.update(this.#snapshot.services.get(link.target.name));
        void link.listener.start();
      }
      if (this.#phase === 'running') void this.#publisher.publish();
    };
    this.#unsubscribe.push(instanceAddresses.subscribe(take));
    take(instanceAddresses.value);
  }

  #sampleLater(): void {
    const { clock } = this.#options;
    this.#cancelSample = clock.after(Rates.everyMs, () => {
      const nowMs = clock.monotonicMs();
      for (const link of this.#links()) link.sample(nowMs);
      this.#sampleLater();
    });
  }

  /** The receiving side of the tunnels: where streams of other hosts go. */
  get acceptStream(): AcceptStream {
    return this.#acceptor.accept;
  }

  /** All links, by service; those of a virtual address first. */
  links(): LinkDocument[] {
    return this.#links()
      .filter((link) => link.instance === undefined)
      .map((link) => link.document())
      .sort((a, b) => compare(a.service, b.service) || rank(a) - rank(b) || compare(a.address, b.address));
  }

  /** What sides of splits have carried. */
  sides(): SideDocument[] {
    return [...this.#targets.values()].flatMap(({ name, sides }) =>
      [...sides.values()].map(({ tag, requests, errors, seconds }) => ({
        service: name,
        tag,
        requests,
        errors,
        seconds,
      })),
    );
  }

  /** Where this host's configured listener for the service listens: what its name means where there are no VIPs. */
  listenerOf(service: string): Endpoint | undefined {
    return this.#configured.find((link) => link.target.name === service && link.listener.bound !== undefined)?.listener
      .bound;
  }

  /** How many connections run. */
  activeConnections(filter: ConnectionFilter = {}): number {
    return this.#crowd.count(filter);
  }

  /**
   * Takes nothing new, waits up to `timeoutMs` (or until the signal) for the connections that run, and resets the rest.
   * Resolves with how many were reset.
   */
  async drain(timeoutMs: number, signal?: AbortSignal): Promise<number> {
    await this.#leave();
    await this.#crowd.empty(timeoutMs, signal);
    return this.#crowd.cutAll();
  }

  /** Takes the mappings back, closes the listeners, and resets what still runs. */
  async close(): Promise<void> {
    await this.#leave();
    await this.#crowd.cutAll();
    this.#options.conditions.clearPrefix('link.');
  }

  async #leave(): Promise<void> {
    if (this.#phase === 'leaving') return;
    const told = this.#phase === 'running';
    this.#phase = 'leaving';
    this.#acceptor.leave();
    this.#crowd.leave();
    this.#cancelSample?.();
    for (const unsubscribe of this.#unsubscribe) unsubscribe();
    // The kernel refuses before the listeners go, so that nobody is accepted and then dropped.
    if (told) await this.#publisher.publish();
    this.#publisher.close();
    await Promise.all([...this.#links(), ...this.#retired].map((link) => link.close()));
    this.#retired = [];
  }

  #apply(snapshot: Snapshot): void {
    if (this.#phase === 'leaving') return;
    const before = this.#snapshot;
    this.#snapshot = snapshot;
    let moved = false;
    for (const { key, before: was, after: is } of snapshot.hosts.changesSince(before.hosts)) {
      if (was?.alive !== true && is?.alive === true) this.#suspects.forgive(key);
      if (was?.zone !== is?.zone) moved = true;
    }
    if (moved) this.#reviewAll();
    for (const { key } of snapshot.services.changesSince(before.services)) void this.#take(key);
    if (this.#phase === 'running') void this.#publisher.publish();
  }

  /** Brings the links of one service to what the snapshot has; the first tries of new listeners. */
  #take(name: string): Promise<void>[] {
    const link = this.#update(name, this.#snapshot.services.get(name));
    return [...(link === undefined ? [] : [link.listener.start()]), ...this.#updateAliases(name)];
  }

  /** Containers want other ports than before. */
  #want(declared: DeclaredPorts): void {
    const before = this.#declared;
    this.#declared = declared;
    for (const { key } of declared.changesSince(before)) void this.#updateAliases(key);
    if (this.#phase === 'running') void this.#publisher.publish();
  }

  #updateAliases(name: string): Promise<void>[] {
    const place = this.#ownPlace(this.#snapshot.services.get(name));
    return this.#aliases.update(name, place, this.#declared).map((link) => link.listener.start());
  }

  /** Where consumers reach the service at its own port; undefined without a virtual address. */
  #ownPlace(service: Service | undefined): OwnPlace | undefined {
    if (this.#options.portMap === undefined || service?.vip === undefined || !isTcp(service)) return undefined;
    return { address: service.vip, port: service.port };
  }

  #links(): Link[] {
    return [...this.#vips.values(), ...this.#aliases, ...this.#instances, ...this.#configured];
  }

  /** Takes one service over; the link that is new because of it, if any. */
  #update(name: string, service: Service | undefined): Link | undefined {
    const vip = this.#ownPlace(service)?.address;
    const known = this.#vips.get(name);
    const target = vip === undefined ? this.#targets.get(name) : this.#target(name);
    target?.update(service);
    for (const link of target?.links ?? []) link.door?.review();
    if (target !== undefined) this.#wants?.set(name, this.#tunnelledHosts(target));
    const link = known?.address === vip ? undefined : this.#move(name, known, target, vip);
    if (target !== undefined) this.#takeRoutes(target);
    return link;
  }

  /** The service has another virtual address, or none any more; gives the link to it. */
  #move(
    name: string,
    known: Link | undefined,
    target: LinkTarget | undefined,
    vip: string | undefined,
  ): Link | undefined {
    if (vip === undefined || target === undefined) {
      this.#vips.delete(name);
      if (known !== undefined) this.#retired.push(known);
      return undefined;
    }
    const link = this.#createLink('vip', target, { address: vip, port: 0 });
    if (known !== undefined) link.predecessor = known;
    this.#vips.set(name, link);
    return link;
  }

  /** Takes over where a service's routes lead: what they name is kept as long as they name it. */
  #takeRoutes(target: LinkTarget): void {
    const before = target.routing?.others;
    const isUsed = target.links.size > 0 || target.active > 0;
    target.route(isUsed ? (name) => this.#resolve(name) : undefined, this.#permission);
    const now = target.routing?.others;
    if (now !== before) {
      for (const other of now ?? []) other.referrers.add(target);
      for (const other of before ?? []) {
        if (now?.has(other) === true) continue;
        other.referrers.delete(target);
        this.#forgetUnused(other);
      }
    }
    this.#checkRoutes(target);
    for (const referrer of target.referrers) this.#checkRoutes(referrer);
  }

  /** What a route leads to, which need not be linked to, or exist. */
  #resolve(name: string): LinkTarget {
    const known = this.#targets.get(name);
    if (known !== undefined) return known;
    const target = this.#target(name);
    target.update(this.#snapshot.services.get(name));
    this.#wants?.set(name, this.#tunnelledHosts(target));
    return target;
  }

  #checkRoutes(target: LinkTarget): void {
    const { conditions } = this.#options;
    const id = `link.route.${target.name}`;
    const fault = target.routing?.fault;
    if (fault === undefined) conditions.clear(id);
    else if (this.#snapshot.origin !== 'none') {
      conditions.raise(id, 'warning', fault.message, fault.hint);
    }
  }

  #target(name: string): LinkTarget {
    let target = this.#targets.get(name);
    if (target === undefined) {
      const { clock, tunnels, workers } = this.#options;
      target = new LinkTarget({
        name,
        workers,
        clock,
        random: this.#random,
        metrics: this.#metrics,
        suspects: this.#suspects,
        lobby: this.#lobby,
        tunnels,
        dial: (instance) => this.#dial(instance),
        distance: (hostId) => this.#distance(hostId),
      });
      this.#targets.set(name, target);
    }
    return target;
  }

  /** What this host dials for an instance, or undefined when it cannot or should not. */
  #dial(instance: Instance): Dial | undefined {
    const { self, clearUnderlay, credentials } = this.#options;
    const tunnels = this.#wants !== undefined && (credentials === undefined || credentials.value !== undefined);
    const found = dialOf(instance, { hostId: self.hostId, clearUnderlay, tunnels });
    return typeof found === 'string' ? undefined : found;
  }

  /** The hosts that the target's usable instances are reached at through tunnels, and those of its lost ones. */
  #tunnelledHosts({ backends: { tunnelledHosts }, service }: LinkTarget): ReadonlySet<string> {
    if (!isTcp(service)) return tunnelledHosts;
    const lost =
      service?.instances.filter((each) => each.status === 'lost' && this.#dial(each)?.via === 'tunnel') ?? [];
    if (lost.length === 0) return tunnelledHosts;
    return new Set([...tunnelledHosts, ...lost.map(({ hostId }) => hostId)]);
  }

  #distance(hostId: string): Distance {
    const { self, zone } = this.#options;
    if (hostId === self.hostId) return 0;
    return zone !== undefined && this.#snapshot.hosts.get(hostId)?.zone === zone ? 1 : 2;
  }

  /** What is dialled, or how far away hosts are, may have changed for every instance. */
  #reviewAll(): void {
    for (const target of this.#targets.values()) {
      target.review();
      this.#wants?.set(target.name, this.#tunnelledHosts(target));
    }
    if (this.#phase === 'running') void this.#publisher.publish();
  }

  /** Connections that wait for a tunnel go on when it is there; all is dialled anew when this host joins a mesh. */
  #followTunnels(): void {
    const { tunnels, credentials } = this.#options;
    if (tunnels === undefined) return;
    this.#unsubscribe.push(
      tunnels.onChange((hostId) => {
        if (this.#lobby.count === 0 || tunnels.state(hostId).state !== 'ready') return;
        for (const service of [...(this.#wants?.servicesOf(hostId) ?? [])]) this.#lobby.wake(service);
      }),
    );
    let had = credentials?.value !== undefined;
    if (credentials === undefined) return;
    this.#unsubscribe.push(
      credentials.subscribe((now) => {
        if ((now !== undefined) === had) return;
        had = now !== undefined;
        this.#reviewAll();
      }),
    );
  }

  #createLink(
    kind: Link['kind'],
    target: LinkTarget,
    endpoint: Endpoint,
    { port, consumer, instance, createDoor }: Pick<LinkOptions, 'port' | 'consumer' | 'instance' | 'createDoor'> = {},
  ): Link {
    const { clock, log } = this.#options;
    const createListener = (link: Link): TcpListener =>
      new TcpListener({
        endpoint,
        clock,
        random: this.#random,
        listenShared: kind === 'listen' ? this.#options.listenShared : undefined,
        onConnection: (socket: Socket) => this.#crowd.accept(socket, link),
        onChange: () => this.#listens(link),
        onBindError: (error) => void this.#cannotListen(link, endpoint, error),
        onAcceptError: (error) => {
          log.warn('connection not accepted', { 'link.service': target.name, error: describeError(error) });
          this.#crowd.exhausted(error);
        },
      });
    const onExhausted = (error: unknown): void => this.#crowd.exhausted(error);
    const { address } = endpoint;
    return new Link({
      kind,
      target,
      address,
      ...(port !== undefined && { port }),
      ...(instance !== undefined && { instance }),
      clock,
      createListener,
      onExhausted,
      consumer,
      createDoor,
    });
  }

  #createDoor(link: Link, listen: Endpoint, certificates: readonly CertificateFiles[]): Door {
    const { clock, conditions } = this.#options;
    const { target } = link;
    return new Door({
      certificates,
      condition: `link.tls.${target.name}.${formatEndpoint(listen)}`,
      what: `${target.name} at ${formatEndpoint(listen)}`,
      service: () => target.service?.protocol,
      // A service that nobody knows yet is answered for as one of HTTP/1.1 without an instance.
      protocol: () => {
        if (link.speaksHttp2) return 'h2';
        return link.speaksHttp || target.service === undefined ? 'http/1.1' : undefined;
      },
      clock,
      conditions,
      handshakes: this.#crowd.handshakes,
    });
  }

  #listens(link: Link): void {
    link.problem = null;
    this.#options.conditions.clear(conditionOf(link));
    if (this.#phase === 'running') void this.#publisher.publish();
  }

  async #cannotListen(link: Link, endpoint: Endpoint, error: Error): Promise<void> {
    const where = `link to ${link.target.name} cannot listen on ${formatEndpoint(endpoint)}`;
    const plain = describeError(error);
    link.problem ??= plain;
    const explained = await this.#options.explainListenError?.(error, endpoint).catch(() => undefined);
    if (link.listener.bound !== undefined || this.#phase === 'leaving') return;
    link.problem = explained?.message ?? plain;
    const hint = explained?.hint ?? 'free the address or choose another one; it is tried again';
    this.#options.conditions.raise(conditionOf(link), 'error', `${where}: ${link.problem}`, hint);
  }

  /** Listeners whose mappings have left the kernel. */
  #closeRetired(): void {
    for (const link of this.#retired) this.#closeLink(link);
    this.#retired = [];
    for (const link of this.#vips.values()) {
      if (link.predecessor === undefined || link.listener.bound === undefined) continue;
      this.#closeLink(link.predecessor);
      link.predecessor = undefined;
    }
  }

  #closeLink(link: Link): void {
    this.#options.conditions.clear(conditionOf(link));
    void link.close().then(() => this.#forgetUnused(link.target));
  }

  #forgetUnused(target: LinkTarget): void {
    if (target.links.size > 0 || target.active > 0 || this.#targets.get(target.name) !== target) return;
    this.#takeRoutes(target);
    if (target.referrers.size > 0) return;
    this.#targets.delete(target.name);
    this.#wants?.set(target.name, new Set());
  }

  *#activeByService(): Iterable<readonly [string, number]> {
    for (const target of this.#targets.values()) yield [target.name, target.active];
  }

  *#queuedByService(): Iterable<readonly [string, number]> {
    for (const { name, admission, http } of this.#targets.values()) {
      if (http.maxRequests > 0 || admission.queued > 0) yield [name, admission.queued];
    }
  }
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

function isTcp(service: Service | undefined): boolean {
  return service !== undefined && transportOf(service.protocol) === 'tcp';
}

function conditionOf(link: Link): string {
  const at = `link.listen.${link.target.name}.${link.listener}`;
  return link.port === undefined ? at : `${at}.${link.port}`;
}

function rank({ kind }: LinkDocument): number {
  return kind === 'vip' ? 0 : kind === 'alias' ? 1 : 2;
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
