import {
  frameTypes,
  type GoAway,
  goAwayReasons,
  type Hello,
  headerBytes,
  helloBytes,
  maxDetailBytes,
  pingBytes,
  putHeader,
  windowBytes,
} from './frames.ts';
import { Slabs } from './slabs.ts';
import { maxHeadBytes, putHead } from './stream-head.ts';
import { type ResetReason, resetReasons, type StreamHead } from './tunnels.ts';

/** What frames are gathered in before they leave. */
const gatherBytes = 65_536;
/** Gathering buffers kept for the next turns, by all connections of a process together. */
const maxSpare = 16;

/** Buffers that frames are gathered in; shared by connections, so that a burst of one uses what another one left. */
export class GatherBuffers {
  /** The large ones. */
  readonly slabs = new Slabs();
  readonly #spare: Buffer[] = [];

  take(): Buffer {
    return this.#spare.pop() ?? Buffer.allocUnsafeSlow(gatherBytes);
  }

  /** One of these, or a slab. */
  release(buffer: Buffer): void {
    if (buffer.length !== gatherBytes) this.slabs.release(buffer);
    else if (this.#spare.length < maxSpare) this.#spare.push(buffer);
  }
}

/**
 * Puts frames one behind the other into one buffer, so that all frames of a turn of the event loop leave in one write.
 * `send` is handed what is full, in order, and the buffer to give back to the pool when it has left.
 */
export class FrameWriter {
  readonly #buffers: GatherBuffers;
  readonly #send: (bytes: Buffer, buffer: Buffer) => void;
  #buffer: Buffer | undefined;
  #filled = 0;

  constructor(buffers: GatherBuffers, send: (bytes: Buffer, buffer: Buffer) => void) {
    this.#buffers = buffers;
    this.#send = send;
  }

  hello({ version, streamCredit, connectionCredit, maxStreams }: Hello): void {
    const buffer = this.#begin(helloBytes, frameTypes.hello, 0);
    let at = buffer.writeUInt16BE(version, this.#filled);
    for (const number of [streamCredit, connectionCredit, maxStreams]) at = buffer.writeUInt32BE(number, at);
    this.#filled = at;
  }

  open(stream: number, head: StreamHead): void {
    const buffer = this.#room(headerBytes + maxHeadBytes);
    const start = this.#filled;
    const end = putHead(buffer, start + headerBytes, head);
    putHeader(buffer, start, end - start - headerBytes, frameTypes.open, stream);
    this.#filled = end;
  }

  opened(stream: number): void {
    this.#begin(0, frameTypes.opened, stream);
  }

  end(stream: number): void {
    this.#begin(0, frameTypes.end, stream);
  }

  reset(stream: number, reason: ResetReason, detail: string): void {
    this.#withText(frameTypes.reset, stream, resetReasons[reason === 'lost' ? 'reset' : reason], detail);
  }

  goAway({ reason, detail }: GoAway): void {
    this.#withText(frameTypes.goAway, 0, goAwayReasons[reason], detail);
  }

  window(stream: number, bytes: number): void {
    const buffer = this.#begin(windowBytes, frameTypes.window, stream);
    this.#filled = buffer.writeUInt32BE(bytes, this.#filled);
  }

  ping(number: number): void {
    const buffer = this.#begin(pingBytes, frameTypes.ping, 0);
    this.#filled = buffer.writeUInt32BE(number, buffer.writeUInt32BE(0, this.#filled));
  }

  pong(payload: Buffer): void {
    const buffer = this.#begin(pingBytes, frameTypes.pong, 0);
    this.#filled += payload.copy(buffer, this.#filled);
  }

  /** The header of a DATA frame; its body follows by `body`. */
  data(stream: number, bytes: number): void {
    this.#begin(0, frameTypes.data, stream, bytes);
  }

  /** Part of a body, copied. */
  body(piece: Buffer): void {
    let at = 0;
    while (at < piece.length) {
      const buffer = this.#room(1);
      const copied = piece.copy(buffer, this.#filled, at);
      this.#filled += copied;
      at += copied;
    }
  }

  /** A DATA frame whose body lies in a slab, which leaves as it is. */
  slab(slab: Buffer, stream: number, bytes: number): void {
    this.flush();
    putHeader(slab, 0, bytes, frameTypes.data, stream);
    this.#send(slab.subarray(0, headerBytes + bytes), slab);
  }

  /** Hands over what was gathered. */
  flush(): void {
    const buffer = this.#buffer;
    if (buffer === undefined || this.#filled === 0) return;
    this.#buffer = undefined;
    const bytes = buffer.subarray(0, this.#filled);
    this.#filled = 0;
    this.#send(bytes, buffer);
  }

  /** Gives back what was gathered, unsent. */
  discard(): void {
    if (this.#buffer !== undefined) this.#buffers.release(this.#buffer);
    this.#buffer = undefined;
    this.#filled = 0;
  }

  #withText(type: number, stream: number, code: number, text: string): void {
    const detail = cutText(text);
    const buffer = this.#begin(2 + detail.length, type, stream);
    this.#filled = buffer.writeUInt16BE(code, this.#filled);
    this.#filled += detail.copy(buffer, this.#filled);
  }

  /** Writes a header and makes room for a payload of `room` bytes, which the caller fills in from `#filled`. */
  #begin(room: number, type: number, stream: number, length = room): Buffer {
    const buffer = this.#room(headerBytes + room);
    putHeader(buffer, this.#filled, length, type, stream);
    this.#filled += headerBytes;
    return buffer;
  }

  #room(bytes: number): Buffer {
    if (this.#buffer !== undefined && this.#filled + bytes > this.#buffer.length) this.flush();
    this.#buffer ??= this.#buffers.take();
    return this.#buffer;
  }
}

/** At most `maxDetailBytes` of UTF-8, cut between characters. */
function cutText(text: string): Buffer {
  const bytes = Buffer.from(text.slice(0, maxDetailBytes), 'utf8');
  if (bytes.length <= maxDetailBytes) return bytes;
  let end = maxDetailBytes;
  while (end > 0 && ((bytes[end] ?? 0) & 0xc0) === 0x80) end -= 1;
  return bytes.subarray(0, end);
}
