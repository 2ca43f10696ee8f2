import { isIPv4 } from 'node:net';
import type { HostRecord } from '../model/host.ts';
import type { InstanceRecord } from '../model/instance.ts';
import type { ServiceRecord } from '../model/service.ts';
import type { Entry } from '../store/store.ts';
import {
  type AliveRecord,
  type Decoded,
  decodeAlive,
  decodeHost,
  decodeInstance,
  decodeService,
  decodeVipClaim,
  hostIdFault,
  newerVersionReason,
  type VipClaim,
} from './codec.ts';
import type { SavedState, Stamped } from './saved-state.ts';

/** The stored prefixes that the catalog follows, named as in `Keys`. */
export const tables = ['hosts', 'alive', 'instances', 'services', 'vips'] as const;
export type Table = (typeof tables)[number];

/** A checked entry; `epoch` counts the stores that we have met, because revisions compare within one store only. */
export interface Stored<T> extends Stamped<T> {
  readonly epoch: number;
}

interface Rows {
  hosts: Map<string, Stored<HostRecord>>;
  alive: Map<string, Stored<AliveRecord>>;
  instances: Map<string, Stored<InstanceRecord>>;
  services: Map<string, Stored<ServiceRecord>>;
  vips: Map<string, Stored<VipClaim>>;
}

type Row = Stored<HostRecord | AliveRecord | InstanceRecord | ServiceRecord | VipClaim>;

/** Entries that are decoded before the event loop gets its turn. */
const decodeSlice = 500;

export interface ReadResult {
  readonly found: Map<string, Row>;
  /** By whole key: why it cannot be read. */
  readonly bad: Map<string, string>;
}

/** The checked entries of one store, by what follows their prefix. */
export class StoredView {
  readonly epoch: number;
  readonly #rows: Rows;
  /** Names of instances by host, so that what concerns one host costs what that host has. */
  readonly #names = new Map<string, Set<string>>();

  constructor(epoch: number) {
    this.epoch = epoch;
    this.#rows = { hosts: new Map(), alive: new Map(), instances: new Map(), services: new Map(), vips: new Map() };
  }

  static of(saved: SavedState, epoch: number): StoredView {
    const view = new StoredView(epoch);
    for (const table of tables) {
      const rows = view.#rows[table] as Map<string, Row>;
      for (const [id, { record, revision }] of saved[table]) rows.set(id, { record, revision, epoch });
    }
    for (const [id, { record }] of view.#rows.instances) view.#note(id, record.name);
    return view;
  }

  get hosts(): ReadonlyMap<string, Stored<HostRecord>> {
    return this.#rows.hosts;
  }

  get alive(): ReadonlyMap<string, Stored<AliveRecord>> {
    return this.#rows.alive;
  }

  get instances(): ReadonlyMap<string, Stored<InstanceRecord>> {
    return this.#rows.instances;
  }

  get services(): ReadonlyMap<string, Stored<ServiceRecord>> {
    return this.#rows.services;
  }

  get vips(): ReadonlyMap<string, Stored<VipClaim>> {
    return this.#rows.vips;
  }

  /** Names of a host's instances. */
  namesOf(hostId: string): Iterable<string> {
    return this.#names.get(hostId) ?? [];
  }

  hasInstances(hostId: string): boolean {
    return this.#names.has(hostId);
  }

  hostIds(): Set<string> {
    return new Set([...this.#rows.hosts.keys(), ...this.#names.keys()]);
  }

  /**
   * Decodes a table's entries, in slices, so that a large mesh does not hold up the event loop. An entry whose revision
   * `known` already has keeps its record: the same object.
   */
  async read(table: Table, entries: readonly Entry[], prefix: string, known: StoredView): Promise<ReadResult> {
    const found = new Map<string, Row>();
    const bad = new Map<string, string>();
    const before: ReadonlyMap<string, Row> = known.#rows[table];
    let decoded = 0;
    for (const entry of entries) {
      const id = entry.key.slice(prefix.length);
      const same = before.get(id);
      // Signs of life are few, and one that is stood in for is to be told of again.
      const isKnown = same?.epoch === this.epoch && same.revision === entry.revision && table !== 'alive';
      if (same !== undefined && isKnown) {
        found.set(id, same);
        continue;
      }
      const result = decode(table, id, entry.value);
      const record = result.ok ? result.value : standInFor(table, result.reason);
      if (record !== undefined) found.set(id, { record, revision: entry.revision, epoch: this.epoch });
      if (!result.ok) bad.set(entry.key, result.reason);
      decoded += 1;
      if (decoded % decodeSlice === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    return { found, bad };
  }

  /** Makes `rows` the whole table; the ids whose entries differ from before. */
  replace(table: Table, rows: Map<string, Row>): string[] {
    const before = this.#rows[table] as Map<string, Row>;
    const differing = differences(before, rows);
    (this.#rows as Record<Table, Map<string, Row>>)[table] = rows;
    if (table === 'instances') {
      this.#names.clear();
      for (const [id, { record }] of this.#rows.instances) this.#note(id, record.name);
    }
    return differing;
  }

  differencesFrom(before: StoredView, table: Table): string[] {
    return differences(before.#rows[table], this.#rows[table]);
  }

  /** Takes one written entry. The reason when it cannot be read; it is then absent, or stood in for. */
  put(table: Table, id: string, entry: Entry): string | undefined {
    const result = decode(table, id, entry.value);
    const reason = result.ok ? undefined : result.reason;
    const record = result.ok ? result.value : standInFor(table, result.reason);
    if (record === undefined) this.remove(table, id);
    else {
      const rows = this.#rows[table] as Map<string, Row>;
      rows.set(id, { record, revision: entry.revision, epoch: this.epoch });
      if (table === 'instances') this.#note(id, id.slice(id.indexOf('/') + 1));
    }
    return reason;
  }

  /** Whether there was something to remove. */
  remove(table: Table, id: string): boolean {
    if (!this.#rows[table].delete(id)) return false;
    if (table === 'instances') {
      const [hostId, name] = splitId(id);
      const names = this.#names.get(hostId);
      names?.delete(name);
      if (names?.size === 0) this.#names.delete(hostId);
    }
    return true;
  }

  /** Takes over all that `other` has of these hosts and this has not. */
  adopt(other: StoredView, hostIds: ReadonlySet<string>): void {
    for (const table of ['hosts', 'alive', 'instances'] as const) {
      other.carryOver(table, hostIds, this.#rows[table] as Map<string, Row>, this.epoch);
    }
    for (const [id, { record }] of this.#rows.instances) this.#note(id, record.name);
  }

  /** Adds to `found` the entries of these hosts from stores before `epoch` that `found` has not. */
  carryOver(table: Table, hostIds: ReadonlySet<string>, found: Map<string, Row>, epoch: number): void {
    if (table === 'services' || table === 'vips') return;
    for (const hostId of hostIds) {
      const ids = table === 'instances' ? [...this.namesOf(hostId)].map((name) => `${hostId}/${name}`) : [hostId];
      for (const id of ids) {
        const row: Row | undefined = this.#rows[table].get(id);
        if (row !== undefined && row.epoch !== epoch && !found.has(id)) found.set(id, row);
      }
    }
  }

  /** Removes what an older store had said of a host; the ids by table. */
  dropOlder(hostId: string): [Table, string[]][] {
    const removed: [Table, string[]][] = [];
    const instances = [...this.namesOf(hostId)].map((name) => `${hostId}/${name}`);
    for (const [table, ids] of [
      ['hosts', [hostId]],
      ['alive', [hostId]],
      ['instances', instances],
    ] as [Table, string[]][]) {
      const old = ids.filter((id) => (this.#rows[table].get(id)?.epoch ?? this.epoch) !== this.epoch);
      for (const id of old) this.remove(table, id);
      removed.push([table, old]);
    }
    return removed;
  }

  /** `name` is the end of `id`: the record's own text, which is known to the tables already. */
  #note(id: string, name: string): void {
    const hostId = id.slice(0, id.indexOf('/'));
    const names = this.#names.get(hostId);
    if (names === undefined) this.#names.set(hostId, new Set([name]));
    else names.add(name);
  }
}

function splitId(id: string): [hostId: string, name: string] {
  const slash = id.indexOf('/');
  return [id.slice(0, slash), id.slice(slash + 1)];
}

function differences(before: ReadonlyMap<string, Row>, after: ReadonlyMap<string, Row>): string[] {
  if (before.size === 0) return [...after.keys()];
  const ids: string[] = [];
  for (const [id, row] of after) if (before.get(id) !== row) ids.push(id);
  for (const id of before.keys()) if (!after.has(id)) ids.push(id);
  return ids;
}

/** A host of a newer version lives, whatever else its sign of life says. */
function standInFor(table: Table, reason: string): Row['record'] | undefined {
  return table === 'alive' && reason.startsWith(newerVersionReason) ? unreadLife : undefined;
}

const unreadLife: AliveRecord = Object.freeze({ sinceMs: 0 });

function decode(
  table: Table,
  id: string,
  value: Uint8Array,
): Decoded<HostRecord | AliveRecord | InstanceRecord | ServiceRecord | VipClaim> {
  switch (table) {
    case 'hosts':
      return decodeHost(value, id);
    case 'services':
      return decodeService(value, id);
    case 'vips':
      return isIPv4(id) ? decodeVipClaim(value) : { ok: false, reason: 'its key does not end in an IPv4 address' };
    case 'alive': {
      const fault = hostIdFault(id);
      return fault === undefined ? decodeAlive(value) : { ok: false, reason: `the host id in its key ${fault}` };
    }
    case 'instances': {
      const [hostId, name] = splitId(id);
      const fault = hostIdFault(hostId);
      return fault === undefined
        ? decodeInstance(value, name)
        : { ok: false, reason: `the host id in its key ${fault}` };
    }
  }
}
