import { status } from '@grpc/grpc-js';
import type { RangeRequest } from '../../etcd-api/gen/etcd_pb.ts';
import type { StoreAccess } from '../access.ts';
import { keyOf } from '../records.ts';
import type { View } from '../view.ts';
import { RpcError, rpcError } from './errors.ts';
import type { Gate } from './gate.ts';
import { SharedReads } from './gate.ts';
import { includes, type KeyRange, latinOf, parseKeyRange } from './key-range.ts';
import { limits } from './limits.ts';
import { checkSort, needsAll, type Row, select } from './select.ts';
import { type Identity, keyValueField, numberField, toNumber } from './wire.ts';

const pageSize = 512;

/** Answers Range. Answers are encoded page by page, so that a large one leaves others their turns. */
export class Ranges {
  readonly #access: StoreAccess;
  readonly #identity: Identity;
  readonly #reads: SharedReads<Uint8Array>;

  constructor(options: { readonly access: StoreAccess; readonly identity: Identity; readonly gate: Gate }) {
    this.#access = options.access;
    this.#identity = options.identity;
    this.#reads = new SharedReads(options.gate);
  }

  /** The encoded RangeResponse. `raw`: the request's own bytes, by which equal ones are recognised. */
  async answer(request: RangeRequest, raw: Buffer): Promise<Uint8Array> {
    checkSort(request);
    const range = parseKeyRange(request.key, request.rangeEnd);
    if (range.single !== undefined && request.revision === 0n && !request.countOnly && !needsAll(request)) {
      return await this.#single(range.single, request);
    }
    return await this.#reads.read(raw.toString('latin1'), () => this.#read(range, request));
  }

  async #single(key: string, request: RangeRequest): Promise<Uint8Array> {
    const record = await this.#access.record(key);
    const revision = Math.max(this.#access.head().revision, record?.revision ?? 0);
    if (record === undefined) return this.#identity.headerField(revision);
    const kv = keyValueField(2, Buffer.from(key), record, request.keysOnly);
    return Buffer.concat([this.#identity.headerField(revision), kv, Buffer.from(numberField(4, 1))]);
  }

  async #read(range: KeyRange, request: RangeRequest): Promise<Uint8Array> {
    const view = this.#access.view();
    try {
      const head = await view.head();
      const revision = head?.revision ?? this.#access.head().revision;
      if (request.revision > 0n)
        await this.#checkRevision(view, range, toNumber(request.revision), revision, head?.compacted ?? 0);
      const encoded = await this.#encode(view, range, request);
      return Buffer.concat([this.#identity.headerField(revision), ...encoded]);
    } catch (error) {
      throw this.#access.readError(error);
    } finally {
      await view.close();
    }
  }

  /** Only present versions are kept: an older revision can be answered where nothing has changed since. */
  async #checkRevision(view: View, range: KeyRange, wanted: number, head: number, compacted: number): Promise<void> {
    if (wanted > head) throw rpcError('futureRevision');
    if (wanted === head) return;
    if (wanted < compacted) throw rpcError('compacted');
    const concerns = (key: string): boolean => includes(range, latinOf(key));
    const changed = await view.changedSince(wanted, concerns, new AbortController().signal);
    if (changed === undefined || changed.size > 0) throw rpcError('compacted');
  }

  async #encode(view: View, range: KeyRange, request: RangeRequest): Promise<Buffer[]> {
    if (request.countOnly) return [Buffer.from(numberField(4, await view.count(range.bounds)))];
    const limit = request.limit > 0n ? toNumber(request.limit) : Number.POSITIVE_INFINITY;
    return needsAll(request)
      ? await this.#encodeSelected(view, range, request, limit)
      : await this.#encodePlain(view, range, request, limit);
  }

  async #encodePlain(view: View, range: KeyRange, request: RangeRequest, limit: number): Promise<Buffer[]> {
    const parts: Buffer[] = [];
    let bytes = 0;
    let more = 0;
    for await (const page of view.records(range.bounds, Math.min(limit, pageSize))) {
      for (const [dbKey, record] of page) {
        if (parts.length >= limit) {
          more = await view.count({ gte: dbKey, lt: range.bounds.lt });
          break;
        }
        const part = keyValueField(2, dbKey.subarray(1), record, request.keysOnly);
        parts.push(part);
        bytes += part.length;
      }
      checkSize(bytes);
      if (more > 0) break;
    }
    const count = parts.length + more;
    parts.push(Buffer.from([...numberField(3, more > 0 ? 1 : 0), ...numberField(4, count)]));
    return parts;
  }

  async #encodeSelected(view: View, range: KeyRange, request: RangeRequest, limit: number): Promise<Buffer[]> {
    const rows: Row[] = [];
    let bytes = 0;
    for await (const page of view.records(range.bounds, pageSize)) {
      for (const [dbKey, record] of page) {
        rows.push([keyOf(dbKey), record]);
        bytes += dbKey.length + record.value.byteLength;
      }
      checkSize(bytes);
    }
    const selected = select(rows, request);
    const parts = selected
      .slice(0, limit)
      .map(([key, record]) => keyValueField(2, Buffer.from(key), record, request.keysOnly));
    parts.push(Buffer.from([...numberField(3, selected.length > limit ? 1 : 0), ...numberField(4, rows.length)]));
    return parts;
  }
}

function checkSize(bytes: number): void {
  if (bytes <= limits.responseBytes) return;
  const text = `the answer would be over ${limits.responseBytes} bytes; ask for parts of it with limit and a later key`;
  throw new RpcError(status.RESOURCE_EXHAUSTED, text);
}
