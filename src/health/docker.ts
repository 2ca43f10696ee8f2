import type { DesiredInstance } from '../model/instance.ts';
import type { CheckHealth } from './check-health.ts';
import { outputText } from './probe.ts';

/**
 * What Docker's own HEALTHCHECK says. The engine asks, counts and waits; we take its word as it is, at once. Without a
 * word from it the health is not known yet.
 */
export function dockerHealth(reported: DesiredInstance['reported']): CheckHealth {
  if (reported === undefined) return { status: 'starting', output: 'no report of its HEALTHCHECK yet' };
  return { status: reported.status, output: outputText(reported.output) };
}
