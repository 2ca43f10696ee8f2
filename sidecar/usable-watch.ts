import type { Conditions } from '../src/base/conditions.ts';
import type { Observable } from '../src/base/feed.ts';
import { emptySnapshot, type Service, type Snapshot } from '../src/catalog/snapshot.ts';

const condition = (name: string): string => `service.${name}.usable`;

/**
 * Says when a service that has instances has none that can be used, and when it has again. One whose instances are all
 * still starting is given time. Costs what changed.
 */
export function watchUsable(snapshots: Observable<Snapshot>, conditions: Conditions): () => void {
  let seen = emptySnapshot;
  const look = (snapshot: Snapshot): void => {
    for (const { key, after } of snapshot.services.changesSince(seen.services)) {
      if (after === undefined || !isOut(after)) conditions.clear(condition(key));
      else
        conditions.raise(
          condition(key),
          'warning',
          describe(after),
          `legate instances ${key} shows each one's last check`,
        );
    }
    seen = snapshot;
  };
  look(snapshots.value);
  return snapshots.subscribe(look);
}

function isOut({ instances, usable }: Service): boolean {
  return usable.length === 0 && instances.length > 0 && instances.some((instance) => instance.status !== 'starting');
}

function describe({ name, instances }: Service): string {
  const counts = new Map<string, number>();
  for (const { draining, status } of instances) {
    const word = draining ? 'draining' : status;
    counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  const words = [...counts].map(([word, count]) => `${count} ${word}`).join(', ');
  return `${name}: none of its instances is usable (${words})`;
}
