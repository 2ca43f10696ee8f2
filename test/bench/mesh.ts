import { fileURLToPath } from 'node:url';
import type { Bench } from './bench.ts';
import { runIsolated } from './roles.ts';

const longestMs = 420_000;

/**
 * A mesh of 200 hosts with 50 instances each on one store: once an embedded one that another sidecar offers, once etcd.
 * The hosts are the real client and registrar, many in one process, one in five with its catalog, and beside them one real
 * sidecar. In a
 * network namespace of its own, so that every byte on its loopback belongs to this.
 */
export const meshBench: Bench = {
  name: 'mesh',
  skip: () => (process.platform === 'linux' ? false : 'reads /proc'),
  run: (say) => runIsolated(fileURLToPath(new URL('./mesh-role.js', import.meta.url)), longestMs, say),
};
