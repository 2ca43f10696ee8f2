import type { Observable } from '../base/feed.ts';
import type { Credentials } from '../model/credentials.ts';
import type { Policy } from '../model/policy.ts';

/** What a store that hosts share needs to know of the mesh: who this host is to others, and whom it believes. */
export interface StoreTrust {
  readonly credentials: Observable<Credentials | undefined>;
  readonly policy: Observable<Policy | undefined>;
  /** Whether others may reach this host's store in the clear, while it has no credentials. */
  readonly clearUnderlay: boolean;
  /** What a host is called, as far as that is known. */
  readonly nameOf: (hostId: string) => string | undefined;
}
