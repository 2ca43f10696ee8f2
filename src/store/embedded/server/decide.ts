import { create } from '@bufbuild/protobuf';
import {
  type Compare,
  DeleteRangeResponseSchema,
  PutResponseSchema,
  type RangeRequest,
  RangeResponseSchema,
  type ResponseHeader,
  ResponseHeaderSchema,
  type ResponseOp,
  ResponseOpSchema,
  Compare_CompareResult as Result,
  Compare_CompareTarget as Target,
} from '../../etcd-api/gen/etcd_pb.ts';
import { type KeyRecord, prepareKey } from '../records.ts';
import type { PreparedWrite, Turn } from '../turn.ts';
import { rpcError } from './errors.ts';
import { includes, latinOf } from './key-range.ts';
import { type Row, select } from './select.ts';
import { contentOf, type Plan, type PlannedOp, type PlannedRange } from './txn.ts';
import { keyValue, toNumber } from './wire.ts';
import type { KeyChange } from './write-rules.ts';

export interface Decision {
  readonly succeeded: boolean;
  readonly responses: readonly ResponseOp[];
  readonly revision: number;
}

/** Throws when one of the changes is not allowed. `current`: what a key of the plan holds that is not changed. */
export type WriteCheck = (
  changes: ReadonlyMap<string, KeyChange>,
  current: (key: string) => KeyRecord | undefined,
) => void;

export interface DecideOptions {
  readonly leaseExists: (id: string) => boolean;
  readonly check: WriteCheck;
}

/** Decides a planned transaction at its turn, and takes up its writes. Throws before it has taken up any. */
export function decide(plan: Plan, turn: Turn, options: DecideOptions): Decision {
  return new Deciding(turn, options).run(plan);
}

/** One transaction at its turn: reads see what its own writes before them did. */
class Deciding {
  readonly #turn: Turn;
  readonly #options: DecideOptions;
  readonly #written = new Map<string, { write: PreparedWrite; record: KeyRecord | undefined }>();
  /** Whether it has changed anything so far. */
  #changed = false;

  constructor(turn: Turn, options: DecideOptions) {
    this.#turn = turn;
    this.#options = options;
  }

  run(plan: Plan): Decision {
    const succeeded = plan.compares.every(({ where, compare }) => this.#holds(where, compare));
    const responses = (succeeded ? plan.success : plan.failure).map((op) => this.#run(op));
    const changes = new Map<string, KeyChange>();
    for (const [key, { record }] of this.#written) changes.set(key, { before: this.#turn.current(key), after: record });
    this.#options.check(changes, (key) => this.#turn.current(key));
    const revision = this.#turn.write([...this.#written.values()].map(({ write }) => write));
    return { succeeded, responses, revision };
  }

  #run(op: PlannedOp): ResponseOp {
    switch (op.kind) {
      case 'put':
        return this.#put(op);
      case 'delete':
        return this.#delete(op);
      case 'range':
        return this.#range(op.where, op.request);
    }
  }

  #put(op: PlannedOp & { kind: 'put' }): ResponseOp {
    const before = this.#record(op.key);
    if (before === undefined && (op.record === undefined || op.lease === undefined)) throw rpcError('keyNotFound');
    const lease = op.lease === undefined ? before?.lease : op.lease.id;
    if (lease !== undefined && !this.#options.leaseExists(lease)) throw rpcError('leaseNotFound');
    const prepared = op.record ?? prepareKey(before?.value ?? new Uint8Array());
    const revision = this.#turn.head.revision + 1;
    const record = {
      value: contentOf(prepared),
      revision,
      created: before?.created ?? revision,
      version: (before?.version ?? 0) + 1,
      lease,
    };
    this.#changed = true;
    this.#written.set(op.key, { write: { kind: 'put', key: op.key, record: prepared, lease }, record });
    const prevKv = op.prevKv && before !== undefined ? { prevKv: keyValue(op.key, before) } : {};
    const value = create(PutResponseSchema, { header: this.#header(), ...prevKv });
    return create(ResponseOpSchema, { response: { case: 'responsePut', value } });
  }

  #delete({ where, prevKv }: PlannedOp & { kind: 'delete' }): ResponseOp {
    const rows = this.#rows(where);
    for (const [key] of rows) this.#written.set(key, { write: { kind: 'delete', key }, record: undefined });
    // A damaged record counts as absent, but whoever deletes it gets rid of it.
    if (where.range.single !== undefined && rows.length === 0) {
      const key = where.range.single;
      this.#written.set(key, { write: { kind: 'delete', key }, record: undefined });
    }
    this.#changed ||= rows.length > 0;
    const prevKvs = prevKv ? rows.map(([key, record]) => keyValue(key, record)) : [];
    const value = create(DeleteRangeResponseSchema, { header: this.#header(), deleted: BigInt(rows.length), prevKvs });
    return create(ResponseOpSchema, { response: { case: 'responseDeleteRange', value } });
  }

  #range(where: PlannedRange, request: RangeRequest): ResponseOp {
    const present = this.#turn.head.revision;
    if (request.revision > BigInt(present)) throw rpcError('futureRevision');
    if (request.revision > 0n && request.revision < BigInt(present)) throw rpcError('compacted');
    const rows = this.#rows(where);
    const count = BigInt(rows.length);
    const selected = request.countOnly ? [] : select(rows, request);
    const limit = request.limit > 0n ? toNumber(request.limit) : selected.length;
    const kvs = selected.slice(0, limit).map(([key, record]) => keyValue(key, record, request.keysOnly));
    const more = selected.length > limit;
    const value = create(RangeResponseSchema, { header: this.#header(), kvs, more, count });
    return create(ResponseOpSchema, { response: { case: 'responseRange', value } });
  }

  /** The revision as of what has run so far, as etcd tells it. */
  #header(): ResponseHeader {
    return create(ResponseHeaderSchema, { revision: BigInt(this.#turn.head.revision + (this.#changed ? 1 : 0)) });
  }

  #record(key: string): KeyRecord | undefined {
    const written = this.#written.get(key);
    return written === undefined ? this.#turn.current(key) : written.record;
  }

  /** What the range holds now, in key order. */
  #rows({ range, place }: PlannedRange): Row[] {
    const { single } = range;
    const keys = single === undefined ? this.#turn.keysIn(place) : [single];
    if (keys === undefined) throw rpcError('tooLarge', 'the range holds more than one transaction may touch');
    const own = [...this.#written.keys()].filter((key) => single === undefined && includes(range, latinOf(key)));
    const all = own.length === 0 ? keys : [...new Set([...keys, ...own])].sort(byBytes);
    return all.flatMap((key): Row[] => {
      const record = this.#record(key);
      return record === undefined ? [] : [[key, record]];
    });
  }

  #holds(where: PlannedRange, compare: Compare): boolean {
    const rows = this.#rows(where);
    if (rows.length === 0) return compare.target !== Target.VALUE && matches(compare, undefined);
    return rows.every(([, record]) => matches(compare, record));
  }
}

function byBytes(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}

/** As etcd compares: an absent key counts as one whose numbers are all 0. */
function matches({ target, targetUnion, result }: Compare, record: KeyRecord | undefined): boolean {
  const wanted = typeof targetUnion.value === 'bigint' ? targetUnion.value : 0n;
  const order = ((): number => {
    switch (target) {
      case Target.VERSION:
        return difference(record?.version, wanted);
      case Target.CREATE:
        return difference(record?.created, wanted);
      case Target.MOD:
        return difference(record?.revision, wanted);
      case Target.LEASE:
        return difference(BigInt.asIntN(64, BigInt(`0x${record?.lease ?? '0'}`)), wanted);
      case Target.VALUE:
        if (targetUnion.case !== 'value') return 0;
        return Buffer.compare(record?.value ?? new Uint8Array(), targetUnion.value);
    }
  })();
  switch (result) {
    case Result.EQUAL:
      return order === 0;
    case Result.NOT_EQUAL:
      return order !== 0;
    case Result.GREATER:
      return order > 0;
    case Result.LESS:
      return order < 0;
  }
}

function difference(found: number | bigint | undefined, wanted: bigint): number {
  const value = BigInt(found ?? 0);
  return value < wanted ? -1 : value > wanted ? 1 : 0;
}
