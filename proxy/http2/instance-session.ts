import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect,
  constants,
  type OutgoingHttpHeaders,
} from 'node:http2';
import { connect as dialSocket, type Socket } from 'node:net';
import { systemCode } from '../../src/base/errors.ts';
import type { Endpoint } from '../../src/model/address.ts';
import type { Backend } from '../balance/backend.ts';
import { maxHeadBytes } from '../http/head.ts';
import { instanceProblem } from '../http/instance-problem.ts';
import type { TunnelWay, UpstreamFailure } from '../http/upstream.ts';
import { proxyHeader } from '../tcp/proxy-header.ts';
import { ownLimits, silences } from '../tcp/relay-bounds.ts';
import {
  assumedStreams,
  connectionWindowBytes,
  maxSessionStreams,
  pingAnswerMs,
  sessionMemoryMib,
  silentSessionMs,
  streamWindowBytes,
  tunnelStreamWindowBytes,
} from './bounds.ts';
import { headAlone, withMore } from './stream-options.ts';
import { TunnelDuplex } from './tunnel-duplex.ts';

/** One who waits for a connection to open. Exactly one of the two is called, unless it has left before. */
export interface SessionUser {
  sessionOpened(session: InstanceSession): void;
  sessionFailed(session: InstanceSession, failure: UpstreamFailure): void;
}

export interface InstanceSessionOptions {
  readonly backend: Backend;
  /** Those who may share it: connections through tunnels are their consumer's. */
  readonly owner: string;
  readonly nowMs: () => number;
  /** Called once: nobody can use it any more. */
  readonly closed: (session: InstanceSession) => void;
  /** How many streams the instance took over another connection; undefined: there was none. */
  readonly limit: number | undefined;
  /** How many it takes over this one. */
  readonly limited: (limit: number) => void;
  /** Told to the instance before the first byte, where it wants to know for whom the connection is. */
  readonly announced: { readonly client: Endpoint | undefined } | undefined;
}

const everything = 2 ** 31 - 1;

/** One connection to an instance, over which streams of many clients go side by side. */
export class InstanceSession {
  readonly backend: Backend;
  readonly owner: string;
  /** Where it goes: what is behind a backend may change. */
  readonly place: string;
  /** Monotonic; since when nobody uses it. */
  idleSinceMs: number;
  readonly #options: InstanceSessionOptions;
  readonly #waiting = new Set<SessionUser>();
  #transport: Socket | TunnelDuplex | undefined;
  #session: ClientHttp2Session | undefined;
  #phase: 'connecting' | 'open' | 'draining' | 'closed' = 'connecting';
  #users = 0;
  #limit: number;
  #lastStreamId = everything;
  #takesProtocols = false;
  #problem: string | undefined;
  #blamed = false;
  /** Monotonic; when it was asked something while nothing was outstanding. */
  #askedMs = Number.POSITIVE_INFINITY;
  #bytesSeen = 0;
  #pingedAtBytes = -1;
  #pingDeadlineMs = Number.POSITIVE_INFINITY;

  private constructor(options: InstanceSessionOptions) {
    this.#options = options;
    this.backend = options.backend;
    this.owner = options.owner;
    this.place = options.backend.place;
    this.#limit = options.limit ?? assumedStreams;
    this.idleSinceMs = options.nowMs();
  }

  /** Begins to connect; or says why there is no tunnel. */
  static dial(options: InstanceSessionOptions, way: TunnelWay | undefined): InstanceSession | string {
    const session = new InstanceSession(options);
    const { dial, instance } = options.backend;
    if (dial.via === 'direct') session.#transport = session.#dialSocket(dial.endpoint);
    else {
      if (way === undefined) return 'there is no tunnel';
      const duplex = TunnelDuplex.open(way.tunnels, instance.hostId, way.head, {
        opened: () => session.#connected(),
        failed: (failure) => session.#fail(failure),
      });
      if (typeof duplex === 'string') return duplex;
      session.#transport = duplex;
    }
    session.#transport.once('close', () => session.#fail({ problem: 'the connection was closed', blame: 'instance' }));
    return session;
  }

  #dialSocket({ address, port }: Endpoint): Socket {
    const socket = dialSocket({ host: address, port, noDelay: true });
    socket.once('connect', () => this.#connected());
    socket.on('error', (error) => {
      const problem = instanceProblem(error);
      const code = systemCode(error);
      if (this.isOpen) this.#fail({ problem, blame: 'instance' });
      else if (code !== undefined && ownLimits.has(code)) this.#fail({ problem, blame: 'way', exhausted: error });
      else this.#fail({ problem, blame: code !== undefined && silences.has(code) ? 'host' : 'instance' });
    });
    return socket;
  }

  get isOpen(): boolean {
    return this.#phase === 'open';
  }

  /** Whether the instance knows CONNECT with a protocol (RFC 8441 section 3). */
  get takesProtocols(): boolean {
    return this.#takesProtocols;
  }

  get users(): number {
    return this.#users;
  }

  /** Whether one more may use it. */
  get hasRoom(): boolean {
    return (this.#phase === 'open' || this.#phase === 'connecting') && this.#users < this.#limit;
  }

  /** Takes a place, which is to be given back with `release`. */
  reserve(): void {
    this.#users += 1;
  }

  release(user: SessionUser): void {
    this.#waiting.delete(user);
    this.#users -= 1;
    if (this.#users > 0) return;
    this.idleSinceMs = this.#options.nowMs();
    this.#askedMs = Number.POSITIVE_INFINITY;
    if (this.#phase === 'connecting') this.destroy();
  }

  wait(user: SessionUser): void {
    this.#waiting.add(user);
  }

  /** Begins a stream; `isAll`: the head is all of it. Throws when the session cannot take it: then nothing of it was sent. */
  request(headers: OutgoingHttpHeaders, isAll: boolean): ClientHttp2Stream {
    if (this.#session === undefined) throw new Error('the connection is not open');
    const stream = this.#session.request(headers, isAll ? headAlone : withMore);
    if (this.#askedMs === Number.POSITIVE_INFINITY) this.#askedMs = this.#options.nowMs();
    return stream;
  }

  /** Whether the instance says, or it is clear, that it has not looked at a stream that is closed (RFC 9113 section 8.7). */
  hasIgnored(stream: ClientHttp2Stream): boolean {
    if (stream.rstCode === constants.NGHTTP2_REFUSED_STREAM || stream.id === undefined) return true;
    return stream.id > this.#lastStreamId;
  }

  /** Why a stream that is closed has lost its connection; undefined: the instance has closed that stream alone. */
  loss(): UpstreamFailure | undefined {
    if (this.#phase !== 'closed' && this.#problem === undefined && this.#session?.destroyed === false) return undefined;
    const first = !this.#blamed;
    this.#blamed = true;
    return { problem: this.#problem ?? 'the connection was closed', blame: first ? 'instance' : 'way' };
  }

  /** To be called now and then: finds out whether an instance that does not answer is there at all. */
  tick(nowMs: number): void {
    const session = this.#session;
    if (this.#phase !== 'open' || session === undefined) return;
    const bytes = this.#transport?.bytesRead ?? 0;
    if (nowMs >= this.#pingDeadlineMs) {
      this.#fail({ problem: `no sign of life for ${(silentSessionMs + pingAnswerMs) / 1000} s`, blame: 'host' });
    } else if (bytes !== this.#bytesSeen) {
      this.#bytesSeen = bytes;
      this.#askedMs = this.#users > 0 ? nowMs : Number.POSITIVE_INFINITY;
    } else if (this.#mayPing(nowMs)) this.#ping(session, nowMs);
  }

  /** Only once in a silence: servers of gRPC take more of it for abuse. */
  #mayPing(nowMs: number): boolean {
    const isAsked = this.#pingDeadlineMs !== Number.POSITIVE_INFINITY;
    return !isAsked && nowMs - this.#askedMs >= silentSessionMs && this.#pingedAtBytes !== this.#bytesSeen;
  }

  #ping(session: ClientHttp2Session, nowMs: number): void {
    this.#pingDeadlineMs = nowMs + pingAnswerMs;
    const answerBytes = 17;
    this.#pingedAtBytes = this.#bytesSeen + answerBytes;
    session.ping(() => {
      this.#pingDeadlineMs = Number.POSITIVE_INFINITY;
    });
  }

  /** No further streams; those that run come to their end. */
  close(): void {
    if (this.#phase === 'open') {
      this.#phase = 'draining';
      this.#options.closed(this);
      this.#session?.close();
    } else if (this.#phase === 'connecting') this.destroy();
  }

  destroy(): void {
    this.#fail({ problem: 'nobody needs it any more', blame: 'way' });
  }

  /** It is connected; what it says first shows whether it speaks HTTP/2 at all, before anything is asked. */
  #connected(): void {
    const transport = this.#transport;
    if (this.#phase !== 'connecting' || transport === undefined) return;
    const { backend, announced } = this.#options;
    const { dial } = backend;
    if (announced !== undefined && dial.via === 'direct') transport.write(proxyHeader(announced.client, dial.endpoint));
    const session = connect('http://instance', {
      createConnection: () => transport,
      maxSessionMemory: sessionMemoryMib,
      settings: {
        enablePush: false,
        initialWindowSize: dial.via === 'direct' ? streamWindowBytes : tunnelStreamWindowBytes,
        maxHeaderListSize: maxHeadBytes,
      },
    });
    this.#session = session;
    session.on('connect', () => session.setLocalWindowSize(connectionWindowBytes));
    session.on('remoteSettings', ({ maxConcurrentStreams, enableConnectProtocol }) => {
      this.#takesProtocols = enableConnectProtocol === true;
      this.#limit = Math.min(maxConcurrentStreams ?? maxSessionStreams, maxSessionStreams);
      this.#options.limited(this.#limit);
      this.#open();
    });
    session.on('goaway', (code, lastStreamId) => this.#toldToGo(code, lastStreamId));
    session.on('error', (error) => {
      this.#problem ??= instanceProblem(error);
    });
    session.on('close', () => this.#fail({ problem: this.#problem ?? 'the connection was closed', blame: 'instance' }));
  }

  #open(): void {
    if (this.#phase !== 'connecting') return;
    this.#phase = 'open';
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const [index, user] of waiting.entries()) {
      if (index < this.#limit) user.sessionOpened(this);
      else user.sessionFailed(this, { problem: 'it takes no more streams over this connection', blame: 'way' });
    }
  }

  #toldToGo(code: number, lastStreamId: number): void {
    this.#lastStreamId = Math.min(this.#lastStreamId, lastStreamId);
    if (code !== constants.NGHTTP2_NO_ERROR) this.#problem ??= `the instance closed the connection with error ${code}`;
    if (this.#phase === 'connecting') this.#fail({ problem: 'the instance takes no streams', blame: 'way' });
    if (this.#phase !== 'open') return;
    this.#phase = 'draining';
    this.#options.closed(this);
  }

  /** The first who waits hears whose fault it is, so that one failure does not count as many. */
  #fail(failure: UpstreamFailure): void {
    if (this.#phase === 'closed') return;
    const wasKnown = this.#phase === 'draining';
    this.#phase = 'closed';
    this.#problem ??= failure.problem;
    if (!wasKnown) this.#options.closed(this);
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const [index, user] of waiting.entries())
      user.sessionFailed(this, index === 0 ? failure : { ...failure, blame: 'way' });
    // The session goes with its transport, and may be reading; see `resetStream`.
    setImmediate(() => this.#transport?.destroy());
  }
}
