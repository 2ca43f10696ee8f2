import type { Clock } from '../base/clock.ts';
import { formatDuration } from '../base/duration.ts';
import type { CheckSpec, InitialStatus } from '../model/check.ts';
import type { CheckState } from './check-health.ts';
import { longestTimerMs } from './limits.ts';
import { outputText } from './probe.ts';

export interface Refresh {
  readonly status: InitialStatus;
  readonly output: string;
}

export interface TtlCheckOptions {
  readonly check: CheckSpec;
  readonly clock: Clock;
  readonly initial: CheckState;
  readonly onResult: () => void;
}

/** A check that nobody asks: the instance has to say in time how it is. Its word counts at once, and so does silence. */
export class TtlCheck {
  readonly check: CheckSpec;
  readonly #options: TtlCheckOptions;
  #state: CheckState;
  #cancelTimer: () => void = () => undefined;

  constructor(options: TtlCheckOptions) {
    this.check = options.check;
    this.#options = options;
    this.#state = options.initial;
    // What is known from before holds for one more time, and so does what a new one begins with.
    if (this.#state.status !== 'critical' || this.#state.fresh) this.#arm();
  }

  get state(): CheckState {
    return this.#state;
  }

  refresh({ status, output }: Refresh): void {
    this.#state = { status, output: outputText(output), against: 0, fresh: false };
    this.#cancelTimer();
    this.#arm();
    this.#options.onResult();
  }

  close(): void {
    this.#cancelTimer();
  }

  #arm(): void {
    const { intervalMs } = this.check;
    this.#cancelTimer = this.#options.clock.after(Math.min(intervalMs, longestTimerMs), () => {
      const output = `no refresh within ${formatDuration(intervalMs)}`;
      this.#state = { status: 'critical', output, against: 0, fresh: false };
      this.#options.onResult();
    });
  }
}
