import { isDeepStrictEqual } from 'node:util';
import type { Clock } from '../base/clock.ts';
import type { Log } from '../base/log.ts';
import type { CounterCell, Metrics } from '../base/metrics.ts';
import type { CheckKind, CheckSpec } from '../model/check.ts';
import type { DesiredInstance, StoredStatus } from '../model/instance.ts';
import { type CheckHealth, type CheckState, initialState, stateFrom, worstOf } from './check-health.ts';
import { type CheckDetail, CheckWatch } from './check-watch.ts';
import { dockerHealth } from './docker.ts';
import { execProbe, type RunInContainer } from './exec.ts';
import { grpcProbe } from './grpc.ts';
import { type HealthChange, History } from './history.ts';
import { httpProbe } from './http.ts';
import { outputText, type Probes, type ProbeTarget } from './probe.ts';
import { ProbeQueue } from './probe-queue.ts';
import { ProbedCheck } from './probed-check.ts';
import { probeTcp } from './tcp.ts';
import { Trust } from './trust.ts';
import { type Refresh, TtlCheck } from './ttl-check.ts';

/** Probes that run at a time; the others wait their turn. */
const maxConcurrentProbes = 64;
/** Of the kinds that cost more than a connection: a process in a container for exec, HTTP/2 for grpc. */
const maxConcurrentOf: Readonly<Partial<Record<CheckKind, number>>> = { exec: 8, grpc: 16 };
/** How long a command that was cut may hold its place among those until it was killed. */
const lingerMsOf: Readonly<Partial<Record<CheckKind, number>>> = { exec: 5000 };
/** An output that changes while the status stays is passed on at most this often: each one is a write in the store. */
const outputIntervalMs = 30_000;

export interface Health {
  readonly status: StoredStatus;
  /** Printable, at most 500 characters. */
  readonly output: string;
  /** Wall clock of the last change of the status, milliseconds. */
  readonly changedAtMs: number;
  /** Why it is to be in no registry until it passes again: it was critical for longer than one of its checks allows. */
  readonly deregistered?: string;
}

export interface HealthDetails {
  /** Wall clock of the last change of the instance's status in this run, milliseconds. */
  readonly sinceMs: number;
  readonly checks: readonly CheckDetail[];
  /** The last changes of the instance's status, newest first. */
  readonly history: readonly HealthChange[];
}

export interface HealthTarget {
  readonly address: string;
  readonly port: number;
  readonly checks: readonly CheckSpec[];
  /** For checks of kind `exec`. */
  readonly container?: string;
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
  /** For checks of kind `exec`; without it they are critical. */
  readonly runInContainer?: RunInContainer;
  /** In place of the real ones. */
  readonly probes?: Probes;
  readonly maxConcurrent?: number;
  /** Called for each change, also from within `set`. */
  readonly onChange: (name: string, health: Health) => void;
}

interface Watched {
  target: HealthTarget;
  checks: readonly CheckWatch[];
  health: Health | undefined;
  /** Undefined until its status has changed: most instances never do. */
  history: History | undefined;
  outputPassedMs: number;
}

/** What instances without checks have in common. */
const noChecks: readonly CheckWatch[] = [];

/** Watches over the health of this host's instances, by name. */
export class HealthRunner {
  readonly #options: HealthRunnerOptions;
  readonly #random: () => number;
  readonly #probes: Probes;
  readonly #queue: ProbeQueue;
  readonly #queues = new Map<CheckKind, ProbeQueue>();
  readonly #watched = new Map<string, Watched>();
  readonly #counters = new Map<string, Record<'probes' | 'failures' | 'timeouts', CounterCell>>();

  constructor(options: HealthRunnerOptions) {
    this.#options = options;
    this.#random = options.random ?? Math.random;
    this.#probes = options.probes ?? realProbes(options.runInContainer);
    this.#queue = new ProbeQueue(options.maxConcurrent ?? maxConcurrentProbes);
    for (const kind of ['exec', 'grpc'] as const) {
      const limit = maxConcurrentOf[kind];
      if (limit !== undefined) this.#queues.set(kind, new ProbeQueue(limit));
    }
    options.metrics.gauge('legate_health_probes_count', 'Health probes now, by state.', ['state'], () => [
      [['running'], this.#inQueues('running')],
      [['waiting'], this.#inQueues('waiting')],
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
      ? {
          target,
          checks: noChecks,
          health: undefined,
          history: before?.history,
          outputPassedMs: Number.NEGATIVE_INFINITY,
        }
      : before;
    watched.target = target;
    if (anew) for (const check of before?.checks ?? noChecks) check.close();
    this.#watched.set(name, watched);
    this.#arrange(name, watched, anew);
    if (anew && before?.health !== undefined) return this.#review(name, watched, before.health);
    return this.#review(name, watched);
  }

  remove(name: string): void {
    const watched = this.#watched.get(name);
    this.#watched.delete(name);
    for (const check of watched?.checks ?? noChecks) check.close();
  }

  /**
   * The instance's own word on how it is, for its checks of kind ttl. False when it has none; undefined when there is no
   * such instance.
   */
  refresh(name: string, refresh: Refresh): boolean | undefined {
    const watched = this.#watched.get(name);
    if (watched === undefined) return undefined;
    let found = false;
    for (const { run } of watched.checks) {
      if (!(run instanceof TtlCheck)) continue;
      found = true;
      run.refresh(refresh);
    }
    return found;
  }

  /** Each check's own word and what the instance went through, for people; undefined when it is not watched. */
  details(name: string): HealthDetails | undefined {
    const watched = this.#watched.get(name);
    const { health } = watched ?? {};
    if (watched === undefined || health === undefined) return undefined;
    const checks = watched.checks.map((check) => check.detail(this.#healthOf(check, watched.target), watched.target));
    const now = { atMs: health.changedAtMs, status: health.status, output: health.output };
    return { sinceMs: health.changedAtMs, checks, history: watched.history?.newestFirst() ?? [now] };
  }

  /** Ends every check; resolves when nothing that they began in containers is still going on. */
  async close(): Promise<void> {
    const checks = [...this.#watched.values()].flatMap((watched) => watched.checks);
    for (const name of [...this.#watched.keys()]) this.remove(name);
    await Promise.all(checks.map((check) => check.ended()));
  }

  #inQueues(state: 'running' | 'waiting'): number {
    return [this.#queue, ...this.#queues.values()].reduce((sum, queue) => sum + queue[state], 0);
  }

  /** Starts the checks that the target has and ends those that it has no more. */
  #arrange(name: string, watched: Watched, anew: boolean): void {
    const { target } = watched;
    const old = new Set(anew ? noChecks : watched.checks);
    const fallback = anew ? target.initial : watched.health;
    const arranged = target.checks.map((check) => {
      const before = [...old].find((other) => isDeepStrictEqual(other.check, check));
      if (before !== undefined && goesOn(before, check, target)) {
        old.delete(before);
        return before;
      }
      const state = stateOf(before) ?? (fallback === undefined ? initialState(check) : stateFrom(fallback));
      const atOnce = !anew || target.initial === undefined;
      const begun = this.#begin(name, watched, check, state, atOnce);
      begun.note(this.#healthOf(begun, target), before);
      return begun;
    });
    watched.checks = arranged.length === 0 ? noChecks : arranged;
    for (const check of old) check.close();
  }

  #begin(name: string, watched: Watched, check: CheckSpec, initial: CheckState, atOnce: boolean): CheckWatch {
    const review = (): void => {
      if (this.#watched.get(name) === watched) this.#review(name, watched);
    };
    const { clock } = this.#options;
    return new CheckWatch(check, this.#run(check, watched.target, initial, atOnce, review), clock, review);
  }

  #run(
    check: CheckSpec,
    target: HealthTarget,
    initial: CheckState,
    atOnce: boolean,
    onResult: () => void,
  ): ProbedCheck | TtlCheck | undefined {
    const { clock } = this.#options;
    if (check.kind === 'ttl') return new TtlCheck({ check, clock, initial, onResult });
    const probe = this.#probes[check.kind];
    if (check.kind === 'docker' || probe === undefined) return undefined;
    return new ProbedCheck({
      target: askedAt(check, target),
      check,
      probe,
      queue: this.#queues.get(check.kind) ?? this.#queue,
      clock,
      random: this.#random,
      counters: this.#countersOf(check.kind),
      initial,
      lingerMs: lingerMsOf[check.kind] ?? 0,
      atOnce,
      suspended: target.suspended !== undefined,
      onResult,
    });
  }

  /** Puts the checks' health together and passes on what is new. `last`: of what was there under the name before. */
  #review(name: string, watched: Watched, last?: Health): Health {
    const { status, output, deregistered } = this.#combined(watched);
    const before = watched.health;
    const nowMs = this.#options.clock.monotonicMs();
    const sameStatus = before?.status === status;
    if (before !== undefined && sameStatus && before.deregistered === deregistered) {
      if (before.output === output || nowMs - watched.outputPassedMs < outputIntervalMs) return before;
      watched.outputPassedMs = nowMs;
    }
    const changedAtMs = sameStatus && before !== undefined ? before.changedAtMs : this.#options.clock.nowMs();
    const health = Object.freeze({ status, output, changedAtMs, ...(deregistered !== undefined && { deregistered }) });
    watched.health = health;
    const previous = before ?? last;
    if (previous !== undefined && previous.status !== status) {
      watched.history ??= new History(previous);
      watched.history.add(health);
    }
    this.#options.onChange(name, health);
    return health;
  }

  #combined({ target, checks }: Watched): CheckHealth & { readonly deregistered?: string | undefined } {
    let deregistered: string | undefined;
    const healths = checks.map((check) => {
      const health = this.#healthOf(check, target);
      check.note(health);
      deregistered ??= check.deregistration(health.output);
      return { kind: check.check.kind, ...health };
    });
    if (target.suspended !== undefined) {
      return { status: 'critical', output: outputText(target.suspended), deregistered };
    }
    const { output, status } = worstOf(healths);
    return { status, output: outputText(output), deregistered };
  }

  #healthOf({ check, run }: CheckWatch, { reported }: HealthTarget): CheckHealth {
    if (check.kind === 'docker') return dockerHealth(reported, check);
    if (run !== undefined) return { status: run.state.status, output: run.state.output };
    return { status: 'critical', output: `checks of kind ${check.kind} cannot be run here` };
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

function realProbes(runInContainer: RunInContainer | undefined): Probes {
  const trust = new Trust();
  return {
    tcp: probeTcp,
    http: httpProbe(trust),
    grpc: grpcProbe(trust),
    ...(runInContainer && { exec: execProbe(runInContainer) }),
  };
}

function askedAt(check: CheckSpec, { address, port, container }: HealthTarget): ProbeTarget {
  return { address, port: check.port ?? port, ...(container !== undefined && { container }) };
}

/** Whether what runs already is what the target wants. */
function goesOn({ run }: CheckWatch, check: CheckSpec, target: HealthTarget): boolean {
  if (!(run instanceof ProbedCheck)) return true;
  return run.asks(askedAt(check, target)) && !run.suspended && target.suspended === undefined;
}

function stateOf(watch: CheckWatch | undefined): CheckState | undefined {
  return watch?.run?.state;
}
