import { status } from '@grpc/grpc-js';
import type {
  Compare,
  DeleteRangeRequest,
  PutRequest,
  RangeRequest,
  RequestOp,
  TxnRequest,
} from '../../etcd-api/gen/etcd_pb.ts';
import type { StoreLimits } from '../../store.ts';
import type { KeyBounds } from '../committer.ts';
import { prepareKey } from '../records.ts';
import { RpcError, rpcError } from './errors.ts';
import { includes, type KeyRange, latinOf, parseKeyBytes, parseKeyRange } from './key-range.ts';
import { limits } from './limits.ts';
import { checkSort } from './select.ts';
import { leaseId } from './wire.ts';

/** A range that a transaction names: by its key when it is one, else by its place among the ranges of the turn. */
export interface PlannedRange {
  readonly range: KeyRange;
  readonly place: number;
}

export type PlannedOp =
  | {
      readonly kind: 'put';
      readonly key: string;
      readonly record: Buffer | undefined;
      /** Undefined for the lease that the key has. */
      readonly lease: { readonly id: string | undefined } | undefined;
      readonly prevKv: boolean;
    }
  | { readonly kind: 'delete'; readonly where: PlannedRange; readonly prevKv: boolean }
  | { readonly kind: 'range'; readonly where: PlannedRange; readonly request: RangeRequest };

export interface PlannedCompare {
  readonly where: PlannedRange;
  readonly compare: Compare;
}

/** A request with its keys and ranges found and its form checked, ready to be decided. */
export class Plan {
  readonly compares: readonly PlannedCompare[];
  readonly success: readonly PlannedOp[];
  readonly failure: readonly PlannedOp[];
  readonly keys: string[] = [];
  readonly ranges: KeyBounds[] = [];
  /** About how much memory it holds. */
  bytes = 256;
  readonly #limits: StoreLimits;

  constructor(request: Pick<TxnRequest, 'compare' | 'success' | 'failure'>, storeLimits: StoreLimits) {
    const { compare, success, failure } = request;
    if (Math.max(compare.length, success.length, failure.length) > limits.txnOperations) throw rpcError('tooManyOps');
    this.#limits = storeLimits;
    this.compares = compare.map((each) => ({ where: this.#range(each.key, each.rangeEnd), compare: each }));
    this.success = success.map((op) => this.#op(op));
    this.failure = failure.map((op) => this.#op(op));
    checkDuplicates(this.success);
    checkDuplicates(this.failure);
  }

  /** What it reads, in conditions and otherwise. */
  *reads(): Generator<KeyRange> {
    for (const { where } of this.compares) yield where.range;
    for (const op of [...this.success, ...this.failure]) if (op.kind === 'range') yield op.where.range;
  }

  /** What it puts, in either branch. */
  *puts(): Generator<readonly [key: string, value: Uint8Array]> {
    for (const op of [...this.success, ...this.failure]) {
      if (op.kind === 'put' && op.record !== undefined) yield [op.key, contentOf(op.record)];
    }
  }

  #op({ request }: RequestOp): PlannedOp {
    switch (request.case) {
      case 'requestPut':
        return this.#put(request.value);
      case 'requestDeleteRange':
        return this.#delete(request.value);
      case 'requestRange':
        checkSort(request.value);
        return { kind: 'range', where: this.#range(request.value.key, request.value.rangeEnd), request: request.value };
      case 'requestTxn': {
        const text = 'this store has no transactions within transactions; say it with the keys of one';
        throw new RpcError(status.UNIMPLEMENTED, text);
      }
      default:
        throw rpcError('keyNotFound');
    }
  }

  #put({ key: bytes, value, lease, prevKv, ignoreValue, ignoreLease }: PutRequest): PlannedOp {
    const key = parseKeyBytes(bytes);
    if (ignoreValue && value.byteLength > 0) throw rpcError('valueProvided');
    if (ignoreLease && lease !== 0n) throw rpcError('leaseProvided');
    if (value.byteLength > this.#limits.valueBytes) {
      throw rpcError('tooLarge', `a value may have ${this.#limits.valueBytes} bytes`);
    }
    this.keys.push(key);
    this.bytes += value.byteLength;
    const record = ignoreValue ? undefined : prepareKey(value);
    return { kind: 'put', key, record, lease: ignoreLease ? undefined : { id: leaseId(lease) }, prevKv };
  }

  #delete({ key, rangeEnd, prevKv }: DeleteRangeRequest): PlannedOp {
    return { kind: 'delete', where: this.#range(key, rangeEnd), prevKv };
  }

  #range(key: Uint8Array, rangeEnd: Uint8Array): PlannedRange {
    const range = parseKeyRange(key, rangeEnd);
    if (range.single !== undefined) {
      this.keys.push(range.single);
      return { range, place: -1 };
    }
    this.ranges.push(range.bounds);
    return { range, place: this.ranges.length - 1 };
  }
}

/** A prepared record begins with room for its header. */
const headerBytes = prepareKey(new Uint8Array()).length;

export function contentOf(prepared: Buffer): Uint8Array {
  return prepared.subarray(headerBytes);
}

/** A key is put at most once in a branch, and not where the branch deletes. */
function checkDuplicates(ops: readonly PlannedOp[]): void {
  const puts = new Set<string>();
  for (const op of ops) {
    if (op.kind !== 'put') continue;
    if (puts.has(op.key)) throw rpcError('duplicateKey');
    puts.add(op.key);
  }
  const latins = [...puts].map(latinOf);
  for (const op of ops) {
    if (op.kind === 'delete' && latins.some((key) => includes(op.where.range, key))) throw rpcError('duplicateKey');
  }
}
