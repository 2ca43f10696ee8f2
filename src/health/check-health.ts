import type { CheckSpec } from '../model/check.ts';
import type { StoredStatus } from '../model/instance.ts';
import type { ProbeResult } from './probe.ts';

export interface CheckHealth {
  readonly status: StoredStatus;
  readonly output: string;
}

/** One check's health and how far it is on its way to another one. */
export interface CheckState extends CheckHealth {
  /** Results in a row that contradict the present status. */
  readonly against: number;
}

/**
 * The health after one more result. Starting becomes passing with the first pass and critical after `fall` failures;
 * later `fall` failures in a row make critical, `rise` passes in a row bring back. A warning counts as a pass.
 */
export function afterResult(
  state: CheckState,
  { verdict, output }: ProbeResult,
  { rise, fall }: CheckSpec,
): CheckState {
  const well: StoredStatus = verdict === 'warn' ? 'warning' : 'passing';
  const against = state.against + 1;
  if (verdict === 'fail') {
    if (state.status === 'critical') return { status: 'critical', output, against: 0 };
    return against >= fall ? { status: 'critical', output, against: 0 } : { status: state.status, output, against };
  }
  if (state.status !== 'critical') return { status: well, output, against: 0 };
  return against >= rise ? { status: well, output, against: 0 } : { status: 'critical', output, against };
}

const rank: Readonly<Record<StoredStatus, number>> = { passing: 0, warning: 1, starting: 2, critical: 3 };

/** The worst of several checks, with its output; of several outputs each names its kind. No check means passing. */
export function worstOf(checks: readonly (CheckHealth & { readonly kind: string })[]): CheckHealth {
  let worst = checks[0];
  for (const check of checks) if (worst === undefined || rank[check.status] > rank[worst.status]) worst = check;
  if (worst === undefined) return { status: 'passing', output: '' };
  const output = checks.length > 1 && worst.output !== '' ? `${worst.kind}: ${worst.output}` : worst.output;
  return { status: worst.status, output };
}
