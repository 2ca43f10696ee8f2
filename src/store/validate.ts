import { LegateError } from '../base/errors.ts';
import { printable, truncate } from '../base/text.ts';
import { sizeOf } from './batches.ts';
import { type Guard, maxKeyBytes, type StoreLimits, type Write } from './store.ts';

/** Refuses a key beyond the seam's limits: E_INVALID for its form, E_TOO_LARGE for its size. */
export function checkKey(key: string): void {
  if (key === '') throw new LegateError('E_INVALID', 'a key must not be empty');
  checkPrefix(key);
}

/** As `checkKey`, but the empty text, which every key begins with, is allowed. */
export function checkPrefix(prefix: string): void {
  const bytes = Buffer.byteLength(prefix);
  if (bytes > maxKeyBytes) {
    throw new LegateError('E_TOO_LARGE', `a key of ${bytes} bytes is over the limit of ${maxKeyBytes}`);
  }
  if (prefix.includes('\u0000')) throw new LegateError('E_INVALID', `key ${shown(prefix)} contains NUL`);
  if (/\p{Surrogate}/u.test(prefix)) {
    throw new LegateError('E_INVALID', `key ${shown(prefix)} is not well-formed Unicode`);
  }
}

export function checkValue(key: string, value: Uint8Array, { valueBytes }: StoreLimits): void {
  if (value.byteLength <= valueBytes) return;
  throw new LegateError(
    'E_TOO_LARGE',
    `the value of ${shown(key)} has ${value.byteLength} bytes, over the limit of ${valueBytes}`,
  );
}

/** Refuses a transaction that is too large, writes a key twice, or holds a key or value beyond the limits. */
export function checkTxn(guards: readonly Guard[], writes: readonly Write[], limits: StoreLimits): void {
  const operations = guards.length + writes.length;
  if (operations > limits.txnOperations) {
    throw new LegateError(
      'E_TOO_LARGE',
      `a transaction of ${operations} guards and writes is over the limit of ${limits.txnOperations}`,
    );
  }
  for (const guard of guards) checkKey(guard.key);
  const written = new Set<string>();
  for (const write of writes) {
    checkKey(write.key);
    if (write.kind === 'put') checkValue(write.key, write.value, limits);
    if (written.has(write.key)) throw new LegateError('E_INVALID', `key ${shown(write.key)} is written twice`);
    written.add(write.key);
  }
  const bytes = writes.reduce((sum, write) => sum + sizeOf(write), 0);
  if (writes.length > 1 && bytes > limits.txnBytes) {
    throw new LegateError('E_TOO_LARGE', `a transaction of ${bytes} bytes is over the limit of ${limits.txnBytes}`);
  }
}

function shown(key: string): string {
  return truncate(printable(key), 80);
}
