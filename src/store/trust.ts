import type { Observable } from '../base/feed.ts';
import type { StoreConfig } from '../config/config.ts';
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
  /** The id of a living host that has this name or this address; undefined where none has. */
  readonly livingHost: (name: string, address: string) => string | undefined;
}

/**
 * Whether the store is taken for another sidecar's, to which this host shows its own certificate. Such a store knows nobody
 * by a password or by files: where there are some, etcd itself is meant.
 */
export function isStoreOfMesh(config: StoreConfig, trust: Pick<StoreTrust, 'credentials'> | undefined): boolean {
  if (config.kind !== 'etcd' || trust?.credentials.value === undefined) return false;
  const { endpoints, tls, credentialsFile } = config;
  const namesFiles = tls.ca !== undefined || tls.cert !== undefined || credentialsFile !== undefined;
  return !namesFiles && endpoints.some((endpoint) => endpoint.secure);
}
