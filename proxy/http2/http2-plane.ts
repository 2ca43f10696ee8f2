import type { Socket } from 'node:net';
import type { Clock } from '../../src/base/clock.ts';
import type { Metrics } from '../../src/base/metrics.ts';
import type { AccessLog } from '../access-log.ts';
import { sweepMs } from '../http/bounds.ts';
import type { RequestMetrics } from '../http/request-metrics.ts';
import { RetryBudgets } from '../http/retry-budget.ts';
import { Mirrors } from '../http/routing/mirrors.ts';
import type { Account } from '../tcp/carried.ts';
import type { Route } from '../tcp/route.ts';
import { TraceIds } from '../trace-ids.ts';
import type { Tunnels } from '../tunnel/tunnels.ts';
import { Http2Connection } from './connection.ts';
import { type Http2CopyOf, Http2CopySender } from './copy-sender.ts';
import type { Http2Environment } from './environment.ts';
import { bindLightly } from './light-binding.ts';
import { SessionPool } from './session-pool.ts';

export interface Http2PlaneOptions {
  readonly clock: Clock;
  readonly metrics: Metrics;
  readonly requestMetrics: RequestMetrics;
  readonly tunnels: Tunnels | undefined;
  readonly accessLog: AccessLog | undefined;
}

/** All HTTP/2 connections of this process, and what they share. */
export class Http2Plane {
  readonly #environment: Http2Environment;
  /** Connections to instances: those of requests, and those of copies of them. */
  readonly #pools: readonly SessionPool[];
  readonly #connections = new Set<Http2Connection>();
  readonly #budgets = new RetryBudgets();
  #cancelSweep: (() => void) | undefined;
  #leaving = false;
  #closed = false;
  #owners = 0;

  constructor({ clock, metrics, requestMetrics, tunnels, accessLog }: Http2PlaneOptions) {
    bindLightly();
    const pool = new SessionPool();
    const copyPool = new SessionPool();
    const flood = (kind: string) =>
      metrics.counter('legate_http2_floods_total', 'Clients that were cut off, by what they sent too much of.', {
        kind,
      });
    const environment = {
      clock,
      tunnels,
      pool,
      traceIds: new TraceIds(),
      metrics: requestMetrics,
      floods: { settings: flood('settings'), ping: flood('ping'), reset: flood('reset'), frames: flood('frames') },
      accessLog,
    };
    const ofCopies = { ...environment, pool: copyPool };
    const mirrors = new Mirrors<Http2CopyOf>({
      clock,
      metrics,
      senderFor: (of, ended) => new Http2CopySender(of, ofCopies, ended),
    });
    this.#environment = { ...environment, mirrors };
    this.#pools = [pool, copyPool];
    metrics.gauge('legate_http2_instance_connections', 'Connections to instances over which HTTP/2 goes.', [], () => [
      [[], this.#sessions],
    ]);
    metrics.gauge(
      'legate_http2_streams_count',
      'Requests, and copies of them, that instances are being asked over HTTP/2.',
      [],
      () => [[[], pool.streams + copyPool.streams]],
    );
  }

  /** Takes over a paused socket. `ended` is called once, when it is closed. */
  accept(
    socket: Socket,
    route: Route,
    account: Account,
    ended: (connection: Http2Connection) => void,
    scheme: 'http' | 'https' = 'http',
  ): Http2Connection {
    // Where instances are told who the client is, nobody else may use its connections.
    let own = '';
    const ownerFor = ({ announcesClient }: Route): string => {
      if (announcesClient && own === '') own = this.#newOwner();
      return announcesClient ? own : '';
    };
    const connection = new Http2Connection({
      socket,
      route,
      account,
      scheme,
      ownerFor,
      budget: this.#budgets.of(route.service),
      environment: this.#environment,
      ended: (which) => {
        this.#connections.delete(which);
        if (own !== '') for (const pool of this.#pools) pool.closeOf(own);
        ended(which);
      },
    });
    this.#connections.add(connection);
    if (this.#leaving) connection.leave();
    if (this.#cancelSweep === undefined) this.#sweepLater();
    return connection;
  }

  /** Clients are told to go elsewhere; what runs comes to its end. */
  leave(): void {
    this.#leaving = true;
    for (const connection of [...this.#connections]) connection.leave();
  }

  close(): void {
    this.#closed = true;
    this.#cancelSweep?.();
    this.#cancelSweep = undefined;
    this.#environment.mirrors.close();
    for (const pool of this.#pools) pool.close();
  }

  get #sessions(): number {
    return this.#pools.reduce((sum, { size }) => sum + size, 0);
  }

  #newOwner(): string {
    this.#owners += 1;
    return `client ${this.#owners}`;
  }

  #sweepLater(): void {
    const { clock } = this.#environment;
    this.#cancelSweep = clock.after(sweepMs, () => {
      this.#cancelSweep = undefined;
      if (this.#closed) return;
      const nowMs = clock.monotonicMs();
      for (const connection of [...this.#connections]) connection.tick(nowMs);
      for (const pool of this.#pools) pool.sweep(nowMs);
      if (this.#connections.size > 0 || this.#sessions > 0) this.#sweepLater();
    });
  }
}
