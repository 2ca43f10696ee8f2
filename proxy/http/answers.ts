import { STATUS_CODES } from 'node:http';
import type { Refusal } from './routing/link-routing.ts';

/** An answer that this sidecar gives itself. */
export interface OwnAnswer {
  readonly status: number;
  /** For people and programs: why. */
  readonly reason: string;
  /** Seconds after which it may be worth another try. */
  readonly retryAfter?: number;
  /** The methods that may be used instead. */
  readonly allow?: string;
  /** Where to ask instead: nothing else is said then. */
  readonly location?: string;
}

/** Writes an answer of our own; the connection is closed behind it unless it may go on. */
export function ownAnswer(
  { status, reason, retryAfter, allow, location }: OwnAnswer,
  options: { readonly close: boolean; readonly head: boolean },
): Buffer {
  const begin = `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}`;
  const end = options.close ? ['Connection: close'] : [];
  if (location !== undefined) {
    return Buffer.from(
      `${[begin, `Location: ${location}`, 'Content-Length: 0', ...end].join('\r\n')}\r\n\r\n`,
      'latin1',
    );
  }
  const text = `legate: ${reason}\n`;
  const lines = [
    begin,
    'Content-Type: text/plain; charset=utf-8',
    `Content-Length: ${Buffer.byteLength(text)}`,
    `Legate-Reason: ${reason.replaceAll(/[^\x20-\x7e]/g, '?')}`,
    ...(retryAfter === undefined ? [] : [`Retry-After: ${retryAfter}`]),
    ...(allow === undefined ? [] : [`Allow: ${allow}`]),
    ...end,
  ];
  return Buffer.from(`${lines.join('\r\n')}\r\n\r\n${options.head ? '' : text}`, 'utf8');
}

const refusalStatus: Readonly<Record<Refusal['kind'], number>> = { denied: 403, unavailable: 503, lost: 502 };

/** The answer to what a route leads nowhere. */
export function refusalAnswer({ kind, reason }: Refusal): OwnAnswer {
  return { status: refusalStatus[kind], reason, ...(kind === 'unavailable' && { retryAfter: 1 }) };
}
