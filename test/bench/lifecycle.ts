import { fileURLToPath } from 'node:url';
import type { Bench } from './bench.ts';
import { runIsolated } from './roles.ts';

/** All of it takes some twenty seconds; more than this and something hangs. */
const longestMs = 180_000;

/**
 * How long the real `legate agent` takes until it answers, and how long names and links are gone when it is restarted.
 */
export const lifecycleBench: Bench = {
  name: 'lifecycle',
  skip: () => false,
  run: (say) => runIsolated(fileURLToPath(new URL('./lifecycle-role.js', import.meta.url)), longestMs, say),
};
