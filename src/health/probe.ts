import { printable, truncate } from '../base/text.ts';
import type { Endpoint } from '../model/address.ts';
import type { CheckKind, CheckSpec } from '../model/check.ts';

/**
 * What one probe found. `warn` counts as a pass that is shown as a warning; `unknown` for nothing, because the one who
 * was to ask could not: the health stays as it is.
 */
export interface ProbeResult {
  readonly verdict: 'pass' | 'warn' | 'fail' | 'unknown';
  /** For people; it stays the same while nothing changes, so that it is not stored again and again. */
  readonly output: string;
}

/** Where a check asks: the address with the check's own port, and for commands the container. */
export interface ProbeTarget extends Endpoint {
  readonly container?: string;
}

/**
 * Asks once. Resolves with what it found, a refusal included; the signal ends it, after which nobody looks at the result.
 * It releases its socket in any case. With `ifLate` it may say what it means when the time is over before it has ended;
 * otherwise that is "no answer".
 */
export type Probe = (
  target: ProbeTarget,
  check: CheckSpec,
  signal: AbortSignal,
  ifLate?: (describe: () => ProbeResult) => void,
) => Promise<ProbeResult>;

/** The kinds that are asked actively. */
export type Probes = Readonly<Partial<Record<CheckKind, Probe>>>;

export const maxOutputLength = 500;

/** Output of strangers as it is kept: printable and bounded. */
export function outputText(text: string): string {
  return truncate(printable(text.trim()), maxOutputLength);
}
