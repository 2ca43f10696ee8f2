import type { Config } from '../src/config/config.ts';

/** Reads the configuration again for SIGHUP; undefined, with its faults told, when it has some. */
export type Reload = () => Config | undefined;

/** Placeholder of the daemon's entry: says that it is not there. */
export async function runAgent(
  _config: Config,
  _options: { readonly configFile?: string | undefined; readonly reload: Reload },
): Promise<number> {
  process.stderr.write('legate agent: not yet in this version\n');
  return 1;
}
