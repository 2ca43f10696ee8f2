import type { Clock } from '../../src/base/clock.ts';
import type { AccessLog } from '../access-log.ts';
import type { ReadBuffers } from '../tcp/read-buffers.ts';
import type { TraceIds } from '../trace-ids.ts';
import type { Tunnels } from '../tunnel/tunnels.ts';
import type { Head } from './head.ts';
import type { HeadComposer } from './outgoing.ts';
import type { HttpPool } from './pool.ts';
import type { RequestMetrics } from './request-metrics.ts';
import type { HeadView } from './routing/head-view.ts';
import type { Mirrors } from './routing/mirrors.ts';

/** What all HTTP connections of a process share. */
export interface HttpEnvironment {
  readonly clock: Clock;
  readonly buffers: ReadBuffers;
  readonly tunnels: Tunnels | undefined;
  readonly pool: HttpPool;
  readonly traceIds: TraceIds;
  /** Heads are read and written within one turn: one of each is enough. */
  readonly requestHead: Head;
  /** Looks at `requestHead`. */
  readonly view: HeadView;
  readonly responseHead: Head;
  readonly composer: HeadComposer;
  readonly metrics: RequestMetrics;
  /** Undefined where requests are not logged. */
  readonly accessLog: AccessLog | undefined;
  readonly mirrors: Mirrors;
}
