import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { must, run } from '../support/agent.ts';

/** Of this release of Debian: newer than what the machines run, and its programs run there. */
const suite = 'trixie';
const packages = ['docker.io', 'containerd'];
const fetchTimeoutMs = 240_000;

/** Where what was fetched is kept for the next time; `.ci/run` may fill it. */
export function engineCache(): string {
  const base = process.env.LEGATE_TEST_CACHE ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'legate');
  return join(base, `engine-${suite}`);
}

/**
 * The folder of a newer Docker Engine, unpacked and not installed; from the cache, else fetched with the machine's own
 * package sources, pointed at a newer release. `missing` says why there is none.
 */
export async function newerEngine(
  say: (line: string) => void = () => undefined,
): Promise<{ readonly folder: string } | { readonly missing: string }> {
  const folder = engineCache();
  if (existsSync(join(folder, 'usr', 'sbin', 'dockerd'))) return { folder };
  const sources = '/etc/apt/sources.list.d/debian.sources';
  if (!existsSync(sources)) return { missing: `needs ${sources}, to fetch a newer engine` };
  say(`fetching the newer engine of Debian ${suite}`);
  mkdirSync(join(folder, '..'), { recursive: true });
  const work = mkdtempSync(`${folder}-`);
  try {
    const unpacked = await fetchInto(work, readFileSync(sources, 'utf8'));
    renameSync(unpacked, folder);
    return { folder };
  } catch (error) {
    // Another process may have been quicker.
    if (existsSync(join(folder, 'usr', 'sbin', 'dockerd'))) return { folder };
    return { missing: `a newer engine could not be fetched: ${error instanceof Error ? error.message : error}` };
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

async function fetchInto(work: string, sources: string): Promise<string> {
  for (const made of ['lists/partial', 'cache/archives/partial', 'packages', 'unpacked']) {
    mkdirSync(join(work, made), { recursive: true });
  }
  // The first paragraph is the release's main archive.
  const [main = ''] = sources.split(/\n\s*\n/);
  writeFileSync(join(work, 'debian.sources'), `${main.replace(/^Suites:.*$/m, `Suites: ${suite}`)}\n`);
  const settings = {
    'Dir::Etc::sourcelist': join(work, 'debian.sources'),
    'Dir::Etc::sourceparts': '/dev/null',
    'Dir::State::lists': join(work, 'lists'),
    'Dir::State::status': '/var/lib/dpkg/status',
    'Dir::Cache': join(work, 'cache'),
    'APT::Sandbox::User': 'root',
  };
  const options = Object.entries(settings).flatMap(([key, value]) => ['-o', `${key}=${value}`]);
  const apt = async (...args: string[]): Promise<void> => {
    const line = 'cd "$1" && shift && exec apt-get "$@"';
    const ran = await run('sh', ['-c', line, 'sh', join(work, 'packages'), '-qq', ...options, ...args], {
      timeoutMs: fetchTimeoutMs,
    });
    if (ran.status !== 0) throw new Error(`apt-get ${args.join(' ')}: ${ran.stderr.trim().slice(0, 500)}`);
  };
  await apt('update');
  await apt('download', ...packages);
  const unpacked = join(work, 'unpacked');
  for (const file of readdirSync(join(work, 'packages')))
    await must('dpkg', '-x', join(work, 'packages', file), unpacked);
  return unpacked;
}
