import type { Socket } from 'node:net';
import type { Clock } from '../../src/base/clock.ts';
import type { Conditions } from '../../src/base/conditions.ts';
import { describeError, type LegateError } from '../../src/base/errors.ts';
import type { Observable } from '../../src/base/feed.ts';
import type { Log } from '../../src/base/log.ts';
import type { Metrics } from '../../src/base/metrics.ts';
import type { Snapshot } from '../../src/catalog/snapshot.ts';
import { type Endpoint, formatEndpoint } from '../../src/model/address.ts';
import type { Credentials } from '../../src/model/credentials.ts';
import type { Policy } from '../../src/model/policy.ts';
import type { EnrolmentDesk } from '../../src/pki/desk.ts';
import { type ListenShared, TcpListener } from '../tcp/listener.ts';
import { TunnelDoor } from './door.ts';
import { GatherBuffers } from './frame-writer.ts';
import { HostDirectory } from './host-directory.ts';
import { tickMs } from './limits.ts';
import { type PeerEnvironment, TunnelPeer } from './peer.ts';
import type { TunnelSession } from './session.ts';
import { headFault } from './stream-head.ts';
import { TlsContexts } from './tls-contexts.ts';
import type { PeerIdentity, TrustContext } from './trust.ts';
import type { TunnelDocument } from './tunnel-document.ts';
import { TunnelMetrics } from './tunnel-metrics.ts';
import type { AcceptStream, StreamEvents, StreamHead, TunnelState, TunnelStream, Tunnels } from './tunnels.ts';

/** Ticks between two looks at the dates of certificates. */
const ticksPerDateCheck = 8;
const listenCondition = 'tunnel.listen';

export interface TunnelPlaneOptions {
  readonly self: { readonly hostId: string };
  /** Where it listens while there are credentials; undefined where connections come from elsewhere, by `take`. */
  readonly listen: Endpoint | undefined;
  readonly credentials: Observable<Credentials | undefined>;
  readonly policy: Observable<Policy | undefined>;
  /** Where other hosts are. */
  readonly snapshots: Observable<Snapshot>;
  readonly desk?: EnrolmentDesk | undefined;
  /** Called for each stream that another host opens. */
  readonly accept: AcceptStream;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  readonly random?: () => number;
  /** Where several processes share the listener: who makes its handle. */
  readonly listenShared?: ListenShared;
  /** Finds out who holds an address that cannot be listened on. */
  readonly explainListenError?: ((error: Error, endpoint: Endpoint) => Promise<LegateError>) | undefined;
}

/** All tunnels of this process: those that it keeps to hosts that links want, and those that other hosts made to it. */
export class TunnelPlane implements Tunnels {
  readonly #options: TunnelPlaneOptions;
  readonly #directory: HostDirectory;
  readonly #environment: PeerEnvironment;
  readonly #door: TunnelDoor;
  readonly #peers = new Map<string, TunnelPeer>();
  readonly #listeners = new Set<(hostId: string) => void>();
  readonly #unsubscribe: (() => void)[] = [];
  readonly #contexts = new TlsContexts();
  #listener: TcpListener | undefined;
  #cancelTick: (() => void) | undefined;
  #ticks = 0;
  #version = 0;
  #phase: 'new' | 'running' | 'leaving' | 'closed' = 'new';

  constructor(options: TunnelPlaneOptions) {
    this.#options = options;
    const { clock, log, conditions, desk, accept } = options;
    this.#directory = new HostDirectory(options.snapshots);
    const metrics = new TunnelMetrics(options.metrics, {
      connections: () => this.#countConnections(),
      streams: () => this.#sum((session) => session.streams),
      heldBytes: () => this.#sum((session) => session.heldBytes),
      suspectHosts: () => [...this.#peers.values()].filter(({ state }) => state.state === 'suspect').length,
    });
    const buffers = new GatherBuffers();
    const trust = (): TrustContext | undefined => this.#trust();
    const nameOf = (hostId: string): string => this.#directory.nameOf(hostId);
    this.#environment = {
      ...{ clock, log, conditions, metrics, buffers, trust, accept, contexts: this.#contexts },
      random: options.random ?? Math.random,
      endpointOf: (hostId) => this.#directory.endpointOf(hostId),
      nameOf,
      isLost: (hostId) => this.#directory.isLost(hostId),
      changed: (hostId) => this.#changed(hostId),
      busy: () => this.#tickLater(),
    };
    const onTunnel = (socket: Parameters<TunnelPeer['take']>[0], peer: PeerIdentity): boolean =>
      this.#phase === 'running' && this.#peer(peer.hostId).take(socket, peer);
    this.#door = new TunnelDoor({ clock, log, conditions, metrics, buffers, trust, desk, nameOf, onTunnel });
  }

  /** Resolves when the first try to listen was made, if there is something to show. */
  async start(): Promise<void> {
    if (this.#phase !== 'new') throw new Error('a tunnel plane starts once');
    this.#phase = 'running';
    const { credentials, policy } = this.#options;
    this.#unsubscribe.push(
      credentials.subscribe(() => this.#believe()),
      policy.subscribe(() => this.#believe()),
      this.#directory.onChange((hostId) => this.#peers.get(hostId)?.retry()),
    );
    for (const peer of this.#peers.values()) peer.retry();
    await this.#listen();
  }

  // Links

  get version(): number {
    return this.#version;
  }

  open(hostId: string, head: StreamHead, events: StreamEvents): TunnelStream | string {
    const session = this.#peers.get(hostId)?.choose() ?? 'no tunnel to it was asked for';
    if (typeof session === 'string') return session;
    return headFault(head) ?? session.openStream(head, events);
  }

  state(hostId: string): TunnelState {
    return this.#peers.get(hostId)?.state ?? { state: 'idle', problem: null };
  }

  want(hostId: string, wanted: boolean): void {
    if (this.#phase === 'closed' || hostId === this.#options.self.hostId) return;
    if ((wanted && this.#phase !== 'leaving') || this.#peers.has(hostId)) this.#peer(hostId).want(wanted);
  }

  onChange(listener: (hostId: string) => void): () => void {
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
    };
  }

  // The rest of the sidecar

  /** Where it listens; undefined while it does not. */
  get bound(): Endpoint | undefined {
    return this.#listener?.bound;
  }

  /** Takes over a connection that somebody else accepted, and of which nothing was read. */
  take(socket: Socket): void {
    if (this.#phase === 'running') this.#door.take(socket);
    else socket.destroy();
  }

  /** One for each host that links have asked for or that is connected, by name. */
  documents(): TunnelDocument[] {
    return [...this.#peers.values()]
      .filter((peer) => !peer.unused)
      .map((peer) => peer.document())
      .sort((a, b) => (a.host < b.host ? -1 : a.host > b.host ? 1 : 0));
  }

  /** Takes nothing new from other hosts, and dials none any more. What runs goes on. */
  async leave(): Promise<void> {
    if (this.#phase === 'leaving' || this.#phase === 'closed') return;
    this.#phase = 'leaving';
    for (const unsubscribe of this.#unsubscribe) unsubscribe();
    await this.#listener?.close();
    this.#listener = undefined;
    this.#options.conditions.clear(listenCondition);
    for (const peer of this.#peers.values()) peer.leave();
  }

  /** Those whose connections were accepted and are not known yet hear what becomes of them; waits no longer than `limitMs`. */
  greeted(limitMs: number): Promise<void> {
    return this.#door.settled(limitMs);
  }

  /** Closes everything at once. */
  async close(): Promise<void> {
    await this.leave();
    if (this.#phase === 'closed') return;
    this.#phase = 'closed';
    this.#door.close();
    for (const peer of this.#peers.values()) peer.close();
    this.#cancelTick?.();
    this.#listeners.clear();
  }

  // Whom to believe

  #trust(): TrustContext | undefined {
    const { credentials, policy, clock, self } = this.#options;
    const present = credentials.value;
    if (present === undefined || present.hostId !== self.hostId) return undefined;
    return { credentials: present, policy: policy.value, nowMs: clock.nowMs() };
  }

  #believe(): void {
    if (this.#phase !== 'running') return;
    const trust = this.#trust();
    for (const peer of this.#peers.values()) {
      peer.verify(trust);
      if (peer.state.state === 'connecting') peer.retry();
    }
    void this.#listen();
  }

  /** Listens while there is a certificate to show. */
  async #listen(): Promise<void> {
    const { listen, listenShared, clock, log } = this.#options;
    if (listen === undefined || this.#phase !== 'running') return;
    if (this.#trust() === undefined) {
      await this.#listener?.close();
      this.#listener = undefined;
      this.#options.conditions.clear(listenCondition);
      return;
    }
    if (this.#listener !== undefined) return;
    const listener = new TcpListener({
      endpoint: listen,
      listenShared,
      clock,
      random: this.#environment.random,
      onConnection: (socket) => this.take(socket),
      onChange: () => this.#options.conditions.clear(listenCondition),
      onBindError: (error) => void this.#cannotListen(listener, listen, error),
      onAcceptError: (error) => log.warn('tunnel connection not accepted', { error: describeError(error) }),
    });
    this.#listener = listener;
    await listener.start();
  }

  async #cannotListen(listener: TcpListener, endpoint: Endpoint, error: Error): Promise<void> {
    const explained = await this.#options.explainListenError?.(error, endpoint).catch(() => undefined);
    if (listener !== this.#listener || listener.bound !== undefined || this.#phase !== 'running') return;
    const message = `tunnels cannot listen on ${formatEndpoint(endpoint)}: ${explained?.message ?? describeError(error)}`;
    const hint = explained?.hint ?? 'free the address or set `tunnel.listen`';
    this.#options.conditions.raise(
      listenCondition,
      'error',
      message,
      `${hint}; until then no other host reaches this one`,
    );
  }

  // Peers

  #peer(hostId: string): TunnelPeer {
    let peer = this.#peers.get(hostId);
    if (peer === undefined) {
      peer = new TunnelPeer(hostId, this.#environment);
      this.#peers.set(hostId, peer);
    }
    return peer;
  }

  #changed(hostId: string): void {
    this.#version += 1;
    for (const listener of [...this.#listeners]) listener(hostId);
  }

  #tickLater(): void {
    if (this.#cancelTick !== undefined || this.#phase === 'closed') return;
    this.#cancelTick = this.#options.clock.after(tickMs, () => this.#tick());
  }

  #tick(): void {
    this.#cancelTick = undefined;
    this.#ticks += 1;
    const { clock } = this.#options;
    const nowMs = clock.monotonicMs();
    const checksDates = this.#ticks % ticksPerDateCheck === 0;
    let busy = false;
    for (const [hostId, peer] of this.#peers) {
      for (const session of [...peer.sessions()]) {
        busy = true;
        session.tick(nowMs);
      }
      if (checksDates) peer.checkDates(clock.nowMs());
      if (peer.unused) this.#peers.delete(hostId);
    }
    if (busy) this.#tickLater();
  }

  *#countConnections(): Iterable<readonly ['dialled' | 'accepted', number]> {
    for (const role of ['dialled', 'accepted'] as const)
      yield [role, this.#sum((session) => (session.role === role ? 1 : 0))];
  }

  #sum(of: (session: TunnelSession) => number): number {
    let sum = 0;
    for (const peer of this.#peers.values()) for (const session of peer.sessions()) sum += of(session);
    return sum;
  }
}
