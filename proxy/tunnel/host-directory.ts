import type { Observable } from '../../src/base/feed.ts';
import { emptySnapshot, type Snapshot } from '../../src/catalog/snapshot.ts';
import type { Endpoint } from '../../src/model/address.ts';
import type { Host } from '../../src/model/host.ts';
import { defaultTunnelPort } from '../../src/pki/desk.ts';

/** Other hosts as the catalog knows them: where they are dialled and how they are called. */
export class HostDirectory {
  readonly #snapshots: Observable<Snapshot>;

  constructor(snapshots: Observable<Snapshot>) {
    this.#snapshots = snapshots;
  }

  endpointOf(hostId: string): Endpoint | undefined {
    const host = this.#snapshots.value.hosts.get(hostId);
    return host && { address: host.address, port: host.tunnelPort ?? defaultTunnelPort };
  }

  /** The host's name; its id where that is not known. */
  nameOf(hostId: string): string {
    return this.#snapshots.value.hosts.get(hostId)?.name ?? hostId;
  }

  /** Whether it is known and gives no sign of life in the store. */
  isLost(hostId: string): boolean {
    return this.#snapshots.value.hosts.get(hostId)?.alive === false;
  }

  /** Calls back for each host that is dialled elsewhere from now on, or that has come back to life. */
  onChange(listener: (hostId: string) => void): () => void {
    let last = emptySnapshot;
    const compare = (snapshot: Snapshot): void => {
      const before = last;
      last = snapshot;
      for (const { key, before: was, after: is } of snapshot.hosts.changesSince(before.hosts)) {
        if (isElsewhere(was, is) || (is?.alive === true && was?.alive !== true)) listener(key);
      }
    };
    last = this.#snapshots.value;
    return this.#snapshots.subscribe(compare);
  }
}

function isElsewhere(was: Host | undefined, is: Host | undefined): boolean {
  return was?.address !== is?.address || was?.tunnelPort !== is?.tunnelPort;
}
