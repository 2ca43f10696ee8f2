/** RFC 8446, section 5.1: no record brings more. */
const maxRecordBytes = 16_384;
/** Room for sixteen of TLS's records, which is as many as the largest frame fills. */
const slabBytes = 262_144;

/** Takes bytes; true when all of them were consumed meanwhile, so that nobody looks at them any more. */
export type RecordSink = (chunk: Buffer) => boolean;

/**
 * What a dialled connection is read into, past the stream's own machinery (`onread` of `tls.connect`). Bytes are handed on
 * as they lie there; where they have been consumed at once, the next ones come to the same place, and a transfer that flows
 * allocates nothing. Behind a full record the next one usually follows in the same turn of the event loop: such records are
 * handed on together, so that whoever passes them on needs one system call for many.
 */
export class RecordReader {
  #slab = Buffer.allocUnsafeSlow(slabBytes);
  /** Bytes before this one somebody still looks at. */
  #kept = 0;
  /** From here on bytes wait to be handed on. */
  #start = 0;
  /** Where the next read begins. */
  #end = 0;
  #scheduled = false;
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

  /** Hands on what waits for more to come. */
  flush(): void {
    if (this.#start === this.#end) return;
    const chunk = this.#slab.subarray(this.#start, this.#end);
    // The room for the next read has been given away already where this is not called by a read.
    this.#start = this.#end;
    if (this.#sink?.(chunk) === false) this.#kept = this.#end;
  }

  readonly #onTurn = (): void => {
    this.#scheduled = false;
    this.flush();
  };

  /** Is asked for after each read. */
  #room(): Buffer {
    if (this.#start === this.#end) this.#moveTo(this.#kept);
    if (slabBytes - this.#end < maxRecordBytes) {
      this.#slab = Buffer.allocUnsafeSlow(slabBytes);
      this.#kept = 0;
      this.#moveTo(0);
    }
    return this.#end === 0 ? this.#slab : this.#slab.subarray(this.#end);
  }

  #moveTo(at: number): void {
    this.#start = at;
    this.#end = at;
  }

  /** False stops reading. */
  #take(bytes: number): boolean {
    if (this.#sink === undefined) {
      const chunk = this.#slab.subarray(this.#end, this.#end + bytes);
      this.#early = this.#early === undefined ? Buffer.from(chunk) : Buffer.concat([this.#early, chunk]);
      return false;
    }
    this.#end += bytes;
    if (bytes < maxRecordBytes || slabBytes - this.#end < maxRecordBytes) this.flush();
    else if (!this.#scheduled) {
      this.#scheduled = true;
      setImmediate(this.#onTurn);
    }
    return true;
  }
}
