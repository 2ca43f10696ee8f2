import type { Weights } from '../../src/model/routes.ts';
import type { TakenBack } from '../../src/model/taken-back.ts';
import { weightsText } from '../../src/model/taken-back.ts';
import { rateOf } from './verdict.ts';

/** `30.8 %`: a share of 1 for people. */
export function percent(share: number): string {
  const value = share * 100;
  const digits = value === 0 || value >= 99.95 || Number.isInteger(value) ? 0 : value < 0.1 ? 2 : 1;
  return `${value.toFixed(digits)} %`;
}

type Figures = Pick<TakenBack, 'tag' | 'requests' | 'errors' | 'against' | 'againstRequests' | 'againstErrors'>;

/** What a guard has seen: `37 of 120 requests failed (30.8 %), of stable 4 of 2280 (0.2 %)`. */
export function seenText(seen: Figures): string {
  const { requests, errors, against, againstRequests, againstErrors } = seen;
  const other = percent(rateOf({ requests: againstRequests, errors: againstErrors }));
  return (
    `${errors} of ${requests} requests failed (${percent(rateOf({ requests, errors }))}), ` +
    `of ${against} ${againstErrors} of ${againstRequests} (${other})`
  );
}

/** The command that sets these weights. */
export function splitCommand(service: string, weights: Weights): string {
  return `legate split ${service} ${weightsText(weights)}`;
}
