import { describeError, systemCode } from '../../src/base/errors.ts';

const words = new Map([
  ['ECONNREFUSED', 'the instance refuses connections'],
  ['ECONNRESET', 'the instance has reset the connection'],
  ['EPIPE', 'the instance has closed the connection'],
  ['ETIMEDOUT', 'the instance does not answer'],
  ['EHOSTUNREACH', 'there is no way to the instance'],
  ['ENETUNREACH', 'there is no way to the instance'],
]);

/** What befell a connection to an instance, in words that a client may read: they name no address. */
export function instanceProblem(error: unknown): string {
  const code = systemCode(error);
  if (code === undefined) return describeError(error);
  return `${words.get(code) ?? 'the connection to the instance has failed'} (${code})`;
}
