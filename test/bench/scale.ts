import { fileURLToPath } from 'node:url';
import type { Bench } from './bench.ts';
import { runIsolated } from './roles.ts';

const longestMs = 120_000;

/**
 * One host with a large mesh: 10,000 instances in 1,000 services, of which 500 in 50 services are this host's own, real
 * listeners with a check every two seconds; the others are records that other hosts would have written into its store.
 * What that costs in memory and time, and what names and links feel of it.
 */
export const scaleBench: Bench = {
  name: 'scale',
  skip: () => (process.platform === 'linux' ? false : 'reads /proc'),
  run: (say) => runIsolated(fileURLToPath(new URL('./scale-role.js', import.meta.url)), longestMs, say),
};
