import { STATUS_CODES } from 'node:http';

/** An answer that this sidecar gives itself. */
export interface OwnAnswer {
  readonly status: number;
  /** For people and programs: why. */
  readonly reason: string;
  /** Seconds after which it may be worth another try. */
  readonly retryAfter?: number;
  /** The methods that may be used instead. */
  readonly allow?: string;
}

/** Writes an answer of our own; the connection is closed behind it unless it may go on. */
export function ownAnswer(
  { status, reason, retryAfter, allow }: OwnAnswer,
  options: { readonly close: boolean; readonly head: boolean },
): Buffer {
  const text = `legate: ${reason}\n`;
  const lines = [
    `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}`,
    'Content-Type: text/plain; charset=utf-8',
    `Content-Length: ${Buffer.byteLength(text)}`,
    `Legate-Reason: ${reason.replaceAll(/[^\x20-\x7e]/g, '?')}`,
    ...(retryAfter === undefined ? [] : [`Retry-After: ${retryAfter}`]),
    ...(allow === undefined ? [] : [`Allow: ${allow}`]),
    ...(options.close ? ['Connection: close'] : []),
  ];
  return Buffer.from(`${lines.join('\r\n')}\r\n\r\n${options.head ? '' : text}`, 'utf8');
}
