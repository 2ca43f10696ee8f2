import { isDeepStrictEqual } from 'node:util';
import type { Conditions } from '../base/conditions.ts';
import { describeError, LegateError } from '../base/errors.ts';
import type { Change } from '../base/feed.ts';
import { cannotWrite, readBounded, writeFileAtomically } from '../base/files.ts';
import type { StaticInstance } from '../config/config.ts';
import type { DesiredInstance } from '../model/instance.ts';
import { parseStaticInstances } from './static-file.ts';
import { desiredOf, staticReset } from './static-source.ts';

/** Instances that may be registered by hand. */
const maxInstances = 10_000;
const maxFileBytes = 64 * 1024 * 1024;
const conditionId = 'registrar.instances.file';

export interface ApiInstancesOptions {
  /** `instances.json` in the data directory. */
  readonly path: string;
  readonly conditions: Conditions;
  /** First a reset, at `load`. */
  readonly onChange: (change: Change<DesiredInstance>) => void;
}

/** The instances that were registered by hand: kept on disk before they are acknowledged, until they are deregistered. */
export class ApiInstances {
  readonly #options: ApiInstancesOptions;
  #instances = new Map<string, StaticInstance>();
  #writing: Promise<unknown> = Promise.resolve();
  #loaded = false;

  constructor(options: ApiInstancesOptions) {
    this.#options = options;
  }

  list(): readonly StaticInstance[] {
    return [...this.#instances.values()];
  }

  get(name: string): StaticInstance | undefined {
    return this.#instances.get(name);
  }

  /**
   * Reads the file. When it is damaged nothing is passed on, so that what the last run knew stays registered, and nothing
   * is written over it until it was moved out of the way.
   */
  async load(): Promise<void> {
    const { path, conditions, onChange } = this.#options;
    try {
      const text = await readBounded(path, maxFileBytes);
      if (typeof text === 'object') throw new Error(`it has ${text.tooLargeBytes} bytes, more than ${maxFileBytes}`);
      const { instances, skipped } = text === undefined ? { instances: [], skipped: [] } : parseStaticInstances(text);
      this.#instances = new Map(instances.map((instance) => [instance.name, instance]));
      if (skipped.length > 0) {
        const message = `${skipped.length} entries of ${path} cannot be used: ${skipped[0]}`;
        conditions.raise(conditionId, 'warning', message, 'register them again');
      }
    } catch (error) {
      const message = `${path} cannot be read: ${describeError(error)}`;
      const hint =
        'the instances registered by hand stay as they were; correct or remove the file and restart the sidecar';
      conditions.raise(conditionId, 'error', message, hint);
      return;
    }
    this.#loaded = true;
    onChange(staticReset(this.#instances.values(), 'api'));
  }

  /**
   * Registers or replaces an instance; it is on disk when this resolves. Errors: E_TOO_LARGE, E_STORE_DAMAGED while the
   * file cannot be read, E_PERMISSION when it cannot be written.
   */
  put(instance: StaticInstance): Promise<void> {
    return this.#change((instances) => {
      // Who refreshes by registering again does so every few seconds.
      if (isDeepStrictEqual(instances.get(instance.name), instance)) return undefined;
      if (instances.size >= maxInstances && !instances.has(instance.name)) {
        throw new LegateError('E_TOO_LARGE', `${maxInstances} instances are registered by hand already`, {
          hint: 'deregister some, or use instances: in the configuration',
        });
      }
      instances.set(instance.name, instance);
      return { kind: 'delta', puts: [desiredOf(instance, 'api')], deletes: [], revision: '' };
    });
  }

  /** Deregisters; false when there was none of that name. Errors as of `put`. */
  async delete(name: string): Promise<boolean> {
    let found = false;
    await this.#change((instances) => {
      found = instances.delete(name);
      return found ? { kind: 'delta', puts: [], deletes: [name], revision: '' } : undefined;
    });
    return found;
  }

  /** One change after the other: first on disk, then in force. */
  #change(alter: (instances: Map<string, StaticInstance>) => Change<DesiredInstance> | undefined): Promise<void> {
    const done = this.#writing.then(async () => {
      if (!this.#loaded) {
        throw new LegateError(
          'E_STORE_DAMAGED',
          `${this.#options.path} cannot be read, so nothing can be added to it`,
          {
            hint: 'correct or remove the file and restart the sidecar',
          },
        );
      }
      const instances = new Map(this.#instances);
      const change = alter(instances);
      if (change === undefined) return;
      await this.#write(instances);
      this.#instances = instances;
      this.#options.onChange(change);
    });
    this.#writing = done.catch(() => undefined);
    return done;
  }

  async #write(instances: ReadonlyMap<string, StaticInstance>): Promise<void> {
    const { path } = this.#options;
    try {
      await writeFileAtomically(path, [
        `${JSON.stringify({ v: 1, instances: [...instances.values()] }, undefined, 1)}\n`,
      ]);
    } catch (error) {
      throw cannotWrite(path, error);
    }
  }
}
