import type { Clock } from '../base/clock.ts';
import type { Conditions } from '../base/conditions.ts';
import { type Change, eachChange, Latest, type Observable } from '../base/feed.ts';
import type { Log } from '../base/log.ts';
import type { Metrics } from '../base/metrics.ts';
import { type InstanceRecord, isExternal } from '../model/instance.ts';
import type { Policy } from '../model/policy.ts';
import type { Keys } from '../store/keys.ts';
import type { Entry, Store } from '../store/store.ts';
import type { Moment } from './brake.ts';
import { Fold } from './fold.ts';
import { LostHosts } from './lost-hosts.ts';
import { Quarantine } from './quarantine.ts';
import { Rights, type Ungranted } from './rights.ts';
import type { SavedState } from './saved-state.ts';
import { emptySnapshot, type Snapshot } from './snapshot.ts';
import { StoreGate } from './store-gate.ts';
import { StoredView, type Table, tables } from './stored-view.ts';

/**
 * How long hosts of a store that was replaced by an empty one are kept as they were, unless they return before: by then
 * every living host has written its records into the new store.
 */
const replacedGraceMs = 60_000;

export interface CatalogOptions {
  readonly keys: Keys;
  readonly self: { readonly hostId: string; readonly hostName: string };
  /** Which hosts are in the mesh still, and may offer what; without it all are and may. */
  readonly policy?: Observable<Policy | undefined>;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
}

/**
 * This host's picture of the mesh. It begins with what was saved, follows the store when there is one, and always shows
 * this host's own instances as they are right now, as far as it may offer them. Changes are folded once per microtask turn. While the store is away
 * nothing changes by itself: what was alive stays alive.
 */
export class Catalog {
  readonly snapshots: Observable<Snapshot>;
  /** What hosts, this one as well, offer without the right to, and is in no snapshot. */
  readonly ungranted: Observable<readonly Ungranted[]>;
  readonly #latest = new Latest<Snapshot>(emptySnapshot);
  readonly #options: CatalogOptions;
  readonly #fold: Fold;
  readonly #quarantine: Quarantine;
  readonly #gate: StoreGate;
  readonly #lost: LostHosts;
  readonly #rights: Rights;
  /** What is shown. */
  #shown: StoredView;
  /** What a store that we have just met has told so far; shown when every table has had its reset. */
  #arriving: StoredView | undefined;
  #arrived = new Set<Table>();
  #own: Map<string, InstanceRecord> | undefined;
  #origin: Snapshot['origin'] = 'none';
  #revision = '';
  /** The highest revision that the store has told so far, whether it is shown already or not. */
  #seenRevision = '';
  #confirmedAtMs = 0;
  #following: Store | undefined;
  /** Of the store that is followed. */
  #keys: Keys;
  #kept = new Set<string>();
  #cancelGrace: (() => void) | undefined;
  #scheduled = false;
  /** Monotonic: for when the end of a brake is awaited. */
  #brakesEndMs: number | undefined;
  #cancelBrakesEnd: (() => void) | undefined;

  constructor(options: CatalogOptions) {
    this.#options = options;
    this.#keys = options.keys;
    this.snapshots = this.#latest;
    this.#fold = new Fold(options.self);
    this.#quarantine = new Quarantine(options);
    this.#gate = new StoreGate(options);
    this.#lost = new LostHosts({ clock: options.clock, onExpired: (hostIds) => this.#refold(hostIds) });
    this.#shown = new StoredView(0);
    this.#rights = new Rights(options.self.hostId, options.policy?.value);
    this.ungranted = this.#rights.ungranted;
    options.policy?.subscribe((policy) => this.#regrant(policy));
    this.#addMetrics(options.metrics);
  }

  /** The mesh's id, once the store or the saved state has told it. */
  get meshId(): string | undefined {
    return this.#gate.meshId;
  }

  /** Wall clock of the moment at which the store last confirmed the picture; undefined when it never did. */
  get confirmedAtMs(): number | undefined {
    this.#noteConfirmed();
    return this.#confirmedAtMs === 0 ? undefined : this.#confirmedAtMs;
  }

  /** Hosts that were lost for so long, or revoked, that they are no longer shown and their records may be deleted. */
  get forgotten(): ReadonlySet<string> {
    const revoked = this.#rights.revoked.filter((id) => this.#shown.hosts.has(id) || this.#shown.hasInstances(id));
    return revoked.length === 0 ? this.#lost.expired : new Set([...this.#lost.expired, ...revoked]);
  }

  /** Whether any host is lost: for how long is then to be saved now and then. */
  get countsLost(): boolean {
    return this.#lost.counts;
  }

  /** Begins with what the last run knew. To be called before `follow`, at most once. */
  restore(saved: SavedState): void {
    if (this.#origin !== 'none') throw new Error('the catalog can only be restored before anything else is known');
    const view = StoredView.of(saved, 0);
    this.#gate.remember(saved);
    this.#origin = 'disk';
    this.#revision = saved.revision;
    this.#confirmedAtMs = saved.confirmedAtMs;
    this.#lost.restore(saved.lost);
    this.#show(view);
    const now = this.#now();
    const downMs = Math.max(0, now.wallMs - saved.confirmedAtMs);
    this.#fold.restoreLost(new Map([...saved.lost].map(([id, ms]) => [id, now.monotonicMs - ms - downMs])));
    this.#fold.restoreBrakes(saved.brakes, now);
    this.#schedule();
  }

  /** Goes on without store and saved state, with this host's own instances alone. Nothing happens when more is known. */
  beginAlone(): void {
    if (this.#origin !== 'none') return;
    this.#origin = 'disk';
    this.#schedule();
  }

  /**
   * Follows the store until aborted or until the store is closed. Losses of connection are the store's affair. Throws what
   * the store's watches throw. After it ended another store may be followed, which may have its keys elsewhere: the
   * picture stays until that one has told everything.
   */
  async follow(store: Store, signal: AbortSignal, keys: Keys = this.#keys): Promise<void> {
    this.#following = store;
    this.#keys = keys;
    this.#gate.lookAt(keys);
    const unsubscribe = store.status.subscribe(({ state, sinceMs, heardAtMs }) => {
      if (state !== 'connected' && this.#origin === 'store')
        this.#confirmedAtMs = heardAtMs ?? Math.max(this.#confirmedAtMs, sinceMs);
      this.#countLost();
    });
    const ended = new AbortController();
    const until = AbortSignal.any([signal, ended.signal]);
    try {
      while (await this.#followUntilEmptied(store, until)) {
        this.#options.log.warn('the store was emptied; the picture stays until the mesh is written back');
        await this.#gate.readmit(store, until);
        this.#meetNewStore();
      }
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      ended.abort();
      unsubscribe();
      this.#cancelGrace?.();
      this.#noteConfirmed();
      this.#following = undefined;
      this.#countLost();
    }
  }

  /** This host's instances as they are now; from the first call on they hide what the store says of this host. */
  applyOwn(change: Change<InstanceRecord>): void {
    const touched = new Set<string>();
    if (change.kind === 'reset' || this.#own === undefined) {
      for (const name of this.#own?.keys() ?? []) touched.add(name);
      for (const name of this.#shown.namesOf(this.#options.self.hostId)) touched.add(name);
      this.#own = new Map();
    }
    for (const name of change.kind === 'delta' ? change.deletes : []) {
      this.#own.delete(name);
      touched.add(name);
    }
    for (const record of change.kind === 'reset' ? change.items : change.puts) {
      this.#own.set(record.name, record);
      touched.add(record.name);
    }
    for (const name of touched) this.#foldInstance(`${this.#options.self.hostId}/${name}`);
    this.#schedule();
  }

  /** What is known, for the disk; undefined while the mesh's id is not known. */
  saved(): SavedState | undefined {
    const meshId = this.#gate.meshId;
    if (meshId === undefined) return undefined;
    const { hosts, alive, services, vips } = this.#shown;
    const { hostId } = this.#options.self;
    const instances = new Map(this.#shown.instances);
    if (this.#own !== undefined) {
      for (const name of this.#shown.namesOf(hostId)) if (!this.#own.has(name)) instances.delete(`${hostId}/${name}`);
      for (const [name, record] of this.#own) {
        const key = `${hostId}/${name}`;
        // What is outside of the mesh is found anew by each run, and no record of it.
        if (isExternal(record)) instances.delete(key);
        else instances.set(key, { record, revision: this.#shown.instances.get(key)?.revision ?? '', epoch: 0 });
      }
    }
    return {
      meshId,
      storeId: this.#gate.storeId,
      revision: this.#revision,
      confirmedAtMs: this.confirmedAtMs ?? 0,
      hosts: new Map(hosts),
      alive: new Map(alive),
      instances,
      services: new Map(services),
      vips: new Map(vips),
      brakes: this.#fold.savedBrakes(this.#now()),
      lost: this.#lost.saved(),
    };
  }

  #now(): Moment {
    const { clock } = this.#options;
    return { monotonicMs: clock.monotonicMs(), wallMs: clock.nowMs() };
  }

  #noteConfirmed(): void {
    const connected = this.#following?.status.value.state === 'connected';
    if (connected && this.#origin === 'store') this.#confirmedAtMs = this.#options.clock.nowMs();
  }

  /**
   * True when the store was emptied: nothing of that is taken over, and all tables are to begin anew. The tables' watches
   * tell of an emptying in any order, and others may have written `meta` back before we look; hence its revision decides.
   */
  async #followUntilEmptied(store: Store, signal: AbortSignal): Promise<boolean> {
    const emptied = new AbortController();
    const until = AbortSignal.any([signal, emptied.signal]);
    const parts = [
      this.#gate.learn(store, until),
      ...tables.map((table) => this.#followTable(store, table, until, () => emptied.abort())),
    ];
    try {
      await Promise.all(parts);
    } catch (error) {
      if (!emptied.signal.aborted) throw error;
    }
    if (emptied.signal.aborted) await Promise.allSettled(parts);
    return emptied.signal.aborted && !signal.aborted;
  }

  async #followTable(store: Store, table: Table, signal: AbortSignal, onEmptied: () => void): Promise<void> {
    await eachChange(store.watch(this.#keys[table], { signal }), async (change) => {
      if (change.kind === 'reset') await this.#gate.admit(store, signal, () => this.#meetNewStore());
      if (this.#takesMuch(table, change) && !(await this.#gate.isAsAdmitted(store, signal))) onEmptied();
      if (signal.aborted) return false;
      if (change.kind === 'delta') this.#delta(store, table, change);
      else await this.#reset(store, table, change.items, change.revision, signal);
      return !signal.aborted;
    });
  }

  /**
   * Whether a change looks like an emptied store, so that `meta` is asked for first. Services and claims hardly ever go,
   * and the lives of several hosts seldom at once; resets are rare. Of instances one goes every moment.
   */
  #takesMuch(table: Table, change: Change<Entry>): boolean {
    const prefix = this.#keys[table];
    const shown: ReadonlyMap<string, unknown> = this.#shown[table];
    if (change.kind === 'reset') {
      const ids = new Set(change.items.map(({ key }) => key.slice(prefix.length)));
      for (const id of shown.keys()) if (!ids.has(id)) return true;
      return false;
    }
    if (change.deletes.length === 0) return false;
    const gone = change.deletes.filter((key) => shown.has(key.slice(prefix.length))).length;
    if (gone * 2 >= shown.size) return gone > 0;
    return table !== 'instances' && gone >= (table === 'services' || table === 'vips' ? 1 : 2);
  }

  /** A store whose data has nothing to do with what we know: it is gathered whole before any of it is shown. */
  #meetNewStore(): void {
    this.#arriving = new StoredView(this.#shown.epoch + 1);
    this.#arrived = new Set();
    this.#seenRevision = '';
  }

  async #reset(
    store: Store,
    table: Table,
    entries: readonly Entry[],
    revision: string,
    signal: AbortSignal,
  ): Promise<void> {
    this.#arriving ??= this.#origin === 'store' ? undefined : new StoredView(this.#shown.epoch);
    const target = this.#arriving ?? this.#shown;
    const prefix = this.#keys[table];
    const read = await target.read(table, entries, prefix, this.#shown);
    if (signal.aborted) return;
    for (const [key, reason] of read.bad) this.#quarantine.bad(key, reason);
    this.#quarantine.retain(prefix, new Set(read.bad.keys()));
    if (target === this.#arriving) {
      target.replace(table, read.found);
      this.#arrived.add(table);
      if (this.#arrived.size === tables.length) this.#showArrived();
    } else if (target === this.#shown) {
      target.carryOver(table, this.#kept, read.found, target.epoch);
      this.#changed(table, target.replace(table, read.found));
      if (table === 'alive') this.#letGoReturned();
    }
    this.#confirm(store, revision);
  }

  #delta(store: Store, table: Table, change: Change<Entry> & { kind: 'delta' }): void {
    const target = this.#arriving !== undefined && this.#arrived.has(table) ? this.#arriving : this.#shown;
    const prefix = this.#keys[table];
    const touched: string[] = [];
    for (const key of change.deletes) {
      this.#quarantine.good(key);
      const id = key.slice(prefix.length);
      if (target.remove(table, id)) touched.push(id);
    }
    for (const entry of change.puts) {
      const id = entry.key.slice(prefix.length);
      const fault = target.put(table, id, entry);
      if (fault === undefined) this.#quarantine.good(entry.key);
      else this.#quarantine.bad(entry.key, fault);
      touched.push(id);
    }
    if (target === this.#shown) {
      this.#changed(table, touched);
      if (table === 'alive') this.#letGoReturned();
    }
    this.#confirm(store, change.revision);
  }

  #confirm(store: Store, revision: string): void {
    const newer = this.#seenRevision === '' || store.compareRevisions(revision, this.#seenRevision) > 0;
    if (newer) this.#seenRevision = revision;
    if (this.#arriving === undefined) this.#revision = this.#seenRevision;
    this.#schedule();
  }

  #showArrived(): void {
    const arrived = this.#arriving;
    if (arrived === undefined) return;
    this.#arriving = undefined;
    if (arrived.epoch !== this.#shown.epoch) this.#keepMissing(arrived);
    this.#origin = 'store';
    this.#show(arrived);
    this.#countLost();
  }

  #countLost(): void {
    this.#lost.count(this.#following?.status.value.state === 'connected' && this.#origin === 'store');
  }

  /** Hosts that have not yet written themselves into a store that came back empty stay as they were for a while. */
  #keepMissing(arrived: StoredView): void {
    this.#kept = new Set(
      [...this.#shown.hostIds()].filter((id) => id !== this.#options.self.hostId && !arrived.alive.has(id)),
    );
    if (this.#kept.size === 0) return;
    arrived.adopt(this.#shown, this.#kept);
    this.#options.log.warn('the store was replaced; hosts that have not returned are kept as they were', {
      'catalog.hosts': this.#kept.size,
      'catalog.grace_ms': replacedGraceMs,
    });
    this.#cancelGrace?.();
    this.#cancelGrace = this.#options.clock.after(replacedGraceMs, () => {
      for (const hostId of [...this.#kept]) this.#letGo(hostId);
      this.#schedule();
    });
  }

  #letGoReturned(): void {
    for (const hostId of [...this.#kept]) {
      if (this.#shown.alive.get(hostId)?.epoch === this.#shown.epoch) this.#letGo(hostId);
    }
  }

  /** A kept host has returned, or its time is over: what it has not written into the new store is gone. */
  #letGo(hostId: string): void {
    if (!this.#kept.delete(hostId)) return;
    for (const [table, ids] of this.#shown.dropOlder(hostId)) this.#changed(table, ids);
  }

  #show(view: StoredView): void {
    const before = this.#shown;
    this.#shown = view;
    for (const table of tables) this.#changed(table, view.differencesFrom(before, table));
  }

  #changed(table: Table, ids: Iterable<string>): void {
    const { alive, services, vips } = this.#shown;
    for (const id of ids) {
      if (table === 'instances' || table === 'hosts' || table === 'alive') this.#noteHost(hostOf(id));
      if (table === 'instances') this.#foldInstance(id);
      else if (table === 'hosts') this.#foldHost(id);
      else if (table === 'alive') this.#fold.setAlive(id, alive.has(id));
      else if (table === 'services') this.#fold.setService(id, services.get(id)?.record);
      else this.#fold.setClaim(id, vips.get(id)?.record);
    }
  }

  /** Whether the host is lost now, after something of it changed; one that was forgotten is shown again when it is not. */
  #noteHost(hostId: string): void {
    const isKnown = this.#shown.hosts.has(hostId) || this.#shown.hasInstances(hostId);
    const isLost = isKnown && !this.#shown.alive.has(hostId) && hostId !== this.#options.self.hostId;
    if (this.#lost.note(hostId, isLost)) this.#refold([hostId]);
  }

  #refold(hostIds: readonly string[]): void {
    for (const hostId of hostIds) {
      this.#foldHost(hostId);
      for (const name of this.#shown.namesOf(hostId)) this.#foldInstance(`${hostId}/${name}`);
    }
    this.#schedule();
  }

  #regrant(policy: Policy | undefined): void {
    const { hosts, instances } = this.#rights.change(policy, this.#shown.hostIds(), this.#records());
    for (const id of instances) this.#foldInstance(id);
    this.#refold(hosts);
  }

  /** By `<host id>/<name>`; of this host as it is now. */
  *#records(): Iterable<readonly [string, InstanceRecord]> {
    const { hostId } = this.#options.self;
    for (const [id, { record }] of this.#shown.instances) {
      if (this.#own === undefined || hostOf(id) !== hostId) yield [id, record];
    }
    for (const [name, record] of this.#own ?? []) yield [`${hostId}/${name}`, record];
  }

  #foldHost(hostId: string): void {
    const isHidden = this.#lost.expired.has(hostId) || this.#rights.isRevoked(hostId);
    const stored = isHidden ? undefined : this.#shown.hosts.get(hostId);
    this.#fold.setHost(hostId, stored?.record, stored?.revision ?? '');
  }

  #foldInstance(id: string): void {
    const hostId = hostOf(id);
    const stored = this.#shown.instances.get(id);
    const name = stored?.record.name ?? id.slice(hostId.length + 1);
    const own = hostId === this.#options.self.hostId ? this.#own : undefined;
    const shown = this.#lost.expired.has(hostId) ? undefined : stored?.record;
    const record = own === undefined ? shown : own.get(name);
    this.#fold.setInstance(hostId, name, this.#rights.admit(id, hostId, record), stored?.revision ?? '');
  }

  #nameOf(hostId: string): string {
    const { self } = this.#options;
    return hostId === self.hostId ? self.hostName : (this.#shown.hosts.get(hostId)?.record.name ?? hostId);
  }

  /** Folds what was noted in this turn, once. */
  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    queueMicrotask(() => {
      this.#scheduled = false;
      const previous = this.#latest.value;
      this.#rights.publish((hostId) => this.#nameOf(hostId));
      const same = previous.origin === this.#origin && previous.revision === this.#revision;
      if (same && !this.#fold.dirty) return;
      this.#latest.set(this.#fold.next(previous, this.#origin, this.#revision, this.#now()));
      this.#awaitBrakesEnd();
    });
  }

  /** No change announces the end of a brake whose time is over. */
  #awaitBrakesEnd(): void {
    const endMs = this.#fold.brakesEndMs;
    if (endMs === this.#brakesEndMs) return;
    this.#cancelBrakesEnd?.();
    this.#brakesEndMs = endMs;
    if (endMs === undefined) return;
    const { clock } = this.#options;
    this.#cancelBrakesEnd = clock.after(Math.ceil(endMs - clock.monotonicMs()), () => {
      this.#brakesEndMs = undefined;
      this.#fold.endBrakes(clock.monotonicMs());
      if (this.#fold.dirty) this.#schedule();
      else this.#awaitBrakesEnd();
    });
  }

  #addMetrics(metrics: Metrics): void {
    const snapshot = (): Snapshot => this.#latest.value;
    metrics.gauge('legate_catalog_services_count', 'Services that this host knows.', [], () => [
      [[], snapshot().services.size],
    ]);
    metrics.gauge('legate_catalog_hosts_count', 'Hosts that this host knows.', [], () => [[[], snapshot().hosts.size]]);
    metrics.gauge('legate_catalog_instances_count', 'Instances that this host knows.', [], () => [
      [[], this.#shown.instances.size],
    ]);
    metrics.gauge(
      'legate_catalog_braked_services_count',
      'Services of which critical or lost instances are still used, because most of them turned so at once.',
      [],
      () => [[[], this.#fold.braked]],
    );
    metrics.gauge('legate_catalog_snapshot_version', 'Counts the snapshots that were made.', [], () => [
      [[], snapshot().version],
    ]);
    metrics.gauge(
      'legate_catalog_age_seconds',
      'Since when the store has not confirmed the picture; 0 while it does.',
      [],
      () => {
        const confirmedAtMs = this.confirmedAtMs;
        if (confirmedAtMs === undefined) return [];
        return [[[], Math.max(0, this.#options.clock.nowMs() - confirmedAtMs) / 1000]];
      },
    );
    metrics.gauge(
      'legate_catalog_lost_hosts_count',
      'Hosts that this host knows and that show no sign of life.',
      [],
      () => [[[], this.#lost.size]],
    );
    metrics.gauge(
      'legate_catalog_ungranted_count',
      'Instances that are left out because no grant lets their host offer the service.',
      [],
      () => [[[], this.ungranted.value.length]],
    );
  }
}

/** The host of an instance's id, `<host id>/<name>`; a host's id is itself. */
function hostOf(id: string): string {
  const slash = id.indexOf('/');
  return slash < 0 ? id : id.slice(0, slash);
}
