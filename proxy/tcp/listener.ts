import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { Backoff } from '../../src/base/backoff.ts';
import type { Clock } from '../../src/base/clock.ts';
import { type Endpoint, formatEndpoint } from '../../src/model/address.ts';
import type { HandleMirror } from './handle-mirror.ts';
import { writeHighWaterMark } from './relay.ts';

export interface TcpListenerOptions {
  /** Port 0 takes any free port, and keeps it. */
  readonly endpoint: Endpoint;
  readonly clock: Clock;
  readonly random: () => number;
  readonly mirror: HandleMirror;
  /** A paused socket; the receiver owns it. */
  readonly onConnection: (socket: Socket) => void;
  /** It listens now, or not any more. */
  readonly onChange: () => void;
  /** It cannot listen, and tries again. */
  readonly onBindError: (error: Error) => void;
  /** A connection could not be accepted. */
  readonly onAcceptError: (error: Error) => void;
}

/**
 * Listens on one address until it is closed: it tries again while it cannot, and takes further handles on its socket
 * while connections come in bursts.
 */
export class TcpListener {
  /** How many connections may wait for being accepted; the system's own bound (somaxconn) is usually smaller. */
  static readonly backlog = 4096;
  static readonly retryFirstMs = 250;
  static readonly retryCeilingMs = 10_000;
  /** Handles on one socket while connections come in bursts. */
  static readonly burstHandles = 8;
  /** A burst: so many turns of the event loop in a row in each of which a connection was accepted. */
  static readonly burstTurns = 8;
  /** How long after the last burst the further handles are given back. */
  static readonly burstIdleMs = 60_000;
  readonly #options: TcpListenerOptions;
  readonly #backoff: Backoff;
  #server: Server | undefined;
  #bound: Endpoint | undefined;
  #copies: Server[] = [];
  #cancelRetry: (() => void) | undefined;
  #cancelIdle: (() => void) | undefined;
  #closed = false;
  #watching = false;
  #acceptedThisTurn = false;
  #busyTurns = 0;
  #mirroring = false;

  constructor(options: TcpListenerOptions) {
    this.#options = options;
    this.#backoff = new Backoff(TcpListener.retryFirstMs, TcpListener.retryCeilingMs, options.random);
  }

  /** Where it listens; undefined while it cannot. */
  get bound(): Endpoint | undefined {
    return this.#bound;
  }

  /** How many handles accept; for tests and figures. */
  get handles(): number {
    return this.#bound === undefined ? 0 : 1 + this.#copies.length;
  }

  /** Resolves when the first try was made, whether it succeeded or not. */
  start(): Promise<void> {
    return new Promise((resolve) => this.#try(resolve));
  }

  /** Stops accepting. Connections run on. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#cancelRetry?.();
    this.#bound = undefined;
    this.#dropCopies();
    // `close` calls back when the last connection has ended, for which nobody waits here; the handle closes at once.
    this.#server?.close();
    this.#server = undefined;
    await new Promise((resolve) => setImmediate(resolve));
  }

  #try(done: () => void): void {
    const server = this.#createServer();
    const { endpoint } = this.#options;
    server.once('error', (error) => {
      this.#options.onBindError(error);
      if (!this.#closed) {
        this.#cancelRetry = this.#options.clock.after(this.#backoff.nextMs(), () => this.#try(() => undefined));
      }
      done();
    });
    const host = endpoint.address;
    server.listen({ host, port: endpoint.port, backlog: TcpListener.backlog, exclusive: true }, () => {
      if (this.#closed) server.close();
      else this.#listening(server);
      done();
    });
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
    return createServer(
      { allowHalfOpen: true, pauseOnConnect: true, noDelay: true, keepAlive: true, highWaterMark: writeHighWaterMark },
      (socket) => {
        this.#options.onConnection(socket);
        this.#acceptedThisTurn = true;
        if (this.#watching) return;
        this.#watching = true;
        setImmediate(this.#turn);
      },
    );
  }

  /** Runs once a turn while there are connections to accept in every one. */
  readonly #turn = (): void => {
    if (!this.#acceptedThisTurn) {
      this.#watching = false;
      this.#busyTurns = 0;
      return;
    }
    this.#acceptedThisTurn = false;
    this.#busyTurns += 1;
    if (this.#busyTurns >= TcpListener.burstTurns) {
      this.#busyTurns = 0;
      this.#burst();
    }
    setImmediate(this.#turn);
  };

  #burst(): void {
    const { clock, mirror } = this.#options;
    this.#cancelIdle?.();
    this.#cancelIdle = clock.after(TcpListener.burstIdleMs, () => this.#dropCopies());
    if (this.#mirroring || this.#copies.length > 0 || this.#server === undefined) return;
    this.#mirroring = true;
    void mirror.copies(this.#server, TcpListener.burstHandles - 1).then((handles) => {
      this.#mirroring = false;
      for (const handle of handles) {
        if (this.#closed) handle.close();
        else this.#addCopy(handle);
      }
    });
  }

  #addCopy(handle: object): void {
    const server = this.#createServer();
    server.on('error', this.#options.onAcceptError);
    server.listen(handle, TcpListener.backlog);
    this.#copies.push(server);
  }

  #dropCopies(): void {
    this.#cancelIdle?.();
    this.#cancelIdle = undefined;
    for (const server of this.#copies) server.close();
    this.#copies = [];
  }

  /** For messages: what it tries to listen on. */
  toString(): string {
    return formatEndpoint(this.#options.endpoint);
  }
}
