import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import type { Observable } from '../src/base/feed.ts';
import { emptySnapshot, type Service, type Snapshot } from '../src/catalog/snapshot.ts';
import { appearanceGraceMs } from './lost-hosts-watch.ts';

/** Lost hosts that a hint names. */
const maxHostsNamed = 4;

const condition = (name: string): string => `service.${name}.usable`;

/**
 * Says when a service that has instances has none that can be used, and when it has again. One whose instances are all
 * still starting is given time, and so is one whose instances all appeared before the sign of life of their hosts. Costs
 * what changed.
 */
export function watchUsable(snapshots: Observable<Snapshot>, conditions: Conditions, clock: Clock): () => void {
  let seen = emptySnapshot;
  const appearing = new Map<string, () => void>();
  const settle = (name: string): void => {
    appearing.get(name)?.();
    appearing.delete(name);
  };
  const raise = (name: string, service: Service): void =>
    conditions.raise(condition(name), 'warning', describe(service), hintFor(service));
  const onTime = (name: string): void => {
    appearing.delete(name);
    const service = seen.services.get(name);
    if (service !== undefined && isOut(service)) raise(name, service);
  };
  const look = (snapshot: Snapshot): void => {
    for (const { key, before, after } of snapshot.services.changesSince(seen.services)) {
      if (after === undefined || !isOut(after)) {
        settle(key);
        conditions.clear(condition(key));
      } else if (appearing.has(key) && after.instances.every(({ status }) => status === 'lost')) {
      } else if (!appearsLost(before, after)) {
        settle(key);
        raise(key, after);
      } else {
        appearing.set(
          key,
          clock.after(appearanceGraceMs, () => onTime(key)),
        );
      }
    }
    seen = snapshot;
  };
  look(snapshots.value);
  const unsubscribe = snapshots.subscribe(look);
  return () => {
    unsubscribe();
    for (const cancel of appearing.values()) cancel();
  };
}

function isOut({ instances, usable }: Service): boolean {
  return usable.length === 0 && instances.length > 0 && instances.some((instance) => instance.status !== 'starting');
}

/** Whether all of its instances are new, and of hosts that have shown no sign of life yet. */
function appearsLost(before: Service | undefined, { instances }: Service): boolean {
  const known = new Set(before?.instances.map(({ id }) => id));
  return instances.every(({ id, status }) => status === 'lost' && !known.has(id));
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
