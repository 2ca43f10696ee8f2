import type { Clock } from '../../src/base/clock.ts';
import { type Condition, Conditions } from '../../src/base/conditions.ts';
import type { Log, LogFields } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import type { Peer } from './peer.ts';
import type { ControlCalls, WorkerCalls } from './seam.ts';

/** What is wrong in a worker: control shows it. Without control it is only logged. */
export class WorkerConditions extends Conditions {
  readonly #control: Peer<WorkerCalls, ControlCalls>;
  readonly #raised = new Set<string>();

  constructor(options: {
    readonly log: Log;
    readonly clock: Clock;
    readonly control: Peer<WorkerCalls, ControlCalls>;
  }) {
    super(options.log, options.clock, new Metrics());
    this.#control = options.control;
  }

  override raise(
    id: string,
    severity: Condition['severity'],
    message: string,
    hint: string,
    fields: LogFields = {},
  ): void {
    if (this.#raised.size < Conditions.maxConditions) this.#raised.add(id);
    if (this.#control.closed) super.raise(id, severity, message, hint, fields);
    else this.#control.tell('raise', id, severity, message, hint);
  }

  override clear(id: string): void {
    this.#raised.delete(id);
    if (this.#control.closed) super.clear(id);
    else this.#control.tell('clear', id);
  }

  override clearPrefix(prefix: string, except: ReadonlySet<string> = new Set()): void {
    for (const id of [...this.#raised]) if (id.startsWith(prefix) && !except.has(id)) this.clear(id);
  }
}
