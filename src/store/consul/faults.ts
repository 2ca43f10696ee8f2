import { describeError, LegateError, systemCode } from '../../base/errors.ts';
import { printable, truncate } from '../../base/text.ts';
import { BodyTooLargeError } from './wire.ts';

/** Why Consul did not do what it was asked. */
export type FaultKind =
  /** Not reached, no leader, overloaded, or no Consul at all: whether a write happened is not known. */
  | 'away'
  /** The token is missing, unknown, or not allowed this. */
  | 'refused'
  /** A transaction that did not happen. */
  | 'conflict'
  /** A 404: there is no such session, or what answers is no Consul. */
  | 'absent'
  /** Consul says that the request is wrong. */
  | 'invalid';

export interface TxnFault {
  readonly index: number;
  readonly what: string;
}

export class ConsulFault extends Error {
  readonly kind: FaultKind;
  readonly hint: string | undefined;
  /** Of a transaction: which operations failed, and why. */
  readonly operations: readonly TxnFault[];

  constructor(kind: FaultKind, message: string, hint?: string, operations: readonly TxnFault[] = []) {
    super(message);
    this.kind = kind;
    this.hint = hint;
    this.operations = operations;
  }

  toLegateError(tokenFile: string | undefined): LegateError {
    if (this.kind === 'away' || this.kind === 'absent') return awayError(this.message, this.hint);
    if (this.kind === 'refused') {
      return new LegateError('E_UNAUTHORIZED', this.message, { hint: this.hint ?? tokenHint(tokenFile) });
    }
    return new LegateError(this.kind === 'conflict' ? 'E_CONFLICT' : 'E_INVALID', this.message, {
      hint: this.hint ?? 'the message is what Consul itself says',
    });
  }
}

export function awayError(message: string, hint = 'check that Consul runs, and store.endpoints'): LegateError {
  return new LegateError('E_STORE_AWAY', message, { hint });
}

export function tokenHint(tokenFile: string | undefined): string {
  const rules = 'it needs write on key_prefix and session_prefix as the README shows';
  if (tokenFile === undefined)
    return `put a token into a file of mode 0600 and name it in store.credentials_file; ${rules}`;
  return `check the token in ${tokenFile}, which is read anew by itself; ${rules}`;
}

const maxShown = 200;

/** Makes one fault out of whatever a call ended with. `where` is the endpoint. */
export function faultOf(where: string, error: unknown): ConsulFault {
  if (error instanceof ConsulFault) return error;
  if (error instanceof BodyTooLargeError) {
    return new ConsulFault('away', `${where}: ${error.message}`, 'remove foreign keys from below store.prefix');
  }
  if (isGarbage(error)) return notConsul(where, reasonOf(error));
  const response = responseOf(error);
  if (response === undefined) return new ConsulFault('away', `Consul at ${where} is not reached: ${reasonOf(error)}`);
  const { status, text, body } = response;
  const said = text === '' ? `status ${status}` : `${status}: ${truncate(printable(text), maxShown)}`;
  const operations = status === 409 ? txnFaults(body) : [];
  if (status === 403 || operations.some(({ what }) => /permission denied|acl not found/i.test(what))) {
    return new ConsulFault('refused', `Consul at ${where} refuses the token${status === 403 ? ` (${said})` : ''}`);
  }
  if (operations.length > 0) {
    const [first] = operations;
    return new ConsulFault('conflict', `Consul at ${where}: ${first?.what ?? said}`, undefined, operations);
  }
  if (status === 429) {
    return new ConsulFault('away', `Consul at ${where} limits requests (${said})`, 'raise its limits');
  }
  if (status >= 500) {
    const hint = /no cluster leader|no known consul servers/i.test(text)
      ? 'more than half of the Consul servers must run and reach each other'
      : "look at Consul's own log";
    return new ConsulFault('away', `Consul at ${where} fails (${said})`, hint);
  }
  if (status === 404) {
    const { message, hint } = notConsul(where, said);
    return new ConsulFault('absent', message, hint);
  }
  if (status === 413 || status === 400)
    return new ConsulFault('invalid', `Consul at ${where} does not take this (${said})`);
  return notConsul(where, said);
}

/** What answers there is something else. */
export function notConsul(where: string, said: string): ConsulFault {
  return new ConsulFault(
    'away',
    `what answers at ${where} is no Consul: ${truncate(printable(said), maxShown)}`,
    'check store.endpoints: address, port, and http or https',
  );
}

function responseOf(error: unknown): { status: number; text: string; body: unknown } | undefined {
  if (!(error instanceof Error) || !('response' in error)) return undefined;
  const { response } = error;
  if (typeof response !== 'object' || response === null || !('statusCode' in response)) return undefined;
  // The package ties the response also to errors that came after its head, such as a connection that broke off.
  const status = Number(response.statusCode);
  if (status >= 200 && status < 300) return undefined;
  const body = 'body' in response ? response.body : undefined;
  const text = typeof body === 'string' ? body : Buffer.isBuffer(body) ? body.subarray(0, 2 * maxShown).toString() : '';
  return { status, text: text.trim(), body };
}

/** Neither HTTP nor JSON. */
function isGarbage(error: unknown): boolean {
  if (typeof error !== 'object' || error === null) return false;
  return 'isCodec' in error || systemCode(error)?.startsWith('HPE_') === true;
}

function txnFaults(body: unknown): TxnFault[] {
  if (typeof body !== 'object' || body === null || !('Errors' in body) || !Array.isArray(body.Errors)) return [];
  return body.Errors.flatMap((item: unknown) => {
    if (typeof item !== 'object' || item === null || !('OpIndex' in item) || !('What' in item)) return [];
    return [{ index: Number(item.OpIndex), what: truncate(printable(String(item.What)), maxShown) }];
  });
}

function reasonOf(error: unknown): string {
  const text = describeError(error).replace(/^consul: [A-Za-z.]+: /, '');
  return truncate(printable(text === '' ? 'no reason given' : text), maxShown);
}
