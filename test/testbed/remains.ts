import { existsSync, readdirSync, readFileSync, rmdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { run } from '../support/agent.ts';
import { waitFor } from '../support/wait.ts';
import { cgroupName, netnsPrefix, type State, stateFile } from './plan.ts';

/** A busy machine takes seconds to end the containers of several hosts. */
const endTimeoutMs = 30_000;
const controlGroups = '/sys/fs/cgroup';

export function readState(): State | undefined {
  if (!existsSync(stateFile)) return undefined;
  return JSON.parse(readFileSync(stateFile, 'utf8')) as State;
}

/** The network namespaces of a testbed that are there, however it came to them. */
export function testbedNamespaces(): string[] {
  const folder = '/run/netns';
  return existsSync(folder) ? readdirSync(folder).filter((name) => name.startsWith(netnsPrefix)) : [];
}

/** The control groups of a testbed, in each hierarchy. */
export function testbedControlGroups(): string[] {
  if (!existsSync(controlGroups)) return [];
  const hierarchies = readdirSync(controlGroups, { withFileTypes: true }).filter((entry) => entry.isDirectory());
  return [controlGroups, ...hierarchies.map((entry) => join(controlGroups, entry.name))]
    .map((hierarchy) => join(hierarchy, cgroupName))
    .filter((group) => existsSync(group));
}

/**
 * Removes everything that a testbed ever made, by name and whatever state it is in: processes, namespaces with their
 * cables, control groups, folder. Only for who holds the lock.
 */
export async function removeAll(): Promise<void> {
  const state = readState();
  for (const name of testbedNamespaces()) {
    // The first process of a host is among them, and takes everything else of it along.
    const noneLeft = async (): Promise<boolean> => {
      const pids = (await run('ip', ['netns', 'pids', name])).stdout.split('\n').filter(Boolean);
      for (const pid of pids) endProcess(Number(pid));
      return pids.length === 0;
    };
    await waitFor(`the processes in ${name} to end`, noneLeft, { timeoutMs: endTimeoutMs });
    await run('ip', ['netns', 'del', name]);
  }
  for (const group of testbedControlGroups()) {
    await waitFor(`${group} to be empty`, () => removeGroup(group), { timeoutMs: endTimeoutMs });
  }
  if (state !== undefined) rmSync(state.folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
  rmSync(stateFile, { force: true });
}

function endProcess(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It has ended meanwhile.
  }
}

/** A group goes when those in it have gone, and the last process in it has been reaped. */
function removeGroup(group: string): boolean {
  try {
    for (const entry of readdirSync(group, { withFileTypes: true })) {
      if (entry.isDirectory() && !removeGroup(join(group, entry.name))) return false;
    }
    rmdirSync(group);
    return true;
  } catch {
    return !existsSync(group);
  }
}
