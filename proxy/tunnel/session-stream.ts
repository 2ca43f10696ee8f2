import { gatheredFrameBytes, streamQueueBytes } from './limits.ts';
import type { Slabs } from './slabs.ts';
import type { ResetReason, StreamEvents, TunnelStream } from './tunnels.ts';

/** What a stream asks of its connection. */
export interface StreamOwner {
  readonly hostId: string;
  readonly slabs: Slabs;
  /** There is something to send. */
  wake(stream: SessionStream): void;
  accepted(stream: SessionStream): void;
  resetByUs(stream: SessionStream, reason: ResetReason, detail: string): void;
  consumedBy(stream: SessionStream, bytes: number): void;
}

/** One stream of a connection: what waits to be sent, and what both directions may still carry. */
export class SessionStream implements TunnelStream {
  readonly id: number;
  readonly #owner: StreamOwner;
  #events: StreamEvents | undefined;
  /** Over: nothing is called back any more, and calls do nothing. */
  over = false;
  /** Opened here, as against by the other side. */
  readonly isOurs: boolean;

  // Sending
  #queue: Buffer[] = [];
  #queueHead = 0;
  queuedBytes = 0;
  /** Sent, and not yet said to be consumed. */
  inFlight = 0;
  /** It is in the list of those that have something to send, or in that of those without credit. */
  listed = false;
  ended = false;
  endSent = false;
  #wantsDrain = false;

  // Receiving
  /** Bytes that the other side may still send. */
  credit: number;
  /** Received, not yet consumed. */
  held = 0;
  /** Consumed, the other side does not know yet. */
  unreturned = 0;
  remoteEnded = false;
  #accepted = false;

  constructor(owner: StreamOwner, id: number, isOurs: boolean, credit: number) {
    this.#owner = owner;
    this.id = id;
    this.isOurs = isOurs;
    this.credit = credit;
  }

  get slabs(): Slabs {
    return this.#owner.slabs;
  }

  get hostId(): string {
    return this.#owner.hostId;
  }

  /** Who hears of it. Set once, before anything is called back. */
  set events(events: StreamEvents) {
    this.#events = events;
  }

  write(chunk: Buffer): boolean {
    if (this.over || this.ended || chunk.length === 0) return true;
    this.#queue.push(chunk);
    this.queuedBytes += chunk.length;
    if (!this.listed) this.#owner.wake(this);
    if (this.queuedBytes < streamQueueBytes) return true;
    this.#wantsDrain = true;
    return false;
  }

  end(): void {
    if (this.over || this.ended) return;
    this.ended = true;
    if (!this.listed) this.#owner.wake(this);
  }

  accept(): void {
    if (this.over || this.isOurs || this.#accepted) return;
    this.#accepted = true;
    this.#owner.accepted(this);
  }

  reset(reason: ResetReason, detail = ''): void {
    if (!this.over) this.#owner.resetByUs(this, reason, detail);
  }

  consumed(bytes: number): void {
    if (!this.over) this.#owner.consumedBy(this, Math.min(bytes, this.held));
  }

  // For the connection

  /** The first of what waits; undefined when nothing does. */
  get first(): Buffer | undefined {
    return this.#queue[this.#queueHead];
  }

  /** How many bytes the next frame shall have, of `allowed` at most: the content of a slab, or chunks together. */
  nextFrameBytes(allowed: number): number {
    let bytes = 0;
    for (let index = this.#queueHead; index < this.#queue.length; index += 1) {
      const chunk = this.#queue[index];
      if (chunk === undefined) break;
      const isSlab = this.slabs.of(chunk) !== undefined;
      if (isSlab && bytes > 0) break;
      bytes += chunk.length;
      if (isSlab || bytes >= gatheredFrameBytes || bytes >= allowed) break;
    }
    return Math.min(bytes, allowed);
  }

  /** Takes up to `limit` bytes of the first chunk. */
  take(limit: number): Buffer {
    const chunk = this.#queue[this.#queueHead];
    if (chunk === undefined) throw new Error('nothing is left to take');
    if (chunk.length > limit) {
      this.#queue[this.#queueHead] = chunk.subarray(limit);
      this.queuedBytes -= limit;
      return chunk.subarray(0, limit);
    }
    this.queuedBytes -= chunk.length;
    this.#queueHead += 1;
    if (this.#queueHead === this.#queue.length) {
      this.#queue = [];
      this.#queueHead = 0;
    }
    return chunk;
  }

  /** Something was taken: whoever waits for room is told when there is some. */
  relieve(): void {
    if (!this.#wantsDrain || this.queuedBytes > streamQueueBytes / 4 || this.over) return;
    this.#wantsDrain = false;
    this.#events?.drained();
  }

  opened(): void {
    if (!this.over) this.#events?.opened();
  }

  data(piece: Buffer): void {
    if (!this.over) this.#events?.data(piece);
  }

  remoteEnd(): void {
    this.remoteEnded = true;
    if (!this.over) this.#events?.ended();
  }

  /** Ends it for good; with `tell`, whoever hears of it is told why. */
  finish(tell: boolean, reason?: ResetReason, detail = ''): void {
    if (this.over) return;
    this.over = true;
    this.#queue = [];
    this.#queueHead = 0;
    this.queuedBytes = 0;
    if (tell) this.#events?.closed(reason, detail);
  }
}
