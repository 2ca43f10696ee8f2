import { createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/**
 * `hosts`: who changes which hosts there are, or owns them. `turn`: which test file is served, before it takes the first.
 * The names are in the kernel's own list, not on a disk: they are free at the moment at which their holder ends, however
 * it ends.
 */
const names = { hosts: '\0legate-testbed', turn: '\0legate-testbed-turn' } as const;
const everyMs = 200;

export interface LockOptions {
  readonly lock: keyof typeof names;
  /** Longest wait for it. */
  readonly waitMs: number;
  /** The words of the failure, and what is told once when there is something to wait for. */
  readonly busy: () => string;
  readonly say: (line: string) => void;
}

/** Waits until no other process holds the lock; gives what releases it. */
export async function takeLock({ lock, waitMs, busy, say }: LockOptions): Promise<() => void> {
  const until = performance.now() + waitMs;
  for (let told = false; ; told = true) {
    const release = await tryLock(names[lock]);
    if (release !== undefined) return release;
    if (performance.now() > until) throw new Error(busy());
    if (!told) say(`${busy()}: waiting`);
    await sleep(everyMs);
  }
}

function tryLock(name: string): Promise<(() => void) | undefined> {
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
