import type { CounterCell } from '../../src/base/metrics.ts';
import type { Backend } from '../balance/backend.ts';
import type { Admission } from '../http/admission.ts';
import type { HashKey } from '../http/hash-key.ts';
import type { LinkRouting } from '../http/routing/link-routing.ts';
import type { HttpSettings } from '../http/settings.ts';
import type { Asked } from '../permission.ts';

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

/**
 * Whose failure it is: the instance's; its host's, which gave no sign of life or takes nothing more; or only that of the way
 * there, which says nothing of either.
 */
export type Blame = 'instance' | 'host' | 'way';

export interface AttemptFailure {
  readonly problem: string;
  readonly blame: Blame;
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
  /** The service's name. */
  readonly service: string;
  /** How requests are treated, where they are told apart. */
  readonly http: HttpSettings;
  /** What chooses where each request goes; undefined where all go here. */
  readonly routing: LinkRouting | undefined;
  /** Whose turn it is, where only so many requests may run at a time. */
  readonly admission: Admission;
  /** How many instances could be dialled now. */
  readonly size: number;
  /** Whether instances are told the client's address before the first byte. */
  readonly announcesClient: boolean;
  /** Why there is nothing to pick although there are instances, for people. */
  readonly problemToPick: string | undefined;
  /** How long from its start a connection waits for something to connect to. */
  readonly holdMs: number;
  /** How requests are told apart; undefined where that does not decide where they go. */
  readonly hashKey: HashKey | undefined;
  /** `key`: of the request or connection, made by `hashKey`. */
  pick(tried: readonly Backend[], key?: number): Backend | undefined;
  hasOther(tried: readonly Backend[]): boolean;
  connected(backend: Backend, elapsedMs: number): void;
  /** A connect failure or a reset before the first byte. */
  attemptFailed(backend: Backend, failure: AttemptFailure): void;
  /**
   * A request was answered; `isError`: with a fault of the instance's own; `ms`: after so long, where the answer is a good
   * one: what fails at once must not make others look slow.
   */
  answered(backend: Backend, isError: boolean, ms: number | undefined): void;
  /** Calls back when there may be something to connect to; gives how to stop waiting, or undefined: too many wait. */
  hold(resume: () => void): (() => void) | undefined;
  /** The client was reset because nothing could be connected to; `problem` says why where no attempt has failed. */
  refused(problem: string | undefined): void;
  /** The client was reset because the instance's host does not let this consumer in. */
  refusedByHost(backend: Backend, asked: Asked, problem: string): void;
  /** This machine, not the instance, is at its limit. */
  exhausted(error: unknown): void;
  ended(backend: Backend): void;
}
