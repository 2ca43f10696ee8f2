import type { Clock } from '../base/clock.ts';
import { formatDuration } from '../base/duration.ts';
import { describeError } from '../base/errors.ts';
import type { CounterCell } from '../base/metrics.ts';
import type { CheckSpec } from '../model/check.ts';
import { afterResult, type CheckState } from './check-health.ts';
import { longestTimerMs } from './limits.ts';
import { outputText, type Probe, type ProbeResult, type ProbeTarget } from './probe.ts';
import type { ProbeQueue } from './probe-queue.ts';

/** While nothing is known yet it is asked this often, so that a fresh instance is used soon. */
const startingIntervalMs = 500;
/** Between the end of one probe and the next one's beginning. */
const minPauseMs = 10;

export interface ProbedCheckOptions {
  readonly target: ProbeTarget;
  readonly check: CheckSpec;
  readonly probe: Probe;
  readonly queue: ProbeQueue;
  readonly clock: Clock;
  /** 0 to below 1. */
  readonly random: () => number;
  readonly counters: { readonly probes: CounterCell; readonly failures: CounterCell; readonly timeouts: CounterCell };
  readonly initial: CheckState;
  /** How long a probe that was cut may keep its place in the queue until it has really ended; default: not at all. */
  readonly lingerMs?: number;
  /** Ask at once, as after a start; otherwise some time within the first interval, so that many checks do not align. */
  readonly atOnce: boolean;
  /** It only keeps its health and does not ask. */
  readonly suspended: boolean;
  readonly onResult: () => void;
}

/** One active check of one instance: asks again and again until closed, never twice at a time. */
export class ProbedCheck {
  readonly check: CheckSpec;
  readonly suspended: boolean;
  readonly #options: ProbedCheckOptions;
  #state: CheckState;
  #cancelTimer: () => void = () => undefined;
  #leaveQueue: () => void = () => undefined;
  #running: AbortController | undefined;
  /** The last probe, until it has ended. */
  #unended: Promise<unknown> | undefined;
  #closed = false;

  constructor(options: ProbedCheckOptions) {
    this.check = options.check;
    this.#options = options;
    this.#state = options.initial;
    this.suspended = options.suspended;
    if (!this.suspended) this.#schedule(options.atOnce ? 0 : options.random() * this.#intervalMs());
  }

  get state(): CheckState {
    return this.#state;
  }

  /** Whether it asks there. */
  asks({ address, port, container }: ProbeTarget): boolean {
    const { target } = this.#options;
    return target.address === address && target.port === port && target.container === container;
  }

  /** Resolves when nothing is still going on that outlasts being cut. */
  async ended(): Promise<void> {
    if ((this.#options.lingerMs ?? 0) > 0) await this.#unended;
  }

  close(): void {
    this.#closed = true;
    this.#cancelTimer();
    this.#leaveQueue();
    this.#running?.abort();
  }

  #schedule(delayMs: number): void {
    this.#cancelTimer = this.#options.clock.after(Math.min(delayMs, longestTimerMs), () => {
      this.#leaveQueue = this.#options.queue.run(() => this.#ask());
    });
  }

  async #ask(): Promise<void> {
    if (this.#closed) return;
    const { clock, counters, onResult } = this.#options;
    const beganMs = clock.monotonicMs();
    const result = await this.#askOnce();
    if (this.#closed) return this.#linger();
    counters.probes.value += 1;
    if (result.verdict === 'fail') counters.failures.value += 1;
    this.#state = afterResult(this.#state, result, this.check);
    onResult();
    await this.#linger();
    if (!this.#closed) this.#schedule(Math.max(minPauseMs, this.#periodMs() - (clock.monotonicMs() - beganMs)));
  }

  /** One result, at the latest when the time is over, even from a probe that does not heed its signal. */
  async #askOnce(): Promise<ProbeResult> {
    const { clock, target, probe, counters } = this.#options;
    const { timeoutMs } = this.check;
    if (this.#unended !== undefined) {
      return { verdict: 'fail', output: 'the last run was cut and has not ended yet' };
    }
    const cut = new AbortController();
    this.#running = cut;
    let cancel = (): void => undefined;
    let describe = (): ProbeResult => ({ verdict: 'fail', output: `no answer within ${formatDuration(timeoutMs)}` });
    const late = new Promise<ProbeResult>((resolve) => {
      const end = (): void => resolve(describe());
      cancel = clock.after(Math.min(timeoutMs, longestTimerMs), () => {
        counters.timeouts.value += 1;
        end();
        cut.abort();
      });
      cut.signal.addEventListener('abort', end, { once: true });
    });
    const asked = probe(target, this.check, cut.signal, (described) => {
      describe = described;
    }).catch((error: unknown): ProbeResult => ({ verdict: 'fail', output: describeError(error) }));
    const unended = asked.then(() => {
      if (this.#unended === unended) this.#unended = undefined;
    });
    this.#unended = unended;
    const result = await Promise.race([late, asked]);
    cancel();
    this.#running = undefined;
    return { verdict: result.verdict, output: outputText(result.output) };
  }

  /** Waits until what was cut has ended, so that not more of it goes on at a time than the queue lets. */
  async #linger(): Promise<void> {
    const { clock, lingerMs = 0 } = this.#options;
    if (this.#unended === undefined || lingerMs === 0) return;
    let cancel = (): void => undefined;
    const late = new Promise<void>((resolve) => {
      cancel = clock.after(lingerMs, resolve);
    });
    await Promise.race([this.#unended, late]);
    cancel();
  }

  #periodMs(): number {
    return this.#intervalMs() * (0.9 + 0.2 * this.#options.random());
  }

  #intervalMs(): number {
    const { intervalMs } = this.check;
    const { status, fresh } = this.#state;
    const isAwaited = fresh && (status === 'starting' || status === 'critical');
    return isAwaited ? Math.min(intervalMs, startingIntervalMs) : intervalMs;
  }
}
