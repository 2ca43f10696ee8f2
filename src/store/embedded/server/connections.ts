import { createServer, type Server, type Socket } from 'node:net';
import { Backoff } from '../../../base/backoff.ts';
import type { Clock } from '../../../base/clock.ts';
import type { Conditions } from '../../../base/conditions.ts';
import { describeError, isLegateError } from '../../../base/errors.ts';
import type { Log } from '../../../base/log.ts';
import type { CounterCell, Metrics } from '../../../base/metrics.ts';
import { listenTcp } from '../../../base/sockets.ts';
import { type Endpoint, formatEndpoint, isLoopback } from '../../../model/address.ts';
import type { Credentials } from '../../../model/credentials.ts';
import { isRevoked, type Policy } from '../../../model/policy.ts';
import type { StoreTrust } from '../../trust.ts';
import { type Authenticated, Handshakes, peerOf, type Rejection } from './handshakes.ts';
import { limits, times } from './limits.ts';
import type { Refusals } from './refusals.ts';

export interface ConnectionsOptions {
  readonly listen: Endpoint;
  /** Without it there are no hosts to tell apart: everybody is served in the clear. */
  readonly trust: StoreTrust | undefined;
  readonly refusals: Refusals;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  /** Takes over a connection whose client speaks HTTP/2. */
  readonly accept: (socket: Socket) => void;
}

/** Who is at the other end of a connection: a host of the mesh, or anybody, in the clear. */
export interface Peer {
  readonly hostId: string | undefined;
}

interface Connected {
  readonly socket: Socket;
  readonly host: Authenticated | undefined;
}

const listenCondition = 'store.listen';
const openCondition = 'store.listen.open';
const certificateCondition = 'store.listen.certificate';
const firstRetryMs = 250;
const retryCeilingMs = 15_000;
/** Timers take no more; an expiry further away is looked at again then. */
const maxTimerMs = 24 * 3_600_000;
/** What a client of HTTP/2 says first (RFC 9113 section 3.4). */
const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');

/**
 * Where the server listens, and who is connected. Where it cannot listen it tries again until it can. As soon as this
 * host has credentials only hosts of the mesh are served, over mutual TLS, and only as long as their certificates count.
 * Connections beyond the bound, and those that do not speak HTTP/2, end before they cost anything.
 */
export class Connections {
  readonly #options: ConnectionsOptions;
  readonly #closing = new AbortController();
  readonly #connected = new Map<string, Connected>();
  readonly #handshakes: Handshakes;
  readonly #dropped: (reason: string) => CounterCell;
  readonly #unsubscribe: (() => void)[] = [];
  #server: Server | undefined;
  #endpoint: Endpoint;
  #authority: string | undefined;
  /** Ends the pause before the next try to listen. */
  #wake = new AbortController();

  constructor(options: ConnectionsOptions) {
    this.#options = options;
    this.#endpoint = options.listen;
    const { metrics, trust } = options;
    this.#handshakes = new Handshakes({
      policy: () => trust?.policy.value,
      onHost: (socket, peer, host) => this.#onHost(socket, peer, host),
      onRejected: (socket, peer, rejection) => this.#reject(socket, peer, rejection),
    });
    metrics.gauge('legate_store_server_connections', 'Connections of clients of the offered store.', [], () => [
      [[], this.#connected.size],
    ]);
    metrics.gauge('legate_store_server_handshakes_count', 'TLS handshakes of clients under way.', [], () => [
      [[], this.#handshakes.pending],
    ]);
    const help = 'Connections that the offered store refused or ended, by reason.';
    this.#dropped = (reason) => metrics.counter('legate_store_server_dropped_total', help, { reason });
  }

  get endpoint(): Endpoint {
    return this.#endpoint;
  }

  /** Whether only hosts of the mesh are served. */
  get secure(): boolean {
    return this.#handshakes.ready;
  }

  /** Who is connected from `address:port`; undefined when nobody is (any more). */
  peer(peer: string): Peer | undefined {
    const connected = this.#connected.get(peer);
    if (connected === undefined || (connected.host === undefined && this.secure)) return undefined;
    return { hostId: connected.host?.hostId };
  }

  /** Resolves after the first try; further ones go on in the background. */
  async start(): Promise<void> {
    const { trust } = this.#options;
    if (trust !== undefined) {
      this.#authority = trust.policy.value?.authority;
      this.#takeCredentials(trust.credentials.value);
      this.#unsubscribe.push(
        trust.credentials.subscribe((credentials) => this.#takeCredentials(credentials)),
        trust.policy.subscribe((policy) => this.#dropRevoked(policy)),
      );
    }
    if (await this.#listen()) return;
    const { clock } = this.#options;
    const { signal } = this.#closing;
    const backoff = new Backoff(firstRetryMs, retryCeilingMs);
    const retry = async (): Promise<void> => {
      while (!signal.aborted) {
        await clock.sleep(backoff.nextMs(), AbortSignal.any([signal, this.#wake.signal])).catch(() => undefined);
        if (!signal.aborted && (await this.#listen())) return;
      }
    };
    void retry();
  }

  /** Ends the connection of this client, `address:port`. */
  drop(peer: string, reason: string): void {
    const socket = this.#connected.get(peer)?.socket;
    if (socket === undefined || socket.destroyed) return;
    this.#dropped(reason).value += 1;
    this.#options.log.info('connection of a store client was ended', { 'store.client': peer, reason });
    socket.destroy();
  }

  /** Listens no more; who is connected stays so. */
  stop(): void {
    this.#closing.abort();
    for (const unsubscribe of this.#unsubscribe.splice(0)) unsubscribe();
    for (const id of [listenCondition, openCondition, certificateCondition]) this.#options.conditions.clear(id);
    const server = this.#server;
    this.#server = undefined;
    server?.close();
  }

  endAll(): void {
    for (const { socket } of this.#connected.values()) socket.destroy();
  }

  async #listen(): Promise<boolean> {
    const { listen, conditions, log } = this.#options;
    if (!this.#mayListen()) return false;
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
    log.info('store is offered to other hosts', { 'store.listen': formatEndpoint(this.#endpoint), tls: this.secure });
    this.#tellOpen();
    return true;
  }

  /** Nobody beyond this machine is served in the clear, unless the underlay was declared safe. */
  #mayListen(): boolean {
    const { listen, trust, conditions } = this.#options;
    if (this.secure || isLoopback(listen.address) || trust === undefined || trust.clearUnderlay) return true;
    const message = `the store is not offered at ${formatEndpoint(listen)}: this host has no certificate yet`;
    const hint =
      'run legate init or legate join; or declare network.underlay trusted or encrypted if nobody else can reach that address';
    conditions.raise(listenCondition, 'warning', message, hint);
    return false;
  }

  #tellOpen(): void {
    const { conditions, listen } = this.#options;
    if (this.secure || isLoopback(listen.address)) {
      conditions.clear(openCondition);
      return;
    }
    const place = formatEndpoint(this.#endpoint);
    const hint =
      'run legate init, so that it demands certificates; until then see to it that only the hosts of this mesh reach it';
    conditions.raise(openCondition, 'warning', `everybody who reaches ${place} can read and write the store`, hint);
  }

  /** Who was served in the clear is not any more. Whose root was replaced since goes on until its certificate ends. */
  #takeCredentials(credentials: Credentials | undefined): void {
    if (credentials === undefined) return;
    const { conditions, log } = this.#options;
    try {
      this.#handshakes.use(credentials);
    } catch (error) {
      const message = `the store goes on with the former certificate, the new one cannot be used: ${describeError(error)}`;
      conditions.raise(certificateCondition, 'error', message, 'see legate ca status on this host');
      return;
    }
    conditions.clear(certificateCondition);
    log.info('store demands certificates of hosts', { 'tls.serial': credentials.serial });
    for (const [peer, { host }] of [...this.#connected]) {
      if (host === undefined) this.drop(peer, 'clear_text');
    }
    if (this.#server !== undefined) this.#tellOpen();
    else {
      this.#wake.abort();
      this.#wake = new AbortController();
    }
  }

  /** Also whose rights came or went with the authority: what it watches was chosen by these. */
  #dropRevoked(policy: Policy | undefined): void {
    const former = this.#authority;
    this.#authority = policy?.authority;
    for (const [peer, { host }] of [...this.#connected]) {
      if (host === undefined) continue;
      const isChanged = former !== this.#authority && (host.hostId === former || host.hostId === this.#authority);
      if (isRevoked(policy, host.hostId)) this.drop(peer, 'revoked');
      else if (isChanged) this.drop(peer, 'authority');
    }
  }

  #onConnection(socket: Socket): void {
    const peer = peerOf(socket);
    socket.on('error', () => undefined);
    // One of the same name would be taken for it; that takes two of our addresses and one of its ports.
    if (this.#connected.size + this.#handshakes.pending >= limits.connections || this.#connected.has(peer)) {
      this.#dropped('too_many').value += 1;
      socket.destroy();
    } else if (this.secure) this.#handshakes.take(socket, peer);
    else this.#admit(socket, peer, undefined);
  }

  #onHost(socket: Socket, peer: string, host: Authenticated): void {
    if (this.#connected.has(peer)) socket.destroy();
    else {
      this.#admit(socket, peer, host);
      this.#endAtExpiry(socket, peer, host.notAfterMs);
    }
  }

  #admit(socket: Socket, peer: string, host: Authenticated | undefined): void {
    this.#connected.set(peer, { socket, host });
    socket.once('close', () => this.#connected.delete(peer));
    this.#awaitPreface(socket, peer);
  }

  #endAtExpiry(socket: Socket, peer: string, notAfterMs: number): void {
    const { clock } = this.#options;
    const leftMs = notAfterMs - clock.nowMs();
    const cancel = clock.after(Math.min(Math.max(leftMs, 0), maxTimerMs), () => {
      if (notAfterMs <= clock.nowMs()) this.drop(peer, 'certificate');
      else this.#endAtExpiry(socket, peer, notAfterMs);
    });
    socket.once('close', cancel);
  }

  #reject(socket: Socket, peer: string, { reason, why, revoked }: Rejection): void {
    this.#dropped(reason).value += 1;
    socket.destroy();
    const address = peer.slice(0, peer.lastIndexOf(':'));
    if (reason !== 'handshake_ended') {
      this.#options.refusals.connection({ address, why, ...(revoked !== undefined && { revoked }) });
    }
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
