import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { describeError, LegateError } from '../src/base/errors.ts';
import type { Change } from '../src/base/feed.ts';
import { cannotWrite, readFileIfAny, writeFileAtomically } from '../src/base/files.ts';
import type { Log } from '../src/base/log.ts';
import type { Metrics } from '../src/base/metrics.ts';
import type { StaticInstance } from '../src/config/config.ts';
import { HealthRunner } from '../src/health/runner.ts';
import type { DesiredInstance, InstanceRecord } from '../src/model/instance.ts';
import { instanceNameFault } from '../src/model/names.ts';
import { ApiInstances } from '../src/registrar/api-instances.ts';
import { LocalInstances } from '../src/registrar/local-instances.ts';
import { staticReset } from '../src/registrar/static-source.ts';

const drainedCondition = 'registrar.drained.file';
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
  readonly onChange: (change: Change<InstanceRecord>) => void;
}

/** This host's instances from all their sources: Docker, the configuration file, the API; and what operators drain. */
export class OwnInstances {
  readonly #options: OwnInstancesOptions;
  readonly #local: LocalInstances;
  readonly #api: ApiInstances;
  /** Ends when the last drain is on disk: one after the other, so that the newest is what stays. */
  #draining: Promise<void> = Promise.resolve();

  constructor(options: OwnInstancesOptions) {
    const { clock, log, metrics, conditions } = options;
    this.#options = options;
    this.#local = new LocalInstances({
      conditions,
      metrics,
      health: (onChange) => new HealthRunner({ clock, log, metrics, onChange }),
      remembered: options.remembered,
      sources: ['docker', 'file', 'api'],
      drained: readDrained(options.drainedFile, conditions),
      onChange: options.onChange,
    });
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

  fromFile(instances: readonly StaticInstance[]): void {
    this.#local.apply('file', staticReset(instances, 'file'));
  }

  /** Resolves when it is on disk and in the catalog. */
  async register(instance: StaticInstance): Promise<void> {
    await this.#api.put(instance);
    await Promise.resolve();
  }

  async deregister(name: string): Promise<void> {
    if (!(await this.#api.delete(name))) {
      throw new LegateError('E_NOT_FOUND', `no instance ${name} was registered on this host by hand`, {
        hint: 'legate services and legate instances SERVICE show the ids',
      });
    }
  }

  /** Begins or ends an operator's drain of these names; on disk when it resolves. */
  drain(names: readonly string[], on: boolean): Promise<void> {
    const done = this.#draining.then(() => this.#drain(names, on));
    this.#draining = done.catch(() => undefined);
    return done;
  }

  async #drain(names: readonly string[], on: boolean): Promise<void> {
    const { drainedFile } = this.#options;
    const before = new Set(this.#local.drained);
    for (const name of names) this.#local.drain(name, on);
    try {
      await writeFileAtomically(drainedFile, [`${JSON.stringify({ v: 1, drained: [...this.#local.drained] })}\n`]);
    } catch (error) {
      // What would not hold over a restart is not begun.
      for (const name of names) this.#local.drain(name, before.has(name));
      throw cannotWrite(drainedFile, error);
    }
  }

  since(name: string): number | undefined {
    return this.#local.since(name);
  }

  records(): ReadonlyMap<string, InstanceRecord> {
    return this.#local.records();
  }

  mayDelete(record: InstanceRecord): boolean {
    return this.#local.mayDelete(record);
  }

  close(): void {
    this.#local.close();
  }
}

function readDrained(path: string, conditions: Conditions): string[] {
  try {
    const text = readFileIfAny(path, maxDrainedBytes);
    if (text === undefined) return [];
    const parsed: unknown = JSON.parse(text);
    const names = typeof parsed === 'object' && parsed !== null && 'drained' in parsed ? parsed.drained : undefined;
    if (!Array.isArray(names)) throw new Error('it has no list "drained"');
    return names.filter((name) => typeof name === 'string' && instanceNameFault(name) === undefined);
  } catch (error) {
    conditions.raise(
      drainedCondition,
      'warning',
      `${path} cannot be read: ${describeError(error)}`,
      'drain again what is to be drained',
    );
    return [];
  }
}
