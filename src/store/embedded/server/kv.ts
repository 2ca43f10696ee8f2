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
import type { Calls } from './calls.ts';
import { type Decision, decide } from './decide.ts';
import { rpcError } from './errors.ts';
import type { Ranges } from './ranges.ts';
import { Plan } from './txn.ts';
import { type Identity, toNumber } from './wire.ts';

export interface KeyValueOptions {
  readonly access: StoreAccess;
  readonly storeLimits: StoreLimits;
  readonly leaseExists: (id: string) => boolean;
  readonly ranges: Ranges;
  readonly identity: Identity;
}

/** The service KV. Every write is a transaction of the store, decided in its turn. */
export function serveKeyValues(calls: Calls, options: KeyValueOptions): void {
  const { ranges, identity, access } = options;
  calls.answer(KV.method.range, (request, raw) => ranges.answer(request, raw));
  calls.answer(KV.method.put, async (value, _raw, signal) => {
    const [decision, response] = await one(options, { case: 'requestPut', value }, signal);
    const prevKv = response?.case === 'responsePut' ? response.value.prevKv : undefined;
    return create(PutResponseSchema, { header: identity.header(decision.revision), ...(prevKv && { prevKv }) });
  });
  calls.answer(KV.method.deleteRange, async (value, _raw, signal) => {
    const [decision, response] = await one(options, { case: 'requestDeleteRange', value }, signal);
    const { deleted, prevKvs } =
      response?.case === 'responseDeleteRange' ? response.value : { deleted: 0n, prevKvs: [] };
    return create(DeleteRangeResponseSchema, { header: identity.header(decision.revision), deleted, prevKvs });
  });
  calls.answer(KV.method.txn, async (request, _raw, signal) => {
    const { succeeded, responses, revision } = await transact(options, request, signal);
    return create(TxnResponseSchema, { header: identity.header(revision), succeeded, responses: [...responses] });
  });
  calls.answer(KV.method.compact, async ({ revision }) => {
    await compact(access, toNumber(revision));
    return create(CompactionResponseSchema, { header: identity.header(access.head().revision) });
  });
}

async function one(
  options: KeyValueOptions,
  request: RequestOp['request'],
  signal: AbortSignal,
): Promise<[Decision, ResponseOp['response'] | undefined]> {
  const success = [create(RequestOpSchema, { request })];
  const decision = await transact(options, { compare: [], success, failure: [] }, signal);
  return [decision, decision.responses[0]?.response];
}

async function transact(
  { access, storeLimits, leaseExists }: KeyValueOptions,
  request: Pick<TxnRequest, 'compare' | 'success' | 'failure'>,
  signal: AbortSignal,
): Promise<Decision> {
  const plan = new Plan(request, storeLimits);
  return await access.submit(
    {
      keys: () => plan.keys,
      bytes: plan.bytes,
      ...(plan.ranges.length > 0 ? { ranges: plan.ranges, alone: true } : {}),
      decide: (turn) => decide(plan, turn, leaseExists),
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
