import { create } from '@bufbuild/protobuf';
import type { ClientDuplexStream } from '@grpc/grpc-js';
import type { Clock } from '../../base/clock.ts';
import {
  type Event,
  WatchCancelRequestSchema,
  WatchCreateRequestSchema,
  type WatchRequest,
  WatchRequestSchema,
  type WatchResponse,
} from '../etcd-api/gen/etcd_pb.ts';
import type { Connection } from './connection.ts';
import { EtcdFailure, failureOf } from './failure.ts';
import { api, headOf, rangeOf, safeNumber } from './messages.ts';

/** One who is told what happens under a prefix. */
export interface WatchListener {
  /** The member has agreed to tell; called once, before all else. */
  onConfirmed(): void;
  /** All that happened up to a revision, in order; complete transactions. */
  onEvents(events: readonly Event[]): void;
  /** Nothing else happened up to this revision. */
  onProgress(revision: number): void;
  /** The member will tell no more, or nothing at all. */
  onCanceled(failure: EtcdFailure): void;
}

interface Watched {
  readonly listener: WatchListener;
  /** Undefined until the member has said it. */
  id: bigint | undefined;
  wanted: boolean;
  /** The parts of a transaction that is too large for one message. */
  parts: Event[];
  partBytes: number;
  readonly cancelTimer: () => void;
}

/** The member must confirm a watch within this time. */
const confirmLimitMs = 5000;
/** etcd's largest transaction has 1.5 MiB by default; its operator may have raised that. */
const maxPartBytes = 64 * 1024 * 1024;

/** All watches of a connection, over one stream. It is open as long as the connection is: its end tells of a loss. */
export class WatchStream {
  readonly #connection: Connection;
  readonly #clock: Clock;
  readonly #stream: ClientDuplexStream<WatchRequest, WatchResponse>;
  readonly #pending: Watched[] = [];
  readonly #watched = new Map<bigint, Watched>();

  constructor(connection: Connection, clock: Clock) {
    this.#connection = connection;
    this.#clock = clock;
    this.#stream = connection.stream(api.watch, (message) => this.#onMessage(message));
  }

  /** Tells the listener what happens from `start` on, until the returned function is called. */
  watch(prefix: string, start: number, listener: WatchListener): () => void {
    const late = (): void => this.#connection.end(new EtcdFailure('silent', 'a watch was not confirmed in time'));
    const cancelTimer = this.#clock.after(confirmLimitMs, late);
    const watched: Watched = { listener, id: undefined, wanted: true, parts: [], partBytes: 0, cancelTimer };
    this.#pending.push(watched);
    const value = create(WatchCreateRequestSchema, {
      ...rangeOf(prefix),
      startRevision: BigInt(start),
      progressNotify: true,
      fragment: true,
    });
    this.#write({ case: 'createRequest', value });
    return () => this.#forget(watched);
  }

  /** The connection has ended. */
  close(): void {
    for (const { cancelTimer } of this.#pending) cancelTimer();
    this.#pending.length = 0;
    this.#watched.clear();
  }

  #forget(watched: Watched): void {
    if (!watched.wanted) return;
    watched.wanted = false;
    watched.parts = [];
    if (watched.id === undefined) return;
    this.#watched.delete(watched.id);
    this.#write({ case: 'cancelRequest', value: create(WatchCancelRequestSchema, { watchId: watched.id }) });
  }

  #write(requestUnion: WatchRequest['requestUnion']): void {
    if (!this.#connection.ended.aborted) this.#stream.write(create(WatchRequestSchema, { requestUnion }));
  }

  #onMessage(message: WatchResponse): void {
    try {
      if (message.created) this.#onCreated(message);
      else this.#onTold(message);
    } catch (error) {
      if (!(error instanceof EtcdFailure)) throw error;
      this.#connection.end(error);
    }
  }

  /** Watches are confirmed in the order in which they were asked for; ids are the member's to choose. */
  #onCreated(message: WatchResponse): void {
    const watched = this.#pending.shift();
    if (watched === undefined) throw new EtcdFailure('not-etcd', 'a watch was confirmed that nobody asked for');
    watched.cancelTimer();
    if (message.canceled) {
      if (watched.wanted) this.#cancel(watched, message);
      return;
    }
    watched.id = message.watchId;
    if (watched.wanted) {
      this.#watched.set(message.watchId, watched);
      watched.listener.onConfirmed();
    } else
      this.#write({ case: 'cancelRequest', value: create(WatchCancelRequestSchema, { watchId: message.watchId }) });
  }

  #onTold(message: WatchResponse): void {
    const watched = this.#watched.get(message.watchId);
    if (watched === undefined) return;
    if (message.canceled) {
      this.#cancel(watched, message);
      return;
    }
    if (message.fragment || watched.parts.length > 0) {
      for (const event of message.events) {
        watched.parts.push(event);
        watched.partBytes += 64 + (event.kv?.key.byteLength ?? 0) + (event.kv?.value.byteLength ?? 0);
      }
      if (watched.partBytes > maxPartBytes) throw new EtcdFailure('response-too-large', 'a change is too large');
      if (message.fragment) return;
      const { parts } = watched;
      watched.parts = [];
      watched.partBytes = 0;
      watched.listener.onEvents(parts);
    } else if (message.events.length > 0) watched.listener.onEvents(message.events);
    else watched.listener.onProgress(headOf(message.header).revision);
  }

  #cancel(watched: Watched, { watchId, compactRevision, cancelReason }: WatchResponse): void {
    watched.wanted = false;
    watched.parts = [];
    this.#watched.delete(watched.id ?? watchId);
    watched.listener.onCanceled(
      compactRevision > 0n
        ? new EtcdFailure('compacted', `history before revision ${safeNumber(compactRevision)} was compacted`)
        : failureOf({ details: cancelReason }),
    );
  }
}
