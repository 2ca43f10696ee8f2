import type { Writable } from 'node:stream';
import { FrameWriter, type GatherBuffers } from './frame-writer.ts';
import { type Hello, maxDataBytes, ProtocolFault } from './frames.ts';
import {
  bytesPerWindow,
  connectionShare,
  maxWindows,
  minShareBytes,
  streamReturnBytes,
  windowsInAdvance,
  windowsPerFrame,
} from './limits.ts';
import type { SessionStream } from './session-stream.ts';

export interface OutflowOptions {
  readonly socket: Writable;
  readonly buffers: GatherBuffers;
  /** So many bytes of streams were handed to the socket. */
  readonly onSent: (bytes: number) => void;
  /** The stream's END has been handed to the socket. */
  readonly onEndSent: (stream: SessionStream) => void;
}

/**
 * What leaves through a connection. Frames of one turn of the event loop leave together; streams take turns, a frame each,
 * as long as they have credit; and while the kernel has not taken what was written last nothing more is, so that whoever
 * comes next waits for little.
 */
export class Outflow {
  readonly writer: FrameWriter;
  readonly #options: OutflowOptions;
  /** Undefined until the other side has said what it grants. */
  #grants: Hello | undefined;
  #ready: SessionStream[] = [];
  /** Those without credit. */
  #blocked: SessionStream[] = [];
  /** Sent of all streams, and not yet said to be consumed. */
  #inFlight = 0;
  /** Writes that were handed to the socket and not yet taken by the kernel. */
  #unsent = 0;
  #flushing = false;
  #scheduled = false;
  #closed = false;
  #windowsLeft = windowsInAdvance;

  constructor(options: OutflowOptions) {
    this.#options = options;
    this.writer = new FrameWriter(options.buffers, (bytes, buffer) => this.#write(bytes, buffer));
  }

  granted(hello: Hello): void {
    this.#grants = hello;
    this.#unblock();
  }

  /** The stream has something to send. */
  wake(stream: SessionStream): void {
    stream.listed = true;
    this.#ready.push(stream);
    this.schedule();
  }

  /** Whatever was written leaves at the end of this turn. */
  schedule(): void {
    if (this.#scheduled || this.#closed) return;
    this.#scheduled = true;
    setImmediate(this.#onTurn);
  }

  /** The other side has consumed so many bytes of the stream, or of all together. */
  window(stream: SessionStream | 'connection', bytes: number): void {
    if (stream === 'connection') {
      this.#inFlight -= bytes;
      if (this.#inFlight < 0) throw new ProtocolFault('credit', 'more credit than was used');
    } else {
      stream.inFlight -= bytes;
      if (stream.inFlight < 0) throw new ProtocolFault('credit', `more credit than stream ${stream.id} used`);
    }
    this.#unblock();
  }

  /** Bounds how often credit is returned by what it is returned for. */
  payForWindow(): void {
    this.#windowsLeft -= 1;
    if (this.#windowsLeft < 0) throw new ProtocolFault('flood', 'a flood of WINDOWs');
  }

  close(): void {
    this.#closed = true;
    this.writer.discard();
    this.#ready = [];
    this.#blocked = [];
  }

  readonly #onTurn = (): void => {
    this.#scheduled = false;
    this.#flush();
  };

  #flush(): void {
    if (this.#closed || this.#flushing || this.#unsent > 0) return;
    this.#flushing = true;
    while (this.#ready.length > 0 && !this.#isFull) {
      const round = this.#ready;
      this.#ready = [];
      let index = 0;
      for (; index < round.length && !this.#isFull; index += 1) {
        const stream = round[index];
        if (stream !== undefined) this.#sendOf(stream);
      }
      if (index < round.length) this.#ready = round.slice(index).concat(this.#ready);
    }
    this.#flushing = false;
    if (!this.#closed) this.writer.flush();
  }

  get #isFull(): boolean {
    return this.#closed || this.#unsent > 0;
  }

  /** One frame of a stream, and its end behind the last. */
  #sendOf(stream: SessionStream): void {
    stream.listed = false;
    if (stream.over) return;
    if (stream.queuedBytes > 0) {
      const bytes = stream.nextFrameBytes(this.#allowance(stream));
      if (bytes <= 0 || this.#waits(stream, bytes)) {
        stream.listed = true;
        this.#blocked.push(stream);
        return;
      }
      this.#sendFrame(stream, bytes);
      stream.relieve();
      if (stream.over || stream.listed) return;
    }
    if (stream.queuedBytes > 0) {
      stream.listed = true;
      this.#ready.push(stream);
    } else if (stream.ended && !stream.endSent) {
      stream.endSent = true;
      this.writer.end(stream.id);
      this.#options.onEndSent(stream);
    }
  }

  /** How many bytes the stream may send now. */
  #allowance(stream: SessionStream): number {
    const grants = this.#grants;
    if (grants === undefined) return 0;
    const left = grants.connectionCredit - this.#inFlight;
    const share = Math.max(minShareBytes, Math.floor(left * connectionShare));
    return Math.min(left, Math.min(share, grants.streamCredit) - stream.inFlight, maxDataBytes);
  }

  /** A slab is not cut while so much is under way that the other side is about to return credit. */
  #waits({ inFlight, first }: SessionStream, bytes: number): boolean {
    if (inFlight < 2 * streamReturnBytes || first === undefined || bytes >= first.length) return false;
    return this.#options.buffers.slabs.of(first) !== undefined;
  }

  #sendFrame(stream: SessionStream, bytes: number): void {
    stream.inFlight += bytes;
    this.#inFlight += bytes;
    this.#windowsLeft = Math.min(maxWindows, this.#windowsLeft + windowsPerFrame + bytes / bytesPerWindow);
    this.#options.onSent(bytes);
    const { slabs } = this.#options.buffers;
    const slab = stream.first && slabs.of(stream.first);
    if (slab !== undefined && stream.first?.length === bytes) {
      stream.take(bytes);
      this.writer.slab(slab, stream.id, bytes);
      return;
    }
    if (slab !== undefined) slabs.giveUp(slab);
    this.writer.data(stream.id, bytes);
    let left = bytes;
    while (left > 0) {
      const piece = stream.take(left);
      left -= piece.length;
      this.writer.body(piece);
    }
  }

  #write(bytes: Buffer, buffer: Buffer): void {
    this.#unsent += 1;
    this.#options.socket.write(bytes, () => {
      this.#unsent -= 1;
      this.#options.buffers.release(buffer);
      if (!this.#scheduled) this.#flush();
    });
  }

  #unblock(): void {
    if (this.#blocked.length === 0) return;
    const blocked = this.#blocked;
    this.#blocked = [];
    for (const stream of blocked) if (!stream.over) this.#ready.push(stream);
    this.schedule();
  }
}
