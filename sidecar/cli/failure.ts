import { CommanderError } from 'commander';
import {
  describeError,
  type ErrorCode,
  type ErrorDetails,
  errorCodes,
  isLegateError,
  LegateError,
} from '../../src/base/errors.ts';
import { printable } from '../../src/base/text.ts';
import type { ErrorDocument } from '../admin/documents.ts';

/** What a command may end with. */
export const exitStatus = { done: 0, failed: 1, usage: 2, noSidecar: 3 } as const;

/** No sidecar answered: the one kind of failure with an exit status of its own. */
export class NoSidecarError extends LegateError {
  constructor(message: string, details: ErrorDetails) {
    super('E_UNREACHABLE', message, details);
    this.name = 'NoSidecarError';
  }
}

/** A refusal by the sidecar, with the status of its answer. */
export class AdminError extends LegateError {
  readonly httpStatus: number;

  constructor(code: ErrorCode, message: string, httpStatus: number, details: ErrorDetails) {
    super(code, message, details);
    this.name = 'AdminError';
    this.httpStatus = httpStatus;
  }
}

export function isErrorCode(code: unknown): code is ErrorCode {
  return typeof code === 'string' && Object.hasOwn(errorCodes, code);
}

/** A failure as a command shows it: one printable line, and the exit status. */
export interface Shown {
  readonly line: string;
  readonly status: number;
  readonly document: ErrorDocument;
}

export function showFailure(error: unknown, command: string): Shown {
  if (error instanceof CommanderError) return usage(error, command);
  // Who found that nobody answers has put the cause into words.
  const message = printable(error instanceof NoSidecarError ? error.message : describeError(error));
  const hint = isLegateError(error) && error.hint !== undefined ? printable(error.hint) : '';
  const code = isLegateError(error) ? error.code : 'E_INTERNAL';
  const line = `${command}: ${message}${hint === '' ? '' : `; ${hint}`}`;
  return { line, status: statusOf(error), document: { error: { code, message, hint } } };
}

function statusOf(error: unknown): number {
  if (error instanceof NoSidecarError) return exitStatus.noSidecar;
  if (error instanceof AdminError) return exitStatus.failed;
  return isLegateError(error, 'E_USAGE') || isLegateError(error, 'E_CONFIG') ? exitStatus.usage : exitStatus.failed;
}

/** The parser of arguments speaks in two lines; ours say it in one, with where to read more. */
function usage(error: CommanderError, command: string): Shown {
  const message = printable(
    error.message
      .replace(/^error: /, '')
      .replace(/\n\((Did you mean [^)]*)\)/, (_, question: string) => `; ${question.toLowerCase()}`)
      .replaceAll('\n', ' '),
  );
  const hint = `${command} -h shows how it is used`;
  return {
    line: `${command}: ${message}; ${hint}`,
    status: exitStatus.usage,
    document: { error: { code: 'E_USAGE', message, hint } },
  };
}
