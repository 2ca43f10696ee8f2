/**
 * Buffers that connections read into, in a few sizes. A small one suits requests and idle connections, a large one cuts
 * the system calls of a bulk transfer by sixteen. All but the smallest are bounded in their sum over the process; when it
 * is used up a connection simply keeps the size that it has.
 */
export class ReadBuffers {
  /** Bytes, each at most the next. */
  static readonly sizes: readonly number[] = [4096, 32_768, 262_144, 1_048_576];
  /** The sum of all buffers above the smallest size, lent and spare. */
  static readonly maxLargeBytes = 64 * 1_048_576;
  /** Spare buffers kept of the smallest size, and the sum of those kept above it. */
  static readonly maxSpareSmall = 1024;
  static readonly maxSpareLargeBytes = 8 * 1_048_576;
  readonly #spare: Buffer[][] = ReadBuffers.sizes.map(() => []);
  #largeBytes = 0;
  #spareLargeBytes = 0;

  /** Bytes of all large buffers, lent and spare. */
  get largeBytes(): number {
    return this.#largeBytes;
  }

  smallest(): Buffer {
    return this.#spare[0]?.pop() ?? Buffer.allocUnsafeSlow(ReadBuffers.sizes[0] ?? 0);
  }

  /**
   * The buffer for the next read after one of `bytes` into `current`: larger when that was filled, smaller when a smaller
   * one would have done. `current` is given back when another one is returned.
   */
  next(current: Buffer, bytes: number): Buffer {
    const size = current.length;
    const wanted = bytes === size ? size + 1 : bytes + 1;
    let level = 0;
    while (level < ReadBuffers.sizes.length - 1 && (ReadBuffers.sizes[level] ?? 0) < wanted) level += 1;
    if (ReadBuffers.sizes[level] === size) return current;
    const other = this.#take(level);
    if (other === undefined) return current;
    this.release(current);
    return other;
  }

  /** Gives a buffer back that nobody reads or writes any more. */
  release(buffer: Buffer): void {
    const level = ReadBuffers.sizes.indexOf(buffer.length);
    const spare = this.#spare[level];
    if (spare === undefined) return;
    if (level === 0) {
      if (spare.length < ReadBuffers.maxSpareSmall) spare.push(buffer);
    } else if (this.#spareLargeBytes + buffer.length <= ReadBuffers.maxSpareLargeBytes) {
      this.#spareLargeBytes += buffer.length;
      spare.push(buffer);
    } else this.#largeBytes -= buffer.length;
  }

  /** Takes note that a buffer is not given back: somebody may still write it. */
  forget(buffer: Buffer): void {
    if (buffer.length !== ReadBuffers.sizes[0]) this.#largeBytes -= buffer.length;
  }

  #take(level: number): Buffer | undefined {
    if (level === 0) return this.smallest();
    const spare = this.#spare[level]?.pop();
    if (spare !== undefined) {
      this.#spareLargeBytes -= spare.length;
      return spare;
    }
    const size = ReadBuffers.sizes[level] ?? 0;
    if (this.#largeBytes + size > ReadBuffers.maxLargeBytes) return undefined;
    this.#largeBytes += size;
    return Buffer.allocUnsafeSlow(size);
  }
}
