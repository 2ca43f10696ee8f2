import { status } from '@grpc/grpc-js';
import type { RangeRequest } from '../../etcd-api/gen/etcd_pb.ts';
import type { StoreAccess } from '../access.ts';
import type { KeyBounds } from '../committer.ts';
import { keyOf } from '../records.ts';
import type { View } from '../view.ts';
import type { Peer } from './connections.ts';
import { RpcError, rpcError } from './errors.ts';
import type { Gate } from './gate.ts';
import { SharedReads } from './gate.ts';
import { type KeptView, KeptViews } from './kept-views.ts';
import { includes, type KeyRange, latinOf, parseKeyRange, prefixBounds } from './key-range.ts';
import { limits } from './limits.ts';
import type { Hidden, Permissions } from './permissions.ts';
import { checkSort, needsAll, type Row, select } from './select.ts';
import { type Identity, keyValueField, numberField, toNumber } from './wire.ts';

const pageSize = 512;

interface Question {
  readonly range: KeyRange;
  readonly request: RangeRequest;
  readonly hidden: KeyBounds | undefined;
}

interface Encoded {
  readonly parts: Buffer[];
  /** What is left for further pages: its bounds as `nameOf` has them, and how many keys. */
  readonly rest?: { readonly name: string; readonly count: number };
}

/** Answers Range. Answers are encoded page by page, so that a large one leaves others their turns. */
export class Ranges {
  readonly #access: StoreAccess;
  readonly #identity: Identity;
  readonly #permissions: Permissions;
  readonly #reads: SharedReads<Uint8Array>;
  readonly #kept = new KeptViews();
  readonly #unfollow: () => void;

  constructor(options: {
    readonly access: StoreAccess;
    readonly identity: Identity;
    readonly gate: Gate;
    readonly permissions: Permissions;
  }) {
    this.#permissions = options.permissions;
    this.#access = options.access;
    this.#identity = options.identity;
    this.#reads = new SharedReads(options.gate);
    this.#unfollow = options.access.follow({ onCommit: () => undefined, onOpened: () => this.#kept.clear() });
  }

  close(): void {
    this.#unfollow();
    this.#kept.close();
  }

  /** The encoded RangeResponse. `raw`: the request's own bytes, by which equal ones are recognised. */
  async answer(request: RangeRequest, raw: Buffer, caller: Peer): Promise<Uint8Array> {
    checkSort(request);
    const range = parseKeyRange(request.key, request.rangeEnd);
    this.#permissions.checkRead(caller, range);
    const hidden = hiddenPart(range, this.#permissions.hiddenFrom(caller));
    if (range.single !== undefined && request.revision === 0n && !request.countOnly && !needsAll(request)) {
      return await this.#single(range.single, request);
    }
    // Who does not get to see everything has answers of its own.
    const name = `${hidden === undefined ? '' : 'hidden '}${raw.toString('latin1')}`;
    const known = request.revision > 0n ? this.#kept.find(toNumber(request.revision))?.answers.get(name) : undefined;
    return known ?? (await this.#reads.read(name, () => this.#read({ range, request, hidden }, name)));
  }

  async #single(key: string, request: RangeRequest): Promise<Uint8Array> {
    const record = await this.#access.record(key);
    const revision = Math.max(this.#access.head().revision, record?.revision ?? 0);
    if (record === undefined) return this.#identity.headerField(revision);
    const kv = keyValueField(2, Buffer.from(key), record, request.keysOnly);
    return Buffer.concat([this.#identity.headerField(revision), kv, Buffer.from(numberField(4, 1))]);
  }

  async #read(question: Question, raw: string): Promise<Uint8Array> {
    const { range, request } = question;
    const wanted = toNumber(request.revision);
    const kept = wanted > 0 ? this.#kept.find(wanted) : undefined;
    if (kept !== undefined) return await this.#readKept(kept, question, raw);
    const view = this.#access.view();
    let page: KeptView | undefined;
    try {
      const head = await view.head();
      const revision = head?.revision ?? this.#access.head().revision;
      if (wanted > 0) await this.#checkRevision(view, range, wanted, revision, head?.compacted ?? 0);
      const encoded = await this.#encode(view, question, undefined);
      if (encoded.rest !== undefined) {
        page = this.#kept.find(revision) ?? this.#kept.keep(view, revision);
        page.counts.set(encoded.rest.name, encoded.rest.count);
      }
      return Buffer.concat([this.#identity.headerField(revision), ...encoded.parts]);
    } catch (error) {
      throw this.#access.readError(error);
    } finally {
      if (page?.view !== view) await view.close();
    }
  }

  /** A further page of a read, from the moment of its first. */
  async #readKept(kept: KeptView, question: Question, raw: string): Promise<Uint8Array> {
    const known = kept.answers.get(raw);
    if (known !== undefined) return known;
    try {
      return await this.#kept.use(kept, async () => {
        const { parts, rest } = await this.#encode(kept.view, question, kept);
        if (rest !== undefined) kept.counts.set(rest.name, rest.count);
        // The header tells the present revision, as etcd's does.
        const revision = this.#access.head().revision;
        const answer = Buffer.concat([this.#identity.headerField(Math.max(revision, kept.revision)), ...parts]);
        this.#kept.remember(kept, raw, answer);
        return answer;
      });
    } catch (error) {
      throw this.#access.readError(error);
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

  async #encode(view: View, question: Question, kept: KeptView | undefined): Promise<Encoded> {
    const { range, request, hidden } = question;
    if (request.countOnly) return { parts: [Buffer.from(numberField(4, await countOf(view, range.bounds, hidden)))] };
    const limit = request.limit > 0n ? toNumber(request.limit) : Number.POSITIVE_INFINITY;
    return needsAll(request)
      ? { parts: await this.#encodeSelected(view, question, limit) }
      : await this.#encodePlain(view, question, limit, kept?.counts.get(nameOf(range.bounds, hidden)));
  }

  /** `count`: how many keys the range has, if that is known. */
  async #encodePlain(
    view: View,
    { range: { bounds }, request, hidden }: Question,
    limit: number,
    count: number | undefined,
  ): Promise<Encoded> {
    const parts: Buffer[] = [];
    let bytes = 0;
    let last = bounds.gte;
    let rest: KeyBounds | undefined;
    for await (const page of view.records(bounds, Math.min(limit + 1, pageSize))) {
      for (const [dbKey, record] of page) {
        if (hidden !== undefined && isWithin(dbKey, hidden)) continue;
        if (parts.length >= limit) {
          rest = { gte: Buffer.concat([last, Buffer.of(0)]), lt: bounds.lt };
          break;
        }
        last = dbKey;
        const part = keyValueField(2, dbKey.subarray(1), record, request.keysOnly);
        parts.push(part);
        bytes += part.length;
      }
      checkSize(bytes);
      if (rest !== undefined) break;
    }
    const total = rest === undefined ? parts.length : (count ?? parts.length + (await countOf(view, rest, hidden)));
    const left = total - parts.length;
    parts.push(Buffer.from([...numberField(3, left > 0 ? 1 : 0), ...numberField(4, total)]));
    if (rest === undefined) return { parts };
    return { parts, rest: { name: nameOf(rest, hidden), count: left } };
  }

  async #encodeSelected(view: View, { range, request, hidden }: Question, limit: number): Promise<Buffer[]> {
    const rows: Row[] = [];
    let bytes = 0;
    for await (const page of view.records(range.bounds, pageSize)) {
      for (const [dbKey, record] of page) {
        if (hidden !== undefined && isWithin(dbKey, hidden)) continue;
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

/** A client's next page begins with the least key after the last one that it has. */
function nameOf({ gte, lt }: KeyBounds, hidden: KeyBounds | undefined): string {
  return `${gte.toString('latin1')}\u0000${lt.toString('latin1')}\u0000${hidden === undefined ? '' : 'hidden'}`;
}

/** The part of a range that the caller does not get to see; undefined when that is nothing. */
function hiddenPart({ bounds }: KeyRange, hidden: Hidden): KeyBounds | undefined {
  if (hidden === undefined) return undefined;
  const prefix = Buffer.from(hidden, 'latin1');
  return intersection(bounds, prefixBounds(prefix));
}

function intersection(a: KeyBounds, b: KeyBounds): KeyBounds | undefined {
  const gte = Buffer.compare(a.gte, b.gte) > 0 ? a.gte : b.gte;
  const lt = Buffer.compare(a.lt, b.lt) < 0 ? a.lt : b.lt;
  return Buffer.compare(gte, lt) < 0 ? { gte, lt } : undefined;
}

function isWithin(key: Buffer, { gte, lt }: KeyBounds): boolean {
  return Buffer.compare(key, gte) >= 0 && Buffer.compare(key, lt) < 0;
}

async function countOf(view: View, bounds: KeyBounds, hidden: KeyBounds | undefined): Promise<number> {
  const less = hidden && intersection(bounds, hidden);
  return (await view.count(bounds)) - (less === undefined ? 0 : await view.count(less));
}

function checkSize(bytes: number): void {
  if (bytes <= limits.responseBytes) return;
  const text = `the answer would be over ${limits.responseBytes} bytes; ask for parts of it with limit and a later key`;
  throw new RpcError(status.RESOURCE_EXHAUSTED, text);
}
