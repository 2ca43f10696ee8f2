import type { Conditions } from '../src/base/conditions.ts';
import type { Observable } from '../src/base/feed.ts';
import { emptySnapshot, type Service, type Snapshot } from '../src/catalog/snapshot.ts';

/** Lost hosts that a hint names. */
const maxHostsNamed = 4;

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
      else conditions.raise(condition(key), 'warning', describe(after), hintFor(after));
    }
    seen = snapshot;
  };
  look(snapshots.value);
  return snapshots.subscribe(look);
}

function isOut({ instances, usable }: Service): boolean {
  return usable.length === 0 && instances.length > 0 && instances.some((instance) => instance.status !== 'starting');
}

/** Instances of lost hosts have no check that could tell anything. */
function hintFor({ name, instances }: Service): string {
  const lost = instances.filter(({ status }) => status === 'lost');
  const hosts = [...new Set(lost.map(({ host }) => host))];
  const named = hosts.length > maxHostsNamed ? `${hosts.length} hosts` : hosts.join(', ');
  const cause = `${named} ${hosts.length === 1 ? 'is' : 'are'} lost: see legate hosts`;
  if (lost.length === instances.length) return cause;
  const checks = `legate instances ${name} shows each one's last check`;
  return lost.length === 0 ? checks : `${checks}; ${cause}`;
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
