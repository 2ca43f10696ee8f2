import type { Test } from 'tap';
import { Latest } from '../../src/base/feed.ts';
import { silentLog } from '../../src/base/log.ts';
import type { Service } from '../../src/catalog/snapshot.ts';
import type { Instance } from '../../src/model/instance.ts';
import type { Policy } from '../../src/model/policy.ts';
import { waitFor } from '../../test/support/wait.ts';
import { Bed, instanceOf, otherHost, ownHost, startBed } from '../link-plane.fixture.ts';
import { Permission } from '../permission.ts';
import { FakeTunnels } from './fake-tunnels.fixture.ts';

export const thirdHost = '00000000000000cc';
export const hostNames: Readonly<Record<string, string>> = {
  [ownHost]: 'here',
  [otherHost]: 'there',
  [thirdHost]: 'third',
};

export function at(hostId: string, name: string, port: number, fields: Partial<Instance> = {}): Instance {
  return instanceOf({ name, port, hostId, host: hostNames[hostId] ?? hostId, ...fields });
}

/** Links of one host, and the hosts at the other ends of its tunnels. */
export async function mesh(t: Test, services: readonly Service[], peers: readonly string[] = [otherHost]) {
  const tunnels = new FakeTunnels(ownHost);
  const policy = new Latest<Policy | undefined>(undefined);
  const bed = new Bed({ services, tunnels });
  const { metrics } = bed;
  const far = new Map<string, Bed>();
  for (const hostId of peers) {
    const clock = { nowMs: () => Date.now(), monotonicMs: () => performance.now() } as never;
    const permission = new Permission({ policy, clock, log: silentLog, metrics });
    const peer = await startBed(t, { services, self: { hostId }, links: [], permission });
    far.set(hostId, peer);
    tunnels.join(hostId, peer.plane.acceptStream);
  }
  await bed.plane.start();
  t.teardown(() => bed.plane.close());
  const all = [bed, ...far.values()];
  const set = (...next: readonly Service[]): void => {
    for (const each of all) each.set(...next);
  };
  const quiet = (): Promise<unknown> =>
    waitFor('all is closed', () => tunnels.active === 0 && all.every((each) => each.plane.activeConnections() === 0));
  const [first] = far.values();
  if (first === undefined) throw new Error('no peer');
  return { bed, tunnels, policy, far, peer: first, set, quiet };
}
