import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { Backoff } from '../../src/base/backoff.ts';
import type { Clock } from '../../src/base/clock.ts';
import { type Endpoint, formatEndpoint } from '../../src/model/address.ts';
import { writeHighWaterMark } from './relay-bounds.ts';

/**
 * Has `server` listen on a handle that was made elsewhere. Resolves when it listens, or is known to wait for its turn;
 * rejects as listening does. A server that cannot listen after all hears `error`.
 */
export type ListenShared = (server: Server, endpoint: Endpoint) => Promise<void>;

export interface TcpListenerOptions {
  /** Port 0 takes any free port, and keeps it. */
  readonly endpoint: Endpoint;
  readonly clock: Clock;
  readonly random: () => number;
  /** A paused socket; the receiver owns it. */
  readonly onConnection: (socket: Socket) => void;
  /** It listens now, or not any more. */
  readonly onChange: () => void;
  /** It cannot listen, and tries again. */
  readonly onBindError: (error: Error) => void;
  /** A connection could not be accepted. */
  readonly onAcceptError: (error: Error) => void;
  /** Who makes the handle; without it this process does, for itself. */
  readonly listenShared?: ListenShared | undefined;
}

/**
 * Listens on one address until it is closed, and tries again while it cannot.
 */
export class TcpListener {
  /** How many connections may wait for being accepted; the system's own bound (somaxconn) is usually smaller. */
  static readonly backlog = 4096;
  /** Turns of the event loop that a listener takes at most to accept who has connected when it is to close. */
  static readonly maxClosingTurns = 1024;
  static readonly retryFirstMs = 250;
  static readonly retryCeilingMs = 10_000;
  readonly #options: TcpListenerOptions;
  readonly #backoff: Backoff;
  #server: Server | undefined;
  #bound: Endpoint | undefined;
  #cancelRetry: (() => void) | undefined;
  #accepted = 0;
  #closed = false;

  constructor(options: TcpListenerOptions) {
    this.#options = options;
    this.#backoff = new Backoff(TcpListener.retryFirstMs, TcpListener.retryCeilingMs, options.random);
  }

  /** Where it listens; undefined while it cannot. */
  get bound(): Endpoint | undefined {
    return this.#bound;
  }

  /** Resolves when the first try was made, whether it succeeded or not. */
  start(): Promise<void> {
    return new Promise((resolve) => this.#try(resolve));
  }

  /** Stops accepting, once those are in who have connected already. Connections run on. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#cancelRetry?.();
    this.#bound = undefined;
    const server = this.#server;
    this.#server = undefined;
    // What waits at a shared one is left to the other processes that listen there.
    if (server !== undefined && this.#options.listenShared === undefined) await this.#letIn();
    // `close` calls back when the last connection has ended, for which nobody waits here; the handle closes at once.
    server?.close();
    await nextTurn();
  }

  /** Whom the kernel has connected it would reset when nobody listens any more. */
  async #letIn(): Promise<void> {
    let quietTurns = 0;
    // This turn may have accepted already, or not begun to; the next one looks for certain.
    for (let turn = 0; turn < TcpListener.maxClosingTurns && quietTurns < 2; turn += 1) {
      const before = this.#accepted;
      await nextTurn();
      quietTurns = this.#accepted === before ? quietTurns + 1 : 0;
    }
  }

  #try(done: () => void): void {
    const server = this.#createServer();
    const { endpoint, listenShared } = this.#options;
    server.once('error', (error) => {
      this.#options.onBindError(error);
      if (!this.#closed) {
        this.#cancelRetry = this.#options.clock.after(this.#backoff.nextMs(), () => this.#try(() => undefined));
      }
      done();
    });
    server.once('listening', () => {
      if (this.#closed) server.close();
      else this.#listening(server);
      done();
    });
    const host = endpoint.address;
    if (listenShared === undefined) {
      server.listen({ host, port: endpoint.port, backlog: TcpListener.backlog, exclusive: true });
    } else listenShared(server, endpoint).then(done, (error: unknown) => server.emit('error', error));
  }

  #listening(server: Server): void {
    server.removeAllListeners('error');
    server.on('error', this.#options.onAcceptError);
    this.#backoff.reset();
    this.#server = server;
    this.#bound = { address: this.#options.endpoint.address, port: (server.address() as AddressInfo).port };
    this.#options.onChange();
  }

  #createServer(): Server {
    const halves = { allowHalfOpen: true, pauseOnConnect: true, highWaterMark: writeHighWaterMark };
    return createServer({ ...halves, noDelay: true }, (socket) => {
      this.#accepted += 1;
      this.#options.onConnection(socket);
    });
  }

  /** For messages: what it tries to listen on. */
  toString(): string {
    return formatEndpoint(this.#options.endpoint);
  }
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
