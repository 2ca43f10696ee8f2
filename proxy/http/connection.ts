import type { Socket } from 'node:net';
import type { AcceptGate } from '../tcp/accept-gate.ts';
import type { CarriedConnection } from '../tcp/carried.ts';
import { keepAliveMs } from '../tcp/relay-bounds.ts';
import { abort, peerOf, resetError, wasReset } from '../tcp/socket-ends.ts';
import { SocketWriter } from '../tcp/socket-writer.ts';
import { ownAnswer } from './answers.ts';
import { bodyMs, headMs, idleClientMs, leavingClientMs, lingerMs, maxAheadBytes } from './bounds.ts';
import { Exchange, type ExchangeOptions } from './exchange.ts';
import { HttpFault } from './fault.ts';

export interface HttpConnectionOptions
  extends Omit<ExchangeOptions, 'client' | 'writer' | 'peer' | 'over' | 'takeAhead'> {
  /** A paused socket, with `allowHalfOpen`. */
  readonly socket: Socket;
  /** Called once, when the client's socket is closed. */
  readonly ended: (connection: HttpConnection) => void;
}

type Phase = 'idle' | 'head' | 'exchange' | 'lingering' | 'closed';

/**
 * A client's connection: its requests are read one after another, and answered in their order. What it sends ahead waits.
 */
export class HttpConnection implements CarriedConnection {
  readonly #options: HttpConnectionOptions;
  readonly #socket: Socket;
  readonly #writer: SocketWriter;
  readonly #exchange: Exchange;
  #phase: Phase = 'idle';
  /** Monotonic; since when it is in this phase, or when something last came of a body. */
  #sinceMs: number;
  /** What came and was not yet read. */
  #ahead: Buffer | undefined;
  /** Whether what is ahead lies in the buffer that all clients' bytes are read into. */
  #borrowed = false;
  #reading = false;
  #clientEnded = false;
  #leaving = false;

  constructor(options: HttpConnectionOptions) {
    const { socket, scheme, route, account, budget, environment } = options;
    this.#options = options;
    this.#socket = socket;
    this.#sinceMs = environment.clock.monotonicMs();
    this.#writer = new SocketWriter(socket, environment.writes, () => this.#exchange.clientDrained());
    // Not spread: objects made so have a shape of their own each, and whatever reads them could not be compiled well.
    this.#exchange = new Exchange({
      client: socket,
      writer: this.#writer,
      peer: peerOf(socket),
      scheme,
      route,
      account,
      budget,
      environment,
      over: (keepAlive, nowMs) => this.#exchangeOver(keepAlive, nowMs),
      takeAhead: () => this.#takeAhead(),
    });
    environment.clientReads.attach(socket, (chunk) => this.#onData(chunk));
    socket.on('end', () => this.#onEnd());
    socket.on('error', () => undefined);
    socket.on('close', () => this.#onClose());
  }

  start(): void {
    this.#socket.resume();
  }

  get backendId(): string | undefined {
    return this.#exchange.backendId;
  }

  keepAlive(): void {
    this.#socket.setKeepAlive(true, keepAliveMs);
  }

  cut(_denied?: string): void {
    this.#exchange.abort();
    abort(this.#socket, true);
  }

  review(): void {
    const denial = this.#exchange.denial();
    if (denial !== undefined) this.cut(denial);
  }

  /**
   * No further requests: the next answer says that it is the last. A connection is closed without that only when nothing
   * has come for a moment: a request that is on its way to a closed one fails, and some may not be repeated.
   */
  leave(): void {
    this.#leaving = true;
    this.#exchange.lastOne();
    this.tick(this.#options.environment.clock.monotonicMs());
  }

  /** It is new, and its client could not know that there will be no further request: the first one is answered. */
  leaveAfterOne(): void {
    this.#leaving = true;
  }

  /** To be called every `sweepMs`: ends what takes too long. */
  tick(nowMs: number): void {
    const elapsedMs = nowMs - this.#sinceMs;
    if (this.#phase === 'idle') {
      if (elapsedMs >= (this.#leaving ? leavingClientMs : idleClientMs)) this.#closeGently();
    } else if (this.#phase === 'head') {
      if (elapsedMs >= headMs) this.#refuse(new HttpFault('request-line', 'a head that does not come to its end', 408));
    } else if (this.#phase === 'exchange') {
      if (this.#exchange.waitsForBody && elapsedMs >= bodyMs) this.#exchange.bodyTimedOut();
      else this.#exchange.tick(nowMs);
    } else if (this.#phase === 'lingering' && elapsedMs >= lingerMs) {
      // No reset: the system goes on bringing what a slow client has yet to take of its last answer.
      this.#socket.destroy();
    }
  }

  #enter(phase: Phase, nowMs = this.#options.environment.clock.monotonicMs()): void {
    this.#phase = phase;
    this.#sinceMs = nowMs;
  }

  #onData(chunk: Buffer): void {
    const { traffic, cells } = this.#options.route;
    traffic.received += chunk.length;
    cells.received.value += chunk.length;
    if (this.#phase === 'exchange') {
      if (this.#exchange.waitsForBody) this.#sinceMs = this.#options.environment.clock.monotonicMs();
      const own = Buffer.from(chunk);
      const used = this.#exchange.requestBytes(own);
      if (used < own.length) this.#keepAhead(own.subarray(used));
    } else if (this.#phase === 'idle' || this.#phase === 'head') {
      this.#borrowed = this.#ahead === undefined;
      this.#ahead = this.#ahead === undefined ? chunk : Buffer.concat([this.#ahead, chunk]);
      this.#readAhead();
      if (this.#ahead === chunk) this.#ahead = Buffer.from(chunk);
      this.#borrowed = false;
    }
  }

  #keepAhead(chunk: Buffer): void {
    this.#ahead = this.#ahead === undefined ? chunk : Buffer.concat([this.#ahead, chunk]);
    if (this.#phase === 'exchange' && this.#ahead.length > maxAheadBytes) this.#socket.pause();
  }

  #takeAhead(): Buffer | undefined {
    const ahead = this.#ahead;
    this.#ahead = undefined;
    return ahead;
  }

  /** Reads as many requests as are answered at once. */
  #readAhead(): void {
    if (this.#reading) return;
    this.#reading = true;
    while (
      this.#ahead !== undefined &&
      (this.#phase === 'idle' || this.#phase === 'head') &&
      this.#readOne(this.#ahead)
    );
    this.#reading = false;
  }

  /** False while the head is not all there. */
  #readOne(chunk: Buffer): boolean {
    let body: number;
    try {
      body = this.#options.environment.requestHead.readRequest(chunk, 0);
    } catch (error) {
      if (!(error instanceof HttpFault)) throw error;
      this.#refuse(error);
      return false;
    }
    if (body < 0) {
      if (this.#clientEnded) this.#closeGently();
      else if (this.#phase === 'idle') this.#enter('head');
      return false;
    }
    this.#ahead = undefined;
    const nowMs = this.#options.environment.clock.monotonicMs();
    this.#enter('exchange', nowMs);
    const own = this.#borrowed && body < chunk.length ? this.#own(chunk) : chunk;
    const used = this.#exchange.begin(own, body, nowMs);
    if (this.#leaving) this.#exchange.lastOne();
    if (used < own.length) this.#keepAhead(own.subarray(used));
    // It said so while an earlier request ran: if this one is not all there, the rest will not come.
    if (this.#clientEnded && this.#phase === 'exchange') this.#exchange.clientEnded();
    return true;
  }

  /** A copy of what the head was just read from, for what follows the head is kept; the head lies in the same place. */
  #own(chunk: Buffer): Buffer {
    const own = Buffer.from(chunk);
    this.#options.environment.requestHead.buffer = own;
    this.#borrowed = false;
    return own;
  }

  /** The answer is written, and nothing of the request is left to come if the connection is to be kept. */
  #exchangeOver(keepAlive: boolean, nowMs: number): void {
    if (this.#phase !== 'exchange') return;
    if (!keepAlive || (this.#clientEnded && this.#ahead === undefined)) {
      this.#closeGently();
      return;
    }
    this.#enter('idle', nowMs);
    const { accepts } = this.#options.environment;
    if (this.#ahead === undefined && accepts.holding) this.#hold(accepts);
    else if (this.#socket.isPaused()) this.#socket.resume();
    if (this.#ahead !== undefined) this.#readAhead();
  }

  /** It was served; the next request is not read until a burst of new connections is in. */
  #hold(accepts: AcceptGate): void {
    this.#socket.pause();
    accepts.hold(() => this.#socket.resume());
  }

  #refuse(fault: HttpFault): void {
    const { status, message, kind } = fault;
    this.#options.environment.metrics.refused(kind);
    this.#writer.write(ownAnswer({ status, reason: message }, { close: true, head: false }));
    this.#closeGently();
  }

  /** Says no more, and swallows what the client still sends, so that it gets to read what was said. */
  #closeGently(): void {
    if (this.#phase === 'lingering' || this.#phase === 'closed') return;
    this.#ahead = undefined;
    this.#enter('lingering');
    this.#socket.end();
    this.#socket.resume();
  }

  #onEnd(): void {
    if (wasReset(this.#socket)) {
      this.#socket.destroy(resetError());
      return;
    }
    this.#clientEnded = true;
    if (this.#phase === 'exchange') this.#exchange.clientEnded();
    else this.#closeGently();
  }

  #onClose(): void {
    if (this.#phase === 'closed') return;
    this.#phase = 'closed';
    this.#ahead = undefined;
    this.#exchange.abort();
    this.#options.ended(this);
  }
}
