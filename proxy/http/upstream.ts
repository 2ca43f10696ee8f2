import type { Socket } from 'node:net';
import { systemCode } from '../../src/base/errors.ts';
import type { Backend } from '../balance/backend.ts';
import type { DirectWrites } from '../tcp/direct-writes.ts';
import { dialInstance, type InstanceSocketEvents } from '../tcp/instance-socket.ts';
import { proxyHeader } from '../tcp/proxy-header.ts';
import type { ReadBuffers } from '../tcp/read-buffers.ts';
import { ownLimits, silences } from '../tcp/relay-bounds.ts';
import type { Blame } from '../tcp/route.ts';
import { ResetAfterEnd } from '../tcp/socket-ends.ts';
import { SocketWriter } from '../tcp/socket-writer.ts';
import { streamFaults } from '../tcp/stream-faults.ts';
import type { Upstream } from '../tcp/upstream.ts';
import { type StreamListener, StreamUpstream } from '../tunnel/stream-upstream.ts';
import type { ResetReason, StreamHead, Tunnels } from '../tunnel/tunnels.ts';
import { instanceProblem } from './instance-problem.ts';

/** What whoever uses a connection hears of it. */
export interface UpstreamUser {
  upstreamOpened(): void;
  /** The bytes may be looked at only during the call, unless they were written to a client that has not taken them: then false stops the reading. */
  upstreamBytes(chunk: Buffer): boolean;
  upstreamDrained(): void;
  /** The instance has said all that it had to say. */
  upstreamEnded(): void;
  upstreamFailed(failure: UpstreamFailure): void;
}

export interface UpstreamFailure {
  readonly problem: string;
  readonly blame: Blame;
  /** This machine is at a limit of its own. */
  readonly exhausted?: Error;
  /** The instance's host does not let this consumer in: another one would say the same. */
  readonly denied?: boolean;
  /** It was asked, and has not answered in its time. */
  readonly timedOut?: boolean;
  /** The instance had closed the connection, with nothing left to read, before it got what was written last. */
  readonly closedBefore?: boolean;
}

/** Through which tunnel, and as whom. */
export interface TunnelWay {
  readonly tunnels: Tunnels;
  readonly head: StreamHead;
}

export interface UpstreamOptions {
  readonly backend: Backend;
  /** Those who may share it: connections through tunnels are their consumer's. */
  readonly owner: string;
  readonly buffers: ReadBuffers;
  readonly writes: DirectWrites;
  readonly user: UpstreamUser;
  /** It was idle, and is gone or said something that nobody asked for. */
  readonly lost: (upstream: HttpUpstream) => void;
}

/** One connection to an instance over which requests go, one after another: a socket, or a stream of a tunnel. */
export class HttpUpstream implements StreamListener, InstanceSocketEvents {
  readonly backend: Backend;
  readonly owner: string;
  /** Requests that went over it. */
  requests = 0;
  /** Monotonic; when the last one ended. */
  idleSinceMs = 0;
  open = false;
  readonly #options: UpstreamOptions;
  #user: UpstreamUser | undefined;
  #transport: Upstream | undefined;
  /** Of a socket; a stream has none. */
  #writer: SocketWriter | undefined;

  private constructor(options: UpstreamOptions) {
    this.#options = options;
    this.backend = options.backend;
    this.owner = options.owner;
    this.#user = options.user;
  }

  /** Begins to connect; or says why there is no tunnel. */
  static dial(options: UpstreamOptions, way: TunnelWay | undefined): HttpUpstream | string {
    const upstream = new HttpUpstream(options);
    const { dial, instance } = options.backend;
    if (dial.via === 'direct') {
      const socket = dialInstance(dial.endpoint, options.buffers, upstream);
      upstream.#transport = socket;
      upstream.#writer = new SocketWriter(socket, options.writes, () => upstream.#user?.upstreamDrained());
    } else {
      if (way === undefined) return 'there is no tunnel';
      const stream = StreamUpstream.open(way.tunnels, instance.hostId, way.head, upstream);
      if (typeof stream === 'string') return stream;
      upstream.#transport = stream;
    }
    return upstream;
  }

  /** Whether bytes may be written: a stream takes them before it is open. */
  get flows(): boolean {
    return this.open || this.backend.dial.via === 'tunnel';
  }

  get full(): boolean {
    return (this.#writer?.pending ?? this.#transport?.writableLength ?? 0) > 0;
  }

  get destroyed(): boolean {
    return this.#transport?.destroyed ?? true;
  }

  use(user: UpstreamUser | undefined): void {
    this.#user = user;
  }

  announce(client: { readonly address: string; readonly port: number } | undefined): void {
    const { dial } = this.backend;
    if (dial.via === 'direct') this.write(proxyHeader(client, dial.endpoint));
  }

  write(chunk: Buffer): void {
    if (this.#writer !== undefined) this.#writer.write(chunk);
    else this.#transport?.write(chunk);
  }

  /** The client has said all that it had to say, in another protocol. */
  end(): void {
    this.#transport?.end();
  }

  resume(): void {
    this.#transport?.resume();
  }

  /** Nothing more is heard of it. */
  destroy(): void {
    this.#user = undefined;
    this.#transport?.destroy();
  }

  #bytes(chunk: Buffer): boolean {
    if (this.#user !== undefined) return this.#user.upstreamBytes(chunk);
    this.#goneIdle();
    return true;
  }

  #ended(): void {
    if (this.#user === undefined) this.#goneIdle();
    else this.#user.upstreamEnded();
  }

  #failed(failure: UpstreamFailure): void {
    if (this.#user === undefined) this.#goneIdle();
    else this.#user.upstreamFailed(failure);
  }

  #goneIdle(): void {
    this.#options.lost(this);
    this.#transport?.destroy();
  }

  // A socket

  socketOpened(): void {
    this.open = true;
    this.#user?.upstreamOpened();
  }

  socketBytes(_socket: Socket, chunk: Buffer): boolean {
    return this.#bytes(chunk);
  }

  socketEnded(): void {
    this.#ended();
  }

  socketFailed(_socket: Socket, error: Error): void {
    const problem = instanceProblem(error);
    const code = systemCode(error);
    if (this.open) this.#failed({ problem, blame: 'instance', closedBefore: error instanceof ResetAfterEnd });
    else if (code !== undefined && ownLimits.has(code)) this.#failed({ problem, blame: 'way', exhausted: error });
    else this.#failed({ problem, blame: code !== undefined && silences.has(code) ? 'host' : 'instance' });
  }

  socketClosed(): void {
    this.#failed({ problem: 'the connection was closed', blame: 'instance' });
  }

  // A stream

  streamOpened(): void {
    this.open = true;
    this.#user?.upstreamOpened();
  }

  streamBytes(upstream: StreamUpstream, chunk: Buffer): void {
    if (this.#bytes(chunk)) upstream.resume();
  }

  streamDrained(): void {
    this.#user?.upstreamDrained();
  }

  streamEnded(): void {
    this.#ended();
  }

  streamFailed(_upstream: StreamUpstream, reason: ResetReason, detail: string): void {
    const { problem, blame } = streamFaults[reason];
    this.#failed({ problem: detail === '' ? problem : detail, blame, denied: reason === 'denied' });
  }

  streamClosed(): void {
    this.#failed({ problem: 'the stream was closed', blame: 'instance' });
  }
}
