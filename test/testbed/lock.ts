import { createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/** In the kernel's own list of names, not on a disk: it is free at the moment at which its holder ends, however it ends. */
const name = '\0legate-testbed';
const everyMs = 200;

/**
 * Waits at most `waitMs` until no other process holds the testbed; gives what releases it. `busy` is asked for the words
 * of the failure, and told once when there is something to wait for.
 */
export async function takeLock(waitMs: number, busy: () => string, onWait: (by: string) => void): Promise<() => void> {
  const until = performance.now() + waitMs;
  for (let told = false; ; told = true) {
    const release = await tryLock();
    if (release !== undefined) return release;
    if (performance.now() > until) throw new Error(busy());
    if (!told) onWait(busy());
    await sleep(everyMs);
  }
}

function tryLock(): Promise<(() => void) | undefined> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy());
    server.unref();
    server.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE') resolve(undefined);
      else reject(error);
    });
    server.listen(name, () => resolve(() => server.close()));
  });
}
