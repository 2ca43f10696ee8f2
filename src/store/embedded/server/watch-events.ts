import type { KeyRecord } from '../records.ts';
import type { Commit } from '../turn.ts';
import { includes, type KeyRange, latinOf } from './key-range.ts';
import type { Hidden } from './permissions.ts';
import { keyValueField, lengthDelimited, numberField, varint } from './wire.ts';

/** What watches may have in common: those with an equal interest are told the same bytes. */
export interface Interest {
  readonly range: KeyRange;
  readonly prevKv: boolean;
  readonly puts: boolean;
  readonly deletes: boolean;
  readonly hidden: Hidden;
}

/** Whether a key, one character a byte, is told to those with this interest. */
export function concerns({ range, hidden }: Interest, latinKey: string): boolean {
  return includes(range, latinKey) && (hidden === undefined || !latinKey.startsWith(hidden));
}

/** One change of one key, encoded when first somebody wants it and then shared. */
export class StoredEvent {
  readonly revision: number;
  readonly key: string;
  /** The key as text of one character a byte. */
  readonly latinKey: string;
  readonly isPut: boolean;
  /** About how much memory it holds. */
  readonly bytes: number;
  readonly #record: KeyRecord | undefined;
  readonly #before: KeyRecord | undefined;
  #plain: Buffer | undefined;
  #withBefore: Buffer | undefined;

  constructor(revision: number, key: string, record: KeyRecord | undefined, before: KeyRecord | undefined) {
    this.revision = revision;
    this.key = key;
    this.latinKey = latinOf(key);
    this.isPut = record !== undefined;
    this.bytes = 128 + key.length + (record?.value.byteLength ?? 0) + (before?.value.byteLength ?? 0);
    this.#record = record;
    this.#before = before;
  }

  /** As field 11 of a WatchResponse. */
  encoded(prevKv: boolean): Buffer {
    if (prevKv && this.#before !== undefined) {
      this.#withBefore ??= encodeEvent(this.key, this.revision, this.#record, this.#before);
      return this.#withBefore;
    }
    this.#plain ??= encodeEvent(this.key, this.revision, this.#record, undefined);
    return this.#plain;
  }
}

export function eventsOf(commit: Commit): StoredEvent[] {
  const { revision, puts, deletes, before } = commit;
  return [
    ...puts.map(({ key, record }) => new StoredEvent(revision, key, record, before.get(key))),
    ...deletes.map((key) => new StoredEvent(revision, key, undefined, before.get(key))),
  ];
}

/** `record`: what was put; undefined for a deletion. */
export function encodeEvent(
  key: string,
  revision: number,
  record: KeyRecord | undefined,
  before: KeyRecord | undefined,
): Buffer {
  const bytes = Buffer.from(key);
  const deletion = { value: new Uint8Array(), revision, created: 0, version: 0, lease: undefined };
  const parts = [
    Buffer.from(numberField(1, record === undefined ? 1 : 0)),
    keyValueField(2, bytes, record ?? deletion),
    ...(before === undefined ? [] : [keyValueField(3, bytes, before)]),
  ];
  return lengthDelimited(11, Buffer.concat(parts));
}

/** A message of a watch: everything but its id is the same for all who share an interest. */
export class EventMessage {
  /** Everything up to this revision has been told with it. */
  readonly revision: number;
  readonly count: number;
  readonly #header: Buffer;
  readonly #events: Buffer;
  readonly #frames = new Map<bigint, Buffer>();

  constructor(header: Buffer, revision: number, events: readonly Buffer[]) {
    this.revision = revision;
    this.count = events.length;
    this.#header = header;
    this.#events = Buffer.concat(events);
  }

  /** The encoded WatchResponse for a watch; clients mostly choose the same ids, so most are shared. */
  frame(watchId: bigint): Buffer {
    let frame = this.#frames.get(watchId);
    if (frame === undefined) {
      frame = Buffer.concat([this.#header, Buffer.from(numberField(2, watchId)), this.#events]);
      if (this.#frames.size < maxSharedFrames) this.#frames.set(watchId, frame);
    }
    return frame;
  }
}

const maxSharedFrames = 64;

/** What a WatchResponse without events says. */
export interface Notice {
  readonly watchId: bigint;
  readonly created?: boolean;
  readonly canceled?: boolean;
  readonly compactRevision?: number;
  readonly cancelReason?: string;
}

export function encodeNotice(header: Buffer, notice: Notice): Buffer {
  const reason = Buffer.from(notice.cancelReason ?? '');
  return Buffer.concat([
    header,
    Buffer.from([
      ...numberField(2, notice.watchId),
      ...numberField(3, notice.created === true ? 1 : 0),
      ...numberField(4, notice.canceled === true ? 1 : 0),
      ...numberField(5, notice.compactRevision ?? 0),
      ...(reason.length === 0 ? [] : [0x32, ...varint(reason.length)]),
    ]),
    reason,
  ]);
}
