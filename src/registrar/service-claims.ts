import { Backoff } from '../base/backoff.ts';
import type { Clock } from '../base/clock.ts';
import type { Conditions } from '../base/conditions.ts';
import { describeError, isLegateError } from '../base/errors.ts';
import type { Observable } from '../base/feed.ts';
import type { Log } from '../base/log.ts';
import type { Metrics } from '../base/metrics.ts';
import { Bell } from '../catalog/bell.ts';
import { newerVersionReason } from '../catalog/codec.ts';
import { emptySnapshot, type Snapshot } from '../catalog/snapshot.ts';
import type { Ipv4Range } from '../model/address.ts';
import { transportOf } from '../model/instance.ts';
import type { DeclaredPorts, LinkListener } from '../model/link.ts';
import { isInCharge, mayOffer, type Policy } from '../model/policy.ts';
import { type ServiceRecord, type ServiceSettings, settingText, settingWord } from '../model/service.ts';
import type { Keys } from '../store/keys.ts';
import type { Store } from '../store/store.ts';
import { ClaimTables, type ServiceRow } from './claim-tables.ts';
import { DeclaredServices } from './declared-services.ts';
import {
  agreed,
  arrived,
  awaitedRecord,
  contradictions,
  followingInstances,
  freshRecord,
  withAbsentSettings,
} from './service-record.ts';
import { ServiceWriter } from './service-writer.ts';
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
  /** What containers of this host declare with `legate.links`. */
  readonly declared?: Observable<DeclaredPorts>;
  readonly vip: { readonly on: boolean; readonly range: Ipv4Range };
  /** Which services this host is granted, and whether it is in charge of settings; without a policy all hosts are. */
  readonly policy?: Observable<Policy | undefined>;
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
 * virtual address in the store, by transactions that hold only if nobody was faster. Of a record that is there only what
 * nobody chose is changed: by the settings of the configuration, else with the instances. Where there is a policy, records
 * are made and follow instances on hosts that are granted the service, and take settings of the configuration later on the
 * host of the authority only: the store would refuse the others (write-rules.ts). An address stays for ever,
 * unless the service turns to datagrams. A service that a
 * container waits for, at a port that it names, gets both before its first instance, and loses them when nobody waits any
 * more and none has come. While the store is away a new service has no virtual address yet.
 */
export class ServiceClaims {
  readonly #options: ServiceClaimsOptions;
  readonly #tables: ClaimTables;
  readonly #writer: ServiceWriter;
  readonly #declared: DeclaredServices;
  readonly #bell = new Bell();
  readonly #random: () => number;
  /** Services with an instance on this host. */
  readonly #local = new Set<string>();
  /**
   * Services that were seen with instances at several ports. Who is left of them does not move the service's port, at
   * which consumers may have connected to all.
   */
  readonly #apart = new Set<string>();
  /** Services that were set on this host, for which perhaps nobody else cares; as long as they have a record. */
  readonly #adopted = new Set<string>();
  /** Services to look at. */
  #due = new Set<string>();
  #seen: Snapshot = emptySnapshot;

  constructor(options: ServiceClaimsOptions) {
    this.#options = options;
    this.#random = options.random ?? Math.random;
    const { declared, clock } = options;
    this.#declared = new DeclaredServices({ declared, clock, onDue: (name) => this.#lookAt(name) });
    this.#tables = new ClaimTables(options.store, options.keys);
    this.#writer = new ServiceWriter({ ...options, tables: this.#tables, vipsOn: options.vip.on });
  }

  /** Runs until aborted. Throws only when the store was closed or something of ours is broken. */
  async run(signal: AbortSignal): Promise<void> {
    const { snapshots, settings, links, policy } = this.#options;
    const unsubscribe = snapshots.subscribe((snapshot) => this.#look(snapshot));
    const unfollow = policy?.subscribe(() => this.#lookAtAll());
    for (const name of settings.keys()) this.#due.add(name);
    for (const { service } of links) this.#due.add(service);
    this.#declared.start();
    this.#look(snapshots.value);
    const ended = new AbortController();
    const until = AbortSignal.any([signal, ended.signal]);
    try {
      await Promise.all([
        this.#tables.follow(until, (services) => {
          for (const name of services) {
            if (this.#tables.service(name) === undefined) this.#adopted.delete(name);
            if (this.#isOurs(name)) this.#due.add(name);
            else if (this.#isAwaited(name)) this.#declared.later(name);
          }
          this.#bell.ring();
        }),
        this.#work(until),
      ]);
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      ended.abort();
      this.#declared.close();
      unsubscribe();
      unfollow?.();
    }
  }

  /** Cares for a service that was set here, too: without an instance anywhere it would have no virtual address. */
  adopt(name: string): void {
    this.#adopted.add(name);
    this.#lookAt(name);
  }

  #lookAt(name: string): void {
    this.#due.add(name);
    this.#bell.ring();
  }

  /** Rights have come or gone. */
  #lookAtAll(): void {
    const { settings, links, snapshots } = this.#options;
    const names = [settings.keys(), this.#adopted, this.#local, links.map(({ service }) => service)];
    for (const some of names) for (const name of some) this.#due.add(name);
    for (const name of snapshots.value.services.keys()) if (this.#isOurs(name)) this.#due.add(name);
    this.#bell.ring();
  }

  #isGranted(service: string): boolean {
    return mayOffer(this.#options.policy?.value, this.#options.hostId, service);
  }

  get #isInCharge(): boolean {
    return isInCharge(this.#options.policy?.value, this.#options.hostId);
  }

  /** Whether the service is there because containers of this host waited for it. */
  #isAwaited(name: string): boolean {
    return this.#tables.service(name)?.record?.awaitedBy === this.#options.hostId;
  }

  #isOurs(name: string): boolean {
    const { settings, links } = this.#options;
    return (
      this.#local.has(name) ||
      settings.has(name) ||
      this.#adopted.has(name) ||
      this.#declared.has(name) ||
      links.some(({ service }) => service === name)
    );
  }

  #look(snapshot: Snapshot): void {
    for (const { key, after } of snapshot.services.changesSince(this.#seen.services)) {
      if (after?.instances.some(({ hostId }) => hostId === this.#options.hostId)) this.#local.add(key);
      else this.#local.delete(key);
      if (after === undefined || after.instances.length === 0) this.#apart.delete(key);
      else if (agreed(after.instances, 'port') === undefined) this.#apart.add(key);
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
          if (await this.#settleAllowed(name, signal)) this.#due.delete(name);
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

  /** What the store refuses this host is not tried again before something changes, and keeps no other service waiting. */
  async #settleAllowed(name: string, signal: AbortSignal): Promise<boolean> {
    const { conditions } = this.#options;
    try {
      const isSettled = await this.#settle(name, signal);
      if (isSettled) conditions.clear(deniedId(name));
      return isSettled;
    } catch (error) {
      if (!isLegateError(error, 'E_DENIED')) throw error;
      const message = `the store refuses what ${name} should have: ${error.message}`;
      conditions.raise(deniedId(name), 'warning', message, error.hint ?? 'see to it on the host of the authority');
      return true;
    }
  }

  /** Brings one service in order. False when somebody else changed it meanwhile: it is to be looked at again. */
  async #settle(name: string, signal: AbortSignal): Promise<boolean> {
    const row = this.#tables.service(name);
    if (row?.fault?.startsWith(newerVersionReason)) return true;
    if (row?.record !== undefined && this.#isAwaited(name) && !this.#isOurs(name)) return this.#giveUp(row, signal);
    const record = row?.record === undefined ? this.#fresh(name, row) : this.#current(row.record);
    if (record === undefined) {
      this.#options.conditions.clear(rangeId(name));
      return true;
    }
    this.#compareSettings(record);
    const address = this.#vipFor(record);
    if (record === row?.record && this.#holds(record, address)) return true;
    return await this.#writer.write(record, row, address, signal);
  }

  /** Nobody waits for it any more: it goes, unless an instance has come after all. */
  #giveUp(row: ServiceRow, signal: AbortSignal): Promise<boolean> {
    const { record } = row;
    const { origin, services } = this.#options.snapshots.value;
    if (record === undefined) return Promise.resolve(true);
    if (services.get(record.name)?.instances.length) return this.#writer.write(arrived(record), row, undefined, signal);
    if (origin === 'store') return this.#writer.remove(record, row, signal);
    this.#declared.later(record.name);
    return Promise.resolve(true);
  }

  #fresh(name: string, row: ServiceRow | undefined): ServiceRecord | undefined {
    const { settings, snapshots } = this.#options;
    const service = snapshots.value.services.get(name);
    const given = settings.get(name) ?? {};
    const fresh = freshRecord(name, given, { service, isDamaged: row !== undefined });
    if (fresh !== undefined && this.#isGranted(name)) return fresh;
    const port = this.#options.vip.on ? this.#declared.portOf(name) : undefined;
    return port === undefined ? undefined : awaitedRecord(name, given, port, this.#options.hostId);
  }

  /** The record with what the configuration says and nobody has chosen yet, and moved where its instances moved. */
  #current(record: ServiceRecord): ServiceRecord {
    const { settings, snapshots } = this.#options;
    const { origin, services } = snapshots.value;
    const isThere = services.get(record.name)?.instances.length;
    const isGranted = this.#isGranted(record.name);
    const told = isThere && (isGranted || this.#isAwaited(record.name)) ? arrived(record) : record;
    if (!isGranted) return told;
    const chosen = this.#isInCharge ? withAbsentSettings(told, settings.get(record.name) ?? {}) : told;
    // Before the store has told of all instances, those of this host would seem to be all.
    if (origin !== 'store' || !this.#local.has(record.name) || this.#apart.has(record.name)) return chosen;
    return followingInstances(chosen, services.get(record.name)?.instances ?? []);
  }

  /** The address that the service should have; undefined when it is to have none, or all are taken. */
  #vipFor(record: ServiceRecord): string | undefined {
    const { vip, conditions, remembered, snapshots } = this.#options;
    // Datagrams are not relayed yet, so a virtual address would swallow them.
    if (!vip.on || transportOf(record.protocol) === 'udp') return undefined;
    const { vip: present, name } = record;
    if (present !== undefined && (this.#mayHold(present, name) || !this.#isInCharge)) {
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
  #holds(record: ServiceRecord, address: string | undefined): boolean {
    if (address === undefined) return !this.#writer.isSurplus(record) || !this.#isGranted(record.name);
    return record.vip === address && this.#tables.claim(address) !== undefined;
  }

  #checkRange(name: string, address: string): void {
    const { conditions, vip } = this.#options;
    const id = rangeId(name);
    if (isAllowed(vip.range, address)) {
      conditions.clear(id);
      return;
    }
    const message = `${name} has the virtual address ${address}, which is not in vip.range ${vip.range.text}`;
    conditions.raise(
      id,
      'warning',
      message,
      `set vip.range as on the other hosts; for another address stop its instances, then legate service forget ${name}`,
    );
  }

  /** The store's settings are the mesh's; a file that says otherwise is told of, not obeyed. */
  #compareSettings(record: ServiceRecord): void {
    const { conditions } = this.#options;
    const { name } = record;
    const settings = this.#options.settings.get(name);
    if (settings === undefined) return;
    const id = `services.settings.${name}`;
    const different = contradictions(record, settings);
    if (different.length === 0) {
      conditions.clear(id);
      return;
    }
    const message = different.map(
      (field) =>
        `services.${name}.${settingWord(field)} is ${settingText(field, settings)} in the configuration and ${settingText(field, record)} in the mesh`,
    );
    const words = different.map((field) => `${settingWord(field)}=${settingText(field, settings)}`).join(' ');
    const hint = `run legate service set ${name} ${words} for the whole mesh, or correct the configuration`;
    conditions.raise(id, 'note', message.join('; '), hint);
  }
}

function deniedId(name: string): string {
  return `services.denied.${name}`;
}

function rangeId(name: string): string {
  return `services.range.${name}`;
}
