import type { TLSSocket } from 'node:tls';
import { Backoff } from '../../src/base/backoff.ts';
import type { Clock } from '../../src/base/clock.ts';
import type { Conditions } from '../../src/base/conditions.ts';
import { span } from '../../src/base/duration.ts';
import { describeError } from '../../src/base/errors.ts';
import type { Log } from '../../src/base/log.ts';
import { type Endpoint, formatEndpoint } from '../../src/model/address.ts';
import { comeBackHint } from '../../src/model/policy.ts';
import { certificatesOf } from '../../src/pki/chain.ts';
import { type Dialled, type DialProblem, dialTunnel } from './dial.ts';
import type { GatherBuffers } from './frame-writer.ts';
import type { RecordReader } from './record-reader.ts';
import { TunnelSession } from './session.ts';
import type { TlsContexts } from './tls-contexts.ts';
import { isUnder, type PeerIdentity, refusalOf, type TrustContext } from './trust.ts';
import type { TunnelDocument } from './tunnel-document.ts';
import type { TunnelMetrics, TunnelTraffic } from './tunnel-metrics.ts';
import type { AcceptStream, TunnelState } from './tunnels.ts';

/** Connections that a host dials to each other one: the second is for what comes while the first carries much. */
export const connectionsPerHost = 2;
/** Connections of one other host that are accepted at a time: each of its processes dials `connectionsPerHost`. */
export const maxAcceptedPerHost = 256;
/** Delays between tries. A connection that lived for `steadyMs` has shown that the host is well. */
export const redialFirstMs = 50;
export const redialCeilingMs = 5000;
const steadyMs = 5000;
/** From the end of the handshake to the other side's HELLO. */
const helloMs = 5000;
/** How long streams go on being opened by a certificate that has run out, while no newer one is shown. */
export const expiredGraceMs = 60_000;
/** Failed tries in a row after which it is told to people. */
const toldAfter = 2;
/** How long a connected host may keep silent before that is told to people. */
export const silenceToldMs = 2000;
/** Bytes in about two ticks from which on a connection is busy, and new streams go elsewhere. */
const busyBytes = 4 * 1_048_576;

/** What all peers share. */
export interface PeerEnvironment {
  readonly clock: Clock;
  readonly random: () => number;
  readonly log: Log;
  readonly conditions: Conditions;
  readonly metrics: TunnelMetrics;
  readonly buffers: GatherBuffers;
  readonly contexts: TlsContexts;
  /** Undefined while this host has no certificate. */
  readonly trust: () => TrustContext | undefined;
  readonly endpointOf: (hostId: string) => Endpoint | undefined;
  readonly nameOf: (hostId: string) => string;
  /** Whether the store has no sign of life of it, which is told elsewhere. */
  readonly isLost: (hostId: string) => boolean;
  readonly accept: AcceptStream;
  /** The state of the host has changed. */
  readonly changed: (hostId: string) => void;
  /** There is something to look at regularly. */
  readonly busy: () => void;
}

interface Connection {
  readonly session: TunnelSession;
  readonly peer: PeerIdentity;
  /** What this host showed, in PEM. */
  readonly shown: string;
  /** A root of its handshake has been replaced since. What runs on it goes on until a certificate ends; what is new goes elsewhere. */
  outdated: boolean;
  readonly sinceMs: number;
}

/** All connections with one other host, those dialled and those accepted. */
export class TunnelPeer {
  readonly hostId: string;
  readonly #environment: PeerEnvironment;
  readonly #backoff: Backoff;
  readonly #traffic: TunnelTraffic;
  #dialled: Connection[] = [];
  #accepted: Connection[] = [];
  #wanted = false;
  #dialling: AbortController | undefined;
  #cancelRetry: (() => void) | undefined;
  #cancelSilence: (() => void) | undefined;
  #failed: DialProblem | undefined;
  #state: TunnelState = { state: 'idle', problem: null };
  #sinceMs: number;
  #certificateUntilMs: number | undefined;
  #leaving = false;
  #closed = false;

  constructor(hostId: string, environment: PeerEnvironment) {
    this.hostId = hostId;
    this.#environment = environment;
    this.#backoff = new Backoff(redialFirstMs, redialCeilingMs, environment.random);
    this.#traffic = environment.metrics.traffic(hostId);
    this.#sinceMs = environment.clock.nowMs();
  }

  get state(): TunnelState {
    return this.#state;
  }

  *sessions(): Iterable<TunnelSession> {
    for (const { session } of this.#dialled) yield session;
    for (const { session } of this.#accepted) yield session;
  }

  /** Whether nothing of it is left to keep. */
  get unused(): boolean {
    return !this.#wanted && this.#dialled.length === 0 && this.#accepted.length === 0;
  }

  want(wanted: boolean): void {
    if (wanted === this.#wanted || this.#closed) return;
    this.#wanted = wanted;
    if (wanted) this.#maintain();
    else {
      this.#stopDialling();
      for (const { session } of [...this.#dialled]) session.leave('leaving');
      this.#failed = undefined;
    }
    this.#update();
  }

  /** Whatever made tries fail may be over: the next one is made now. */
  retry(): void {
    this.#backoff.reset();
    this.#stopDialling();
    this.#maintain();
    this.#update();
  }

  /** The session for a new stream, or why there is none. */
  choose(): TunnelSession | string {
    let best: TunnelSession | undefined;
    for (const { session } of this.#dialled) {
      if (!session.usable) continue;
      if (best === undefined || this.#isBetter(session, best)) best = session;
    }
    return best ?? this.#state.problem ?? 'no tunnel to it is open';
  }

  /** The first one as long as it is well and carries little, since what leaves together costs less. */
  #isBetter(session: TunnelSession, than: TunnelSession): boolean {
    if (session.suspect !== than.suspect) return than.suspect;
    return than.recentBytes >= busyBytes && session.recentBytes < than.recentBytes / 2;
  }

  /** Takes over a connection that the other host dialled; false when it has too many. */
  take(socket: TLSSocket, peer: PeerIdentity): boolean {
    if (this.#closed || this.#accepted.length >= maxAcceptedPerHost) return false;
    const connection = this.#connect(
      { socket, shown: this.#environment.trust()?.credentials.chain ?? '' },
      peer,
      'accepted',
      () => undefined,
      (problem) => {
        this.#accepted = this.#accepted.filter((each) => each !== connection);
        if (problem !== undefined) this.#log('a tunnel from another host is gone', problem);
        this.#update();
      },
    );
    this.#accepted.push(connection);
    this.#certificateUntilMs = Math.max(this.#certificateUntilMs ?? 0, peer.notAfterMs);
    // Where it dials from, it may be dialled again.
    if (this.#wanted && this.#cancelRetry !== undefined) this.retry();
    this.#update();
    return true;
  }

  /** This process ends with what runs: no new streams from the other host, and nothing is dialled any more. */
  leave(): void {
    this.#leaving = true;
    this.#stopDialling();
    for (const { session } of [...this.#accepted]) session.leave('leaving', 'this host leaves');
  }

  close(): void {
    this.#closed = true;
    this.#stopDialling();
    this.#cancelSilence?.();
    for (const session of [...this.sessions()]) session.cut('leaving', 'this host leaves');
    this.#environment.conditions.clear(this.#condition);
  }

  /** Closes what the present policy does not allow any more; what was made by roots that are gone is made anew. */
  verify(trust: TrustContext | undefined): void {
    for (const connection of [...this.#dialled, ...this.#accepted]) {
      const { session, peer, shown } = connection;
      const refusal = trust === undefined ? 'this host has left the mesh' : refusalOf(peer, trust);
      if (refusal !== undefined) session.cut('refused', refusal);
      else if (trust !== undefined) {
        const { roots } = trust.credentials;
        connection.outdated = !isUnder(peer.chain, roots) || !isUnder(certificatesOf(shown) ?? [], roots);
      }
    }
    this.#maintain();
  }

  /** To be called now and then: what was opened by a certificate that has run out is made anew. */
  checkDates(nowMs: number): void {
    for (const { session, peer, outdated } of [...this.#accepted, ...this.#dialled]) {
      if (outdated && peer.notAfterMs < nowMs)
        session.cut('refused', 'your certificate has ended, and its root is gone');
    }
    for (const { session, peer, outdated } of [...this.#accepted]) {
      if (peer.notAfterMs < nowMs) session.leave('renew', 'your certificate has ended');
      // Who dialled has seen the same roots go, and has made another connection meanwhile.
      else if (outdated) session.leave('renew', 'the root of its certificates has been replaced');
    }
    for (const { session, peer } of [...this.#dialled]) {
      if (peer.notAfterMs + expiredGraceMs < nowMs) session.leave('renew', 'your certificate has ended');
    }
    this.#maintain();
  }

  document(): TunnelDocument {
    const endpoint = this.#environment.endpointOf(this.hostId);
    const [first] = this.#dialled;
    const { opened, accepted, received, sent } = this.#traffic;
    let active = 0;
    for (const session of this.sessions()) active += session.streams;
    const roundTripMs = first?.session.roundTripMs;
    return {
      hostId: this.hostId,
      host: this.#environment.nameOf(this.hostId),
      address: endpoint === undefined ? null : formatEndpoint(endpoint),
      state: this.#state.state,
      since: new Date(this.#sinceMs).toISOString(),
      problem: this.#state.problem,
      connections: { dialled: this.#dialled.length, accepted: this.#accepted.length },
      streams: { active, opened: opened.value, accepted: accepted.value },
      bytes: { received: received.value, sent: sent.value },
      roundTripMs: roundTripMs === undefined ? null : Math.round(roundTripMs * 1000) / 1000,
      peerCertificateUntil:
        this.#certificateUntilMs === undefined ? null : new Date(this.#certificateUntilMs).toISOString(),
    };
  }

  // Dialling

  #stopDialling(): void {
    this.#cancelRetry?.();
    this.#cancelRetry = undefined;
    this.#dialling?.abort();
    this.#dialling = undefined;
  }

  /** Dials when a connection is missing, one at a time. */
  #maintain(): void {
    if (!this.#wanted || this.#leaving || this.#closed) return;
    if (this.#dialling !== undefined || this.#cancelRetry !== undefined) return;
    const nowMs = this.#environment.clock.nowMs();
    const fresh = this.#dialled.filter(
      ({ session, peer, outdated }) => isKept(session) && !outdated && peer.notAfterMs >= nowMs,
    );
    if (fresh.length >= connectionsPerHost) return;
    const dialling = new AbortController();
    this.#dialling = dialling;
    void this.#dial(dialling.signal).then((problem) => {
      if (this.#dialling !== dialling) return;
      this.#dialling = undefined;
      if (problem === undefined) this.#succeeded();
      else this.#fail(problem);
    });
  }

  #succeeded(): void {
    this.#failed = undefined;
    const nowMs = this.#environment.clock.nowMs();
    for (const { session, peer, outdated } of [...this.#dialled])
      if (outdated || peer.notAfterMs < nowMs) session.leave('renew');
    this.#update();
    this.#maintain();
  }

  #fail(problem: DialProblem): void {
    this.#failed = problem;
    this.#environment.metrics.dialFailed();
    this.#retryLater();
    this.#update();
  }

  #retryLater(): void {
    if (this.#closed || this.#leaving || !this.#wanted || this.#cancelRetry !== undefined) return;
    this.#cancelRetry = this.#environment.clock.after(this.#backoff.nextMs(), () => {
      this.#cancelRetry = undefined;
      this.#maintain();
    });
  }

  /** One try; what went wrong, or undefined when the connection is ready. */
  async #dial(signal: AbortSignal): Promise<DialProblem | undefined> {
    const { clock, contexts, trust, endpointOf } = this.#environment;
    const endpoint = endpointOf(this.hostId);
    if (endpoint === undefined)
      return { problem: 'its address is not known', hint: 'its sidecar registers it when it reaches the store' };
    const now = trust();
    if (now === undefined) return { problem: 'this host has no certificate', hint: 'join the mesh: `legate join`' };
    let context: ReturnType<TlsContexts['for']>;
    try {
      context = contexts.for(now.credentials);
    } catch (error) {
      return {
        problem: `this host's certificate cannot be used: ${describeError(error)}`,
        hint: 'see `legate status`',
      };
    }
    const result = await dialTunnel({ endpoint, hostId: this.hostId, context, trust, clock, signal });
    if ('problem' in result) return result;
    this.#certificateUntilMs = result.peer.notAfterMs;
    return this.#greet(result, now.credentials.chain, formatEndpoint(endpoint), signal);
  }

  /** The handshake alone does not tell whether the other side accepts us: its HELLO does. */
  #greet(
    { socket, reader, peer }: Dialled,
    shown: string,
    at: string,
    signal: AbortSignal,
  ): Promise<DialProblem | undefined> {
    return new Promise((resolve) => {
      const { clock } = this.#environment;
      let greeted = false;
      const silent = (): void => connection.session.cut('leaving', 'no HELLO');
      const cancelTimer = clock.after(helloMs, silent);
      const connection = this.#connect(
        { socket, reader, shown },
        peer,
        'dialled',
        () => {
          greeted = true;
          cancelTimer();
          signal.removeEventListener('abort', silent);
          this.#dialled.push(connection);
          resolve(undefined);
        },
        (problem) => {
          cancelTimer();
          signal.removeEventListener('abort', silent);
          if (greeted) this.#lost(connection, problem);
          else resolve(refused(at, connection.session, problem));
        },
      );
      signal.addEventListener('abort', silent, { once: true });
    });
  }

  #connect(
    { shown, ...way }: { readonly socket: TLSSocket; readonly reader?: RecordReader; readonly shown: string },
    peer: PeerIdentity,
    role: 'dialled' | 'accepted',
    greeted: () => void,
    closed: (problem: string | undefined) => void,
  ): Connection {
    const { clock, buffers, accept } = this.#environment;
    const { hostId } = this;
    const changed = (): void => {
      this.#maintain();
      this.#update();
    };
    const session = new TunnelSession({
      ...{ ...way, role, hostId, clock, buffers, traffic: this.#traffic },
      ...(role === 'accepted' && { accept }),
      events: { greeted, changed, closed },
    });
    this.#environment.busy();
    return { session, peer, shown, outdated: false, sinceMs: clock.monotonicMs() };
  }

  #lost(connection: Connection, problem: string | undefined): void {
    this.#dialled = this.#dialled.filter((each) => each !== connection);
    if (this.#closed) return;
    if (this.#environment.clock.monotonicMs() - connection.sinceMs >= steadyMs) this.#backoff.reset();
    if (problem !== undefined) {
      this.#log('a tunnel to another host is gone', problem);
      if (this.#wanted) this.#failed = { problem, hint: 'it is made again by itself' };
    }
    if (this.#dialling === undefined) this.#retryLater();
    this.#update();
  }

  // Telling

  get #condition(): string {
    return `tunnel.host.${this.hostId}`;
  }

  #log(message: string, problem: string): void {
    const { log, nameOf } = this.#environment;
    log.info(message, { 'host.id': this.hostId, 'host.name': nameOf(this.hostId), 'tunnel.problem': problem });
  }

  #update(): void {
    const next = this.#now();
    const before = this.#state;
    this.#tell(next);
    if (next.state === before.state && next.problem === before.problem) return;
    this.#state = next;
    // A connection that is given up after its silence is the same trouble.
    const goesOn = before.state === 'suspect' && next.state === 'connecting';
    if (next.state !== before.state && !goesOn) this.#sinceMs = this.#environment.clock.nowMs();
    this.#environment.changed(this.hostId);
  }

  #now(): TunnelState {
    let suspect = false;
    for (const { session } of this.#dialled) {
      if (!session.usable) continue;
      if (!session.suspect) return { state: 'ready', problem: null };
      suspect = true;
    }
    if (suspect) return { state: 'suspect', problem: 'it does not answer just now' };
    if (!this.#wanted) return { state: 'idle', problem: null };
    return { state: 'connecting', problem: this.#failed?.problem ?? this.#expired() ?? 'not connected yet' };
  }

  #expired(): string | undefined {
    const overMs = this.#environment.clock.nowMs() - (this.#certificateUntilMs ?? Number.POSITIVE_INFINITY);
    return overMs > 0 ? `its certificate ended ${span(overMs)} ago` : undefined;
  }

  #tell({ state, problem }: TunnelState): void {
    const { conditions, nameOf, isLost } = this.#environment;
    // That nobody answers at a lost host is no news; that it shows a bad certificate is.
    if (isLost(this.hostId) && this.#failed?.isAnswer !== true) conditions.clear(this.#condition);
    else if (
      state === 'connecting' &&
      this.#backoff.failures >= toldAfter &&
      this.#failed !== undefined &&
      !this.#closed
    ) {
      const message = `no tunnel to host ${nameOf(this.hostId)}: ${problem}`;
      conditions.raise(this.#condition, 'warning', message, this.#failed.hint);
    } else if (state === 'ready' || state === 'idle') conditions.clear(this.#condition);
    if (state !== 'suspect' || !this.#wanted || this.#closed) {
      this.#cancelSilence?.();
      this.#cancelSilence = undefined;
    } else this.#cancelSilence ??= this.#environment.clock.after(silenceToldMs, () => this.#tellSilence());
  }

  #tellSilence(): void {
    const { conditions, nameOf, endpointOf, isLost } = this.#environment;
    if (isLost(this.hostId)) return;
    const name = nameOf(this.hostId);
    const endpoint = endpointOf(this.hostId);
    const at = endpoint === undefined ? '' : ` on ${formatEndpoint(endpoint)}`;
    const port = endpoint === undefined ? 'its tunnel port' : `${endpoint.port}/tcp`;
    const hint = `is ${name} up, and does a firewall there or on the way drop ${port}?`;
    conditions.raise(this.#condition, 'warning', `host ${name} does not answer${at}`, hint);
  }
}

/** Whether a connection still counts as one to open streams on. */
function isKept(session: TunnelSession): boolean {
  return !session.closed && session.goingAway === undefined && !session.leaving;
}

function refused(at: string, session: TunnelSession, problem: string | undefined): DialProblem {
  const said = session.goingAway;
  if (said?.reason === 'refused') {
    // The words of `peerOf` on the other side.
    const hint = /^host \S+ is revoked$/.test(said.detail) ? comeBackHint : 'see `legate status` on both hosts';
    return { problem: `${at} refuses this host: ${said.detail}`, hint, isAnswer: true };
  }
  if (said !== undefined)
    return { problem: `${at} takes no tunnels just now: ${said.detail}`, hint: 'it is tried again' };
  return { problem: `${at} closed the connection: ${problem ?? 'without a word'}`, hint: 'see the log of its sidecar' };
}
