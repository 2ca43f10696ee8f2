import { Backoff } from '../base/backoff.ts';
import type { Clock } from '../base/clock.ts';
import { LegateError } from '../base/errors.ts';
import type { Observable } from '../base/feed.ts';
import type { Log } from '../base/log.ts';
import { printable, truncate } from '../base/text.ts';
import {
  decodeService,
  decodeVipClaim,
  encodeService,
  encodeVipClaim,
  newerVersionReason,
  type VipClaim,
} from '../catalog/codec.ts';
import type { Service, Snapshot } from '../catalog/snapshot.ts';
import { transportOf } from '../model/instance.ts';
import type { DeclaredPorts, LinkListener } from '../model/link.ts';
import { nameFault } from '../model/names.ts';
import type { Weights } from '../model/routes.ts';
import {
  type ServiceField,
  type ServiceRecord,
  type ServiceSettings,
  serviceFields,
  settingWord,
} from '../model/service.ts';
import { httpDefaults, sameSetting } from '../model/service-settings.ts';
import { mayTakeBack, type TakenBack } from '../model/taken-back.ts';
import type { Keys } from '../store/keys.ts';
import type { Entry, Guard, Store, Write } from '../store/store.ts';
import { freshRecord, withoutSettings, withSettings, withTakenBack } from './service-record.ts';
import { unchanged } from './service-writer.ts';
import { checkNotMoving, notMoving } from './store-marker.ts';

/** Transactions that are tried before somebody else is said to change the service all the time. */
const maxTries = 6;
/** How long an order waits until this host's own picture shows what was written. */
const seenLimitMs = 2000;
/** Claims that one transaction gives back; a service has one, more only after damage. */
const maxReleased = 50;
const namesShown = 3;

export interface ServiceOrdersOptions {
  readonly store: Store;
  readonly keys: Keys;
  readonly snapshots: Observable<Snapshot>;
  /** The `services:` and `links:` of the configuration, and its host's name for people. */
  readonly settings: ReadonlyMap<string, ServiceSettings>;
  readonly links: readonly LinkListener[];
  readonly hostName: string;
  /** What containers of this host declare. */
  readonly declared?: Observable<DeclaredPorts>;
  /** The names of a service's instances that this host wants, also of those that left the registry for a while. */
  readonly wanted: (service: string) => readonly string[];
  readonly vip: { readonly on: boolean };
  /** Gets the names of services that were set: they are to have a virtual address. */
  readonly adopt: (name: string) => void;
  readonly clock: Clock;
  readonly log: Log;
}

/**
 * Changes services for the whole mesh, because somebody ordered it. An order is done when this host shows it. Errors:
 * E_INVALID, E_NOT_FOUND, E_CONFLICT, E_TIMEOUT when it was written and is not seen yet, and the store's.
 */
export class ServiceOrders {
  readonly #options: ServiceOrdersOptions;

  constructor(options: ServiceOrdersOptions) {
    this.#options = options;
  }

  /** Sets what is given, and takes back what is `unset`; a service that does not exist yet is made. */
  async set(name: string, settings: ServiceSettings, unset: readonly ServiceField[] = []): Promise<Service> {
    checkName(name);
    if (unset.length === 0 && serviceFields.every((field) => settings[field] === undefined)) {
      throw new LegateError('E_INVALID', 'there is nothing to set', {
        hint: `give ${serviceFields.map(settingWord).join(', ')}`,
      });
    }
    const record = await this.#persist(name, () => this.#trySet(name, settings, unset));
    this.#options.adopt(name);
    const isTaken = (service: Service | undefined): service is Service =>
      service !== undefined && serviceFields.every((field) => sameSetting(service[field], record[field]));
    const needsVip = this.#options.vip.on && transportOf(record.protocol) === 'tcp';
    // No address may be left, which is a condition of its own.
    const service = await this.#seen(name, (each) => isTaken(each) && (each.vip !== undefined || !needsVip));
    if (isTaken(service)) return service;
    throw notSeen(name);
  }

  /**
   * Takes a side of a guarded split back to 0, if the split is still this one; false when it is not, or is not guarded any
   * more. The record says who did it and why, until somebody sets a split.
   */
  async takeBack(name: string, split: Weights, takenBack: TakenBack): Promise<boolean> {
    return (await this.#persist(name, () => this.#tryTakeBack(name, split, takenBack))).done;
  }

  /** Removes a service that nobody has anything to do with; the virtual addresses that it gives back. */
  async forget(name: string): Promise<readonly string[]> {
    checkName(name);
    const addresses = await this.#persist(name, () => this.#tryForget(name));
    if ((await this.#seen(name, (service) => service === undefined)) === undefined) return addresses;
    throw notSeen(name);
  }

  async #trySet(
    name: string,
    settings: ServiceSettings,
    unset: readonly ServiceField[],
  ): Promise<ServiceRecord | undefined> {
    const { store, keys, snapshots, log } = this.#options;
    const entry = await store.get(keys.service(name));
    const before = readRecord(name, entry);
    const { origin, services } = snapshots.value;
    const service = services.get(name);
    // Before the store has told of all instances, those of this host would seem to be all.
    const instances = origin === 'store' ? (service?.instances ?? []) : [];
    const record =
      before === undefined
        ? freshRecord(name, settings, { service, isDamaged: entry !== undefined })
        : withSettings(withoutSettings(before, unset, instances), settings);
    if (record === undefined) {
      throw new LegateError('E_INVALID', `there is no service ${name} yet, so it needs a port`, {
        hint: `legate service set ${name} port=NUMBER`,
      });
    }
    if (record === before) return record;
    const { ok } = await store.txn(
      [notMoving(keys), { kind: 'exists', key: keys.meta }, unchanged(keys.service(name), entry)],
      [{ kind: 'put', key: keys.service(name), value: encodeService(record) }],
    );
    if (!ok) {
      await checkNotMoving(store, keys);
      return undefined;
    }
    const { port, protocol, balance } = record;
    const fields = { 'service.port': port, 'service.protocol': protocol, 'service.balance': balance };
    log.info('service set', { 'service.name': name, ...fields });
    return record;
  }

  async #tryTakeBack(name: string, split: Weights, takenBack: TakenBack): Promise<{ done: boolean } | undefined> {
    const { store, keys, log } = this.#options;
    const entry = await store.get(keys.service(name));
    const record = readRecord(name, entry);
    const isJudged = sameSetting(record?.split, split) && (record?.splitGuard ?? httpDefaults.splitGuard) > 0;
    if (record === undefined || !isJudged || !mayTakeBack(split, takenBack.tag)) return { done: false };
    const value = encodeService(withTakenBack(record, split, takenBack));
    const guards: Guard[] = [notMoving(keys), { kind: 'exists', key: keys.meta }, unchanged(keys.service(name), entry)];
    const { ok } = await store.txn(guards, [{ kind: 'put', key: keys.service(name), value }]);
    if (!ok) {
      await checkNotMoving(store, keys);
      return undefined;
    }
    log.info('split set by its guard', { 'service.name': name, 'split.tag': takenBack.tag });
    return { done: true };
  }

  async #tryForget(name: string): Promise<readonly string[] | undefined> {
    const { store, keys, clock, log } = this.#options;
    this.#checkUnused(name);
    const entry = await store.get(keys.service(name));
    readRecord(name, entry);
    // Each is a guard and a write, beside those of the record and the guard against a move.
    const room = Math.floor((store.limits.txnOperations - 3) / 2);
    const held = (await this.#claimsOf(name)).slice(0, Math.min(maxReleased, room));
    if (entry === undefined && held.length === 0) {
      throw new LegateError('E_NOT_FOUND', `there is no service ${name}`, { hint: 'legate services lists them' });
    }
    const guards: Guard[] = [notMoving(keys), unchanged(keys.service(name), entry)];
    const writes: Write[] = entry === undefined ? [] : [{ kind: 'delete', key: keys.service(name) }];
    for (const { claim, entry: claimed } of held) {
      guards.push(unchanged(claimed.key, claimed));
      const value = encodeVipClaim({ ...claim, releasedAtMs: clock.nowMs() });
      writes.push({ kind: 'put', key: claimed.key, value });
    }
    if (!(await store.txn(guards, writes)).ok) {
      await checkNotMoving(store, keys);
      return undefined;
    }
    const addresses = held.map(({ entry: { key } }) => key.slice(keys.vips.length));
    const freed = addresses.length > 0 && { 'service.vip': addresses.join(' ') };
    log.info('service forgotten', { 'service.name': name, ...freed });
    return addresses;
  }

  /** Throws when the service has instances anywhere, or this host's configuration would bring it back. */
  #checkUnused(name: string): void {
    const { snapshots, settings, links, hostName } = this.#options;
    const { origin, services } = snapshots.value;
    if (origin !== 'store') {
      throw new LegateError('E_STORE_AWAY', 'the store has not yet told which instances there are', {
        hint: 'try again in a moment; legate status says how the store is',
      });
    }
    const registered = services.get(name)?.instances ?? [];
    const ids = new Set(registered.map(({ id }) => id));
    const away = this.#options.wanted(name).map((wanted) => `${hostName}/${wanted}`);
    const instances = [
      ...registered.map(({ id, status }) => `${id} (${status})`),
      ...away.filter((id) => !ids.has(id)).map((id) => `${id} (deregistered, comes back by itself)`),
    ];
    if (instances.length > 0) {
      const shown = instances.slice(0, namesShown);
      const more = instances.length > namesShown ? ` and ${instances.length - namesShown} more` : '';
      throw new LegateError('E_CONFLICT', `${name} has instances: ${printable(shown.join(', '))}${more}`, {
        hint: 'stop the containers, or take the instances back with legate deregister, before it is forgotten',
      });
    }
    if (this.#options.declared?.value.has(name)) {
      throw new LegateError('E_CONFLICT', `containers of ${hostName} declare a link to ${name}`, {
        hint: 'stop them first, or it would come back; legate links lists them',
      });
    }
    const places = [
      ...(settings.has(name) ? [`services.${name}`] : []),
      ...links.flatMap(({ service }, index) => (service === name ? [`links[${index}]`] : [])),
    ];
    if (places.length === 0) return;
    throw new LegateError('E_CONFLICT', `the configuration of ${hostName} names ${name}: ${places.join(', ')}`, {
      hint: 'remove it there and start the sidecar again, or the service would come back',
    });
  }

  async #claimsOf(name: string): Promise<{ readonly claim: VipClaim; readonly entry: Entry }[]> {
    const { store, keys } = this.#options;
    const { entries } = await store.range(keys.vips);
    return entries.flatMap((entry) => {
      const decoded = decodeVipClaim(entry.value);
      if (!decoded.ok || decoded.value.service !== name || decoded.value.releasedAtMs !== undefined) return [];
      return [{ claim: decoded.value, entry }];
    });
  }

  /** Tries until nobody was faster. */
  async #persist<T>(name: string, attempt: () => Promise<T | undefined>): Promise<T> {
    const backoff = new Backoff(10, 200);
    for (let tries = 0; tries < maxTries; tries += 1) {
      const result = await attempt();
      if (result !== undefined) return result;
      await this.#options.clock.sleep(backoff.nextMs());
    }
    throw new LegateError('E_CONFLICT', `${name} was changed by others at every one of ${maxTries} tries`, {
      hint: 'try again; legate services shows what others have set',
    });
  }

  /** The service as this host shows it once `isDone`, or as it is when the time is over. */
  async #seen(name: string, isDone: (service: Service | undefined) => boolean): Promise<Service | undefined> {
    const { snapshots, clock } = this.#options;
    const done = new AbortController();
    const look = (): void => {
      if (isDone(snapshots.value.services.get(name))) done.abort();
    };
    const unsubscribe = snapshots.subscribe(look);
    look();
    await clock.sleep(seenLimitMs, done.signal).catch(() => undefined);
    unsubscribe();
    return snapshots.value.services.get(name);
  }
}

function checkName(name: string): void {
  const fault = nameFault(name);
  if (fault === undefined) return;
  const shown = JSON.stringify(printable(truncate(name, 80)));
  throw new LegateError('E_INVALID', `the service's name ${shown} ${fault}`, {
    hint: 'legate services lists the names that there are',
  });
}

/** The stored record; undefined when there is none, or none that can be read. */
function readRecord(name: string, entry: Entry | undefined): ServiceRecord | undefined {
  const decoded = entry && decodeService(entry.value, name);
  if (decoded === undefined || decoded.ok) return decoded?.value;
  if (!decoded.reason.startsWith(newerVersionReason)) return undefined;
  throw new LegateError('E_CONFLICT', `the record of ${name} cannot be changed here: ${decoded.reason}`, {
    hint: 'run the command on a host that has the newer version of Legate',
  });
}

function notSeen(name: string): LegateError {
  return new LegateError('E_TIMEOUT', `${name} is written, but this host does not show it after ${seenLimitMs} ms`, {
    hint: 'legate services shows when it has; legate status says how the store is',
  });
}
