import type { Socket } from 'node:net';
import type { Clock } from '../../src/base/clock.ts';
import type { Metrics } from '../../src/base/metrics.ts';
import type { AccessLog } from '../access-log.ts';
import type { AcceptGate } from '../tcp/accept-gate.ts';
import type { Account } from '../tcp/carried.ts';
import { DirectWrites } from '../tcp/direct-writes.ts';
import type { ReadBuffers } from '../tcp/read-buffers.ts';
import type { Route } from '../tcp/route.ts';
import { SharedReads } from '../tcp/shared-reads.ts';
import { TraceIds } from '../trace-ids.ts';
import type { Tunnels } from '../tunnel/tunnels.ts';
import { sweepMs } from './bounds.ts';
import { HttpConnection } from './connection.ts';
import { type HttpCopyOf, HttpCopySender } from './copy-sender.ts';
import type { HttpEnvironment } from './environment.ts';
import { Head } from './head.ts';
import { HeadComposer } from './outgoing.ts';
import { HttpPool } from './pool.ts';
import { RequestMetrics } from './request-metrics.ts';
import { RetryBudgets } from './retry-budget.ts';
import { HeadView } from './routing/head-view.ts';
import { Mirrors } from './routing/mirrors.ts';

export interface HttpPlaneOptions {
  readonly clock: Clock;
  readonly accepts: AcceptGate;
  readonly metrics: Metrics;
  readonly buffers: ReadBuffers;
  readonly tunnels: Tunnels | undefined;
  readonly accessLog: AccessLog | undefined;
}

/** All HTTP connections of this process, and what they share. */
export class HttpPlane {
  readonly #environment: HttpEnvironment;
  readonly #connections = new Set<HttpConnection>();
  readonly #budgets = new RetryBudgets();
  #cancelSweep: (() => void) | undefined;
  #leaving = false;

  constructor({ clock, accepts, metrics, buffers, tunnels, accessLog }: HttpPlaneOptions) {
    const pool = new HttpPool();
    const requestHead = new Head();
    const environment = {
      clock,
      accepts,
      buffers,
      clientReads: new SharedReads(),
      writes: new DirectWrites(),
      tunnels,
      pool,
      traceIds: new TraceIds(),
      requestHead,
      view: new HeadView(requestHead),
      responseHead: new Head(),
      composer: new HeadComposer(),
      metrics: new RequestMetrics(metrics, () => pool.size),
      accessLog,
    };
    const mirrors = new Mirrors<HttpCopyOf>({
      clock,
      metrics,
      senderFor: (of, ended) => new HttpCopySender(of, environment, ended),
    });
    this.#environment = { ...environment, mirrors };
  }

  /** What is counted of requests, of all versions of the protocol. */
  get requestMetrics(): RequestMetrics {
    return this.#environment.metrics;
  }

  /** Takes over a paused socket. `ended` is called once, when it is closed. */
  accept(
    socket: Socket,
    route: Route,
    account: Account,
    ended: (connection: HttpConnection) => void,
    scheme: 'http' | 'https' = 'http',
  ): HttpConnection {
    const connection = new HttpConnection({
      socket,
      route,
      account,
      scheme,
      budget: this.#budgets.of(route.service),
      environment: this.#environment,
      ended: (which) => {
        this.#connections.delete(which);
        ended(which);
      },
    });
    this.#connections.add(connection);
    if (this.#leaving) connection.leaveAfterOne();
    if (this.#cancelSweep === undefined) this.#sweepLater();
    return connection;
  }

  /** Idle connections are closed, and busy ones after their answer. */
  leave(): void {
    this.#leaving = true;
    for (const connection of [...this.#connections]) connection.leave();
  }

  close(): void {
    this.#cancelSweep?.();
    this.#cancelSweep = undefined;
    this.#environment.mirrors.close();
    this.#environment.pool.close();
  }

  #sweepLater(): void {
    const { clock, pool } = this.#environment;
    this.#cancelSweep = clock.after(sweepMs, () => {
      this.#cancelSweep = undefined;
      const nowMs = clock.monotonicMs();
      for (const connection of this.#connections) connection.tick(nowMs);
      pool.sweep(nowMs);
      if (this.#connections.size > 0 || pool.size > 0) this.#sweepLater();
    });
  }
}
