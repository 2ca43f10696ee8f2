/** Room for four of TLS's records: each fits in what is left, or in a new slab. */
const slabBytes = 65_536;
/** RFC 8446, section 5.1: no record brings more. */
const maxRecordBytes = 16_384;

/** Takes bytes; true when all of them were consumed meanwhile, so that nobody looks at them any more. */
export type RecordSink = (chunk: Buffer) => boolean;

/**
 * What a dialled connection is read into, past the stream's own machinery (`onread` of `tls.connect`). Bytes are handed on
 * as they lie there; where they have been consumed at once, the next ones come to the same place, and a transfer that flows
 * allocates nothing.
 */
export class RecordReader {
  #slab = Buffer.allocUnsafeSlow(slabBytes);
  #used = 0;
  #sink: RecordSink | undefined;
  /** What came before there was a sink: at most one record, since reading stops. */
  #early: Buffer | undefined;

  /** For `tls.connect`. */
  readonly onread = {
    buffer: (): Uint8Array => this.#room(),
    callback: (bytes: number): boolean => this.#take(bytes),
  };

  /** From now on bytes go there. True when reading has to be resumed. */
  attach(sink: RecordSink): boolean {
    this.#sink = sink;
    const early = this.#early;
    if (early === undefined) return false;
    this.#early = undefined;
    sink(early);
    return true;
  }

  #room(): Buffer {
    if (slabBytes - this.#used < maxRecordBytes) {
      this.#slab = Buffer.allocUnsafeSlow(slabBytes);
      this.#used = 0;
    }
    return this.#used === 0 ? this.#slab : this.#slab.subarray(this.#used);
  }

  /** False stops reading. */
  #take(bytes: number): boolean {
    const chunk = this.#slab.subarray(this.#used, this.#used + bytes);
    if (this.#sink === undefined) {
      this.#early = this.#early === undefined ? Buffer.from(chunk) : Buffer.concat([this.#early, chunk]);
      return false;
    }
    if (!this.#sink(chunk)) this.#used += bytes;
    return true;
  }
}
