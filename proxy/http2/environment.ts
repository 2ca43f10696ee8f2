import type { Clock } from '../../src/base/clock.ts';
import type { CounterCell } from '../../src/base/metrics.ts';
import type { AccessLog } from '../access-log.ts';
import type { RequestMetrics } from '../http/request-metrics.ts';
import type { Mirrors } from '../http/routing/mirrors.ts';
import type { TraceIds } from '../trace-ids.ts';
import type { Tunnels } from '../tunnel/tunnels.ts';
import type { Http2CopyOf } from './copy-sender.ts';
import type { Flood } from './flood-guard.ts';
import type { SessionPool } from './session-pool.ts';

/** What all HTTP/2 connections of a process share. */
export interface Http2Environment {
  readonly clock: Clock;
  readonly tunnels: Tunnels | undefined;
  readonly pool: SessionPool;
  readonly traceIds: TraceIds;
  readonly metrics: RequestMetrics;
  /** Clients that were cut off, by what they sent too much of. */
  readonly floods: Readonly<Record<Flood | 'frames', CounterCell>>;
  /** Undefined where requests are not logged. */
  readonly accessLog: AccessLog | undefined;
  readonly mirrors: Mirrors<Http2CopyOf>;
}
