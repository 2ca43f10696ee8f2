import { fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { unless } from '../support/needs.ts';
import type { Bench, Figure } from './bench.ts';
import type { LifecycleMessage } from './lifecycle-role.ts';

/** All of it takes some twenty seconds; more than this and something hangs. */
const longestMs = 180_000;

/**
 * How long the real `legate agent` takes until it answers, and how long names and links are gone when it is restarted.
 * As root with nftables all of this runs in a network namespace of its own, so that virtual addresses can be measured
 * beside a sidecar of this machine.
 */
export const lifecycleBench: Bench = {
  name: 'lifecycle',
  skip: () => false,
  run(say) {
    const noNamespace = unless('root', 'nft', 'command:unshare', 'command:ip');
    if (noNamespace !== false) say(`without virtual addresses: ${noNamespace}`);
    const script = fileURLToPath(new URL('./lifecycle-role.js', import.meta.url));
    const isolated = ['--net', '--', 'sh', '-c', 'ip link set lo up && exec "$0" "$@"', process.execPath];
    const child = fork(script, [noNamespace === false ? 'vip' : 'plain'], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      ...(noNamespace === false && { execPath: 'unshare', execArgv: isolated }),
    });
    return new Promise<readonly Figure[]>((resolve, reject) => {
      const timer = setTimeout(() => {
        child.disconnect();
        reject(new Error(`it did not end within ${longestMs / 1000} s`));
      }, longestMs);
      child.on('message', (message: LifecycleMessage) => {
        if (message.kind === 'say') say(message.line);
        else if (message.kind === 'figures') resolve(message.figures);
        else reject(new Error(message.problem));
      });
      child.once('error', reject);
      child.once('exit', (status) => {
        clearTimeout(timer);
        reject(new Error(`the measuring process ended with ${status}`));
      });
    });
  },
};
