import { type Change, eachChange } from '../base/feed.ts';
import { type Decoded, decodeService, decodeVipClaim, type VipClaim } from '../catalog/codec.ts';
import type { ServiceRecord } from '../model/service.ts';
import type { Keys } from '../store/keys.ts';
import type { Entry, Store } from '../store/store.ts';

/** A stored service; without `record` it cannot be read, for the reason in `fault`. */
export interface ServiceRow {
  readonly record: ServiceRecord | undefined;
  readonly fault: string | undefined;
  readonly revision: string;
}

/** A stored claim; without `claim` it cannot be read. */
export interface ClaimRow {
  readonly claim: VipClaim | undefined;
  readonly revision: string;
}

/** A claim that goes with the record of its service. */
export interface WrittenClaim {
  readonly address: string;
  readonly claim: VipClaim;
}

/** What the store has under `services/` and `vips/`, with the revisions that transactions are guarded by. */
export class ClaimTables {
  readonly #store: Store;
  readonly #keys: Keys;
  readonly #services = new Map<string, ServiceRow>();
  readonly #claimRows = new Map<string, ClaimRow>();
  readonly #claims = new Map<string, VipClaim | undefined>();
  readonly #complete = new Set<string>();

  constructor(store: Store, keys: Keys) {
    this.#store = store;
    this.#keys = keys;
  }

  /** Whether both tables have been told once. */
  get complete(): boolean {
    return this.#complete.size === 2;
  }

  get claims(): ReadonlyMap<string, VipClaim | undefined> {
    return this.#claims;
  }

  service(name: string): ServiceRow | undefined {
    return this.#services.get(name);
  }

  claim(address: string): ClaimRow | undefined {
    return this.#claimRows.get(address);
  }

  /** Follows both until aborted; `onChange` gets the names of the services concerned. */
  async follow(signal: AbortSignal, onChange: (services: ReadonlySet<string>) => void): Promise<void> {
    await Promise.all(
      [this.#keys.services, this.#keys.vips].map((prefix) =>
        eachChange(this.#store.watch(prefix, { signal }), (change) => {
          const touched = this.#take(prefix, change);
          this.#complete.add(prefix);
          onChange(touched);
        }),
      ),
    );
  }

  /** Takes what we have just written, which the watch will tell later. */
  written(record: ServiceRecord, claimed: WrittenClaim | undefined, revision: string): void {
    this.#services.set(record.name, { record, fault: undefined, revision });
    if (claimed !== undefined) this.#setClaim(claimed.address, { claim: claimed.claim, revision });
  }

  /** Reads a service and an address from the store, because a guard told that we do not know them as they are. */
  async readAgain(name: string, address: string | undefined, signal: AbortSignal): Promise<void> {
    const service = await this.#store.get(this.#keys.service(name), { signal });
    if (service === undefined) this.#services.delete(name);
    else this.#services.set(name, serviceRow(name, service));
    if (address === undefined) return;
    const claim = await this.#store.get(this.#keys.vip(address), { signal });
    this.#setClaim(address, claim && claimRow(claim));
  }

  #take(prefix: string, change: Change<Entry>): Set<string> {
    const touched = new Set<string>();
    const entries = change.kind === 'reset' ? change.items : change.puts;
    const isService = prefix === this.#keys.services;
    if (change.kind === 'reset') {
      for (const name of this.#services.keys()) touched.add(name);
      if (isService) this.#services.clear();
      else {
        this.#claimRows.clear();
        this.#claims.clear();
      }
    }
    for (const key of change.kind === 'delta' ? change.deletes : []) {
      const id = key.slice(prefix.length);
      const known = isService ? this.#services.get(id) : this.#claimRows.get(id);
      if (known === undefined || this.#isNewer(known.revision, change.revision)) continue;
      for (const name of this.#concerned(isService, id)) touched.add(name);
      if (isService) this.#services.delete(id);
      else this.#setClaim(id, undefined);
    }
    for (const entry of entries) {
      const id = entry.key.slice(prefix.length);
      const known = isService ? this.#services.get(id) : this.#claimRows.get(id);
      if (known !== undefined && this.#isNewer(known.revision, entry.revision)) continue;
      for (const name of this.#concerned(isService, id)) touched.add(name);
      if (isService) this.#services.set(id, serviceRow(id, entry));
      else this.#setClaim(id, claimRow(entry));
    }
    return touched;
  }

  /** The services that an entry is about: the one of that name, or those that have or had the address. */
  #concerned(isService: boolean, id: string): string[] {
    if (isService) return [id];
    const holder = this.#claims.get(id)?.service;
    const named = [...this.#services].filter(([, { record }]) => record?.vip === id).map(([name]) => name);
    return holder === undefined ? named : [...named, holder];
  }

  #setClaim(address: string, row: ClaimRow | undefined): void {
    if (row === undefined) {
      this.#claimRows.delete(address);
      this.#claims.delete(address);
    } else {
      this.#claimRows.set(address, row);
      this.#claims.set(address, row.claim);
    }
  }

  #isNewer(a: string, b: string): boolean {
    return this.#store.compareRevisions(a, b) > 0;
  }
}

function serviceRow(name: string, { value, revision }: Entry): ServiceRow {
  const decoded: Decoded<ServiceRecord> = decodeService(value, name);
  return decoded.ok
    ? { record: decoded.value, fault: undefined, revision }
    : { record: undefined, fault: decoded.reason, revision };
}

function claimRow({ value, revision }: Entry): ClaimRow {
  const decoded = decodeVipClaim(value);
  return { claim: decoded.ok ? decoded.value : undefined, revision };
}
