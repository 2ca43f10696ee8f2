import type { Clock } from '../base/clock.ts';
import { formatDuration } from '../base/duration.ts';
import { formatEndpoint } from '../model/address.ts';
import type { CheckSpec } from '../model/check.ts';
import type { CheckHealth } from './check-health.ts';
import { longestTimerMs } from './limits.ts';
import { outputText, type ProbeTarget } from './probe.ts';
import { ProbedCheck } from './probed-check.ts';
import type { TtlCheck } from './ttl-check.ts';

/** One check of an instance as people see it. */
export interface CheckDetail extends CheckHealth {
  readonly kind: string;
  /** What is asked. */
  readonly target: string;
  /** Wall clock of the last change of its status, milliseconds. */
  readonly sinceMs: number;
}

/** What goes on for one check: who asks, since when it has its status, and whether it has been critical for too long. */
export class CheckWatch {
  readonly check: CheckSpec;
  /** Undefined for what others ask (docker), and what nobody can. */
  readonly run: ProbedCheck | TtlCheck | undefined;
  readonly #clock: Clock;
  readonly #onOverdue: () => void;
  #status: CheckHealth['status'] | undefined;
  #sinceMs = 0;
  #sinceMonotonicMs = 0;
  #isOverdue = false;
  #cancelTimer: (() => void) | undefined;

  constructor(check: CheckSpec, run: ProbedCheck | TtlCheck | undefined, clock: Clock, onOverdue: () => void) {
    this.check = check;
    this.run = run;
    this.#clock = clock;
    this.#onOverdue = onOverdue;
  }

  /** Takes note of the check's health now; `before` is the watch that it goes on from, with its times. */
  note({ status }: CheckHealth, before?: CheckWatch): void {
    if (this.#status === status) return;
    const isSame = this.#status === undefined && before !== undefined && before.#status === status;
    this.#sinceMs = isSame ? before.#sinceMs : this.#clock.nowMs();
    this.#sinceMonotonicMs = isSame ? before.#sinceMonotonicMs : this.#clock.monotonicMs();
    this.#status = status;
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    this.#isOverdue = false;
    const { deregisterAfterMs } = this.check;
    if (status !== 'critical' || deregisterAfterMs === undefined) return;
    const leftMs = this.#sinceMonotonicMs + deregisterAfterMs - this.#clock.monotonicMs();
    if (leftMs <= 0) this.#isOverdue = true;
    else this.#cancelTimer = this.#clock.after(Math.min(leftMs, longestTimerMs), () => this.#overdue());
  }

  #overdue(): void {
    this.#isOverdue = true;
    this.#onOverdue();
  }

  /** Why the instance is to leave the registry; undefined while it is not. */
  deregistration(output: string): string | undefined {
    const { deregisterAfterMs } = this.check;
    if (!this.#isOverdue || deregisterAfterMs === undefined) return undefined;
    const text = `deregistered after ${formatDuration(deregisterAfterMs)} critical`;
    return outputText(output === '' ? text : `${text}: ${output}`);
  }

  detail({ status, output }: CheckHealth, target: ProbeTarget): CheckDetail {
    const sinceMs = this.#sinceMs;
    return { kind: this.check.kind, target: targetText(this.check, target), status, output, sinceMs };
  }

  close(): void {
    this.#cancelTimer?.();
    this.run?.close();
  }

  async ended(): Promise<void> {
    if (this.run instanceof ProbedCheck) await this.run.ended();
  }
}

/** What a check asks, for people. */
export function targetText(check: CheckSpec, target: ProbeTarget): string {
  const at = formatEndpoint({ address: target.address, port: check.port ?? target.port });
  switch (check.kind) {
    case 'http':
      return outputText(
        `${check.method ?? 'GET'} http${check.tls === undefined ? '' : 's'}://${at}${check.path ?? '/'}`,
      );
    case 'grpc':
      return outputText(`grpc${check.tls === undefined ? '' : 's'}://${at}/${check.grpcService ?? ''}`);
    case 'tcp':
      return `tcp://${at}`;
    case 'exec':
      return outputText(`exec ${check.command ?? ''}`);
    case 'ttl':
      return `refreshed every ${formatDuration(check.intervalMs)}`;
    case 'docker':
      return 'HEALTHCHECK of the container';
  }
}
