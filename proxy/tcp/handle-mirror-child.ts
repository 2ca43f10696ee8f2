/**
 * Runs as a child process of the sidecar (handle-mirror.ts): what it receives it sends back as often as it is asked, and
 * the operating system duplicates the descriptor on the way. It never listens or accepts, and ends with its parent.
 */
import process from 'node:process';
import type { MirrorRequest } from './handle-mirror.ts';

/** A listening handle as the runtime passes it between processes, not turned into a server. */
interface NativeHandle {
  close(): void;
}

process.on('disconnect', () => process.exit(0));
// Ctrl-C reaches the whole process group; the parent decides when this one ends.
process.on('SIGINT', () => undefined);

process.on('message', (message, received) => {
  const request = message as MirrorRequest;
  const handle = received as unknown as NativeHandle | undefined;
  let left = handle === undefined ? 1 : request.copies;
  const one = (): void => {
    left -= 1;
    if (left === 0) handle?.close();
  };
  for (let copy = left; copy > 0; copy -= 1) {
    process.send?.(request, handle as never, {}, (error) => {
      if (error !== null) process.exit(1);
      one();
    });
  }
});
