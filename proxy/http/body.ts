import { HttpFault } from './fault.ts';
import { bytes, hexValues, isValue } from './grammar.ts';
import { Head } from './head.ts';

/** Bytes of all chunk extensions of a message; nobody uses them, and they are not passed on (RFC 9112 section 7.1.1). */
export const maxExtensionBytes = 4096;
/** Bytes of all trailers. */
export const maxTrailerBytes = 8192;
/** Digits of a chunk's size: 1 TiB. */
const maxSizeDigits = 10;

/** How a body ends: RFC 9112 section 6.3. */
export type Framing =
  | { readonly kind: 'length'; readonly bytes: number }
  | { readonly kind: 'chunked' }
  | { readonly kind: 'close' };

export const noBody: Framing = { kind: 'length', bytes: 0 };
export const chunkedBody: Framing = { kind: 'chunked' };
export const bodyUntilClose: Framing = { kind: 'close' };

/** Takes what is passed on of a body: bytes of the buffer that was read, or of another one. */
export type BodySink = (buffer: Buffer, start: number, end: number) => void;

type State =
  | 'length'
  | 'close'
  | 'size'
  | 'extension'
  | 'size lf'
  | 'data'
  | 'data cr'
  | 'data lf'
  | 'trailers'
  | 'end lf'
  | 'done';

/**
 * Follows the body of a message to its end, and hands on what the other side gets: the very bytes that came, without chunk
 * extensions. Nothing of a body is kept but a cut trailer.
 */
export class BodyReader {
  #state: State = 'done';
  /** Bytes left of the body or the chunk. */
  #left = 0;
  #digits = 0;
  #extensionBytes = 0;
  #trailers: Buffer | undefined;
  #onlyContent = false;
  /** Bytes of content that came, without framing. */
  contentBytes = 0;

  /** `onlyContent`: what is handed on is the content alone, for those who know no chunks. */
  begin(framing: Framing, onlyContent = false): void {
    this.#onlyContent = onlyContent;
    this.contentBytes = 0;
    this.#extensionBytes = 0;
    this.#trailers = undefined;
    this.#left = 0;
    this.#digits = 0;
    if (framing.kind === 'length') {
      this.#left = framing.bytes;
      this.#state = framing.bytes === 0 ? 'done' : 'length';
    } else this.#state = framing.kind === 'chunked' ? 'size' : 'close';
  }

  get done(): boolean {
    return this.#state === 'done';
  }

  /** Whether the end of the connection is the end of the body. */
  get endsByClose(): boolean {
    return this.#state === 'close';
  }

  /** Reads on at `at`; gives where the body ends, or the buffer. Throws an HttpFault when it cannot be read in one way only. */
  read(buffer: Buffer, at: number, sink: BodySink): number {
    const end = buffer.length;
    if (at === end || this.#state === 'done') return at;
    if (this.#state === 'close') {
      this.contentBytes += end - at;
      sink(buffer, at, end);
      return end;
    }
    if (this.#state === 'length') {
      const stop = Math.min(end, at + this.#left);
      this.#left -= stop - at;
      this.contentBytes += stop - at;
      if (this.#left === 0) this.#state = 'done';
      sink(buffer, at, stop);
      return stop;
    }
    return this.#onlyContent ? this.#readContent(buffer, at, sink) : this.#readChunks(buffer, at, sink);
  }

  #readContent(buffer: Buffer, start: number, sink: BodySink): number {
    let at = start;
    while (at < buffer.length && !this.done) {
      const isContent = this.#state === 'data';
      const end = isContent ? Math.min(buffer.length, at + this.#left) : at + 1;
      const from = at;
      at += this.#readChunks(buffer.subarray(at, end), 0, nowhere);
      if (isContent) sink(buffer, from, end);
    }
    return at;
  }

  #readChunks(buffer: Buffer, start: number, sink: BodySink): number {
    const end = buffer.length;
    let at = start;
    /** From where on bytes are still to be handed on. */
    let from = start;
    while (at < end) {
      switch (this.#state) {
        case 'data': {
          const stop = Math.min(end, at + this.#left);
          this.#left -= stop - at;
          this.contentBytes += stop - at;
          at = stop;
          if (this.#left === 0) this.#state = 'data cr';
          break;
        }
        case 'data cr':
          if (buffer[at] !== bytes.cr) throw new HttpFault('chunk', 'a chunk that is longer than it says');
          this.#state = 'data lf';
          at += 1;
          break;
        case 'data lf':
          if (buffer[at] !== bytes.lf) throw new HttpFault('chunk', 'a CR without its LF');
          this.#state = 'size';
          at += 1;
          break;
        case 'size':
          at = this.#size(buffer, at);
          if (at < end && buffer[at] === bytes.semicolon) {
            if (at > from) sink(buffer, from, at);
            from = at;
          }
          break;
        case 'extension':
          at = this.#extension(buffer, at);
          from = at;
          break;
        case 'size lf':
          if (buffer[at] !== bytes.lf) throw new HttpFault('chunk', 'a CR without its LF');
          at += 1;
          this.#sized();
          break;
        case 'trailers':
          if (this.#trailers === undefined && buffer[at] === bytes.cr) {
            this.#state = 'end lf';
            at += 1;
            break;
          }
          if (at > from) sink(buffer, from, at);
          return this.#readTrailers(buffer, at, sink);
        case 'end lf':
          if (buffer[at] !== bytes.lf) throw new HttpFault('trailer', 'a CR without its LF');
          at += 1;
          this.#state = 'done';
          sink(buffer, from, at);
          return at;
        default:
          throw new Error(`a chunked body cannot be in the state ${this.#state}`);
      }
    }
    if (at > from) sink(buffer, from, at);
    return at;
  }

  #size(buffer: Buffer, start: number): number {
    let at = start;
    for (; at < buffer.length; at += 1) {
      const byte = buffer[at] as number;
      const value = hexValues[byte] as number;
      if (value !== 255) {
        this.#digits += 1;
        if (this.#digits > maxSizeDigits) throw new HttpFault('chunk', 'a chunk size that is too large');
        this.#left = this.#left * 16 + value;
        continue;
      }
      if (this.#digits === 0) throw new HttpFault('chunk', 'a chunk without a size');
      if (byte === bytes.cr) {
        this.#state = 'size lf';
        return at + 1;
      }
      if (byte !== bytes.semicolon) throw new HttpFault('chunk', 'a chunk size that is no number');
      this.#state = 'extension';
      return at;
    }
    return at;
  }

  /** Passes over an extension; gives where its CR is, which is handed on. */
  #extension(buffer: Buffer, start: number): number {
    let at = start;
    while (at < buffer.length && isValue[buffer[at] as number] === 1) at += 1;
    this.#extensionBytes += at - start;
    if (this.#extensionBytes > maxExtensionBytes) throw new HttpFault('chunk', 'chunk extensions that are too long');
    if (at === buffer.length) return at;
    if (buffer[at] !== bytes.cr) throw new HttpFault('chunk', 'a chunk extension with a control character');
    this.#state = 'size';
    return at;
  }

  #sized(): void {
    this.#digits = 0;
    this.#state = this.#left === 0 ? 'trailers' : 'data';
  }

  /** Trailers are read as a whole before any of them is handed on. */
  #readTrailers(buffer: Buffer, at: number, sink: BodySink): number {
    const kept = this.#trailers?.length ?? 0;
    const whole =
      this.#trailers === undefined ? buffer.subarray(at) : Buffer.concat([this.#trailers, buffer.subarray(at)]);
    const end = new Head().readTrailers(whole, 0);
    if ((end < 0 ? whole.length : end) > maxTrailerBytes) throw new HttpFault('trailer', 'trailers that are too long');
    if (end < 0) {
      this.#trailers = Buffer.from(whole);
      return buffer.length;
    }
    this.#state = 'done';
    sink(whole, 0, end);
    return at + end - kept;
  }
}

function nowhere(): void {}
