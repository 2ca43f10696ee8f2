import { readFileSync, readlinkSync } from 'node:fs';

/**
 * The kernel's start time of a process, which tells a living one from a reused pid; undefined when it is gone. One that
 * ended and that nobody has waited for is gone, too (proc_pid_stat(5): states Z and X).
 */
export function startTimeOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return /^[ZXx]$/.test(fields[0] ?? '') ? undefined : fields[19];
  } catch {
    return undefined;
  }
}

/** Keeps this process alive while `work` goes on: a clock's timers do not, and a command may have nothing else meanwhile. */
export async function whileAlive<T>(work: () => Promise<T>): Promise<T> {
  const alive = setInterval(() => undefined, 60_000);
  try {
    return await work();
  } finally {
    clearInterval(alive);
  }
}

/** Names this process among all that its kernel runs: its pid namespace, pid and start time. */
export function processName(): string {
  return processNameOf(process.pid);
}

/** The name of a process of this pid namespace. */
export function processNameOf(pid: number): string {
  return `${pidNamespace()} ${pid} ${startTimeOf(pid) ?? ''}`;
}

/** Whether the process of that name still runs; undefined when it cannot be seen from here. Same boot assumed. */
export function isRunning(name: string): boolean | undefined {
  const [namespace = '', pid = '', startTime = ''] = name.split(' ');
  if (namespace === '' || namespace !== pidNamespace() || !/^\d{1,10}$/.test(pid) || startTime === '') return undefined;
  return startTimeOf(Number(pid)) === startTime;
}

function pidNamespace(): string {
  try {
    return readlinkSync('/proc/self/ns/pid').replace(/\D/g, '');
  } catch {
    return '';
  }
}
