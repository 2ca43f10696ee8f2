import type { Socket } from 'node:net';
import { type Endpoint, unmapped } from '../../src/model/address.ts';
import type { Upstream } from './upstream.ts';

/**
 * Ends a socket so that its peer sees a reset; `destroy()` alone would look like a clean end. While a shutdown is under
 * way the system refuses that, and the peer has been told the end already; while connecting there is nobody to tell.
 */
export function abort(
  socket: Pick<Upstream, 'destroyed' | 'writableEnded' | 'writableFinished' | 'resetAndDestroy' | 'destroy'>,
  connected: boolean,
): void {
  if (socket.destroyed) return;
  if (connected && !(socket.writableEnded && !socket.writableFinished)) socket.resetAndDestroy();
  else socket.destroy();
}

/**
 * Whether an end that was read is really a reset. The event loop reports one as an end when it comes together with data
 * or when a waiting write took the error, so a cut answer would look like a whole one. The system knows no peer of a
 * connection that was reset. Where we have ended our side already it does not tell the two apart.
 */
export function wasReset(socket: Socket): boolean {
  return !socket.writableEnded && socket.remotePort === undefined;
}

export function resetError(): Error {
  return Object.assign(new Error('connection reset by the other side'), { code: 'ECONNRESET' });
}

/**
 * Where the other side is; undefined when it has gone. The runtime remembers what it once asked the system, and
 * `wasReset` needs to know what the system says later: so it is made to forget.
 */
export function peerOf(socket: Socket): Endpoint | undefined {
  const { remoteAddress, remotePort } = socket;
  Reflect.set(socket, '_peername', undefined);
  return remoteAddress === undefined || remotePort === undefined
    ? undefined
    : { address: unmapped(remoteAddress), port: remotePort };
}

/**
 * An end that was read of a socket that has been reset. Where nothing else has come, and no write has failed, the other
 * side had closed its socket, all of what it had got being read, before it got what was written last: a system that gets
 * something for a closed socket answers with a reset, and one that closes a socket with something unread resets at once,
 * which is read as an error and not as an end.
 */
export class ResetAfterEnd extends Error {
  readonly code = 'ECONNRESET';

  constructor() {
    super('connection reset by the other side');
  }
}
