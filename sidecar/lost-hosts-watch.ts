import type { Conditions } from '../src/base/conditions.ts';
import type { Observable } from '../src/base/feed.ts';
import { emptySnapshot, type Snapshot } from '../src/catalog/snapshot.ts';

const condition = (id: string): string => `host.lost.${id}`;
const hint =
  'is the machine up, its sidecar running, and can it reach the store? One that will not come back is forgotten after a day';

/** Says which other hosts are lost, until they return or are forgotten. Costs what changed. */
export function watchLostHosts(snapshots: Observable<Snapshot>, conditions: Conditions, selfId: string): () => void {
  let seen = emptySnapshot;
  const look = (snapshot: Snapshot): void => {
    for (const { key, before, after } of snapshot.hosts.changesSince(seen.hosts)) {
      if (key === selfId) continue;
      if (after === undefined || after.alive) conditions.clear(condition(key));
      else if (before?.alive !== false || before.name !== after.name || before.address !== after.address) {
        conditions.raise(condition(key), 'warning', `host ${after.name} (${after.address}) is lost`, hint);
      }
    }
    seen = snapshot;
  };
  look(snapshots.value);
  return snapshots.subscribe(look);
}
