import type { Clock } from '../base/clock.ts';
import { formatDuration } from '../base/duration.ts';
import { describeError } from '../base/errors.ts';
import type { CounterCell } from '../base/metrics.ts';
import type { Endpoint } from '../model/address.ts';
import type { CheckSpec } from '../model/check.ts';
import { afterResult, type CheckHealth, type CheckState } from './check-health.ts';
import { outputText, type Probe, type ProbeResult } from './probe.ts';
import type { ProbeQueue } from './probe-queue.ts';

/** While nothing is known yet it is asked this often, so that a fresh instance is used soon. */
const startingIntervalMs = 500;
/** Between the end of one probe and the next one's beginning. */
const minPauseMs = 10;

export interface ProbedCheckOptions {
  readonly endpoint: Endpoint;
  readonly check: CheckSpec;
  readonly probe: Probe;
  readonly queue: ProbeQueue;
  readonly clock: Clock;
  /** 0 to below 1. */
  readonly random: () => number;
  readonly counters: { readonly probes: CounterCell; readonly failures: CounterCell; readonly timeouts: CounterCell };
  readonly initial: CheckHealth;
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
  #closed = false;

  constructor(options: ProbedCheckOptions) {
    this.check = options.check;
    this.#options = options;
    this.#state = { ...options.initial, against: 0 };
    this.suspended = options.suspended;
    if (!this.suspended) this.#schedule(options.atOnce ? 0 : options.random() * this.#intervalMs());
  }

  get health(): CheckHealth {
    return this.#state;
  }

  /** Whether it asks where the target is. */
  matches({ address, port }: Endpoint): boolean {
    const { endpoint, check } = this.#options;
    return endpoint.address === address && endpoint.port === (check.port ?? port);
  }

  close(): void {
    this.#closed = true;
    this.#cancelTimer();
    this.#leaveQueue();
    this.#running?.abort();
  }

  #schedule(delayMs: number): void {
    this.#cancelTimer = this.#options.clock.after(delayMs, () => {
      this.#leaveQueue = this.#options.queue.run(() => this.#ask());
    });
  }

  async #ask(): Promise<void> {
    if (this.#closed) return;
    const { clock, counters, onResult } = this.#options;
    const beganMs = clock.monotonicMs();
    const result = await this.#askOnce();
    if (this.#closed) return;
    counters.probes.value += 1;
    if (result.verdict === 'fail') counters.failures.value += 1;
    this.#state = afterResult(this.#state, result, this.check);
    onResult();
    if (!this.#closed) this.#schedule(Math.max(minPauseMs, this.#periodMs() - (clock.monotonicMs() - beganMs)));
  }

  /** One result, at the latest when the time is over, even from a probe that does not heed its signal. */
  async #askOnce(): Promise<ProbeResult> {
    const { clock, endpoint, probe, counters } = this.#options;
    const { timeoutMs } = this.check;
    const cut = new AbortController();
    this.#running = cut;
    let cancel = (): void => undefined;
    const late = new Promise<ProbeResult>((resolve) => {
      const end = (): void => resolve({ verdict: 'fail', output: `no answer within ${formatDuration(timeoutMs)}` });
      cancel = clock.after(timeoutMs, () => {
        counters.timeouts.value += 1;
        end();
        cut.abort();
      });
      cut.signal.addEventListener('abort', end, { once: true });
    });
    const asked = probe(endpoint, this.check, cut.signal).catch(
      (error: unknown): ProbeResult => ({ verdict: 'fail', output: describeError(error) }),
    );
    const result = await Promise.race([late, asked]);
    cancel();
    this.#running = undefined;
    return { verdict: result.verdict, output: outputText(result.output) };
  }

  #periodMs(): number {
    return this.#intervalMs() * (0.9 + 0.2 * this.#options.random());
  }

  #intervalMs(): number {
    const { intervalMs } = this.check;
    return this.#state.status === 'starting' ? Math.min(intervalMs, startingIntervalMs) : intervalMs;
  }
}
