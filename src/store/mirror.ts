import type { InstanceRecord } from '../model/instance.ts';
import type { RemoteStoreOptions } from './remote.ts';

/** Shows this host's instances in the catalog of somebody else, for those who look there. Nothing of Legate reads it. */
export interface Mirror {
  /** To be called when what is to be shown may have changed; it is compared, and only differences are written. */
  changed(): void;
  /** Ends it; what it showed counts as critical from then on, because nobody keeps it current. */
  close(): Promise<void>;
}

export interface MirrorOptions extends RemoteStoreOptions {
  readonly mesh: string;
  readonly host: { readonly id: string; readonly name: string; readonly address: string };
  /** All instances of this host; those of reach `mesh` are shown. */
  readonly instances: () => Iterable<InstanceRecord>;
  /** Ids of the hosts that are lost now. */
  readonly lostHosts: () => Iterable<string>;
}
