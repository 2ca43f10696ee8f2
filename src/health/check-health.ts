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
  /** Nothing is known yet: the status is the one to begin with, and the first pass decides. */
  readonly fresh: boolean;
}

/** The state before the first result. */
export function initialState({ initialStatus }: CheckSpec): CheckState {
  return { status: initialStatus ?? 'starting', output: '', against: 0, fresh: true };
}

/** The state that goes on from a health known from before. */
export function stateFrom({ status, output }: CheckHealth): CheckState {
  return { status, output, against: 0, fresh: status === 'starting' };
}

/**
 * The health after one more result. What is fresh becomes passing with the first pass and critical after `fall` failures;
 * later `fall` failures in a row make critical, `rise` passes in a row bring back. A warning counts as a pass.
 */
export function afterResult(
  state: CheckState,
  { verdict, output }: ProbeResult,
  { rise, fall }: CheckSpec,
): CheckState {
  if (verdict === 'unknown') return { ...state, output };
  const well: StoredStatus = verdict === 'warn' ? 'warning' : 'passing';
  const against = state.against + 1;
  const isDown = state.status === 'critical' && !state.fresh;
  if (verdict === 'fail') {
    if (isDown || against >= fall) return { status: 'critical', output, against: 0, fresh: false };
    return { ...state, output, against };
  }
  if (!isDown || against >= rise) return { status: well, output, against: 0, fresh: false };
  return { status: 'critical', output, against, fresh: false };
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
