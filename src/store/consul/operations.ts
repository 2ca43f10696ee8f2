import { LegateError } from '../../base/errors.ts';
import { revisionNumber } from '../revision.ts';
import type { Guard, Write } from '../store.ts';
import type { KeyOperation, StoredPair, WireOperation } from './client.ts';
import type { ConsulFault } from './faults.ts';
import type { KeyNames } from './names.ts';

/** What a transaction's operation is there for, by which its failure is understood. */
type Role = 'identity' | 'guard' | 'lease' | 'write';

/** A transaction of the seam in Consul's operations. */
export interface Plan {
  readonly operations: readonly WireOperation[];
  readonly roles: readonly Role[];
}

/** The keys that say which store this is and at which index its last deletion was. */
export interface StoreKeys {
  /** There as long as the store is the same; its name holds the id. */
  readonly identity: string;
  readonly marker: string;
}

/**
 * Writes become operations that happen together or not at all:
 * - first a read of the identity's key, so that nothing is ever written into another store than the one that was meant;
 * - a put is a deletion followed by a `set` (or `lock`, with a lease), because `set` alone would leave the key to the
 *   session that holds it and would not count as a change when the value is the same; with `absent` a `cas` says both;
 * - what only deletes also sets a marker, because Consul tells no index of a deletion.
 * Undefined when a guard cannot hold, whatever is stored. Errors: E_NOT_FOUND for a lease that was lost.
 */
export function planTxn(
  guards: readonly Guard[],
  writes: readonly Write[],
  { names, keys, storeId, nonce }: { names: KeyNames; keys: StoreKeys; storeId: string; nonce: string },
): Plan | undefined {
  const operations: WireOperation[] = [{ KV: { Verb: 'get', Key: keys.identity } }];
  const roles: Role[] = ['identity'];
  const add = (role: Role, KV: KeyOperation['KV']): void => {
    operations.push({ KV });
    roles.push(role);
  };
  const plainPuts = new Set(writes.flatMap((write) => (write.kind === 'put' && !write.lease ? [write.key] : [])));
  const merged = new Set<string>();
  for (const guard of guards) {
    const Key = names.toConsul(guard.key);
    if (guard.kind === 'absent' && plainPuts.has(guard.key)) merged.add(guard.key);
    else if (guard.kind === 'absent') add('guard', { Verb: 'check-not-exists', Key });
    else if (guard.kind === 'exists') add('guard', { Verb: 'get', Key });
    else {
      const Index = revisionNumber(storeId, guard.revision);
      if (Index === undefined) return undefined;
      add('guard', { Verb: 'check-index', Key, Index });
    }
  }
  for (const write of writes) {
    const Key = names.toConsul(write.key);
    if (write.kind === 'delete') {
      add('write', { Verb: 'delete', Key });
      continue;
    }
    const Value = Buffer.from(write.value.buffer, write.value.byteOffset, write.value.byteLength).toString('base64');
    if (merged.has(write.key)) {
      add('guard', { Verb: 'cas', Index: 0, Key, Value });
      continue;
    }
    add('write', { Verb: 'delete', Key });
    if (write.lease === undefined) add('write', { Verb: 'set', Key, Value });
    else if (write.lease.lost.aborted) throw lapsedError(write.lease.id);
    else add('lease', { Verb: 'lock', Key, Value, Session: write.lease.id });
  }
  if (writes.length > 0 && writes.every(({ kind }) => kind === 'delete')) {
    add('write', { Verb: 'set', Key: keys.marker, Value: Buffer.from(nonce).toString('base64') });
  }
  return { operations, roles };
}

/** The index at which a transaction happened: that of its newest key. */
export function newestIndex(pairs: readonly StoredPair[]): number {
  return pairs.reduce((newest, { index }) => Math.max(newest, index), 0);
}

/** What a transaction's failure means: another store, a guard that does not hold; throws for the rest. */
export function explainConflict(fault: ConsulFault, { roles }: Plan): 'replaced' | 'guard' {
  const failed = fault.operations.map(({ index, what }) => ({ role: roles[index], what }));
  if (failed.some(({ role }) => role === 'identity')) return 'replaced';
  for (const { role, what } of failed) {
    if (role === 'lease' && /session/i.test(what) && !/lock delay/i.test(what)) throw lapsedError();
  }
  if (failed.some(({ role }) => role === 'guard')) return 'guard';
  throw fault;
}

export function lapsedError(id?: string): LegateError {
  const which = id === undefined ? 'such lease' : `lease ${id}`;
  return new LegateError('E_NOT_FOUND', `there is no ${which}: it has lapsed or was revoked`, {
    hint: 'begin a new lease and write its keys again',
  });
}
