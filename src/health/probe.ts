import { printable, truncate } from '../base/text.ts';
import type { Endpoint } from '../model/address.ts';
import type { CheckKind, CheckSpec } from '../model/check.ts';

/** What one probe found. `warn` counts as a pass that is shown as a warning. */
export interface ProbeResult {
  readonly verdict: 'pass' | 'warn' | 'fail';
  /** For people; it stays the same while nothing changes, so that it is not stored again and again. */
  readonly output: string;
}

/**
 * Asks once. Resolves with what it found, a refusal included; the signal ends it, after which nobody looks at the result.
 * It releases its socket in any case.
 */
export type Probe = (endpoint: Endpoint, check: CheckSpec, signal: AbortSignal) => Promise<ProbeResult>;

/** The kinds that are asked actively. */
export type Probes = Readonly<Partial<Record<CheckKind, Probe>>>;

export const maxOutputLength = 500;

/** Output of strangers as it is kept: printable and bounded. */
export function outputText(text: string): string {
  return truncate(printable(text.trim()), maxOutputLength);
}
