import { fork } from 'node:child_process';
import { describeError } from '../../src/base/errors.ts';
import type { Teardown } from '../support/agent.ts';
import { unless } from '../support/needs.ts';
import type { Figure } from './bench.ts';

/** What a measuring process tells the benchmark, its parent. */
type RoleMessage =
  | { readonly kind: 'say'; readonly line: string }
  | { readonly kind: 'figures'; readonly figures: readonly Figure[] }
  | { readonly kind: 'failed'; readonly problem: string };

export type Say = (line: string) => void;

/**
 * Runs a measuring process to its end, at most `longestMs`. As root with nftables it gets a network namespace of its own,
 * so that virtual addresses can be measured beside a sidecar of this machine; its first argument says `vip` or `plain`, and
 * `further` ones follow.
 */
export function runIsolated(
  script: string,
  longestMs: number,
  say: Say,
  further: readonly string[] = [],
): Promise<readonly Figure[]> {
  const noNamespace = unless('root', 'nft', 'command:unshare', 'command:ip');
  if (noNamespace !== false) say(`without virtual addresses: ${noNamespace}`);
  const isolated = ['--net', '--', 'sh', '-c', 'ip link set lo up && exec "$0" "$@"', process.execPath];
  const child = fork(script, [noNamespace === false ? 'vip' : 'plain', ...further], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    ...(noNamespace === false && { execPath: 'unshare', execArgv: isolated }),
  });
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      child.disconnect();
      reject(new Error(`it did not end within ${longestMs / 1000} s`));
    }, longestMs);
    child.on('message', (message: RoleMessage) => {
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
}

/** The other end of `runIsolated`: measures, takes back what it started, and hands over the figures. */
export async function serveRole(
  measure: (withVips: boolean, t: Teardown, say: Say) => Promise<readonly Figure[]>,
): Promise<void> {
  const tell = process.send?.bind(process);
  if (tell === undefined) return;
  const send = (message: RoleMessage): void => void (process.connected && tell(message));
  const ends: (() => unknown)[] = [];
  const takeBack = async (): Promise<void> => {
    for (const end of ends.splice(0).reverse()) await end();
  };
  // Whoever asks, and be it the second time, waits until all is taken back.
  let cleaned: Promise<void> = Promise.resolve();
  const cleanUp = (): Promise<void> => {
    cleaned = cleaned.then(takeBack);
    return cleaned;
  };
  // The parent has gone: whatever was started goes as well.
  process.on('disconnect', () => void cleanUp().finally(() => process.exit(1)));
  try {
    const t = { teardown: (end: () => unknown): void => void ends.push(end) };
    const figures = await measure(process.argv[2] === 'vip', t, (line) => send({ kind: 'say', line }));
    await cleanUp();
    send({ kind: 'figures', figures });
  } catch (error) {
    await cleanUp();
    const cause = error instanceof Error && error.cause !== undefined ? ` (${describeError(error.cause)})` : '';
    send({ kind: 'failed', problem: `${describeError(error)}${cause}` });
  }
  // Probes of a measurement that failed may still run; the process ends when the parent has heard how it went.
  if (process.connected) process.disconnect();
}
