import { Socket } from 'node:net';

/** Takes what was read; the bytes may be looked at only during the call. */
export type BytesSink = (chunk: Buffer) => void;

/** Where the runtime keeps, for sockets made with `onread`, what they read into and who is told. */
interface Places {
  readonly buffer: symbol;
  readonly callback: symbol;
}

/**
 * One buffer that all accepted sockets of a process read into, one after another. Otherwise the runtime allocates 64 KiB for
 * every single read, and hands it on through its streams; it has `onread` against that, but only for sockets that dial.
 * Accepted ones are given the same by hand. Where the runtime keeps it elsewhere they are read as streams, which is slower
 * and otherwise the same.
 */
export class SharedReads {
  static readonly bytes = 65_536;
  static readonly shortBytes = 2048;
  readonly #buffer = Buffer.allocUnsafeSlow(SharedReads.bytes);
  /** Its beginnings by their length, as far as they are short and were seen: most requests have few lengths. */
  readonly #beginnings: (Buffer | undefined)[] = new Array(SharedReads.shortBytes).fill(undefined);
  readonly #places = placesOf(new Socket());

  /** For a socket that does not read yet. Gives whether the buffer is used. */
  attach(socket: Socket, sink: BytesSink): boolean {
    const places = this.#places;
    const handle: unknown = Reflect.get(socket, '_handle');
    // Sockets with something of their own on top, such as TLS, have handles of their own.
    if (places === undefined || Object.getPrototypeOf(socket) !== Socket.prototype || !takesBuffer(handle)) {
      socket.on('data', sink);
      return false;
    }
    const buffer = this.#buffer;
    handle.useUserBuffer(buffer);
    Reflect.set(socket, places.buffer, buffer);
    Reflect.set(socket, places.callback, (bytes: number) => sink(this.#beginning(bytes)));
    return true;
  }

  #beginning(bytes: number): Buffer {
    if (bytes >= SharedReads.shortBytes) return this.#buffer.subarray(0, bytes);
    let beginning = this.#beginnings[bytes];
    if (beginning === undefined) {
      beginning = this.#buffer.subarray(0, bytes);
      this.#beginnings[bytes] = beginning;
    }
    return beginning;
  }
}

function takesBuffer(handle: unknown): handle is { useUserBuffer(buffer: Buffer): void } {
  return typeof handle === 'object' && handle !== null && typeof Reflect.get(handle, 'useUserBuffer') === 'function';
}

function placesOf(socket: Socket): Places | undefined {
  const symbols = Object.getOwnPropertySymbols(socket);
  const named = (name: string): symbol | undefined => symbols.find(({ description }) => description === name);
  const buffer = named('kBuffer');
  const callback = named('kBufferCb');
  return buffer === undefined || callback === undefined || named('kBufferGen') === undefined
    ? undefined
    : { buffer, callback };
}
