import type { StoreLimits, Write } from './store.ts';

/** What a write counts for in a transaction beside its key and value, in bytes. */
const overheadBytes = 64;

/** The bytes that a write counts for against `txnBytes`. */
export function sizeOf(write: Write): number {
  return overheadBytes + Buffer.byteLength(write.key) + (write.kind === 'put' ? write.value.byteLength : 0);
}

/**
 * Cuts writes into transactions that a store takes, in order; `guardsEach` is how many guards come with each write. One
 * that is too large by itself comes alone, and is refused by the store.
 */
export function* batches<T extends Write>(
  writes: readonly T[],
  limits: StoreLimits,
  guardsEach = 0,
): Generator<readonly T[]> {
  const most = Math.max(1, Math.floor(limits.txnOperations / (1 + guardsEach)));
  let batch: T[] = [];
  let bytes = 0;
  for (const write of writes) {
    const size = sizeOf(write) + guardsEach * (overheadBytes + Buffer.byteLength(write.key));
    if (batch.length > 0 && (batch.length >= most || bytes + size > limits.txnBytes)) {
      yield batch;
      batch = [];
      bytes = 0;
    }
    batch.push(write);
    bytes += size;
  }
  if (batch.length > 0) yield batch;
}
