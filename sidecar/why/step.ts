import type { Condition } from '../../src/base/conditions.ts';
import type { Verdict, WhyStepDocument } from '../admin/why-document.ts';
import type { WhyFacts } from './facts.ts';

/** Lines that one step has below it at most; what is beyond is counted. */
const maxDetails = 12;

export interface Detail {
  readonly text: string;
  /** Wall clock. */
  readonly sinceMs?: number | undefined;
}

/** What one step found. */
export interface Step {
  readonly name: WhyStepDocument['name'];
  readonly verdict: Verdict;
  readonly text: string;
  readonly sinceMs?: number | undefined;
  readonly details?: readonly Detail[];
  /** What to do about it, said as a command where there is one. */
  readonly fix?: string | undefined;
}

/** One step of the way; undefined where it has nothing to tell. */
export type Explain = (facts: WhyFacts) => Step | undefined;

/** What is wrong now with an id that matches; the worst. */
export function conditionOf({ conditions }: WhyFacts, matches: RegExp): Condition | undefined {
  return conditions.find(({ id }) => matches.test(id));
}

/** A step that a condition says all of. */
export function stepOf(name: Step['name'], { message, hint, sinceMs }: Condition): Step {
  return { name, verdict: 'bad', text: message, sinceMs, fix: hint };
}

export function stepDocument({ name, verdict, text, sinceMs, details = [] }: Step): WhyStepDocument {
  const shown = details.slice(0, maxDetails).map((detail) => ({ text: detail.text, since: timeText(detail.sinceMs) }));
  const more = details.length - shown.length;
  if (more > 0) shown.push({ text: `and ${more} more`, since: null });
  return { name, verdict, text, since: timeText(sinceMs), details: shown };
}

function timeText(wallMs: number | undefined): string | null {
  return wallMs === undefined ? null : new Date(wallMs).toISOString();
}

/** `a, b and 3 more`. */
export function listed(names: readonly string[], most = 3): string {
  const shown = names.slice(0, most).join(', ');
  return names.length > most ? `${shown} and ${names.length - most} more` : shown;
}
