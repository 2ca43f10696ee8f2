import type { Http2Stream } from 'node:http2';

/**
 * Sessions of the runtime call their listeners, `process.nextTick` and promises in the middle of what they read. Whatever
 * makes them send at once there, such as a reset, frees streams that the reader goes on to use, and corrupts the heap
 * (CVE-2026-56848; Node 20 has no release without it). No immediate comes in the middle of that.
 */
export function resetStream(stream: Http2Stream, code: number): void {
  setImmediate(closeStream, stream, code);
}

/** Does nothing to a stream that is closed by then. */
function closeStream(stream: Http2Stream, code: number): void {
  stream.close(code);
}
