import { join } from 'node:path';

/** What is fixed about a testbed: there is one at a time, and everything of it can be found by name. */

/** Tells whoever comes next what there is, and what a testbed that ended badly left behind. */
export const stateFile = '/run/legate-testbed.json';
/** All of a testbed's control groups are below one of this name. */
export const cgroupName = 'legate-testbed';
/** Network namespaces of testbeds, and only these, begin so. */
export const netnsPrefix = 'legate-tb-';
export const switchNetns = `${netnsPrefix}switch`;
export const maxHosts = 6;

export interface HostPlan {
  /** From 1. */
  readonly number: number;
  readonly name: string;
  readonly address: string;
  readonly mac: string;
  readonly netns: string;
  /** Its port on the switch. */
  readonly port: string;
  /** Everything of it on the machine's disk. */
  readonly folder: string;
  /** An unpacked newer engine (see engines.ts); none: the machine's own. */
  readonly engine?: string;
}

export function planHost(folder: string, number: number, engine?: string): HostPlan {
  return {
    number,
    name: `host-${number}`,
    address: `10.77.0.${number}`,
    mac: `02:77:00:00:00:0${number}`,
    netns: `${netnsPrefix}${number}`,
    port: `host${number}`,
    folder: join(folder, `host-${number}`),
    ...(engine === undefined ? {} : { engine }),
  };
}

export interface State {
  /** The process that brought it up and takes it down, or nobody: brought up by hand, it stays. */
  readonly owner?: { readonly pid: number; readonly startTime: string };
  readonly since: string;
  readonly folder: string;
  readonly hosts: readonly HostPlan[];
}
