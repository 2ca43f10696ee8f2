/**
 * Buffers for a socket to read into whose bytes are given away for good. Small reads share a slab one after another, so
 * that nothing is copied and little is allocated; where reads fill them, slabs grow, which cuts the system calls of a bulk
 * transfer.
 */
export class SlabReader {
  /** Bytes of a slab, each at most the next. */
  static readonly sizes: readonly number[] = [4096, 32_768, 262_144];
  /** With less room than this a new slab is begun. */
  static readonly leastRoom = 1024;
  #level = 0;
  #slab: Buffer | undefined;
  #used = 0;

  /** Room to read into. */
  room(): Buffer {
    const slab = this.#slab ?? this.#begin();
    return this.#used === 0 ? slab : slab.subarray(this.#used);
  }

  /** The bytes that were just read into the room; they belong to the caller. */
  take(bytes: number): Buffer {
    const slab = this.#slab ?? this.#begin();
    const size = slab.length;
    const taken = slab.subarray(this.#used, this.#used + bytes);
    const full = bytes === size - this.#used;
    this.#used += bytes;
    if (full && bytes * 2 >= size) this.#level = Math.min(this.#level + 1, SlabReader.sizes.length - 1);
    else if (bytes * 16 < size) this.#level = Math.max(this.#level - 1, 0);
    if (size - this.#used < SlabReader.leastRoom || (SlabReader.sizes[this.#level] ?? 0) !== size)
      this.#slab = undefined;
    return taken;
  }

  #begin(): Buffer {
    const slab = Buffer.allocUnsafeSlow(SlabReader.sizes[this.#level] ?? 4096);
    this.#slab = slab;
    this.#used = 0;
    return slab;
  }
}
