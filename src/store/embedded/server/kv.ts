import { create } from '@bufbuild/protobuf';
import {
  CompactionResponseSchema,
  DeleteRangeResponseSchema,
  KV,
  PutResponseSchema,
  type RequestOp,
  RequestOpSchema,
  type ResponseOp,
  type TxnRequest,
  TxnResponseSchema,
} from '../../etcd-api/gen/etcd_pb.ts';
import type { StoreLimits } from '../../store.ts';
import type { StoreAccess } from '../access.ts';
import type { Asked, Calls } from './calls.ts';
import { type Decision, decide, type WriteCheck } from './decide.ts';
import { rpcError } from './errors.ts';
import type { Permissions } from './permissions.ts';
import type { Ranges } from './ranges.ts';
import { Plan } from './txn.ts';
import { type Identity, toNumber } from './wire.ts';
import { keysLookedAt } from './write-rules.ts';

export interface KeyValueOptions {
  readonly access: StoreAccess;
  readonly storeLimits: StoreLimits;
  readonly leaseExists: (id: string) => boolean;
  readonly ranges: Ranges;
  readonly identity: Identity;
  readonly permissions: Permissions;
}

/** The service KV. Every write is a transaction of the store, decided in its turn. */
export function serveKeyValues(calls: Calls, options: KeyValueOptions): void {
  const { ranges, identity, access, permissions } = options;
  calls.answer(KV.method.range, (request, { raw, caller }) => ranges.answer(request, raw, caller));
  calls.answer(KV.method.put, async (value, asked) => {
    const [decision, response] = await one(options, { case: 'requestPut', value }, asked);
    const prevKv = response?.case === 'responsePut' ? response.value.prevKv : undefined;
    return create(PutResponseSchema, { header: identity.header(decision.revision), ...(prevKv && { prevKv }) });
  });
  calls.answer(KV.method.deleteRange, async (value, asked) => {
    const [decision, response] = await one(options, { case: 'requestDeleteRange', value }, asked);
    const { deleted, prevKvs } =
      response?.case === 'responseDeleteRange' ? response.value : { deleted: 0n, prevKvs: [] };
    return create(DeleteRangeResponseSchema, { header: identity.header(decision.revision), deleted, prevKvs });
  });
  calls.answer(KV.method.txn, async (request, asked) => {
    const { succeeded, responses, revision } = await transact(options, request, asked);
    return create(TxnResponseSchema, { header: identity.header(revision), succeeded, responses: [...responses] });
  });
  calls.answer(KV.method.compact, async ({ revision }, { caller }) => {
    permissions.checkAuthority(caller, 'forget history');
    await compact(access, toNumber(revision));
    return create(CompactionResponseSchema, { header: identity.header(access.head().revision) });
  });
}

async function one(
  options: KeyValueOptions,
  request: RequestOp['request'],
  asked: Asked,
): Promise<[Decision, ResponseOp['response'] | undefined]> {
  const success = [create(RequestOpSchema, { request })];
  const decision = await transact(options, { compare: [], success, failure: [] }, asked);
  return [decision, decision.responses[0]?.response];
}

async function transact(
  { access, storeLimits, leaseExists, permissions }: KeyValueOptions,
  request: Pick<TxnRequest, 'compare' | 'success' | 'failure'>,
  { signal, caller }: Asked,
): Promise<Decision> {
  const plan = new Plan(request, storeLimits);
  for (const range of plan.reads()) permissions.checkWholeRead(caller, range);
  const keys = permissions.keysFor(caller);
  if (keys !== undefined) plan.keys.push(...keysLookedAt(keys, plan.puts()));
  const check: WriteCheck = (changes, current) => permissions.checkWrites(caller, changes, current);
  return await access.submit(
    {
      keys: () => plan.keys,
      bytes: plan.bytes,
      ...(plan.ranges.length > 0 ? { ranges: plan.ranges, alone: true } : {}),
      decide: (turn) => decide(plan, turn, { leaseExists, check }),
    },
    signal,
  );
}

/**
 * The revision itself stays one from which a watch can begin, as in etcd; the store's own mark is the last revision that
 * no watch can begin with.
 */
async function compact(access: StoreAccess, revision: number): Promise<void> {
  const head = access.head();
  if (revision > head.revision) throw rpcError('futureRevision');
  if (head.compacted > 1 && revision <= firstWatchable(head.compacted)) throw rpcError('compacted');
  if (revision - 1 > head.compacted) await access.compact(revision - 1);
}

/** The first revision with which a watch can begin. The first revision of all is that of the empty store. */
export function firstWatchable(compacted: number): number {
  return compacted <= 1 ? 1 : compacted + 1;
}
