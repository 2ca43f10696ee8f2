import { createServer, type Server, type Socket } from 'node:net';
import type { Clock } from '../src/base/clock.ts';
import type { CounterCell } from '../src/base/metrics.ts';
import { type Endpoint, unmapped } from '../src/model/address.ts';
import type { PacketHandler, Via } from './handler.ts';
import { headerLength } from './wire/constants.ts';

/** A connection without a whole question for so long is closed (RFC 7766 section 6.2.3). */
export const idleMs = 10_000;
/** No honest question is longer. */
const maxTcpQuery = 4096;
/** Questions of one connection that wait for their answers; beyond it nothing is read. */
const maxPipelined = 64;
/** Answers that the peer does not read: beyond so many octets nothing more is read from him. */
const maxUnreadOctets = 256 * 1024;

/** How many connections there may be over all listeners, and from one address. */
export class ConnectionBudget {
  static readonly maxConnections = 1000;
  static readonly maxPerAddress = 200;
  readonly #byAddress = new Map<string, number>();
  #open = 0;

  get open(): number {
    return this.#open;
  }

  take(address: string): boolean {
    const own = this.#byAddress.get(address) ?? 0;
    if (this.#open >= ConnectionBudget.maxConnections || own >= ConnectionBudget.maxPerAddress) return false;
    this.#byAddress.set(address, own + 1);
    this.#open += 1;
    return true;
  }

  give(address: string): void {
    const own = this.#byAddress.get(address) ?? 0;
    if (own <= 1) this.#byAddress.delete(address);
    else this.#byAddress.set(address, own - 1);
    this.#open -= 1;
  }
}

export interface TcpListenerOptions {
  readonly handler: PacketHandler;
  readonly budget: ConnectionBudget;
  readonly clock: Clock;
  readonly queries: CounterCell;
  readonly refused: CounterCell;
}

/** Questions over TCP: each with two octets of length before it, many in flight on one connection (RFC 7766). */
export class TcpListener {
  readonly #server: Server;
  readonly #options: TcpListenerOptions;
  readonly #connections = new Set<Connection>();
  #via: Via = { transport: 'tcp', serverAddress: undefined };

  constructor(options: TcpListenerOptions) {
    this.#options = options;
    this.#server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => this.#accept(socket));
  }

  /** Binds; rejects with the system's error. Resolves with the port. */
  bind({ address, port }: Endpoint): Promise<number> {
    this.#via = { transport: 'tcp', serverAddress: address };
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen({ host: address, port, exclusive: true }, () => {
        this.#server.off('error', reject);
        // A failed accept (no descriptors left) costs one connection; the listener stays.
        this.#server.on('error', () => {
          this.#options.refused.value += 1;
        });
        const bound = this.#server.address();
        resolve(typeof bound === 'object' && bound !== null ? bound.port : port);
      });
    });
  }

  close(): Promise<void> {
    for (const connection of this.#connections) connection.destroy();
    return new Promise((resolve) => {
      this.#server.close(() => resolve());
    });
  }

  #accept(socket: Socket): void {
    const address = unmapped(socket.remoteAddress ?? '');
    if (address === '' || !this.#options.budget.take(address)) {
      if (address !== '') this.#options.refused.value += 1;
      socket.destroy();
      return;
    }
    const connection = new Connection(socket, address, this.#via, this.#options, () => {
      this.#connections.delete(connection);
      this.#options.budget.give(address);
    });
    this.#connections.add(connection);
  }
}

class Connection {
  readonly #socket: Socket;
  readonly #address: string;
  readonly #via: Via;
  readonly #options: TcpListenerOptions;
  #unread: Buffer = Buffer.alloc(0);
  #inFlight = 0;
  #ended = false;
  #cancelIdle: () => void;

  constructor(socket: Socket, address: string, via: Via, options: TcpListenerOptions, closed: () => void) {
    this.#socket = socket;
    this.#address = address;
    this.#via = via;
    this.#options = options;
    this.#cancelIdle = options.clock.after(idleMs, () => this.destroy());
    socket.on('data', (chunk: Buffer) => {
      this.#unread = this.#unread.length === 0 ? chunk : Buffer.concat([this.#unread, chunk]);
      this.#work();
    });
    socket.on('drain', () => this.#work());
    socket.on('end', () => {
      this.#ended = true;
      this.#finish();
    });
    socket.on('error', () => this.destroy());
    socket.on('close', () => {
      this.#cancelIdle();
      closed();
    });
  }

  destroy(): void {
    this.#socket.destroy();
  }

  /** Answers the whole questions that have come, as far as the bounds allow. */
  #work(): void {
    while (!this.#socket.destroyed && this.#unread.length >= 2 && !this.#isFull()) {
      const length = this.#unread.readUInt16BE(0);
      if (length < headerLength || length > maxTcpQuery) {
        this.destroy();
        return;
      }
      if (this.#unread.length < 2 + length) break;
      // A copy: a question may wait for an upstream long after the chunk that it came in.
      const packet = Buffer.from(this.#unread.subarray(2, 2 + length));
      this.#unread = this.#unread.subarray(2 + length);
      this.#answer(packet);
    }
    if (this.#isFull()) this.#socket.pause();
    else if (this.#socket.isPaused()) this.#socket.resume();
    this.#finish();
  }

  #answer(packet: Buffer): void {
    this.#options.queries.value += 1;
    this.#cancelIdle();
    this.#cancelIdle = this.#options.clock.after(idleMs, () => this.destroy());
    const reply = this.#options.handler.handle(packet, this.#address, this.#via);
    if (reply === undefined) this.destroy();
    else if (reply instanceof Promise) this.#await(reply);
    else this.#write(reply);
  }

  #await(reply: Promise<Buffer>): void {
    this.#inFlight += 1;
    void reply.then((later) => {
      this.#inFlight -= 1;
      this.#write(later);
      this.#work();
    });
  }

  #write(reply: Buffer): void {
    if (this.#socket.destroyed) return;
    // Length and message in one write, for peers that read only once (RFC 7766 section 8).
    const framed = Buffer.allocUnsafe(2 + reply.length);
    framed.writeUInt16BE(reply.length, 0);
    reply.copy(framed, 2);
    this.#socket.write(framed);
  }

  #isFull(): boolean {
    return this.#inFlight >= maxPipelined || this.#socket.writableLength > maxUnreadOctets;
  }

  /** A peer that has said all (a half-closed connection) still gets its answers. */
  #finish(): void {
    if (this.#ended && this.#inFlight === 0 && !this.#isFull() && !this.#socket.writableEnded) this.#socket.end();
  }
}
