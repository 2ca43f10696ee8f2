import { randomFillSync } from 'node:crypto';

/** Makes ids of connections for access logs: 32 lower-case hexadecimal digits (the trace-id of W3C Trace Context). */
export class TraceIds {
  /** Random bytes are cheap only by the thousand. */
  static readonly poolBytes = 4096;
  readonly #pool = Buffer.alloc(TraceIds.poolBytes);
  #used = TraceIds.poolBytes;

  next(): string {
    if (this.#used === TraceIds.poolBytes) {
      randomFillSync(this.#pool);
      this.#used = 0;
    }
    const id = this.#pool.toString('hex', this.#used, this.#used + 16);
    this.#used += 16;
    return id;
  }
}
