import { Backoff } from '../base/backoff.ts';
import type { Clock } from '../base/clock.ts';
import type { Conditions } from '../base/conditions.ts';
import { describeError, isLegateError } from '../base/errors.ts';
import { type Change, eachChange } from '../base/feed.ts';
import type { Log } from '../base/log.ts';
import type { CounterCell, Metrics } from '../base/metrics.ts';
import { Bell } from '../catalog/bell.ts';
import { decodeInstance, encodeHost, encodeInstance } from '../catalog/codec.ts';
import type { HostRecord } from '../model/host.ts';
import type { InstanceRecord } from '../model/instance.ts';
import { batches } from '../store/batches.ts';
import type { Keys } from '../store/keys.ts';
import type { Store, Write } from '../store/store.ts';
import type { OwnClaim } from './host-claim.ts';
import { HostLease } from './host-lease.ts';
import { OwnRecords } from './own-records.ts';

/**
 * So often something is read and compared, whatever the watch said: by turns this host's instances and its own record. A
 * watch resumes or begins anew, so that this is for faults which nobody thought of.
 */
const comparisonMs = 300_000;
/** More rounds of writing than this within the window are spread: somebody else wants other records under our id. */
const maxRounds = 100;
const roundsWindowMs = 10_000;
const contestedPauseMs = 1000;
const writeId = 'registrar.write';
const contestedId = 'registrar.contested';

export interface RegistrarOptions {
  readonly store: Store;
  readonly keys: Keys;
  readonly host: HostRecord;
  readonly leaseTtlMs: number;
  /** What tells this sidecar from another with the same host id. */
  readonly claim?: OwnClaim;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  readonly random?: () => number;
  /** Whether a stored record that nobody wants may go already; always, by default. */
  readonly mayDelete?: (record: InstanceRecord) => boolean;
}

/**
 * Makes the store say what this host has: its own record, its instances and its sign of life. It compares and writes the
 * differences, whatever happened in between: a lost write, a lost watch, somebody who deleted or damaged our records.
 */
export class Registrar {
  readonly #options: RegistrarOptions;
  readonly #lease: HostLease;
  readonly #prefix: string;
  readonly #hostKey: string;
  readonly #instances: OwnRecords;
  readonly #hostRecord: OwnRecords;
  readonly #bell = new Bell();
  /** Rung whenever the store says what it should. */
  readonly #settled = new Bell();
  readonly #writes: CounterCell;
  readonly #failures: CounterCell;
  readonly #random: () => number;
  /** Undefined until somebody has said what is wanted: until then nothing is touched. */
  #wanted: Map<string, Uint8Array> | undefined;
  /** Keys to compare. */
  #suspect = new Set<string>();
  /** What is to be read before the next comparison. */
  readonly #unread = new Set<OwnRecords>();
  #rounds = 0;
  #windowBeganMs = 0;

  constructor(options: RegistrarOptions) {
    const { store, keys, host, metrics } = options;
    this.#options = options;
    this.#random = options.random ?? Math.random;
    this.#prefix = keys.instancesOf(host.id);
    this.#hostKey = keys.host(host.id);
    this.#instances = new OwnRecords(store);
    this.#hostRecord = new OwnRecords(store);
    this.#lease = new HostLease({
      ...options,
      random: this.#random,
      hostId: host.id,
      ttlMs: options.leaseTtlMs,
      onChange: () => this.#bell.ring(),
    });
    this.#writes = metrics.counter('legate_registrar_writes_total', 'Records of this host written or deleted.');
    this.#failures = metrics.counter(
      'legate_registrar_failures_total',
      'Failed attempts to write records of this host.',
    );
    metrics.gauge('legate_registrar_pending_count', 'Records of this host that are still to be compared.', [], () => [
      [[], this.#suspect.size],
    ]);
  }

  /** Takes what this host should have. Deletions follow at once, so the first reset must be complete. */
  setDesired(change: Change<InstanceRecord>): void {
    if (change.kind === 'reset' || this.#wanted === undefined) {
      this.#suspectAll();
      this.#suspect.add(this.#hostKey);
      this.#wanted = new Map();
    }
    for (const name of change.kind === 'delta' ? change.deletes : []) this.#want(name, undefined);
    for (const record of change.kind === 'reset' ? change.items : change.puts) {
      this.#want(record.name, encodeInstance(record));
    }
    this.#wanted.set(this.#hostKey, encodeHost(this.#options.host));
    this.#bell.ring();
  }

  /** Runs until aborted. Throws only when the store was closed or something of ours is broken. */
  async run(signal: AbortSignal): Promise<void> {
    const ended = new AbortController();
    const until = AbortSignal.any([signal, ended.signal]);
    try {
      await Promise.all([
        this.#follow(this.#prefix, this.#instances, until),
        this.#follow(this.#hostKey, this.#hostRecord, until),
        this.#reconcile(until),
        this.#lease.run(until),
        this.#begin(until),
      ]);
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      ended.abort();
    }
  }

  /** Whether no other living sidecar has this host's id, as far as the store has told. */
  get holdsHostId(): boolean {
    return this.#lease.isOurs;
  }

  /** Tells the mesh that this host goes: its instances are lost at once. Their records stay for its return. */
  leave(): Promise<void> {
    return this.#lease.leave();
  }

  #want(name: string, value: Uint8Array | undefined): void {
    const key = `${this.#prefix}${name}`;
    if (value === undefined) this.#wanted?.delete(key);
    else this.#wanted?.set(key, value);
    this.#suspect.add(key);
  }

  async #follow(prefix: string, records: OwnRecords, signal: AbortSignal): Promise<void> {
    await eachChange(this.#options.store.watch(prefix, { signal }), (change) => {
      if (change.kind === 'reset') this.#suspectAll();
      for (const key of records.take(change)) this.#suspect.add(key);
      this.#bell.ring();
    });
  }

  #suspectAll(): void {
    for (const key of this.#wanted?.keys() ?? []) this.#suspect.add(key);
    for (const key of this.#instances.keys()) this.#suspect.add(key);
  }

  async #reconcile(signal: AbortSignal): Promise<void> {
    const backoff = new Backoff(100, 5000, this.#random);
    const cancelFull = this.#scheduleFull();
    try {
      while (!signal.aborted) {
        await this.#bell.wait(signal);
        const told = this.#instances.complete && this.#hostRecord.complete && this.#lease.isOurs;
        if (told && this.#wanted !== undefined && !signal.aborted && (await this.#step(backoff, signal)))
          this.#settled.ring();
      }
    } finally {
      cancelFull();
    }
  }

  /** The records come first: a host that returns to an emptied store is taken to be back when its sign of life is. */
  async #begin(signal: AbortSignal): Promise<void> {
    await this.#settled.wait(signal);
    if (!signal.aborted) this.#lease.begin();
  }

  /** One attempt to make the store as wanted; false when it has to be repeated, after a pause that it has taken. */
  async #step(backoff: Backoff, signal: AbortSignal): Promise<boolean> {
    const { conditions, clock } = this.#options;
    try {
      await this.#readAgain(signal);
      await this.#writeDifferences(signal);
      backoff.reset();
      conditions.clear(writeId);
      return true;
    } catch (error) {
      if (!isLegateError(error) || error.code === 'E_CLOSED') throw error;
      if (signal.aborted) return false;
      this.#failures.value += 1;
      for (const records of [this.#instances, this.#hostRecord]) this.#unread.add(records);
      const message = `changes of this host's records wait to be written: ${describeError(error)}`;
      conditions.raise(writeId, 'warning', message, error.hint ?? 'they are written as soon as the store answers');
      await clock.sleep(backoff.nextMs(), signal).catch(() => undefined);
      this.#bell.ring();
      return false;
    }
  }

  async #readAgain(signal: AbortSignal): Promise<void> {
    for (const records of this.#unread) {
      const prefix = records === this.#instances ? this.#prefix : this.#hostKey;
      const { entries, revision } = await this.#options.store.range(prefix, { signal });
      for (const key of records.takeAll(entries, revision)) this.#suspect.add(key);
      this.#suspectAll();
      this.#unread.delete(records);
    }
  }

  async #writeDifferences(signal: AbortSignal): Promise<void> {
    const suspect = [...this.#suspect].sort((a, b) => Number(a === this.#hostKey) - Number(b === this.#hostKey));
    const writes: Write[] = [];
    for (const key of suspect) {
      const write = this.#differenceAt(key);
      if (write === undefined) this.#suspect.delete(key);
      else if (write !== 'later') writes.push(write);
    }
    if (writes.length > 0) await this.#paceRounds(signal);
    for (const batch of batches(writes, this.#options.store.limits)) {
      if (signal.aborted || !this.#lease.isOurs) return;
      await this.#writeBatch(batch, signal);
    }
  }

  /** Two sidecars with one host id would correct each other as fast as they can; this makes it slow and visible. */
  async #paceRounds(signal: AbortSignal): Promise<void> {
    const { clock, conditions } = this.#options;
    const nowMs = clock.monotonicMs();
    if (nowMs - this.#windowBeganMs > roundsWindowMs) {
      if (this.#rounds <= maxRounds) conditions.clear(contestedId);
      this.#rounds = 0;
      this.#windowBeganMs = nowMs;
    }
    this.#rounds += 1;
    if (this.#rounds <= maxRounds) return;
    const message = `the records of host ${this.#options.host.id} change again and again`;
    const hint = 'does another sidecar run with a copy of this data_dir? Give it an empty one';
    conditions.raise(contestedId, 'warning', message, hint);
    await clock.sleep(contestedPauseMs, signal).catch(() => undefined);
  }

  /** What is to be written at a key, nothing, or nothing yet. */
  #differenceAt(key: string): Write | 'later' | undefined {
    const records = this.#recordsOf(key);
    const wanted = this.#wanted?.get(key);
    const actual = records?.get(key);
    if (records === undefined) return undefined;
    if (wanted !== undefined) {
      const same = actual !== undefined && Buffer.compare(actual, wanted) === 0;
      return same ? undefined : { kind: 'put', key, value: wanted };
    }
    if (actual === undefined) return undefined;
    const decoded = decodeInstance(actual, key.slice(this.#prefix.length));
    if (decoded.ok && this.#options.mayDelete?.(decoded.value) === false) return 'later';
    return { kind: 'delete', key };
  }

  #recordsOf(key: string): OwnRecords | undefined {
    if (key === this.#hostKey) return this.#hostRecord;
    return key.startsWith(this.#prefix) ? this.#instances : undefined;
  }

  async #writeBatch(writes: readonly Write[], signal: AbortSignal): Promise<void> {
    const { store, conditions } = this.#options;
    try {
      const result = await store.txn([], writes, { signal });
      if (!result.ok) throw new Error('a transaction without guards did not hold');
      for (const write of writes) this.#acknowledge(write, result.revision);
    } catch (error) {
      const refused = isLegateError(error, 'E_INVALID') || isLegateError(error, 'E_TOO_LARGE');
      if (!refused) throw error;
      const [only] = writes;
      if (writes.length > 1) {
        for (const write of writes) await this.#writeBatch([write], signal);
      } else if (only !== undefined) {
        this.#suspect.delete(only.key);
        const message = `the store refuses the record ${only.key}: ${describeError(error)}`;
        conditions.raise(refusalId(only.key), 'error', message, 'shorten its tags and metadata');
      }
    }
  }

  #acknowledge(write: Write, revision: string): void {
    this.#writes.value += 1;
    const records = this.#recordsOf(write.key);
    if (write.kind === 'put') records?.written(write.key, write.value, revision);
    else records?.deleted(write.key, revision);
    this.#options.conditions.clear(refusalId(write.key));
    if (this.#differenceAt(write.key) === undefined) this.#suspect.delete(write.key);
    else this.#bell.ring();
  }

  #scheduleFull(): () => void {
    let cancel = (): void => undefined;
    const next = (records: OwnRecords): void => {
      cancel = this.#options.clock.after(comparisonMs * (0.9 + 0.2 * this.#random()), () => {
        // While the store is away it has nothing to tell, and its watches begin anew when it is back.
        if (this.#options.store.status.value.state === 'connected') {
          this.#unread.add(records);
          this.#bell.ring();
        }
        next(records === this.#instances ? this.#hostRecord : this.#instances);
      });
    };
    next(this.#instances);
    return () => cancel();
  }
}

function refusalId(key: string): string {
  return `registrar.refused.${key}`;
}
