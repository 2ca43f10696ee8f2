import { headerBytes } from '../tunnel/frames.ts';
import type { Slabs } from '../tunnel/slabs.ts';

/**
 * Buffers for a socket to read into whose bytes are given away for good. Small reads share a buffer one after another, so
 * that nothing is copied and little is allocated; where reads fill them, buffers grow, which cuts the system calls of a bulk
 * transfer, and the largest are slabs, for one read each.
 */
export class SlabReader {
  /** Bytes of a shared buffer, each at most the next; beyond the last one come slabs. */
  static readonly sizes: readonly number[] = [2048, 32_768];
  /** With less room than this a new buffer is begun. */
  static readonly leastRoom = 1024;
  readonly #slabs: Slabs;
  #level = 0;
  #buffer: Buffer | undefined;
  #used = 0;
  #slab: Buffer | undefined;

  constructor(slabs: Slabs) {
    this.#slabs = slabs;
  }

  /** Room to read into. */
  room(): Buffer {
    if (this.#slab !== undefined) return this.#slab.subarray(headerBytes);
    if (this.#buffer === undefined && this.#level === SlabReader.sizes.length) {
      this.#slab = this.#slabs.take();
      if (this.#slab !== undefined) return this.#slab.subarray(headerBytes);
      this.#level -= 1;
    }
    const buffer = this.#buffer ?? this.#begin();
    return this.#used === 0 ? buffer : buffer.subarray(this.#used);
  }

  /** The bytes that were just read into the room; they belong to the caller. */
  take(bytes: number): Buffer {
    return this.#slab === undefined ? this.#takeShared(bytes) : this.#takeSlab(this.#slab, bytes);
  }

  /** Nothing more is read. */
  close(): void {
    if (this.#slab !== undefined) this.#slabs.unread(this.#slab);
    this.#slab = undefined;
  }

  #takeSlab(slab: Buffer, bytes: number): Buffer {
    this.#slab = undefined;
    if (bytes * 4 < slab.length) this.#level -= 1;
    return this.#slabs.read(slab, bytes);
  }

  #takeShared(bytes: number): Buffer {
    const buffer = this.#buffer ?? this.#begin();
    const size = buffer.length;
    const taken = buffer.subarray(this.#used, this.#used + bytes);
    const full = bytes === size - this.#used;
    this.#used += bytes;
    if (full && bytes * 2 >= size) this.#level += 1;
    else if (bytes * 16 < size) this.#level = Math.max(this.#level - 1, 0);
    if (size - this.#used < SlabReader.leastRoom || SlabReader.sizes[this.#level] !== size) this.#buffer = undefined;
    return taken;
  }

  #begin(): Buffer {
    const buffer = Buffer.allocUnsafeSlow(SlabReader.sizes[this.#level] ?? 2048);
    this.#buffer = buffer;
    this.#used = 0;
    return buffer;
  }
}
