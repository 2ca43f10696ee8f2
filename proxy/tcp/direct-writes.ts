import { Socket } from 'node:net';
import { getSystemErrorName } from 'node:util';

/** A write that could not be done at once. */
export interface WaitingWrite {
  /** Called once: with 0, or with a system error's number, also when the socket is closed. To be set at once. */
  oncomplete: (status: number) => void;
}

/** What the runtime hands to the system with a write. */
interface WriteRequest extends WaitingWrite {
  /** Keeps what is being written. */
  buffer: Buffer | readonly Buffer[] | undefined;
  /** Below 0 as long as the event loop has not taken it. */
  getAsyncId(): number;
}

/** What lies below a socket. */
interface Handle {
  writeBuffer(request: WriteRequest, chunk: Buffer): number;
  writev(request: WriteRequest, chunks: readonly Buffer[], areBuffers: true): number;
}

type WriteRequestClass = new () => WriteRequest;

/**
 * Writes to sockets of TCP past the runtime's streams, which make an object and a tick of the queue for each write, a fifth
 * of what a small request takes. Nearly every write is done at once by the system, and needs neither. Those that cannot be
 * are the event loop's, in their order with what the streams write. Where the runtime has not what is needed for this,
 * nothing is taken, and the streams are used. One for a process.
 */
export class DirectWrites {
  readonly #requestClass = requestClassOf();
  /** Untouched as long as writes are done at once. */
  #request: WriteRequest | undefined;

  /** Whether this socket can be written to so: those with something of their own on top, such as TLS, cannot. */
  takes(socket: Socket): boolean {
    return this.#requestClass !== undefined && Object.getPrototypeOf(socket) === Socket.prototype;
  }

  /**
   * Writes a chunk, or several, to a connected socket that is taken. Gives the write that waits, if it does; what it refers
   * to may not change until then. When the write fails at once, the socket is destroyed with the reason.
   */
  write(socket: Socket, data: Buffer | readonly Buffer[]): WaitingWrite | undefined {
    const handle = (socket as unknown as { readonly _handle: Handle | null })._handle;
    // It is closed, as somebody hears in a moment.
    if (handle === null || this.#requestClass === undefined) return undefined;
    this.#request ??= new this.#requestClass();
    const request = this.#request;
    const status = Buffer.isBuffer(data) ? handle.writeBuffer(request, data) : handle.writev(request, data, true);
    if (status === 0 && request.getAsyncId() < 0) return undefined;
    this.#request = undefined;
    if (status === 0) {
      request.buffer = data;
      return request;
    }
    socket.destroy(writeError(status));
    return undefined;
  }
}

/** As the runtime says it. */
export function writeError(status: number): Error {
  const code = getSystemErrorName(status);
  return Object.assign(new Error(`write ${code}`), { code, errno: status, syscall: 'write' });
}

/** The runtime names the class nowhere: it is seen when it writes. */
function requestClassOf(): WriteRequestClass | undefined {
  let seen: unknown;
  const handle = {
    writeBuffer(request: object): number {
      seen = request.constructor;
      return 0;
    },
  };
  const socket = new Socket();
  Reflect.set(socket, '_handle', handle);
  socket.on('error', () => undefined);
  socket.write(Buffer.alloc(1));
  Reflect.set(socket, '_handle', null);
  socket.destroy();
  if (typeof seen !== 'function' || typeof Reflect.get(seen.prototype, 'getAsyncId') !== 'function') return undefined;
  const found = seen as WriteRequestClass;
  return new found().getAsyncId() < 0 ? found : undefined;
}
