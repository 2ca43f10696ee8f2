import type { Socket } from 'node:net';

/**
 * Ends a socket so that its peer sees a reset; `destroy()` alone would look like a clean end. While a shutdown is under
 * way the system refuses that, and the peer has been told the end already; while connecting there is nobody to tell.
 */
export function abort(socket: Socket, connected: boolean): void {
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
