import { readdirSync, readFileSync } from 'node:fs';

/** When a process was started, in the kernel's ticks: with its id it is known for ever. Undefined: it has ended. */
export function startTimeOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const [state, ...rest] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    // Field 22 of proc(5); the state is field 3. A zombie has ended.
    return state === 'Z' || state === 'X' ? undefined : rest[18];
  } catch {
    return undefined;
  }
}

export function childrenOf(pid: number): number[] {
  try {
    const text = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8');
    return text.split(' ').filter(Boolean).map(Number);
  } catch {
    return [];
  }
}

/** The processes that live in one process namespace, given by what its link reads, such as `pid:[4026532201]`. */
export function countIn(pidNamespace: string, namespaceOf: (pid: string) => string | undefined): number {
  return readdirSync('/proc').filter((name) => /^\d+$/.test(name) && namespaceOf(name) === pidNamespace).length;
}
