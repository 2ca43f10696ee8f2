import { createServer, type Server, type Socket } from 'node:net';
import { Backoff } from '../../../base/backoff.ts';
import type { Clock } from '../../../base/clock.ts';
import type { Conditions } from '../../../base/conditions.ts';
import { isLegateError } from '../../../base/errors.ts';
import type { Log } from '../../../base/log.ts';
import type { CounterCell, Metrics } from '../../../base/metrics.ts';
import { listenTcp } from '../../../base/sockets.ts';
import { type Endpoint, formatEndpoint, isLoopback } from '../../../model/address.ts';
import { limits, times } from './limits.ts';

export interface ConnectionsOptions {
  readonly listen: Endpoint;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  /** Takes over a connection whose client speaks HTTP/2. */
  readonly accept: (socket: Socket) => void;
}

const listenCondition = 'store.listen';
const openCondition = 'store.listen.open';
const firstRetryMs = 250;
const retryCeilingMs = 15_000;
/** What a client of HTTP/2 says first (RFC 9113 section 3.4). */
const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');

/**
 * Where the server listens, and who is connected. Where it cannot listen it tries again until it can. Connections beyond
 * the bound, and those that do not speak HTTP/2, end before they cost anything.
 */
export class Connections {
  readonly #options: ConnectionsOptions;
  readonly #closing = new AbortController();
  readonly #sockets = new Map<string, Socket>();
  readonly #dropped: (reason: string) => CounterCell;
  #server: Server | undefined;
  #endpoint: Endpoint;

  constructor(options: ConnectionsOptions) {
    this.#options = options;
    this.#endpoint = options.listen;
    const { metrics } = options;
    metrics.gauge('legate_store_server_connections', 'Connections of clients of the offered store.', [], () => [
      [[], this.#sockets.size],
    ]);
    const help = 'Connections that the offered store refused or ended, by reason.';
    this.#dropped = (reason) => metrics.counter('legate_store_server_dropped_total', help, { reason });
  }

  get endpoint(): Endpoint {
    return this.#endpoint;
  }

  /** Resolves after the first try; further ones go on in the background. */
  async start(): Promise<void> {
    if (await this.#listen()) return;
    const { clock } = this.#options;
    const { signal } = this.#closing;
    const backoff = new Backoff(firstRetryMs, retryCeilingMs);
    const retry = async (): Promise<void> => {
      while (!signal.aborted) {
        await clock.sleep(backoff.nextMs(), signal);
        if (await this.#listen()) return;
      }
    };
    retry().catch((error: unknown) => {
      if (!signal.aborted) throw error;
    });
  }

  /** Ends the connection of this client, `address:port`. */
  drop(peer: string, reason: string): void {
    const socket = this.#sockets.get(peer);
    if (socket === undefined || socket.destroyed) return;
    this.#dropped(reason).value += 1;
    this.#options.log.info('connection of a store client was ended', { 'store.client': peer, reason });
    socket.destroy();
  }

  /** Listens no more; who is connected stays so. */
  stop(): void {
    this.#closing.abort();
    this.#options.conditions.clear(listenCondition);
    this.#options.conditions.clear(openCondition);
    const server = this.#server;
    this.#server = undefined;
    server?.close();
  }

  endAll(): void {
    for (const socket of this.#sockets.values()) socket.destroy();
  }

  async #listen(): Promise<boolean> {
    const { listen, conditions, log } = this.#options;
    const server = createServer({ noDelay: true }, (socket) => this.#onConnection(socket));
    try {
      const port = await listenTcp(server, listen, 512);
      if (this.#closing.signal.aborted) {
        server.close();
        return true;
      }
      server.on('error', (error) => log.warn('listener of the offered store failed', { error: error.message }));
      this.#server = server;
      this.#endpoint = { address: listen.address, port };
    } catch (error) {
      if (!isLegateError(error)) throw error;
      const message = `the store is not offered to other hosts: ${error.message}`;
      conditions.raise(listenCondition, 'error', message, error.hint ?? 'the log says more');
      return false;
    }
    conditions.clear(listenCondition);
    const place = formatEndpoint(this.#endpoint);
    log.info('store is offered to other hosts', { 'store.listen': place });
    if (!isLoopback(listen.address)) {
      const hint = 'see to it that only the hosts of this mesh reach it, until this version can demand certificates';
      conditions.raise(openCondition, 'warning', `everybody who reaches ${place} can read and write the store`, hint);
    }
    return true;
  }

  #onConnection(socket: Socket): void {
    const peer = `${socket.remoteAddress}:${socket.remotePort}`;
    socket.on('error', () => undefined);
    if (this.#sockets.size >= limits.connections) {
      this.#dropped('too_many').value += 1;
      socket.destroy();
      return;
    }
    this.#sockets.set(peer, socket);
    socket.once('close', () => this.#sockets.delete(peer));
    this.#awaitPreface(socket, peer);
  }

  /** Whatever does not begin as HTTP/2 does never reaches the parser. */
  #awaitPreface(socket: Socket, peer: string): void {
    let seen: Buffer = Buffer.alloc(0);
    const timer = setTimeout(() => this.drop(peer, 'silent'), times.prefaceMs);
    timer.unref();
    const onData = (data: Buffer): void => {
      seen = seen.length === 0 ? data : Buffer.concat([seen, data]);
      const length = Math.min(seen.length, preface.length);
      if (!seen.subarray(0, length).equals(preface.subarray(0, length))) {
        this.drop(peer, 'not_http2');
        return;
      }
      if (seen.length < preface.length) return;
      clearTimeout(timer);
      socket.off('data', onData);
      socket.pause();
      socket.unshift(seen);
      this.#options.accept(socket);
    };
    socket.on('data', onData);
    socket.once('close', () => clearTimeout(timer));
  }
}
