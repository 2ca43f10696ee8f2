import type { Conditions } from '../../src/base/conditions.ts';
import type { Observable } from '../../src/base/feed.ts';
import { emptySnapshot, type Service, type Snapshot } from '../../src/catalog/snapshot.ts';
import { sameSetting } from '../../src/model/service-settings.ts';
import type { TakenBack } from '../../src/model/taken-back.ts';
import { seenText, splitCommand } from './words.ts';

const condition = (service: string): string => `split.taken-back.${service}`;

/** Says which sides of splits a guard has taken back, until somebody sets the split. Costs what changed. */
export function watchTakenBack(snapshots: Observable<Snapshot>, conditions: Conditions): () => void {
  let seen = emptySnapshot;
  const look = (snapshot: Snapshot): void => {
    for (const { key, before, after } of snapshot.services.changesSince(seen.services)) {
      if (after?.takenBack === undefined) {
        if (before?.takenBack !== undefined) conditions.clear(condition(key));
      } else if (!sameSetting(before?.takenBack, after.takenBack)) tell(after, after.takenBack, snapshot);
    }
    seen = snapshot;
  };
  const tell = (service: Service, takenBack: TakenBack, { hosts }: Snapshot): void => {
    const { tag, weight, hostId } = takenBack;
    const { name, split = {} } = service;
    const host = hosts.get(hostId)?.name ?? hostId;
    const message = `${name}: ${tag} was taken back to 0 by the guard of ${host}: ${seenText(takenBack)}`;
    const again = splitCommand(name, { ...split, [tag]: weight });
    const hint = `when it is mended, try again: ${again}; to leave it so and end this: ${splitCommand(name, split)}`;
    conditions.raise(condition(name), 'warning', message, hint, { 'service.name': name, 'split.tag': tag });
  };
  look(snapshots.value);
  return snapshots.subscribe(look);
}
