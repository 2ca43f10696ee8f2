import type { Clock } from '../base/clock.ts';
import type { Log } from '../base/log.ts';
import type { CounterCell, Metrics } from '../base/metrics.ts';
import type { CheckSpec } from '../model/check.ts';
import type { DesiredInstance, StoredStatus } from '../model/instance.ts';
import { type CheckHealth, worstOf } from './check-health.ts';
import { dockerHealth } from './docker.ts';
import { probeHttp } from './http.ts';
import { outputText, type Probe, type Probes } from './probe.ts';
import { ProbeQueue } from './probe-queue.ts';
import { ProbedCheck } from './probed-check.ts';
import { probeTcp } from './tcp.ts';

/** Probes that run at a time; the others wait their turn. */
const maxConcurrentProbes = 64;
/** An output that changes while the status stays is passed on at most this often: each one is a write in the store. */
const outputIntervalMs = 30_000;

export interface Health {
  readonly status: StoredStatus;
  /** Printable, at most 500 characters. */
  readonly output: string;
  /** Wall clock of the last change of the status, milliseconds. */
  readonly changedAtMs: number;
}

export interface HealthTarget {
  readonly address: string;
  readonly port: number;
  readonly checks: readonly CheckSpec[];
  /** For checks of kind `docker`. */
  readonly reported?: DesiredInstance['reported'];
  /** Why nothing can answer at present (a paused container): critical with this text, and nobody asks. */
  readonly suspended?: string;
  /** Another one begins anew: starting, asked at once. */
  readonly incarnation: string;
  /** The stored health of the same incarnation, taken over so that nothing flaps when the sidecar restarts. */
  readonly initial?: { readonly status: StoredStatus; readonly output: string };
}

export interface HealthRunnerOptions {
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  /** 0 to below 1; Math.random by default. */
  readonly random?: () => number;
  /** In place of the real ones. */
  readonly probes?: Probes;
  readonly maxConcurrent?: number;
  /** Called for each change, also from within `set`. */
  readonly onChange: (name: string, health: Health) => void;
}

interface Watched {
  target: HealthTarget;
  checks: Map<CheckSpec, ProbedCheck>;
  health: Health | undefined;
  outputPassedMs: number;
}

const realProbes: Probes = { tcp: probeTcp, http: probeHttp };

/** Watches over the health of this host's instances, by name. */
export class HealthRunner {
  readonly #options: HealthRunnerOptions;
  readonly #random: () => number;
  readonly #probes: Probes;
  readonly #queue: ProbeQueue;
  readonly #watched = new Map<string, Watched>();
  readonly #counters = new Map<string, Record<'probes' | 'failures' | 'timeouts', CounterCell>>();

  constructor(options: HealthRunnerOptions) {
    this.#options = options;
    this.#random = options.random ?? Math.random;
    this.#probes = options.probes ?? realProbes;
    this.#queue = new ProbeQueue(options.maxConcurrent ?? maxConcurrentProbes);
    options.metrics.gauge('legate_health_probes_count', 'Health probes now, by state.', ['state'], () => [
      [['running'], this.#queue.running],
      [['waiting'], this.#queue.waiting],
    ]);
  }

  get(name: string): Health | undefined {
    return this.#watched.get(name)?.health;
  }

  /** Begins or changes the watch over `name`; what is the same goes on undisturbed. Returns its health as of now. */
  set(name: string, target: HealthTarget): Health {
    const before = this.#watched.get(name);
    const anew = before === undefined || before.target.incarnation !== target.incarnation;
    const watched: Watched = anew
      ? { target, checks: new Map(), health: undefined, outputPassedMs: Number.NEGATIVE_INFINITY }
      : before;
    watched.target = target;
    if (anew) for (const check of before?.checks.values() ?? []) check.close();
    this.#watched.set(name, watched);
    this.#arrange(name, watched, anew, anew ? undefined : before);
    return this.#review(name, watched);
  }

  remove(name: string): void {
    const watched = this.#watched.get(name);
    this.#watched.delete(name);
    for (const check of watched?.checks.values() ?? []) check.close();
  }

  close(): void {
    for (const name of [...this.#watched.keys()]) this.remove(name);
  }

  /** Starts the checks that the target has and ends those that it has no more. */
  #arrange(name: string, watched: Watched, anew: boolean, before: Watched | undefined): void {
    const { target } = watched;
    const old = watched.checks;
    const fallback = anew ? target.initial : before?.health;
    watched.checks = new Map();
    for (const check of target.checks) {
      const probe = this.#probes[check.kind];
      if (check.kind === 'docker' || probe === undefined) continue;
      const same = [...old].find(([other]) => sameCheck(other, check));
      const running = same?.[1];
      if (
        same !== undefined &&
        running?.matches(target) === true &&
        !running.suspended &&
        target.suspended === undefined
      ) {
        old.delete(same[0]);
        watched.checks.set(check, running);
        continue;
      }
      const initial: CheckHealth = running?.health ?? fallback ?? { status: 'starting', output: '' };
      const atOnce = !anew || target.initial === undefined;
      watched.checks.set(check, this.#begin(name, watched, check, probe, initial, atOnce));
    }
    for (const check of old.values()) check.close();
  }

  #begin(
    name: string,
    watched: Watched,
    check: CheckSpec,
    probe: Probe,
    initial: CheckHealth,
    atOnce: boolean,
  ): ProbedCheck {
    const { address, port, suspended } = watched.target;
    return new ProbedCheck({
      endpoint: { address, port: check.port ?? port },
      check,
      probe,
      queue: this.#queue,
      clock: this.#options.clock,
      random: this.#random,
      counters: this.#countersOf(check.kind),
      initial,
      atOnce,
      suspended: suspended !== undefined,
      onResult: () => {
        if (this.#watched.get(name) === watched) this.#review(name, watched);
      },
    });
  }

  /** Puts the checks' health together and passes on what is new. */
  #review(name: string, watched: Watched): Health {
    const { status, output } = this.#combined(watched);
    const before = watched.health;
    const nowMs = this.#options.clock.monotonicMs();
    const sameStatus = before?.status === status;
    if (before !== undefined && sameStatus) {
      if (before.output === output || nowMs - watched.outputPassedMs < outputIntervalMs) return before;
      watched.outputPassedMs = nowMs;
    }
    const changedAtMs = sameStatus && before !== undefined ? before.changedAtMs : this.#options.clock.nowMs();
    const health = Object.freeze({ status, output, changedAtMs });
    watched.health = health;
    this.#options.onChange(name, health);
    return health;
  }

  #combined({ target, checks }: Watched): CheckHealth {
    if (target.suspended !== undefined) return { status: 'critical', output: outputText(target.suspended) };
    const { output, status } = worstOf(
      target.checks.map((check) => {
        if (check.kind === 'docker') return { kind: check.kind, ...dockerHealth(target.reported) };
        const health = checks.get(check)?.health;
        if (health !== undefined) return { kind: check.kind, status: health.status, output: health.output };
        return {
          kind: check.kind,
          status: 'critical',
          output: `checks of kind ${check.kind} cannot be run by this version`,
        };
      }),
    );
    return { status, output: outputText(output) };
  }

  #countersOf(kind: string): Record<'probes' | 'failures' | 'timeouts', CounterCell> {
    let counters = this.#counters.get(kind);
    if (counters === undefined) {
      const { metrics } = this.#options;
      counters = {
        probes: metrics.counter('legate_health_probes_total', 'Health probes made.', { kind }),
        failures: metrics.counter('legate_health_failures_total', 'Health probes that failed.', { kind }),
        timeouts: metrics.counter('legate_health_timeouts_total', 'Health probes that were cut at their timeout.', {
          kind,
        }),
      };
      this.#counters.set(kind, counters);
    }
    return counters;
  }
}

function sameCheck(a: CheckSpec, b: CheckSpec): boolean {
  return (
    a.kind === b.kind &&
    a.path === b.path &&
    a.method === b.method &&
    a.port === b.port &&
    a.intervalMs === b.intervalMs &&
    a.timeoutMs === b.timeoutMs &&
    a.rise === b.rise &&
    a.fall === b.fall
  );
}
