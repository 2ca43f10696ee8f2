import type { ChildProcess } from 'node:child_process';
import type { Wire } from './peer.ts';

/**
 * The channel of Node between a process and its child, from either end. Undocumented forms of handles are sent as they are
 * (see shared-listeners.ts).
 */
export function wireOf(end: ChildProcess | NodeJS.Process): Wire {
  return {
    send(message, handle) {
      if (!end.connected) return;
      // A channel that breaks while it sends says so by its end.
      const done = (): void => undefined;
      Reflect.apply(end.send as (...args: unknown[]) => unknown, end, [message, handle, {}, done]);
    },
    onMessage: (listener) => void (end as ChildProcess).on('message', (message, handle) => listener(message, handle)),
    onClose: (listener) => void (end as ChildProcess).once('disconnect', listener),
  };
}
