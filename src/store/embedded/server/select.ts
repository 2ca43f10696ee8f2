import {
  type RangeRequest,
  RangeRequest_SortOrder as SortOrder,
  RangeRequest_SortTarget as SortTarget,
} from '../../etcd-api/gen/etcd_pb.ts';
import type { KeyRecord } from '../records.ts';
import { rpcError } from './errors.ts';
import { latinOf } from './key-range.ts';
import { toNumber } from './wire.ts';

export type Row = readonly [key: string, record: KeyRecord];

/** Whether all rows must be known before the first can be told. */
export function needsAll(request: RangeRequest): boolean {
  return request.sortOrder !== SortOrder.NONE || request.sortTarget !== SortTarget.KEY || filters(request);
}

export function checkSort({ sortOrder, sortTarget }: RangeRequest): void {
  if (!(sortOrder in SortOrder) || !(sortTarget in SortTarget)) throw rpcError('invalidSort');
}

/** What of these rows, which come in key order, the request wants, in its order; `limit` not yet applied. */
export function select(rows: readonly Row[], request: RangeRequest): readonly Row[] {
  const { sortTarget, sortOrder } = request;
  const kept = filters(request) ? rows.filter(([, record]) => passes(record, request)) : rows;
  if (sortTarget === SortTarget.KEY && sortOrder !== SortOrder.DESCEND) return kept;
  const sign = sortOrder === SortOrder.DESCEND ? -1 : 1;
  return [...kept].sort((a, b) => sign * compare(a, b, sortTarget));
}

function filters(request: RangeRequest): boolean {
  const { minModRevision, maxModRevision, minCreateRevision, maxCreateRevision } = request;
  return minModRevision !== 0n || maxModRevision !== 0n || minCreateRevision !== 0n || maxCreateRevision !== 0n;
}

function passes({ revision, created }: KeyRecord, request: RangeRequest): boolean {
  const { minModRevision, maxModRevision, minCreateRevision, maxCreateRevision } = request;
  if (minModRevision !== 0n && revision < toNumber(minModRevision)) return false;
  if (maxModRevision !== 0n && revision > toNumber(maxModRevision)) return false;
  if (minCreateRevision !== 0n && created < toNumber(minCreateRevision)) return false;
  return maxCreateRevision === 0n || created <= toNumber(maxCreateRevision);
}

function compare([leftKey, left]: Row, [rightKey, right]: Row, target: SortTarget): number {
  switch (target) {
    case SortTarget.KEY: {
      const [a, b] = [latinOf(leftKey), latinOf(rightKey)];
      return a < b ? -1 : a > b ? 1 : 0;
    }
    case SortTarget.VERSION:
      return left.version - right.version;
    case SortTarget.CREATE:
      return left.created - right.created;
    case SortTarget.MOD:
      return left.revision - right.revision;
    case SortTarget.VALUE:
      return Buffer.compare(left.value, right.value);
  }
}
