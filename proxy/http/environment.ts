import type { Clock } from '../../src/base/clock.ts';
import type { AccessLog } from '../access-log.ts';
import type { AcceptGate } from '../tcp/accept-gate.ts';
import type { DirectWrites } from '../tcp/direct-writes.ts';
import type { ReadBuffers } from '../tcp/read-buffers.ts';
import type { SharedReads } from '../tcp/shared-reads.ts';
import type { TraceIds } from '../trace-ids.ts';
import type { Tunnels } from '../tunnel/tunnels.ts';
import type { HttpCopyOf } from './copy-sender.ts';
import type { Head } from './head.ts';
import type { HeadComposer } from './outgoing.ts';
import type { HttpPool } from './pool.ts';
import type { RequestMetrics } from './request-metrics.ts';
import type { HeadView } from './routing/head-view.ts';
import type { Mirrors } from './routing/mirrors.ts';

/** What all HTTP connections of a process share. */
export interface HttpEnvironment {
  readonly clock: Clock;
  /** Tells when new connections have to be let in first. */
  readonly accepts: AcceptGate;
  readonly buffers: ReadBuffers;
  /** What clients say is read into. */
  readonly clientReads: SharedReads;
  readonly writes: DirectWrites;
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
  readonly mirrors: Mirrors<HttpCopyOf>;
}
