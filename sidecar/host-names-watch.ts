import type { Conditions } from '../src/base/conditions.ts';
import type { Observable } from '../src/base/feed.ts';
import { emptySnapshot, type Snapshot } from '../src/catalog/snapshot.ts';

/** Hosts of one name that its condition tells of. */
const maxShown = 4;

/**
 * Says when several living hosts have one name: names and ids of instances then do not tell which is meant. One that is
 * lost is not told of, it may be the same machine before it was made anew. Costs what changed.
 */
export function watchHostNames(snapshots: Observable<Snapshot>, conditions: Conditions): () => void {
  let seen = emptySnapshot;
  /** Ids of living hosts with their addresses, by name. */
  const named = new Map<string, Map<string, string>>();
  const look = (snapshot: Snapshot): void => {
    const touched = new Set<string>();
    for (const { key, before, after } of snapshot.hosts.changesSince(seen.hosts)) {
      if (before?.alive === true && named.get(before.name)?.delete(key) === true) touched.add(before.name);
      if (after?.alive !== true) continue;
      const hosts = named.get(after.name) ?? new Map<string, string>();
      named.set(after.name, hosts.set(key, after.address));
      touched.add(after.name);
    }
    seen = snapshot;
    for (const name of touched) {
      const hosts = named.get(name) ?? new Map<string, string>();
      if (hosts.size === 0) named.delete(name);
      if (hosts.size < 2) conditions.clear(`host.name.${name}`);
      else {
        const shown = [...hosts].slice(0, maxShown).map(([id, address]) => `${address} (${id})`);
        const more = hosts.size > maxShown ? ` and ${hosts.size - maxShown} more` : '';
        const message = `${hosts.size} hosts are called ${name}: ${shown.join(', ')}${more}`;
        conditions.raise(
          `host.name.${name}`,
          'warning',
          message,
          'give each its own name: the option host, or its hostname',
        );
      }
    }
  };
  look(snapshots.value);
  return snapshots.subscribe(look);
}
