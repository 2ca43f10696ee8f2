import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { describeError, LegateError } from '../src/base/errors.ts';
import type { Change } from '../src/base/feed.ts';
import { cannotWrite, readFileIfAny, writeFileAtomically } from '../src/base/files.ts';
import type { Log } from '../src/base/log.ts';
import type { Metrics } from '../src/base/metrics.ts';
import type { StaticInstance } from '../src/config/config.ts';
import type { RunInContainer } from '../src/health/exec.ts';
import { type HealthDetails, HealthRunner } from '../src/health/runner.ts';
import type { Refresh } from '../src/health/ttl-check.ts';
import { type DesiredInstance, type InstanceRecord, isExternal } from '../src/model/instance.ts';
import { instanceNameFault } from '../src/model/names.ts';
import { ApiInstances } from '../src/registrar/api-instances.ts';
import { LocalInstances } from '../src/registrar/local-instances.ts';
import { staticReset } from '../src/registrar/static-source.ts';

const drainCondition = 'drain.operator';
const drainedCondition = 'registrar.drained.file';
const endChecksLimitMs = 2000;
const maxDrainedBytes = 4 * 1024 * 1024;

export interface OwnInstancesOptions {
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  readonly instancesFile: string;
  readonly drainedFile: string;
  /** This host's records of the last run. */
  readonly remembered: readonly InstanceRecord[];
  /** For checks of kind exec. */
  readonly runInContainer: RunInContainer;
  readonly onChange: (change: Change<InstanceRecord>) => void;
}

/** A change without what is outside of the mesh: what the store is told. */
export function ofTheMesh(change: Change<InstanceRecord>): Change<InstanceRecord> {
  if (change.kind === 'reset') return { ...change, items: change.items.filter((record) => !isExternal(record)) };
  // A name that was an instance of the mesh may be an external one now.
  const outside = change.puts.filter((record) => isExternal(record)).map(({ name }) => name);
  const puts = change.puts.filter((record) => !isExternal(record));
  return { ...change, puts, deletes: [...change.deletes, ...outside] };
}

/**
 * This host's instances from all their sources: Docker, the configuration file, the API, targets outside of the mesh; and
 * what operators drain.
 */
export class OwnInstances {
  readonly #options: OwnInstancesOptions;
  readonly #local: LocalInstances;
  readonly #api: ApiInstances;
  #wholeHost = false;
  /** Ends when the last drain is on disk: one after the other, so that the newest is what stays. */
  #draining: Promise<void> = Promise.resolve();

  constructor(options: OwnInstancesOptions) {
    const { clock, log, metrics, conditions, runInContainer } = options;
    const kept = readDrained(options.drainedFile, conditions);
    this.#options = options;
    this.#local = new LocalInstances({
      conditions,
      metrics,
      health: (onChange) => new HealthRunner({ clock, log, metrics, runInContainer, onChange }),
      remembered: options.remembered,
      sources: ['docker', 'file', 'api', 'external'],
      drained: kept.names,
      onChange: (change) => {
        options.onChange(change);
        this.#afterChange(change);
      },
    });
    this.#wholeHost = kept.host;
    this.#api = new ApiInstances({
      path: options.instancesFile,
      conditions,
      onChange: (change) => this.#local.apply('api', change),
    });
  }

  /** Reads those of the API from disk. */
  load(): Promise<void> {
    return this.#api.load();
  }

  fromDocker(change: Change<DesiredInstance>): void {
    this.#local.apply('docker', change);
  }

  fromOutside(change: Change<DesiredInstance>): void {
    this.#local.apply('external', change);
  }

  fromFile(instances: readonly StaticInstance[]): void {
    this.#local.apply('file', staticReset(instances, 'file'));
  }

  /**
   * Resolves when it is on disk and in the catalog, with the instance as it is then. To register again is also a sign of
   * life, for its checks of kind ttl.
   */
  async register(instance: StaticInstance): Promise<InstanceRecord> {
    await this.#api.put(instance);
    this.#local.refresh(instance.name, { status: 'passing', output: '' });
    await Promise.resolve();
    const record = this.#local.current(instance.name);
    if (record === undefined) throw new Error(`${instance.name} was registered and is not there`);
    return record;
  }

  /**
   * The instance's own word on how it is, for its checks of kind ttl; resolves when it is in the catalog, with the
   * instance as it is then. Errors: E_NOT_FOUND, and E_INVALID when it has no such check.
   */
  async refresh(name: string, refresh: Refresh): Promise<InstanceRecord> {
    const found = this.#local.refresh(name, refresh);
    await Promise.resolve();
    const record = found === undefined ? undefined : this.#local.current(name);
    if (record === undefined) {
      throw new LegateError('E_NOT_FOUND', `there is no instance ${name} on this host to refresh`, {
        hint: 'legate services and legate instances SERVICE show the ids; a new one is registered with its service',
      });
    }
    if (found) return record;
    throw new LegateError('E_INVALID', `${name} has no check of kind ttl, so nothing of it can be refreshed`, {
      hint: 'give it checks: [{kind: ttl, ttl: 30s}], or let its other checks ask',
    });
  }

  async deregister(name: string): Promise<void> {
    if (!(await this.#api.delete(name))) {
      throw new LegateError('E_NOT_FOUND', `no instance ${name} was registered on this host by hand`, {
        hint: 'legate services and legate instances SERVICE show the ids',
      });
    }
  }

  /**
   * Begins or ends an operator's drain of these names, with `wholeHost` also of what is registered later; on disk when it
   * resolves.
   */
  drain(names: readonly string[], on: boolean, wholeHost: boolean): Promise<void> {
    const done = this.#draining.then(() => this.#drain(names, on, wholeHost));
    this.#draining = done.catch(() => undefined);
    return done;
  }

  async #drain(names: readonly string[], on: boolean, wholeHost: boolean): Promise<void> {
    const { drainedFile } = this.#options;
    const before = { names: new Set(this.#local.drained), wholeHost: this.#wholeHost };
    // To take one of them in again ends the drain of the host as a whole; the others stay drained one by one.
    this.#wholeHost = wholeHost ? on : this.#wholeHost && on;
    for (const name of names) this.#local.drain(name, on);
    const content = { v: 1, drained: [...this.#local.drained], host: this.#wholeHost };
    try {
      await writeFileAtomically(drainedFile, [`${JSON.stringify(content)}\n`]);
    } catch (error) {
      // What would not hold over a restart is not begun.
      this.#wholeHost = before.wholeHost;
      for (const name of names) this.#local.drain(name, before.names.has(name));
      throw cannotWrite(drainedFile, error);
    }
    this.#report();
  }

  #afterChange(change: Change<InstanceRecord>): void {
    if (this.#wholeHost) {
      for (const { name, draining } of change.kind === 'reset' ? change.items : change.puts) {
        if (!draining) this.#local.drain(name, true);
      }
    }
    if (this.#local.drained.size > 0) this.#report();
  }

  /** A drain holds over restarts, so that it is easily forgotten: status shows it while it is in force. */
  #report(): void {
    const { conditions } = this.#options;
    const names = [...this.#local.drained].filter((name) => this.#local.records().has(name));
    if (names.length === 0 && !this.#wholeHost) {
      conditions.clear(drainCondition);
      return;
    }
    const shown = names.slice(0, 3).join(', ') + (names.length > 3 ? ', …' : '');
    const count = names.length === 1 ? '1 instance' : `${names.length} instances`;
    const message = this.#wholeHost
      ? `this host is drained by hand: ${count}, and whatever is registered later`
      : `drained by hand: ${shown} (${count})`;
    conditions.raise(drainCondition, 'note', message, `legate undrain ${this.#wholeHost ? '--host' : 'ID'} ends it`);
  }

  details(name: string): HealthDetails | undefined {
    return this.#local.details(name);
  }

  /** Ends all checks before the sidecar leaves, and waits at most a little for the commands that they run. */
  async endChecks(): Promise<void> {
    await Promise.race([this.#local.endChecks(), this.#options.clock.sleep(endChecksLimitMs)]);
  }

  records(): ReadonlyMap<string, InstanceRecord> {
    return this.#local.records();
  }

  /** The names of a service's instances here, also of those that their health keeps out of the registry. */
  wanted(service: string): readonly string[] {
    return this.#local.wanted(service);
  }

  mayDelete(record: InstanceRecord): boolean {
    return this.#local.mayDelete(record);
  }

  async close(): Promise<void> {
    await this.#local.close();
  }
}

interface KeptDrains {
  readonly names: readonly string[];
  readonly host: boolean;
}

function readDrained(path: string, conditions: Conditions): KeptDrains {
  try {
    const text = readFileIfAny(path, maxDrainedBytes);
    if (text === undefined) return { names: [], host: false };
    const parsed: unknown = JSON.parse(text);
    if (typeof parsed !== 'object' || parsed === null) throw new Error('it does not hold an object');
    const names = 'drained' in parsed ? parsed.drained : undefined;
    if (!Array.isArray(names)) throw new Error('it has no list "drained"');
    return {
      names: names.filter((name) => typeof name === 'string' && instanceNameFault(name) === undefined),
      host: 'host' in parsed && parsed.host === true,
    };
  } catch (error) {
    conditions.raise(
      drainedCondition,
      'warning',
      `${path} cannot be read: ${describeError(error)}`,
      'drain again what is to be drained',
    );
    return { names: [], host: false };
  }
}
