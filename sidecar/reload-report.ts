import type { Conditions } from '../src/base/conditions.ts';
import type { Log } from '../src/base/log.ts';
import type { Config } from '../src/config/config.ts';

/** What a reload applies at once; a change of anything else waits for the next start. */
const applied: ReadonlySet<string> = new Set<keyof Config>(['instances', 'store']);
/** Keys of the configuration that the file spells otherwise. */
const written: Readonly<Record<string, string>> = {
  dataDir: 'data_dir',
  drainTimeoutMs: 'drain.timeout',
  external: 'services',
};
/** Faults that the log shows of one reload. */
const maxFaultsLogged = 20;
const faultCondition = 'config.reload';
const restartCondition = 'config.restart';

/** Why a configuration was not taken over. */
export interface ReloadFaults {
  /** Each one line with its place; as many as were kept. */
  readonly faults: readonly string[];
  readonly count: number;
  readonly file: string | undefined;
}

/** Tells what became of a reload: its faults, or what of it waits for a restart. */
export class ReloadReport {
  readonly #running: Config;
  readonly #conditions: Conditions;
  readonly #log: Log;

  /** `running` is what the sidecar was started with. */
  constructor(options: { readonly running: Config; readonly conditions: Conditions; readonly log: Log }) {
    this.#running = options.running;
    this.#conditions = options.conditions;
    this.#log = options.log;
  }

  failed({ faults, count, file }: ReloadFaults): void {
    const what = `the configuration file has ${count} ${count === 1 ? 'fault' : 'faults'}`;
    this.#conditions.raise(
      faultCondition,
      'error',
      `${what}, the running configuration stays: ${faults[0] ?? ''}`,
      `legate config check ${file ?? 'FILE'}`,
      { 'config.faults': faults.slice(0, maxFaultsLogged).join('\n') },
    );
  }

  succeeded(next: Config): void {
    this.#conditions.clear(faultCondition);
    const waiting = Object.entries(next)
      .filter(([key, value]) => !applied.has(key) && text(value) !== text(this.#running[key as keyof Config]))
      .map(([key]) => written[key] ?? key)
      .filter((key, index, all) => all.indexOf(key) === index);
    this.#log.info('configuration reloaded', { 'config.instances': next.instances.length });
    if (waiting.length === 0) this.#conditions.clear(restartCondition);
    else {
      const message = `changes of ${waiting.join(', ')} take effect at the next start`;
      this.#conditions.raise(restartCondition, 'note', message, 'restart the sidecar');
    }
  }
}

function text(value: unknown): string {
  return JSON.stringify(value, (_key, each) => (each instanceof Map ? [...each] : each));
}
