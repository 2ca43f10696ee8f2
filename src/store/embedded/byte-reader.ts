/** Reads LevelDB's variable-length numbers and texts. Throws RangeError beyond the end. */
export class ByteReader {
  readonly #buffer: Buffer;
  #offset = 0;

  constructor(buffer: Buffer) {
    this.#buffer = buffer;
  }

  get atEnd(): boolean {
    return this.#offset >= this.#buffer.length;
  }

  /** Seven bits a byte, lowest first; exact up to 2^53. */
  varint(): number {
    let value = 0;
    for (let factor = 1; factor <= 2 ** 63; factor *= 128) {
      const byte = this.#buffer[this.#offset++];
      if (byte === undefined) break;
      value += (byte & 0x7f) * factor;
      if (byte < 0x80) return value;
    }
    throw new RangeError('not a number');
  }

  bytes(length: number): Buffer {
    const from = this.#offset;
    this.#offset += length;
    if (this.#offset > this.#buffer.length) throw new RangeError('beyond the end');
    return this.#buffer.subarray(from, this.#offset);
  }
}
