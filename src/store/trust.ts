import type { Observable } from '../base/feed.ts';
import type { Credentials } from '../model/credentials.ts';
import type { Policy } from '../model/policy.ts';

/** What a store that hosts share needs to know of the mesh: who this host is to others, and whom it believes. */
export interface StoreTrust {
  readonly credentials: Observable<Credentials | undefined>;
  readonly policy: Observable<Policy | undefined>;
  /**
   * The version of a sealed policy that this mesh's policy key signed and that is not older than the one in use; undefined
   * for any other bytes.
   */
  readonly versionOf: (sealedPolicy: Uint8Array) => number | undefined;
  /** Whether others may reach this host's store in the clear, while it has no credentials. */
  readonly clearUnderlay: boolean;
  /** What a host is called, as far as that is known. */
  readonly nameOf: (hostId: string) => string | undefined;
}
