import type { Socket } from 'node:net';
import { type DirectWrites, writeError } from './direct-writes.ts';

/**
 * What is written to one connected socket, in its order. Chunks that the system has not taken are referred to until
 * `drained`, and may not change before. Whoever writes to the socket itself, or ends it, comes behind what was written here.
 */
export class SocketWriter {
  readonly #socket: Socket;
  readonly #direct: DirectWrites;
  readonly #isDirect: boolean;
  readonly #drained: () => void;
  /** Bytes that the event loop has yet to write. */
  #waiting = 0;
  /** What is to leave together. */
  #corked: Buffer[] | undefined;

  /** `drained`: called each time that all of what had to wait is written. */
  constructor(socket: Socket, direct: DirectWrites, drained: () => void) {
    this.#socket = socket;
    this.#direct = direct;
    this.#isDirect = direct.takes(socket);
    this.#drained = drained;
    socket.on('drain', () => this.#settled());
  }

  /** Bytes that the system has not taken. */
  get pending(): number {
    return this.#waiting + this.#socket.writableLength;
  }

  write(chunk: Buffer): void {
    if (this.#corked !== undefined) this.#corked.push(chunk);
    else if (!this.#isDirect || this.#socket.writableLength > 0) this.#socket.write(chunk);
    else this.#write(chunk, chunk.length);
  }

  /** What is written from now on leaves together, with `uncork`, which follows in the same turn. */
  cork(): void {
    if (this.#isDirect && this.#socket.writableLength === 0) this.#corked = [];
    else this.#socket.cork();
  }

  uncork(): void {
    const chunks = this.#corked;
    if (chunks === undefined) {
      this.#socket.uncork();
      return;
    }
    this.#corked = undefined;
    const size = chunks.reduce((sum, { length }) => sum + length, 0);
    if (size > 0) this.#write(chunks, size);
  }

  #write(data: Buffer | Buffer[], size: number): void {
    const waiting = this.#direct.write(this.#socket, data);
    if (waiting === undefined) return;
    this.#waiting += size;
    waiting.oncomplete = (status) => {
      this.#waiting -= size;
      if (status === 0) this.#settled();
      else if (!this.#socket.destroyed) this.#socket.destroy(writeError(status));
    };
  }

  #settled(): void {
    if (this.pending === 0) this.#drained();
  }
}
