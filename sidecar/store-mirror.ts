import { once } from 'node:events';
import type { Observable } from '../src/base/feed.ts';
import type { Snapshot } from '../src/catalog/snapshot.ts';
import type { StoreConfig } from '../src/config/config.ts';
import type { InstanceRecord } from '../src/model/instance.ts';
import { openMirror } from '../src/store/backends.ts';
import type { RemoteStoreOptions } from '../src/store/remote.ts';

export interface KeepMirrorOptions extends RemoteStoreOptions {
  readonly config: StoreConfig;
  readonly mesh: string;
  readonly host: { readonly id: string; readonly name: string; readonly address: string };
  readonly snapshots: Observable<Snapshot>;
  /** All instances of this host. */
  readonly instances: () => Iterable<InstanceRecord>;
  readonly signal: AbortSignal;
}

/** Shows this host's instances where the store's configuration asks for it, until aborted. */
export async function keepMirror({ config, snapshots, signal, ...options }: KeepMirrorOptions): Promise<void> {
  const lostHosts = (): string[] => [...snapshots.value.hosts.values()].flatMap(({ id, alive }) => (alive ? [] : [id]));
  const mirror = await openMirror(config, { ...options, lostHosts });
  if (mirror === undefined) return;
  // Whatever changes here, this host's own instances included, is in the next snapshot.
  const unsubscribe = snapshots.subscribe(() => mirror.changed());
  try {
    if (!signal.aborted) await once(signal, 'abort');
  } finally {
    unsubscribe();
    await mirror.close();
  }
}
