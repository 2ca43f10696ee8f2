import { fileURLToPath } from 'node:url';
import { unless } from '../support/needs.ts';
import { type Bench, type BenchOptions, chosenOf } from './bench.ts';
import { findEnvoy } from './envoy.ts';
import { runIsolated } from './roles.ts';
import { parts, type TunnelPart } from './tunnel-parts.ts';
import { type PeerName, pairNames } from './tunnel-peers.ts';

const longestMs = 1_500_000;

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
