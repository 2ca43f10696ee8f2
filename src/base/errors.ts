/**
 * Every failure that we expect has a stable code from this table, a one-line message that says what and where, and a
 * hint that says what to do. Broken invariants are not expected: they are plain Errors and end the process.
 */
export const errorCodes = {
  E_USAGE: 'wrong command line',
  E_CONFIG: 'the configuration has faults',
  E_IN_USE: 'another process holds what this one needs',
  E_PERMISSION: 'the operating system refuses',
  E_NOT_FOUND: 'no such thing',
  E_CONFLICT: 'it was changed by somebody else meanwhile, or contradicts what exists',
  E_INVALID: 'input that does not have the required form',
  E_TOO_LARGE: 'input beyond a bound',
  E_UNAUTHORIZED: 'no valid token or certificate',
  E_DENIED: 'this host may not do that',
  E_STORE_AWAY: 'the store cannot be reached',
  E_STORE_DAMAGED: 'the store on disk cannot be read',
  E_STORE_FOREIGN: 'the store belongs to another mesh',
  E_DOCKER: 'the Docker Engine refuses or fails',
  E_UNREACHABLE: 'no connection to the other side',
  E_TIMEOUT: 'no answer in time',
  E_CLOSED: 'the component has been closed',
} as const;

export type ErrorCode = keyof typeof errorCodes;

export interface ErrorDetails {
  /** What the reader can do about it, one sentence. */
  readonly hint?: string;
  readonly cause?: unknown;
}

export class LegateError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = 'LegateError';
    this.code = code;
    this.hint = details.hint;
  }
}

/** Narrows an unknown thrown value to a LegateError, optionally of one code. */
export function isLegateError(error: unknown, code?: ErrorCode): error is LegateError {
  return error instanceof LegateError && (code === undefined || error.code === code);
}

/** The `code` of a system error (`ECONNREFUSED`, `EADDRINUSE`, …) or undefined. */
export function systemCode(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined;
  return typeof error.code === 'string' ? error.code : undefined;
}

/** One line of text for any thrown value, causes included, without a stack. */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const parts = [error.message || systemCode(error) || error.name];
  let cause: unknown = error.cause;
  for (let depth = 0; depth < 4 && cause instanceof Error; depth += 1) {
    if (cause.message !== '' && !parts.join(' ').includes(cause.message)) parts.push(cause.message);
    cause = cause.cause;
  }
  return parts.join(': ').replaceAll('\n', ' ');
}
