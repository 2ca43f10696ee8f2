import { connect, type Socket } from 'node:net';
import type { Endpoint } from '../../src/model/address.ts';
import type { ReadBuffers } from './read-buffers.ts';
import { writeHighWaterMark } from './relay-bounds.ts';
import { ResetAfterEnd, wasReset } from './socket-ends.ts';

/** What is heard of a socket to an instance. */
export interface InstanceSocketEvents {
  socketOpened(socket: Socket): void;
  /** The bytes may be looked at only during the call, unless they were written to a socket that has not taken them: then false stops the reading. */
  socketBytes(socket: Socket, chunk: Buffer): boolean;
  /** The instance has said all that it had to say. */
  socketEnded(socket: Socket): void;
  socketFailed(socket: Socket, error: Error): void;
  /** Nothing more comes of it. */
  socketClosed(socket: Socket): void;
}

/** Connects to an instance. What is read goes through buffers that are used again. */
export function dialInstance({ address, port }: Endpoint, buffers: ReadBuffers, events: InstanceSocketEvents): Socket {
  let current: Buffer | undefined;
  /** Whether somebody still writes what was read last. */
  let lent = false;
  const options = {
    host: address,
    port,
    allowHalfOpen: true,
    noDelay: true,
    highWaterMark: writeHighWaterMark,
    onread: {
      buffer: (): Buffer => {
        current ??= buffers.smallest();
        return current;
      },
      callback: (bytes: number, filled: Uint8Array): boolean => {
        const buffer = filled as Buffer;
        lent = !events.socketBytes(socket, bytes === buffer.length ? buffer : buffer.subarray(0, bytes));
        if (lent) return false;
        current = buffers.next(buffer, bytes);
        return true;
      },
    },
  };
  const socket: Socket = connect(options);
  socket.once('connect', () => events.socketOpened(socket));
  socket.on('end', () => {
    if (wasReset(socket)) socket.destroy(new ResetAfterEnd());
    else events.socketEnded(socket);
  });
  socket.on('error', (error) => events.socketFailed(socket, error));
  socket.on('close', () => {
    events.socketClosed(socket);
    if (current === undefined) return;
    if (lent) buffers.forget(current);
    else buffers.release(current);
    current = undefined;
  });
  return socket;
}
