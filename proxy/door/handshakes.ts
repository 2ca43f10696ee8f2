import type { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import type { Clock } from '../../src/base/clock.ts';
import type { CounterCell, Metrics } from '../../src/base/metrics.ts';

/**
 * Why a handshake came to nothing. `clear`: HTTP without TLS; `version`: a version before TLS 1.2; `protocol`: no protocol
 * in common (ALPN); `refused`: the client does not take the certificate; `gone`: it went away; `limit`: newer ones took its
 * place; `unready`: no certificate, or a service without HTTP.
 */
export const handshakeFailures = [
  'clear',
  'version',
  'protocol',
  'refused',
  'garbage',
  'gone',
  'time',
  'limit',
  'unready',
] as const;
export type HandshakeFailure = (typeof handshakeFailures)[number];

interface Pending {
  readonly raw: Socket;
  readonly secured: (socket: TLSSocket) => void;
  readonly failed: (why: HandshakeFailure) => void;
  readonly cancelTimer: () => void;
  why: HandshakeFailure;
}

export interface HandshakesOptions {
  readonly clock: Clock;
  readonly metrics: Metrics;
  /** None is under way any more. */
  readonly onIdle: () => void;
}

/**
 * The TLS handshakes of this process that are under way, bounded in number and time. Where all places are taken the oldest
 * one gives way: clients that mean it are done in a few round trips, so that those who keep places only take each other's.
 */
export class Handshakes {
  static readonly max = 1024;
  static readonly limitMs = 10_000;
  readonly #clock: Clock;
  /** By both ends of the connection; the oldest first. */
  readonly #pending = new Map<string, Pending>();
  readonly #done: CounterCell;
  readonly #failures: Readonly<Record<HandshakeFailure, CounterCell>>;
  readonly #onIdle: () => void;

  constructor({ clock, metrics, onIdle }: HandshakesOptions) {
    this.#clock = clock;
    this.#onIdle = onIdle;
    this.#done = metrics.counter(
      'legate_link_tls_handshakes_total',
      'TLS handshakes with clients from outside that succeeded.',
    );
    const failed = (reason: HandshakeFailure): CounterCell =>
      metrics.counter('legate_link_tls_handshake_failures_total', 'TLS handshakes with clients that did not.', {
        reason,
      });
    this.#failures = Object.fromEntries(handshakeFailures.map((why) => [why, failed(why)])) as Record<
      HandshakeFailure,
      CounterCell
    >;
    metrics.gauge('legate_link_tls_handshakes_count', 'TLS handshakes with clients that are under way.', [], () => [
      [[], this.#pending.size],
    ]);
  }

  get size(): number {
    return this.#pending.size;
  }

  /** One of `secured` and `failed` is called, once; `failed` when the socket is closed. False: the client is gone already. */
  begin(raw: Socket, { secured, failed }: Pick<Pending, 'secured' | 'failed'>): boolean {
    const key = keyOf(raw);
    if (key === '' || this.#pending.has(key)) {
      this.refused(raw, 'gone', failed);
      return false;
    }
    if (this.#pending.size >= Handshakes.max) {
      for (const [oldest] of this.#pending) {
        this.#end(oldest, 'limit');
        break;
      }
    }
    const cancelTimer = this.#clock.after(Handshakes.limitMs, () => this.#end(key, 'time'));
    this.#pending.set(key, { raw, secured, failed, cancelTimer, why: 'gone' });
    raw.once('close', () => {
      const pending = this.#settle(key, raw);
      if (pending !== undefined) this.#count(pending.why, pending.failed);
    });
    return true;
  }

  /** Counts one that is not even begun, and closes it. */
  refused(raw: Socket, why: HandshakeFailure, failed: Pending['failed']): void {
    this.#count(why, failed);
    raw.destroy();
  }

  /** It is done; false when nobody waits for it any more. */
  secured(socket: TLSSocket): boolean {
    const pending = this.#settle(keyOf(socket));
    if (pending === undefined) return false;
    this.#done.value += 1;
    const { raw } = pending;
    // The runtime resets only sockets of its own kind; whoever has the secure one is to be able to.
    socket.resetAndDestroy = () => {
      if (raw.destroyed) socket.destroy();
      else raw.resetAndDestroy();
      return socket;
    };
    pending.secured(socket);
    return true;
  }

  /** It has failed, and its end follows: why, and the socket that it was to be over. */
  failing(socket: TLSSocket, why: HandshakeFailure): Socket | undefined {
    const pending = this.#pending.get(keyOf(socket));
    if (pending !== undefined) pending.why = why;
    return pending?.raw;
  }

  close(): void {
    for (const { raw } of [...this.#pending.values()]) raw.destroy();
  }

  #end(key: string, why: HandshakeFailure): void {
    const pending = this.#settle(key);
    if (pending === undefined) return;
    this.#count(why, pending.failed);
    pending.raw.destroy();
  }

  #count(why: HandshakeFailure, failed: Pending['failed']): void {
    this.#failures[why].value += 1;
    failed(why);
  }

  #settle(key: string, raw?: Socket): Pending | undefined {
    const pending = this.#pending.get(key);
    // The same ends may be another connection's by the time that this one is closed.
    if (pending === undefined || (raw !== undefined && pending.raw !== raw)) return undefined;
    this.#pending.delete(key);
    pending.cancelTimer();
    // Whoever takes it over does so first.
    if (this.#pending.size === 0) queueMicrotask(this.#onIdle);
    return pending;
  }
}

/** A connection by its ends; empty when it is gone already. */
function keyOf({ remoteAddress, remotePort, localAddress, localPort }: Socket): string {
  return remoteAddress === undefined ? '' : `${remoteAddress} ${remotePort} ${localAddress} ${localPort}`;
}
