import type { Clock } from '../base/clock.ts';
import type { Log } from '../base/log.ts';
import type { CounterCell, Metrics } from '../base/metrics.ts';
import { encodeService, encodeVipClaim } from '../catalog/codec.ts';
import { transportOf } from '../model/instance.ts';
import { type ServiceRecord, serviceFields } from '../model/service.ts';
import type { Keys } from '../store/keys.ts';
import type { Guard, Store, Write } from '../store/store.ts';
import type { ClaimTables, ServiceRow, WrittenClaim } from './claim-tables.ts';
import { checkNotMoving, notMoving } from './store-marker.ts';

export interface ServiceWriterOptions {
  readonly store: Store;
  readonly keys: Keys;
  readonly tables: ClaimTables;
  /** Whether this host has virtual addresses; without, it leaves those of the mesh alone. */
  readonly vipsOn: boolean;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
}

/** Writes a service's record and its claim in one transaction, which holds only if nobody changed either meanwhile. */
export class ServiceWriter {
  readonly #options: ServiceWriterOptions;
  readonly #claimed: CounterCell;
  readonly #lost: CounterCell;

  constructor(options: ServiceWriterOptions) {
    this.#options = options;
    const { metrics } = options;
    this.#claimed = metrics.counter(
      'legate_registrar_claims_total',
      'Virtual addresses that this host claimed for services.',
    );
    this.#lost = metrics.counter('legate_registrar_claim_conflicts_total', 'Claims in which another host was faster.');
  }

  /** Whether the record names an address that the service is to have no longer: datagrams are not relayed yet. */
  isSurplus({ vip, protocol }: ServiceRecord): boolean {
    return this.#options.vipsOn && vip !== undefined && transportOf(protocol) === 'udp';
  }

  /**
   * Writes the record, with `address` when it is to have one; `row` is what it replaces. False when somebody was faster:
   * what is there by now has been read again.
   */
  async write(
    record: ServiceRecord,
    row: ServiceRow | undefined,
    address: string | undefined,
    signal: AbortSignal,
  ): Promise<boolean> {
    const { store, keys, tables } = this.#options;
    const { name, vip, ...rest } = record;
    const given = address ?? (this.isSurplus(record) ? undefined : vip);
    const wanted: ServiceRecord = { name, ...rest, ...(given !== undefined && { vip: given }) };
    // Without `meta` the store is new or came back empty: what was stored in it before is to be written back first.
    const guards: Guard[] = [notMoving(keys), { kind: 'exists', key: keys.meta }, unchanged(keys.service(name), row)];
    const writes: Write[] = [{ kind: 'put', key: keys.service(name), value: encodeService(wanted) }];
    const surplus = this.isSurplus(record) ? this.#release(record) : undefined;
    const claimed = address === undefined ? surplus : this.#claim(record, address);
    if (claimed !== undefined) {
      const key = keys.vip(claimed.address);
      guards.push(unchanged(key, tables.claim(claimed.address)));
      writes.push({ kind: 'put', key, value: encodeVipClaim(claimed.claim) });
    }
    const result = await store.txn(guards, writes, { signal });
    if (!result.ok) {
      await checkNotMoving(store, keys, { signal });
      this.#lost.value += 1;
      await tables.readAgain(name, claimed?.address, signal);
      return false;
    }
    tables.written(wanted, claimed, result.revision);
    this.#tell(wanted, row, claimed);
    return true;
  }

  /** Removes the record and gives its address back. False when somebody was faster, as `write`. */
  async remove(record: ServiceRecord, row: ServiceRow, signal: AbortSignal): Promise<boolean> {
    const { store, keys, tables, log } = this.#options;
    const { name } = record;
    const guards: Guard[] = [notMoving(keys), unchanged(keys.service(name), row)];
    const writes: Write[] = [{ kind: 'delete', key: keys.service(name) }];
    const released = this.#release(record);
    if (released !== undefined) {
      const key = keys.vip(released.address);
      guards.push(unchanged(key, tables.claim(released.address)));
      writes.push({ kind: 'put', key, value: encodeVipClaim(released.claim) });
    }
    if (!(await store.txn(guards, writes, { signal })).ok) {
      await checkNotMoving(store, keys, { signal });
      this.#lost.value += 1;
      await tables.readAgain(name, released?.address, signal);
      return false;
    }
    log.info('service removed that no container waits for any more', { 'service.name': name });
    return true;
  }

  /** The claim to write for an address that the service is to have; undefined when it stands already. */
  #claim({ name, vip }: ServiceRecord, address: string): WrittenClaim | undefined {
    const { tables, clock } = this.#options;
    if (vip === address && tables.claim(address) !== undefined) return undefined;
    return { address, claim: { service: name, claimedAtMs: clock.nowMs() } };
  }

  /** The claim to write for an address that the service gives up. */
  #release(record: ServiceRecord): WrittenClaim | undefined {
    const { tables, clock } = this.#options;
    const { name, vip } = record;
    if (vip === undefined) return undefined;
    const claim = tables.claim(vip)?.claim;
    if (claim?.service !== name || claim.releasedAtMs !== undefined) return undefined;
    return { address: vip, claim: { ...claim, releasedAtMs: clock.nowMs() } };
  }

  #tell(record: ServiceRecord, row: ServiceRow | undefined, claimed: WrittenClaim | undefined): void {
    const { log } = this.#options;
    const { name, port, protocol, balance } = record;
    const before = row?.record;
    if (before !== undefined && serviceFields.some((field) => before[field] !== record[field])) {
      const settings = { 'service.port': port, 'service.protocol': protocol, 'service.balance': balance };
      log.info('service settings written', { 'service.name': name, ...settings });
    }
    if (claimed === undefined) return;
    const fields = { 'service.name': name, 'service.vip': claimed.address };
    if (claimed.claim.releasedAtMs !== undefined) {
      log.info('virtual address given back', fields);
      return;
    }
    this.#claimed.value += 1;
    log.info('virtual address claimed', fields);
  }
}

/** Holds as long as the key is as it was read. */
export function unchanged(key: string, read: { readonly revision: string } | undefined): Guard {
  return read === undefined ? { kind: 'absent', key } : { kind: 'revision', key, revision: read.revision };
}
