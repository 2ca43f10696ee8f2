import type { Conditions } from '../src/base/conditions.ts';
import type { Observable } from '../src/base/feed.ts';
import type { Ungranted } from '../src/catalog/rights.ts';
import { emptySnapshot, type Snapshot } from '../src/catalog/snapshot.ts';
import { comeBackHint, isRevoked, type Policy } from '../src/model/policy.ts';
import { grantAdvice, type Offer, offersOf } from './grant-advice.ts';

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
 * Says when this host offers what it may not, which every host leaves out, and this one too; when others do; and when this
 * host was revoked. Costs what changed, and while something is left out, a look at who offers what whenever that changes.
 */
export function watchRights({ self, policy, snapshots, ungranted, conditions }: RightsWatchOptions): () => void {
  let seen = emptySnapshot;
  /** Who has instances in the picture, by service. */
  const offered = new Map<string, readonly Offer[]>();
  const tell = (): void => {
    const own = ungranted.value.filter(({ hostId }) => hostId === self.hostId);
    const others = ungranted.value.filter(({ hostId }) => hostId !== self.hostId);
    const advice = (wanted: Offer): string => grantAdvice(policy.value, wanted, [...offered.values()].flat());
    if (own[0] === undefined) conditions.clear(ownId);
    else {
      const services = [...new Set(own.map(({ service }) => service))].sort();
      const message = `this host has no grant to offer ${named(services)}: what it has of it is left out everywhere, here too`;
      conditions.raise(ownId, 'warning', message, advice({ ...own[0], service: services[0] ?? own[0].service }));
    }
    if (others[0] === undefined) conditions.clear(othersId);
    else {
      const pairs = [...new Set(others.map(({ host, service }) => `${host} offers ${service}`))].sort();
      const message = `${named(pairs)} without a grant: that is left out`;
      conditions.raise(othersId, 'note', message, `if it is to be offered, ${advice(others[0])}`);
    }
    if (!isRevoked(policy.value, self.hostId)) conditions.clear(revokedId);
    else {
      conditions.raise(revokedId, 'error', 'this host was revoked: no other host talks to it any more', comeBackHint);
    }
  };
  const look = (snapshot: Snapshot): void => {
    let isChanged = false;
    for (const { key, after } of snapshot.services.changesSince(seen.services)) {
      const offers = after === undefined ? [] : offersOf(after);
      if (isSame(offers, offered.get(key) ?? [])) continue;
      isChanged = true;
      if (offers.length === 0) offered.delete(key);
      else offered.set(key, offers);
    }
    seen = snapshot;
    if (isChanged && ungranted.value.length > 0) tell();
  };
  look(snapshots.value);
  tell();
  const ends = [policy.subscribe(tell), snapshots.subscribe(look), ungranted.subscribe(tell)];
  return () => {
    for (const end of ends) end();
  };
}

function isSame(one: readonly Offer[], other: readonly Offer[]): boolean {
  return (
    one.length === other.length &&
    one.every(({ hostId, host }, at) => {
      return other[at]?.hostId === hostId && other[at].host === host;
    })
  );
}

function named(texts: readonly string[]): string {
  const more = texts.length - maxNamed;
  return texts.slice(0, maxNamed).join(', ') + (more > 0 ? ` and ${more} more` : '');
}
