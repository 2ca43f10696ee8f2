import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import type { Observable } from '../src/base/feed.ts';
import { type Brake, emptySnapshot, type Service, type Snapshot } from '../src/catalog/snapshot.ts';
import { isUsableStatus } from '../src/model/instance.ts';

/** How often at most the count in the message follows the instances: the log has a line for each new message. */
const refreshMs = 5000;

const condition = (name: string): string => `service.${name}.brake`;

/**
 * Says when instances of a service are used although they are critical or lost, because most of them turned so at once,
 * and when that is over. Costs what changed.
 */
export function watchBrakes(snapshots: Observable<Snapshot>, conditions: Conditions, clock: Clock): () => void {
  let seen = emptySnapshot;
  let cancelRefresh: (() => void) | undefined;
  /** Services whose numbers have changed since they were told. */
  const changed = new Set<string>();
  const tell = (service: Service, brake: Brake): void =>
    conditions.raise(condition(service.name), 'warning', describe(service, brake), hintFor(service));
  const refresh = (): void => {
    cancelRefresh = undefined;
    for (const name of changed) {
      const service = seen.services.get(name);
      if (service?.brake !== undefined) tell(service, service.brake);
    }
    changed.clear();
  };
  const look = (snapshot: Snapshot): void => {
    for (const { key, before, after } of snapshot.services.changesSince(seen.services)) {
      if (after?.brake === undefined) conditions.clear(condition(key));
      else if (before?.brake !== after.brake) tell(after, after.brake);
      else if (describe(before, after.brake) !== describe(after, after.brake)) changed.add(key);
    }
    seen = snapshot;
    if (changed.size > 0) cancelRefresh ??= clock.after(refreshMs, refresh);
  };
  look(snapshots.value);
  const unsubscribe = snapshots.subscribe(look);
  return () => {
    unsubscribe();
    cancelRefresh?.();
  };
}

/** Those of lost hosts have no check that could tell anything. */
function hintFor({ name, usable }: Service): string {
  const turned = usable.filter(({ status }) => !isUsableStatus(status));
  const look = turned.every(({ status }) => status === 'lost')
    ? 'their hosts are lost: see legate hosts'
    : `see what they have in common: legate instances ${name} shows each one's last check`;
  return `${look}; those that really are down are retried elsewhere, legate drain takes one out`;
}

function describe({ name, instances, usable }: Service, { untilMs }: Brake): string {
  const turned = usable.reduce((count, { status }) => count + (isUsableStatus(status) ? 0 : 1), 0);
  const until = new Date(untilMs).toISOString().replace(/\.\d+Z$/, 'Z');
  const how = usable.some(({ status }) => status === 'lost') ? 'turned critical or lost' : 'turned critical';
  return `${name}: ${turned} of ${instances.length} instances ${how} within 30 s; all are still used, at most until ${until}`;
}
