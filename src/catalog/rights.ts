import { Latest, type Observable } from '../base/feed.ts';
import { type InstanceRecord, isExternal } from '../model/instance.ts';
import { grantBook, type Policy } from '../model/policy.ts';

/** An instance that its host offers without the right to. */
export interface Ungranted {
  /** `web-2/db-5432`, as it would be called. */
  readonly id: string;
  readonly host: string;
  readonly hostId: string;
  readonly service: string;
}

/**
 * What the policy lets hosts bring into the picture: other ones that were revoked nothing, all others and this host itself
 * what they may offer. What is kept out for want of a grant is listed. What this host dials outside of
 * the mesh is no offer.
 */
export class Rights {
  readonly ungranted: Observable<readonly Ungranted[]>;
  readonly #latest = new Latest<readonly Ungranted[]>([]);
  readonly #selfId: string;
  /** By `<host id>/<name>`. */
  readonly #kept = new Map<string, { readonly hostId: string; readonly record: InstanceRecord }>();
  #changed = false;
  #mayOffer: (hostId: string, service: string) => boolean;
  #revoked: ReadonlySet<string>;

  constructor(selfId: string, policy: Policy | undefined) {
    this.#selfId = selfId;
    this.ungranted = this.#latest;
    this.#mayOffer = grantBook(policy);
    this.#revoked = revokedOf(policy);
  }

  get revoked(): readonly string[] {
    return [...this.#revoked];
  }

  isRevoked(hostId: string): boolean {
    return hostId !== this.#selfId && this.#revoked.has(hostId);
  }

  /** The record when it is to be shown. */
  admit(id: string, hostId: string, record: InstanceRecord | undefined): InstanceRecord | undefined {
    const isRevoked = this.isRevoked(hostId);
    const isOffer = record !== undefined && !(hostId === this.#selfId && isExternal(record));
    if (isOffer && !isRevoked && !this.#mayOffer(hostId, record.service)) {
      this.#kept.set(id, { hostId, record });
      this.#changed = true;
      return undefined;
    }
    if (this.#kept.delete(id)) this.#changed = true;
    return isRevoked ? undefined : record;
  }

  /** Goes by another policy: which hosts and which instances, by `<host id>/<name>`, have to be admitted anew. */
  change(
    policy: Policy | undefined,
    hostIds: Iterable<string>,
    instances: Iterable<readonly [string, InstanceRecord]>,
  ): { readonly hosts: readonly string[]; readonly instances: readonly string[] } {
    const [mayOffer, revoked] = [this.#mayOffer, this.#revoked];
    this.#mayOffer = grantBook(policy);
    this.#revoked = revokedOf(policy);
    const hosts = [...hostIds].filter((id) => revoked.has(id) !== this.#revoked.has(id));
    const touched: string[] = [];
    for (const [id, record] of instances) {
      const hostId = id.slice(0, id.indexOf('/'));
      if (mayOffer(hostId, record.service) !== this.#mayOffer(hostId, record.service)) touched.push(id);
    }
    return { hosts, instances: touched };
  }

  /** Tells what is kept out by now, if that has changed. */
  publish(nameOf: (hostId: string) => string): void {
    if (!this.#changed) return;
    this.#changed = false;
    const list = [...this.#kept.values()].map(({ hostId, record }) => {
      const host = nameOf(hostId);
      return Object.freeze({ id: `${host}/${record.name}`, host, hostId, service: record.service });
    });
    this.#latest.set(Object.freeze(list.sort((a, b) => (a.id < b.id ? -1 : 1))));
  }
}

function revokedOf(policy: Policy | undefined): ReadonlySet<string> {
  return new Set(policy?.revoked.map(({ hostId }) => hostId));
}
