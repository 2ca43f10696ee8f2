import { randomBytes } from 'node:crypto';
import type { CallOptions, ConsulClient, StoredPair, WireOperation } from './client.ts';
import { ConsulFault } from './faults.ts';
import type { KeyNames } from './names.ts';
import type { StoreKeys } from './operations.ts';

/** Others may make the identity at the same moment; more often than this it is not lost to them. */
const maxTries = 5;

/** Our own keys in a store with this id. */
export function storeKeys({ hidden }: KeyNames, storeId: string): StoreKeys {
  return { identity: `${hidden}is-${storeId}`, marker: `${hidden}last-deletion` };
}

/**
 * Which store this is: Consul itself has nothing that tells one that lost its data from the one before, so an id is kept
 * in it, in a key of ours, made by whoever comes first. A second key with the id in its name is what every transaction
 * checks. Where one of them is gone, it is another store.
 */
export async function identify(client: ConsulClient, names: KeyNames, options: CallOptions): Promise<string> {
  for (let tries = 0; tries < maxTries; tries += 1) {
    const found = await readIdentity(client, names, options);
    if (found.storeId !== undefined) return found.storeId;
    const storeId = randomBytes(16).toString('hex');
    try {
      await client.txn(creation(names, storeId, found.pair), options);
      return storeId;
    } catch (error) {
      if (!(error instanceof ConsulFault) || error.kind !== 'conflict') throw error;
    }
  }
  throw new ConsulFault(
    'away',
    `Consul at ${client.where} does not keep the id of the store`,
    'see who writes below store.prefix',
  );
}

/** The id, if it is there and whole. */
export async function readIdentity(
  client: ConsulClient,
  names: KeyNames,
  options: CallOptions,
): Promise<{ readonly storeId?: string; readonly pair?: StoredPair }> {
  const pairs = await client.txn([{ KV: { Verb: 'get-tree', Key: names.hidden } }], options);
  const pair = pairs.find(({ key }) => key === idKey(names));
  if (pair === undefined) return {};
  const storeId = Buffer.from(pair.value).toString('latin1');
  const whole = /^[0-9a-f]{32}$/.test(storeId) && pairs.some(({ key }) => key === storeKeys(names, storeId).identity);
  return whole ? { storeId, pair } : { pair };
}

export function idKey({ hidden }: KeyNames): string {
  return `${hidden}store-id`;
}

function creation(names: KeyNames, storeId: string, damaged: StoredPair | undefined): WireOperation[] {
  const Key = idKey(names);
  const Value = Buffer.from(storeId).toString('base64');
  return [
    { KV: { Verb: 'cas', Key, Value, Index: damaged?.index ?? 0 } },
    { KV: { Verb: 'set', Key: storeKeys(names, storeId).identity, Value: '' } },
  ];
}
