import { Backoff } from '../base/backoff.ts';
import type { Clock } from '../base/clock.ts';
import type { Conditions } from '../base/conditions.ts';
import { describeError, isLegateError } from '../base/errors.ts';
import type { Observable } from '../base/feed.ts';
import type { Log } from '../base/log.ts';
import type { CounterCell, Metrics } from '../base/metrics.ts';
import { Bell } from '../catalog/bell.ts';
import { encodeService, encodeVipClaim, newerVersionReason } from '../catalog/codec.ts';
import { emptySnapshot, type Service, type Snapshot } from '../catalog/snapshot.ts';
import type { Ipv4Range } from '../model/address.ts';
import { transportOf } from '../model/instance.ts';
import type { LinkListener } from '../model/link.ts';
import { defaultBalance, type ServiceRecord, type ServiceSettings } from '../model/service.ts';
import type { Keys } from '../store/keys.ts';
import type { Guard, Store, Write } from '../store/store.ts';
import { type ClaimRow, ClaimTables, type ServiceRow } from './claim-tables.ts';
import { chooseVip, isAllowed } from './vip-choice.ts';

const writeId = 'services.write';
const fullId = 'services.vip.range';

export interface ServiceClaimsOptions {
  readonly store: Store;
  readonly keys: Keys;
  readonly hostId: string;
  readonly snapshots: Observable<Snapshot>;
  /** The `services:` of the configuration. */
  readonly settings: ReadonlyMap<string, ServiceSettings>;
  readonly links: readonly LinkListener[];
  readonly vip: { readonly on: boolean; readonly range: Ipv4Range };
  /** Which address a service had in the last run. */
  readonly remembered?: ReadonlyMap<string, string>;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  readonly random?: () => number;
}

/**
 * Gives the services that this host has something to do with (an instance, a link, settings) their record and their
 * virtual address in the store. Both are made once, by transactions that hold only if nobody was faster, and are never
 * changed here afterwards. While the store is away a new service has no virtual address yet.
 */
export class ServiceClaims {
  readonly #options: ServiceClaimsOptions;
  readonly #tables: ClaimTables;
  readonly #bell = new Bell();
  readonly #random: () => number;
  readonly #claimed: CounterCell;
  readonly #lost: CounterCell;
  /** Services with an instance on this host. */
  readonly #local = new Set<string>();
  /** Services to look at. */
  #due = new Set<string>();
  #seen: Snapshot = emptySnapshot;

  constructor(options: ServiceClaimsOptions) {
    this.#options = options;
    this.#random = options.random ?? Math.random;
    this.#tables = new ClaimTables(options.store, options.keys);
    const { metrics } = options;
    this.#claimed = metrics.counter(
      'legate_registrar_claims_total',
      'Virtual addresses that this host claimed for services.',
    );
    this.#lost = metrics.counter('legate_registrar_claim_conflicts_total', 'Claims in which another host was faster.');
  }

  /** Runs until aborted. Throws only when the store was closed or something of ours is broken. */
  async run(signal: AbortSignal): Promise<void> {
    const { snapshots, settings, links } = this.#options;
    const unsubscribe = snapshots.subscribe((snapshot) => this.#look(snapshot));
    for (const name of settings.keys()) this.#due.add(name);
    for (const { service } of links) this.#due.add(service);
    this.#look(snapshots.value);
    const ended = new AbortController();
    const until = AbortSignal.any([signal, ended.signal]);
    try {
      await Promise.all([
        this.#tables.follow(until, (services) => {
          for (const name of services) if (this.#isOurs(name)) this.#due.add(name);
          this.#bell.ring();
        }),
        this.#work(until),
      ]);
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      ended.abort();
      unsubscribe();
    }
  }

  #isOurs(name: string): boolean {
    const { settings, links } = this.#options;
    return this.#local.has(name) || settings.has(name) || links.some(({ service }) => service === name);
  }

  #look(snapshot: Snapshot): void {
    for (const { key, after } of snapshot.services.changesSince(this.#seen.services)) {
      if (after?.instances.some(({ hostId }) => hostId === this.#options.hostId)) this.#local.add(key);
      else this.#local.delete(key);
      if (this.#isOurs(key)) this.#due.add(key);
    }
    this.#seen = snapshot;
    this.#bell.ring();
  }

  async #work(signal: AbortSignal): Promise<void> {
    const { clock, conditions, log } = this.#options;
    const backoff = new Backoff(100, 5000, this.#random);
    while (!signal.aborted) {
      await this.#bell.wait(signal);
      if (!this.#tables.complete) continue;
      try {
        for (const name of this.#due) {
          if (signal.aborted) return;
          if (await this.#settle(name, signal)) this.#due.delete(name);
        }
        if (this.#due.size === 0) {
          backoff.reset();
          conditions.clear(writeId);
          continue;
        }
        log.debug('another host was faster; looking again', { 'services.count': this.#due.size });
      } catch (error) {
        if (!isLegateError(error) || error.code === 'E_CLOSED') throw error;
        if (signal.aborted) return;
        const message = `services wait to get their record or virtual address: ${describeError(error)}`;
        conditions.raise(writeId, 'warning', message, error.hint ?? 'they get it as soon as the store answers');
      }
      await clock.sleep(backoff.nextMs(), signal).catch(() => undefined);
      this.#bell.ring();
    }
  }

  /** Brings one service in order. False when somebody else changed it meanwhile: it is to be looked at again. */
  async #settle(name: string, signal: AbortSignal): Promise<boolean> {
    const row = this.#tables.service(name);
    if (row?.fault?.startsWith(newerVersionReason)) return true;
    const record = row?.record ?? this.#fresh(name);
    if (record === undefined) return true;
    this.#compareSettings(name, row?.record);
    const address = this.#vipFor(record);
    if (row?.record !== undefined && (address === undefined || this.#holds(row.record, address))) return true;
    return await this.#write(record, row, address, signal);
  }

  /** A record for a service that has none: as configured, else as it was known, else as its first instance is. */
  #fresh(name: string): ServiceRecord | undefined {
    const settings = this.#options.settings.get(name);
    const known: Service | undefined = this.#options.snapshots.value.services.get(name);
    const port = settings?.port ?? known?.port;
    if (port === undefined) return undefined;
    const protocol = settings?.protocol ?? known?.protocol ?? 'tcp';
    return { name, port, protocol, balance: settings?.balance ?? known?.balance ?? defaultBalance };
  }

  /** The address that the service should have; undefined when it is to have none, or all are taken. */
  #vipFor(record: ServiceRecord): string | undefined {
    const { vip, conditions, remembered, snapshots } = this.#options;
    // Datagrams are not relayed yet, so a virtual address would swallow them.
    if (!vip.on || transportOf(record.protocol) === 'udp') return undefined;
    const { vip: present, name } = record;
    if (present !== undefined && this.#mayHold(present, name)) {
      this.#checkRange(name, present);
      return present;
    }
    const before = snapshots.value.services.get(name)?.vip ?? remembered?.get(name);
    const address = chooseVip({
      service: name,
      range: vip.range,
      claims: this.#tables.claims,
      ...(before !== undefined && { remembered: before }),
    });
    if (address !== undefined) conditions.clear(fullId);
    else {
      const message = `no virtual address of ${vip.range.text} is left for ${name}`;
      conditions.raise(fullId, 'error', message, 'widen vip.range, or give addresses back with legate service forget');
    }
    return address;
  }

  /** A claim that is missing or cannot be read takes nothing away from the record that names the address. */
  #mayHold(address: string, name: string): boolean {
    const claim = this.#tables.claim(address)?.claim;
    return claim === undefined || (claim.service === name && claim.releasedAtMs === undefined);
  }

  /** Whether record and claim both say so already. */
  #holds(record: ServiceRecord, address: string): boolean {
    return record.vip === address && this.#tables.claim(address) !== undefined;
  }

  async #write(
    record: ServiceRecord,
    row: ServiceRow | undefined,
    address: string | undefined,
    signal: AbortSignal,
  ): Promise<boolean> {
    const { store, keys, clock, log } = this.#options;
    const wanted: ServiceRecord = { ...record, ...(address !== undefined && { vip: address }) };
    const serviceKey = keys.service(record.name);
    // Without `meta` the store is new or came back empty: what was stored in it before is to be written back first.
    const guards: Guard[] = [{ kind: 'exists', key: keys.meta }, unchanged(serviceKey, row)];
    const writes: Write[] = [{ kind: 'put', key: serviceKey, value: encodeService(wanted) }];
    if (address !== undefined) {
      const claim: ClaimRow | undefined = this.#tables.claim(address);
      guards.push(unchanged(keys.vip(address), claim));
      const value = encodeVipClaim({ service: record.name, claimedAtMs: clock.nowMs() });
      writes.push({ kind: 'put', key: keys.vip(address), value });
    }
    const result = await store.txn(guards, writes, { signal });
    if (!result.ok) {
      this.#lost.value += 1;
      await this.#tables.readAgain(record.name, address, signal);
      return false;
    }
    this.#tables.written(wanted, address, result.revision, clock.nowMs());
    if (address !== undefined) {
      this.#claimed.value += 1;
      log.info('virtual address claimed', { 'service.name': record.name, 'service.vip': address });
    }
    return true;
  }

  #checkRange(name: string, address: string): void {
    const { conditions, vip } = this.#options;
    const id = `services.range.${name}`;
    if (isAllowed(vip.range, address)) {
      conditions.clear(id);
      return;
    }
    const message = `${name} has the virtual address ${address}, which is not in vip.range ${vip.range.text}`;
    conditions.raise(
      id,
      'warning',
      message,
      `set vip.range as on the other hosts, or run legate service forget ${name}`,
    );
  }

  /** The store's settings are the mesh's; a file that says otherwise is told of, not obeyed. */
  #compareSettings(name: string, record: ServiceRecord | undefined): void {
    const settings = this.#options.settings.get(name);
    const id = `services.settings.${name}`;
    if (settings === undefined) return;
    const different = (['port', 'protocol', 'balance'] as const)
      .filter((key) => record !== undefined && settings[key] !== undefined && settings[key] !== record[key])
      .map(
        (key) => `services.${name}.${key} is ${settings[key]} in the configuration and ${record?.[key]} in the mesh`,
      );
    if (different.length === 0) this.#options.conditions.clear(id);
    else {
      const hint = `run legate service set ${name} key=value for the whole mesh, or correct the configuration`;
      this.#options.conditions.raise(id, 'note', different.join('; '), hint);
    }
  }
}

function unchanged(key: string, row: { readonly revision: string } | undefined): Guard {
  return row === undefined ? { kind: 'absent', key } : { kind: 'revision', key, revision: row.revision };
}
