import { headerBytes } from './frames.ts';

/**
 * Large buffers to read into whose bytes leave through a tunnel as they lie there. A slab is read into once, behind room for
 * the header of the frame that carries it, so that both leave in one write; and it is used anew when it has left, because
 * what is allocated and dropped at the pace of a bulk transfer has the garbage collector run all the time.
 */
export class Slabs {
  /** Bytes of a slab: a frame of nearly the largest size, and as many full records of TLS. */
  static readonly bytes = 262_144;
  /** A read of fewer bytes is not worth a slab. */
  static readonly leastBytes = 32_768;
  /** Slabs that wait for a read at a time, some of them of idle connections. */
  static readonly maxWaiting = 128;
  /** Slabs kept for later. */
  static readonly maxSpare = 16;
  readonly #spare: Buffer[] = [];
  #waiting = 0;
  /** All that may be used anew, by their memory. */
  readonly #own = new WeakMap<ArrayBufferLike, Buffer>();

  /** A slab to read into, from `headerBytes` on; undefined while too many wait for that. `read` or `unread` follows. */
  take(): Buffer | undefined {
    if (this.#waiting >= Slabs.maxWaiting) return undefined;
    this.#waiting += 1;
    return this.#spare.pop() ?? this.#make();
  }

  /** The bytes that were read into it. They belong to whoever is given them, and the slab with them. */
  read(slab: Buffer, bytes: number): Buffer {
    this.#waiting -= 1;
    return slab.subarray(headerBytes, headerBytes + bytes);
  }

  /** Nothing was read into it, and nothing will be. */
  unread(slab: Buffer): void {
    this.#waiting -= 1;
    this.release(slab);
  }

  /** The slab that this is the whole content of; undefined where it is none, or not all of it. */
  of(chunk: Buffer): Buffer | undefined {
    return chunk.length < Slabs.leastBytes ? undefined : this.#own.get(chunk.buffer);
  }

  /** Its content leaves in parts: it is like any other memory from now on. */
  giveUp(slab: Buffer): void {
    this.#own.delete(slab.buffer);
  }

  /** Nobody looks at its content any more. */
  release(slab: Buffer): void {
    if (this.#spare.length < Slabs.maxSpare) this.#spare.push(slab);
  }

  #make(): Buffer {
    const slab = Buffer.allocUnsafeSlow(Slabs.bytes);
    this.#own.set(slab.buffer, slab);
    return slab;
  }
}
