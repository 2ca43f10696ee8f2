import type { CounterCell } from '../../src/base/metrics.ts';
import type { Backend } from '../balance/backend.ts';

/** What one listener has carried; plain numbers that the relay adds to. */
export interface Traffic {
  active: number;
  total: number;
  failed: number;
  retried: number;
  /** Bytes from consumers. */
  received: number;
  /** Bytes to consumers. */
  sent: number;
}

/** The metrics of the service, summed over its listeners. */
export interface TrafficCells {
  readonly received: CounterCell;
  readonly sent: CounterCell;
}

export interface AttemptFailure {
  readonly problem: string;
  /** The host gave no sign of life, as it would by a refusal. */
  readonly silent: boolean;
  /** Whether the client does not notice, because another attempt follows. */
  readonly retried: boolean;
}

/**
 * Where a connection may go: all that the relay knows of services. The relay owns the sockets; the route owns the choice,
 * and hears how each attempt went. A backend that was picked is given back with `ended`.
 */
export interface Route {
  readonly traffic: Traffic;
  readonly cells: TrafficCells;
  /** How many instances could be dialled now. */
  readonly size: number;
  pick(tried: readonly Backend[]): Backend | undefined;
  hasOther(tried: readonly Backend[]): boolean;
  connected(backend: Backend, elapsedMs: number): void;
  /** A connect failure or a reset before the first byte. */
  attemptFailed(backend: Backend, failure: AttemptFailure): void;
  /** The client was reset because nothing could be connected to; with no backend at all, `problem` is undefined. */
  refused(problem: string | undefined): void;
  /** This machine, not the instance, is at its limit. */
  exhausted(error: unknown): void;
  ended(backend: Backend): void;
}
