import {
  WatchCreateRequest_FilterType as Filter,
  type WatchCreateRequest,
  type WatchRequest,
} from '../../etcd-api/gen/etcd_pb.ts';
import type { ByteStream } from './calls.ts';
import type { Peer } from './connections.ts';
import { invalid, rpcError, toRpcError } from './errors.ts';
import type { Outstanding } from './gate.ts';
import { parseKeyRange } from './key-range.ts';
import { limits } from './limits.ts';
import type { Permissions } from './permissions.ts';
import { encodeNotice, type Interest, type Notice } from './watch-events.ts';
import type { WatchGroup } from './watch-groups.ts';
import { toNumber } from './wire.ts';

/** One watch of a stream. */
export interface StoreWatch {
  readonly id: bigint;
  readonly group: WatchGroup;
  readonly stream: WatchStream;
  readonly progressNotify: boolean;
  /** Whether it is told with the others of its group. */
  live: boolean;
  /** While it is not: everything up to this revision was told, or is not wanted. */
  position: number;
  /** Whether history is being read for it. */
  reading: boolean;
  gone: boolean;
  /** Whether it was told something since progress was last told. */
  active: boolean;
}

/** What a stream needs of the hub. */
export interface WatchHubSide {
  readonly head: number;
  headerField(revision: number): Buffer;
  /** Throws RpcError when there cannot be one more watch. */
  checkRoom(): void;
  /** Undefined when it would be one too many of its kind. */
  add(
    stream: WatchStream,
    id: bigint,
    interest: Interest,
    wanted: number,
    progressNotify: boolean,
  ): StoreWatch | undefined;
  remove(watch: StoreWatch): void;
  /** Sends on to the stream's watches that are behind. */
  pump(stream: WatchStream): void;
  /** Calls `run` when what waits now was sent. */
  afterFlush(run: () => void): void;
  /** Up to which revision everything that concerns this watch was sent. */
  toldUpTo(watch: StoreWatch): number;
}

export interface WatchStreamOptions {
  readonly outstanding: Outstanding;
  readonly permissions: Permissions;
  readonly caller: Peer;
}

/** A client's stream of watches: takes its requests, and writes no more than the client takes. */
export class WatchStream {
  readonly watches = new Map<bigint, StoreWatch>();
  /** Those of its watches that are behind or ahead. */
  readonly apart = new Set<StoreWatch>();
  readonly #stream: ByteStream;
  readonly #hub: WatchHubSide;
  readonly #outstanding: Outstanding;
  readonly #permissions: Permissions;
  readonly #caller: Peer;
  #bytes = 0;
  #lastTakenMs = 0;
  #nextId = 0n;
  #closed = false;
  #ready: (() => void)[] = [];

  constructor(stream: ByteStream, hub: WatchHubSide, { outstanding, permissions, caller }: WatchStreamOptions) {
    this.#stream = stream;
    this.#hub = hub;
    this.#outstanding = outstanding;
    this.#permissions = permissions;
    this.#caller = caller;
    stream.once('close', () => this.#onClose());
  }

  get blocked(): boolean {
    return this.#closed || this.#bytes > limits.streamOutstandingBytes || (this.#bytes > 0 && this.#outstanding.full);
  }

  get closed(): boolean {
    return this.#closed;
  }

  get peer(): string {
    return this.#stream.getPeer();
  }

  /** Since when the client has taken nothing of what waits for it; undefined while nothing waits. */
  stalledSinceMs(): number | undefined {
    return this.#bytes === 0 ? undefined : this.#lastTakenMs;
  }

  /** Takes up a request. Throws RpcError. */
  handle({ requestUnion: request }: WatchRequest): void {
    if (request.case === 'createRequest') this.#create(request.value);
    else if (request.case === 'cancelRequest') this.#cancel(request.value.watchId);
    else if (request.case === 'progressRequest') this.#hub.afterFlush(() => this.#tellProgress());
    if (!this.blocked) return;
    this.#stream.pause();
    void this.ready().then(() => this.#stream.resume());
  }

  send(bytes: Buffer): void {
    if (this.#closed) return;
    if (this.#bytes === 0) this.#lastTakenMs = performance.now();
    this.#bytes += bytes.length;
    this.#outstanding.add(bytes.length);
    this.#stream.write(bytes, () => this.#onTaken(bytes.length));
  }

  notify(revision: number, notice: Notice): void {
    this.send(encodeNotice(this.#hub.headerField(revision), notice));
  }

  /** Resolves when more may be sent, or the stream is closed. */
  ready(): Promise<void> {
    if (!this.blocked || this.#closed) return Promise.resolve();
    return new Promise((resolve) => this.#ready.push(resolve));
  }

  /** Global room has come free. */
  wake(): void {
    if (this.blocked) return;
    for (const resolve of this.#ready.splice(0)) resolve();
    if (this.apart.size > 0) this.#hub.pump(this);
  }

  end(error?: Error): void {
    if (error === undefined) this.#stream.end();
    else this.#stream.emit('error', error);
  }

  #create(request: WatchCreateRequest): void {
    const { head } = this.#hub;
    const id = request.watchId === 0n ? this.#freeId() : request.watchId;
    try {
      const watch = this.#add(request, id, head);
      this.notify(head, { watchId: id, created: true });
      if (!watch.live) this.#hub.pump(this);
    } catch (error) {
      const cancelReason = toRpcError(error).details;
      const watchId = request.watchId === 0n ? -1n : id;
      this.notify(head, { watchId, created: true, canceled: true, cancelReason });
    }
  }

  /** Throws RpcError. */
  #add(request: WatchCreateRequest, id: bigint, head: number): StoreWatch {
    if (this.watches.has(id)) throw invalid('etcdserver: mvcc: duplicate watch ID provided on the WatchStream');
    const { watchesPerStream, oddWatches } = limits;
    if (this.watches.size >= watchesPerStream)
      throw rpcError('tooManyRequests', `${watchesPerStream} watches a stream`);
    this.#hub.checkRoom();
    const interest = { ...interestOf(request), hidden: this.#permissions.hiddenFrom(this.#caller) };
    this.#permissions.checkRead(this.#caller, interest.range);
    const wanted = request.startRevision <= 0n ? head : Math.max(1, toNumber(request.startRevision) - 1);
    const watch = this.#hub.add(this, id, interest, wanted, request.progressNotify);
    if (watch === undefined) throw rpcError('tooManyRequests', `${oddWatches} watches of odd ranges`);
    this.watches.set(id, watch);
    return watch;
  }

  #cancel(watchId: bigint): void {
    const watch = this.watches.get(watchId);
    if (watch === undefined) return;
    this.#hub.remove(watch);
    this.notify(this.#hub.head, { watchId, canceled: true });
  }

  /** Everything up to the revision in its header was sent, of every watch of this stream. */
  #tellProgress(): void {
    let revision = this.#hub.head;
    for (const watch of this.watches.values()) revision = Math.min(revision, this.#hub.toldUpTo(watch));
    this.notify(revision, { watchId: -1n });
  }

  #freeId(): bigint {
    while (this.watches.has(this.#nextId)) this.#nextId += 1n;
    const id = this.#nextId;
    this.#nextId += 1n;
    return id;
  }

  #onTaken(bytes: number): void {
    if (this.#closed) return;
    this.#bytes -= bytes;
    this.#outstanding.release(bytes);
    this.#lastTakenMs = performance.now();
    if (this.#ready.length > 0 || this.apart.size > 0) this.wake();
  }

  #onClose(): void {
    this.#closed = true;
    this.#outstanding.release(this.#bytes);
    this.#bytes = 0;
    for (const watch of [...this.watches.values()]) this.#hub.remove(watch);
    for (const resolve of this.#ready.splice(0)) resolve();
  }
}

function interestOf({ key, rangeEnd, filters, prevKv }: WatchCreateRequest): Omit<Interest, 'hidden'> {
  // Watching everything may be said by an empty key, which is then one byte of zero (etcd, watch.go).
  const from = key.byteLength === 0 ? Buffer.of(0) : key;
  const range = parseKeyRange(from, rangeEnd);
  return { range, prevKv, puts: !filters.includes(Filter.NOPUT), deletes: !filters.includes(Filter.NODELETE) };
}
