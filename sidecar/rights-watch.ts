import type { Conditions } from '../src/base/conditions.ts';
import type { Observable } from '../src/base/feed.ts';
import type { Ungranted } from '../src/catalog/rights.ts';
import { emptySnapshot, type Snapshot } from '../src/catalog/snapshot.ts';
import { comeBackHint, grantBook, isRevoked, type Policy } from '../src/model/policy.ts';

const ownId = 'policy.own';
const othersId = 'policy.ungranted';
const revokedId = 'policy.revoked';
/** What a condition names of many. */
const maxNamed = 4;

export interface RightsWatchOptions {
  readonly self: { readonly hostId: string; readonly hostName: string };
  readonly policy: Observable<Policy | undefined>;
  readonly snapshots: Observable<Snapshot>;
  readonly ungranted: Observable<readonly Ungranted[]>;
  readonly conditions: Conditions;
}

/**
 * Says when this host offers what it may not, which all other hosts leave out; when others do, which is left out here; and
 * when this host was revoked. Costs what changed.
 */
export function watchRights({ self, policy, snapshots, ungranted, conditions }: RightsWatchOptions): () => void {
  let seen = emptySnapshot;
  /** This host's instances, by service. */
  const own = new Map<string, number>();
  const look = (): void => {
    const snapshot = snapshots.value;
    for (const { key, after } of snapshot.services.changesSince(seen.services)) {
      const count = after?.instances.filter(({ hostId }) => hostId === self.hostId).length ?? 0;
      if (count === 0) own.delete(key);
      else own.set(key, count);
    }
    seen = snapshot;
    const mayOffer = grantBook(policy.value);
    const services = [...own.keys()].filter((service) => !mayOffer(self.hostId, service)).sort();
    const [first] = services;
    if (first === undefined) conditions.clear(ownId);
    else {
      const message = `this host has no grant to offer ${named(services)}: all other hosts leave out what it has of it`;
      const hint = `on the authority's host: legate host allow ${self.hostName} ${first}`;
      conditions.raise(ownId, 'warning', message, hint);
    }
    if (!isRevoked(policy.value, self.hostId)) conditions.clear(revokedId);
    else {
      conditions.raise(revokedId, 'error', 'this host was revoked: no other host talks to it any more', comeBackHint);
    }
  };
  const lookAtOthers = (list: readonly Ungranted[]): void => {
    const pairs = [...new Set(list.map(({ host, service }) => `${host} offers ${service}`))].sort();
    const [first] = list;
    if (first === undefined) conditions.clear(othersId);
    else {
      const hint = `if that is right: legate host allow ${first.host} ${first.service}, on the authority's host`;
      conditions.raise(othersId, 'note', `${named(pairs)} without a grant: that is left out`, hint);
    }
  };
  look();
  lookAtOthers(ungranted.value);
  const ends = [policy.subscribe(look), snapshots.subscribe(look), ungranted.subscribe(lookAtOthers)];
  return () => {
    for (const end of ends) end();
  };
}

function named(texts: readonly string[]): string {
  const more = texts.length - maxNamed;
  return texts.slice(0, maxNamed).join(', ') + (more > 0 ? ` and ${more} more` : '');
}
