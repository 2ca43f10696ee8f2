import { connect, type Socket } from 'node:net';
import type { Clock } from '../../src/base/clock.ts';
import { describeError, systemCode } from '../../src/base/errors.ts';
import type { Endpoint } from '../../src/model/address.ts';
import type { AccessEntry } from '../access-log.ts';
import type { AcceptGate } from '../tcp/accept-gate.ts';
import type { CarriedConnection } from '../tcp/carried.ts';
import { proxyHeader } from '../tcp/proxy-header.ts';
import { connectTotalMs, keepAliveMs, lingerMs, ownLimits, writeHighWaterMark } from '../tcp/relay-bounds.ts';
import { SlabReader } from '../tcp/slab-reader.ts';
import { abort, resetError, wasReset } from '../tcp/socket-ends.ts';
import type { ResetReason, StreamEvents, StreamHead, TunnelStream } from './tunnels.ts';

/** How often it is looked whether a connection that the instance has reset has sent what the instance said before. */
const sentLookMs = 10;

export interface IncomingOptions {
  readonly stream: TunnelStream;
  readonly head: StreamHead;
  /** The instance's id. */
  readonly instance: string;
  readonly endpoint: Endpoint;
  /** Whether the instance is told the client's address before the first byte. */
  readonly announcesClient: boolean;
  readonly clock: Clock;
  readonly gate: AcceptGate;
  /** This machine, not the instance, is at its limit. */
  readonly exhausted: (error: unknown) => void;
  /** The stream was refused because the instance could not be connected to. */
  readonly refused: (reason: ResetReason) => void;
  /** What the access log will say; undefined where there is none. */
  readonly entry: AccessEntry | undefined;
  /** Called once, when both ends are closed. */
  readonly ended: (connection: IncomingConnection) => void;
}

/**
 * A stream that another host opened, and the instance of this host that it goes to. What comes before the instance is
 * connected waits in memory, bounded by the stream's credit, which is given back when the kernel has taken the bytes; while
 * the stream takes no more, the instance is not read.
 */
export class IncomingConnection implements CarriedConnection, StreamEvents {
  readonly backendId: string;
  readonly #options: IncomingOptions;
  readonly #stream: TunnelStream;
  readonly #reader: SlabReader;
  #socket: Socket | undefined;
  #open = false;
  #over = false;
  #swallows = false;
  #keptAlive = false;
  /** The stream took no more at the last write. */
  #waits = false;
  #owed = 0;
  #clientEnded = false;
  #instanceEnded = false;
  #streamDone = false;
  #socketClosed = false;
  #isFinished = false;
  #cancelTimer: (() => void) | undefined;

  constructor(options: IncomingOptions) {
    this.#options = options;
    this.#stream = options.stream;
    this.#reader = new SlabReader(options.stream.slabs);
    this.backendId = options.instance;
  }

  start(): void {
    const { endpoint, clock, announcesClient, head } = this.#options;
    const options = {
      host: endpoint.address,
      port: endpoint.port,
      allowHalfOpen: true,
      noDelay: true,
      highWaterMark: writeHighWaterMark,
      onread: {
        buffer: (): Buffer => this.#reader.room(),
        callback: (bytes: number): boolean => this.#onInstanceBytes(bytes),
      },
    };
    const socket = connect(options);
    this.#socket = socket;
    socket.once('connect', () => this.#onConnected());
    socket.on('end', () => {
      if (wasReset(socket)) socket.destroy(resetError());
      else this.#onInstanceEnd(socket);
    });
    socket.on('drain', () => this.#settle());
    socket.on('error', (error) => this.#onError(error));
    socket.on('close', () => this.#onSocketClose());
    if (announcesClient) socket.write(proxyHeader(head.client, endpoint));
    this.#cancelTimer = clock.after(connectTotalMs, () => {
      this.#refuse('unreachable', `no answer within ${connectTotalMs} ms`);
    });
  }

  keepAlive(): void {
    if (this.#keptAlive || !this.#open) return;
    this.#keptAlive = true;
    this.#socket?.setKeepAlive(true, keepAliveMs);
  }

  cut(denied?: string): void {
    this.#options.entry?.broke(denied === undefined ? 'cut' : 'denied', denied ?? 'this sidecar stops');
    if (denied === undefined) this.#resetStream('reset', 'cut by its host');
    else this.#resetStream('denied', denied);
    this.#dropSocket();
  }

  // The instance

  #onConnected(): void {
    if (this.#over) return;
    this.#stopTimer();
    this.#open = true;
    this.#stream.accept();
  }

  /** False stops reading until the stream takes more. */
  #onInstanceBytes(bytes: number): boolean {
    const chunk = this.#reader.take(bytes);
    if (this.#over) return true;
    const { gate, entry } = this.#options;
    if (entry !== undefined) entry.sent += bytes;
    if (!this.#stream.write(chunk)) {
      this.#waits = true;
      return false;
    }
    if (!gate.holding) return true;
    gate.hold(() => {
      if (!this.#waits) this.#socket?.resume();
    });
    return false;
  }

  #onInstanceEnd(socket: Socket): void {
    this.#instanceEnded = true;
    if (this.#over) return;
    this.#options.entry?.ended('instance closed');
    this.#stream.end();
    if (this.#clientEnded && socket.writableLength === 0) socket.destroy();
  }

  #onError(error: Error): void {
    const { clock } = this.#options;
    if (this.#over) return;
    if (!this.#open) {
      const isOwn = ownLimits.has(systemCode(error) ?? '');
      if (isOwn) this.#options.exhausted(error);
      this.#refuse(isOwn ? 'busy' : 'unreachable', describeError(error));
    } else if (this.#instanceEnded) this.#swallow();
    else {
      this.#over = true;
      this.#options.entry?.broke('instance reset', describeError(error));
      this.#resetWhenSent(clock.monotonicMs() + lingerMs);
    }
  }

  /** What the instance said before it reset the connection is still handed over, if it is taken soon. */
  #resetWhenSent(untilMs: number): void {
    const { clock } = this.#options;
    if (this.#stream.queuedBytes === 0 || clock.monotonicMs() >= untilMs) this.#resetStream('reset', '');
    else this.#cancelTimer = clock.after(sentLookMs, () => this.#resetWhenSent(untilMs));
  }

  /**
   * The instance has said all it had to say and then reset us. A reset of ours now would throw away what the client has
   * not read yet, so its further bytes are swallowed for a while.
   */
  #swallow(): void {
    this.#over = true;
    this.#swallows = true;
    this.#settle();
    this.#cancelTimer = this.#options.clock.after(lingerMs, () => this.#resetStream('reset', ''));
  }

  #refuse(reason: ResetReason, detail: string): void {
    this.#options.refused(reason);
    this.#options.entry?.broke('refused', detail);
    this.#resetStream(reason, detail);
    this.#dropSocket();
  }

  #onSocketClose(): void {
    this.#socketClosed = true;
    this.#reader.close();
    this.#finish();
  }

  // The stream

  /** Only the sending side hears this. */
  opened(): void {}

  data(chunk: Buffer): void {
    this.#owed += chunk.length;
    const { entry } = this.#options;
    if (entry !== undefined) entry.received += chunk.length;
    const socket = this.#socket;
    if (socket === undefined || this.#over) {
      if (this.#swallows) this.#settle();
      return;
    }
    socket.write(chunk);
    if (socket.writableLength === 0) this.#settle();
  }

  ended(): void {
    this.#clientEnded = true;
    this.#options.entry?.ended('client closed');
    const socket = this.#socket;
    if (socket === undefined || socket.destroyed) return;
    if (this.#instanceEnded && socket.writableLength === 0) socket.destroy();
    else socket.end();
  }

  drained(): void {
    this.#waits = false;
    this.#socket?.resume();
  }

  closed(reason: ResetReason | undefined, detail: string): void {
    this.#streamDone = true;
    if (reason !== undefined) {
      this.#options.entry?.broke(reason === 'lost' ? 'tunnel lost' : 'client reset', detail);
      this.#over = true;
      this.#dropSocket();
    } else if (this.#swallows) this.#dropSocket();
    this.#finish();
  }

  #settle(): void {
    const owed = this.#owed;
    if (owed === 0) return;
    this.#owed = 0;
    this.#stream.consumed(owed);
  }

  #resetStream(reason: ResetReason, detail: string): void {
    this.#over = true;
    if (!this.#streamDone) this.#stream.reset(reason, detail);
    this.#streamDone = true;
    this.#finish();
  }

  #dropSocket(): void {
    if (this.#socket !== undefined) abort(this.#socket, this.#open);
  }

  #stopTimer(): void {
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
  }

  #finish(): void {
    if (this.#isFinished || !this.#streamDone || !this.#socketClosed) return;
    this.#isFinished = true;
    this.#stopTimer();
    this.#options.entry?.write();
    this.#options.ended(this);
  }
}
