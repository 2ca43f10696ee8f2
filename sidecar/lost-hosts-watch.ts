import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import type { Observable } from '../src/base/feed.ts';
import { emptySnapshot, type Snapshot } from '../src/catalog/snapshot.ts';
import type { Host } from '../src/model/host.ts';

/** A host writes its records first and its sign of life after them; one that is new is given this long for it. */
export const appearanceGraceMs = 5000;

const condition = (id: string): string => `host.lost.${id}`;
const hint =
  'is the machine up, its sidecar running, and can it reach the store? One that will not come back is forgotten after a day';

/** Says which other hosts are lost, until they return or are forgotten. Costs what changed. */
export function watchLostHosts(
  snapshots: Observable<Snapshot>,
  conditions: Conditions,
  { selfId, clock }: { readonly selfId: string; readonly clock: Clock },
): () => void {
  let seen = emptySnapshot;
  /** What ends the waiting for the first sign of life of a host. */
  const appearing = new Map<string, () => void>();
  const settle = (id: string): void => {
    appearing.get(id)?.();
    appearing.delete(id);
  };
  const raise = (id: string, { name, address }: Host): void =>
    conditions.raise(condition(id), 'warning', `host ${name} (${address}) is lost`, hint);
  const onTime = (id: string): void => {
    appearing.delete(id);
    const host = seen.hosts.get(id);
    if (host?.alive === false) raise(id, host);
  };
  const look = (snapshot: Snapshot): void => {
    for (const { key, before, after } of snapshot.hosts.changesSince(seen.hosts)) {
      if (key === selfId) continue;
      if (after === undefined || after.alive) {
        settle(key);
        conditions.clear(condition(key));
      } else if (before === undefined) {
        settle(key);
        appearing.set(
          key,
          clock.after(appearanceGraceMs, () => onTime(key)),
        );
      } else if (before.alive || before.name !== after.name || before.address !== after.address) {
        if (!appearing.has(key)) raise(key, after);
      }
    }
    seen = snapshot;
  };
  look(snapshots.value);
  const unsubscribe = snapshots.subscribe(look);
  return () => {
    unsubscribe();
    for (const id of [...appearing.keys()]) settle(id);
  };
}
