import type { CheckSpec } from '../model/check.ts';
import type { DesiredInstance } from '../model/instance.ts';
import type { CheckHealth } from './check-health.ts';
import { outputText } from './probe.ts';

/**
 * What Docker's own HEALTHCHECK says. The engine asks, counts and waits; we take its word as it is, at once. Without a
 * word from it the health is not known yet, which is the check's initial status.
 */
export function dockerHealth(reported: DesiredInstance['reported'], { initialStatus }: CheckSpec): CheckHealth {
  const health: CheckHealth = reported ?? { status: 'starting', output: 'no report of its HEALTHCHECK yet' };
  const status = health.status === 'starting' ? (initialStatus ?? health.status) : health.status;
  return { status, output: outputText(health.output) };
}
