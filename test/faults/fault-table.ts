import { setTimeout as sleep } from 'node:timers/promises';
import { monotonicMs } from '../support/monotonic.ts';
import { authorityHost, type FaultMesh } from './fault-mesh.ts';

/** Which requests may fail: none, those under way when the fault began, or those until it was healed, too. */
export type MayFail = 'none' | 'in flight' | 'until healed';

/** What was seen of one fault, from just before it until everything was whole again. */
export interface FaultRow {
  readonly fault: string;
  readonly mayFail: MayFail;
  readonly asked: number;
  readonly failed: number;
  /** Of those failed: how many had begun when the fault had been made. */
  readonly inFlight: number;
  /** Of those failed: how many began when it was healed. */
  readonly afterwards: number;
  readonly problems: readonly string[];
  readonly slowestMs: number;
  readonly longestGapMs: number;
  /** From the healing until host 1 used both instances and every sidecar reached the store. */
  readonly wholeAgainMs: number;
}

export interface Fault {
  readonly name: string;
  readonly mayFail: MayFail;
  /** How long it lasts, milliseconds. */
  readonly lastsMs: number;
  readonly make: (mesh: FaultMesh) => Promise<void>;
  readonly heal: (mesh: FaultMesh) => Promise<void>;
}

/** What only meshes with tunnels can suffer. */
function tunnelFaultsOf(mesh: FaultMesh): readonly Fault[] {
  const { testbed } = mesh;
  const killed = (host: number, whose: string): Fault => ({
    name: `sidecar of the ${whose} killed, and started again`,
    mayFail: 'until healed',
    lastsMs: 0,
    make: async () => void (await mesh.sidecar(host).kill('SIGKILL')),
    heal: () => mesh.startSidecar(host),
  });
  const replaced = (host: number, whose: string): Fault => ({
    name: `sidecar of the ${whose} replaced`,
    mayFail: 'none',
    lastsMs: 1000,
    make: () => mesh.replaceSidecar(host),
    heal: () => Promise.resolve(),
  });
  return [
    killed(2, 'backend’s host'),
    killed(1, 'consumer’s host'),
    replaced(2, 'backend’s host'),
    replaced(1, 'consumer’s host'),
    {
      name: 'port 7711 of host 2 blocked',
      mayFail: 'in flight',
      lastsMs: 6000,
      make: () => mesh.blockTunnel(2),
      heal: () => mesh.unblockTunnel(2),
    },
    {
      name: 'root of the authority rotated',
      mayFail: 'none',
      lastsMs: 8000,
      make: async () => void (await testbed.host(authorityHost).run('legate', 'ca', 'rotate')),
      heal: () => Promise.resolve(),
    },
  ];
}

/** The faults, in the order in which they are made; `storeDownMs`: how long the store is gone as a whole. */
export function faultsOf(mesh: FaultMesh, storeDownMs: number): readonly Fault[] {
  const { testbed, store } = mesh;
  let leader = 0;
  const clustered = store.members.length > 1;
  const whole: Fault[] = [
    {
      name: `all of the store killed for ${storeDownMs / 1000} s`,
      mayFail: 'none',
      lastsMs: storeDownMs,
      make: async () => void (await Promise.all(store.members.map((host) => store.kill(host)))),
      heal: async () => void (await Promise.all(store.members.map((host) => store.restart(host)))),
    },
  ];
  const cluster: Fault[] = [
    {
      name: 'store leader killed',
      mayFail: 'none',
      lastsMs: 4000,
      make: async () => {
        leader = await store.leader();
        await store.kill(leader);
      },
      heal: () => store.restart(leader),
    },
    {
      name: 'store leader cut off',
      mayFail: 'none',
      lastsMs: 6000,
      make: async () => {
        leader = await store.leader();
        await mesh.blockStore(leader);
      },
      heal: () => mesh.unblockStore(leader),
    },
  ];
  return [
    ...(mesh.way === 'tunnels' ? tunnelFaultsOf(mesh) : []),
    {
      name: 'backend killed',
      mayFail: 'in flight',
      lastsMs: 2000,
      make: async () => void (await testbed.host(2).docker('kill', 'web')),
      heal: async () => void (await testbed.host(2).docker('start', 'web')),
    },
    ...(clustered ? cluster : []),
    {
      name: 'consumer’s host cut from the store, not from the backends',
      mayFail: 'none',
      lastsMs: 8000,
      make: () => mesh.blockStore(1, { local: true }),
      heal: () => mesh.unblockStore(1),
    },
    ...whole,
    {
      name: 'one-way cut: nothing passes from host 1 to host 2',
      mayFail: 'in flight',
      lastsMs: 6000,
      make: () => testbed.cutOneWay(1, 2),
      heal: () => testbed.heal(1, 2),
    },
    {
      name: 'backend’s host powered off',
      mayFail: 'in flight',
      lastsMs: 8000,
      make: () => testbed.host(2).powerOff(),
      heal: async () => {
        await testbed.host(2).boot();
        if (clustered) await store.restart(2);
        await mesh.startSidecar(2);
      },
    },
  ];
}

/** How many requests failed that may not have. */
export function wronglyFailed({ mayFail, failed, inFlight, afterwards }: FaultRow): number {
  if (mayFail === 'until healed') return afterwards;
  return mayFail === 'none' ? failed : failed - inFlight;
}

/** Makes each fault while the traffic goes on, heals it, waits until all is whole, and tells what the consumer saw. */
export async function runFaults(
  mesh: FaultMesh,
  faults: readonly Fault[],
  say: (row: FaultRow) => void = () => undefined,
): Promise<FaultRow[]> {
  const rows: FaultRow[] = [];
  for (const fault of faults) {
    await mesh.startTrafficAnew();
    await sleep(500);
    await fault.make(mesh);
    const madeMs = monotonicMs();
    await sleep(fault.lastsMs);
    await fault.heal(mesh);
    const healedMs = monotonicMs();
    await mesh.bothUsed();
    await mesh.storeAnswers();
    const wholeAgainMs = monotonicMs() - healedMs;
    await sleep(500);
    const { asked, failed, slowestMs, longestGapMs } = await mesh.traffic();
    const row: FaultRow = {
      fault: fault.name,
      mayFail: fault.mayFail,
      asked,
      failed: failed.length,
      inFlight: failed.filter(({ beganMs }) => beganMs <= madeMs).length,
      afterwards: failed.filter(({ beganMs }) => beganMs > healedMs).length,
      problems: [...new Set(failed.map(({ problem }) => problem))],
      slowestMs,
      longestGapMs,
      wholeAgainMs,
    };
    rows.push(row);
    say(row);
  }
  return rows;
}
