import { Backoff } from '../base/backoff.ts';
import type { Clock } from '../base/clock.ts';
import type { Conditions } from '../base/conditions.ts';
import { describeError, isLegateError } from '../base/errors.ts';
import { type Change, eachChange } from '../base/feed.ts';
import type { Log } from '../base/log.ts';
import type { CounterCell, Metrics } from '../base/metrics.ts';
import { Bell } from '../catalog/bell.ts';
import { encodeAlive, type HostClaim } from '../catalog/codec.ts';
import type { Keys } from '../store/keys.ts';
import type { Entry, Guard, Lease, Store } from '../store/store.ts';
import { duplicateHint, duplicateText, type OwnClaim } from './host-claim.ts';

/** A lost lease is asked for anew within this time, at random, because many hosts lose theirs at the same moment. */
const regrantSpreadMs = 500;
const duplicateId = 'host.duplicate';

export interface HostLeaseOptions {
  readonly store: Store;
  readonly keys: Keys;
  readonly hostId: string;
  /** What tells this sidecar from another with the same host id; without it nobody else is looked for. */
  readonly claim?: OwnClaim;
  readonly ttlMs: number;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  readonly random: () => number;
  /** Called when it is first known, and whenever it changes, whether the host id is ours. */
  readonly onChange: () => void;
}

/**
 * Keeps this host's sign of life in the store: puts it there, and puts it back whenever it is lost. All that it needs to
 * know comes from one watch. When the sign there is another living sidecar's, it stands back until that one has gone: it
 * neither overwrites nor renews, and says so.
 */
export class HostLease {
  readonly #options: HostLeaseOptions;
  readonly #key: string;
  readonly #value: Uint8Array;
  readonly #bell = new Bell();
  readonly #granted: CounterCell;
  #lease: Lease | undefined;
  /** The lease that the sign of life was last written with. */
  #written: Lease | undefined;
  #seen: Entry | undefined;
  #other: HostClaim | undefined;
  /** Whether the watch has told what is there. */
  #told = false;
  #begun = false;
  #left = false;

  constructor(options: HostLeaseOptions) {
    const { keys, hostId, clock, claim, metrics } = options;
    this.#options = options;
    this.#key = keys.aliveOf(hostId);
    this.#value = encodeAlive({ sinceMs: clock.nowMs(), ...(claim && { claim: claim.mine }) });
    this.#granted = metrics.counter('legate_registrar_leases_total', 'Leases that the store granted to this host.');
  }

  /** Whether no other living sidecar has this host's id, as far as the store has told. */
  get isOurs(): boolean {
    return this.#told && this.#other === undefined;
  }

  /** From now on there is to be a sign of life. */
  begin(): void {
    this.#begun = true;
    this.#bell.ring();
  }

  /** Runs until aborted. Throws only when the store was closed or something of ours is broken. */
  async run(signal: AbortSignal): Promise<void> {
    const ended = new AbortController();
    const until = AbortSignal.any([signal, ended.signal]);
    try {
      await Promise.all([this.#follow(until), this.#keep(until)]);
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      ended.abort();
    }
  }

  /** Gives the lease back, so that the host counts as lost at once. Without the store it lapses by itself. */
  async leave(): Promise<void> {
    this.#left = true;
    await this.#giveBack();
  }

  async #giveBack(): Promise<void> {
    const lease = this.#lease;
    this.#lease = undefined;
    await lease?.revoke().catch((error: unknown) => {
      this.#options.log.debug('the lease could not be revoked', { 'registrar.reason': describeError(error) });
    });
  }

  async #follow(signal: AbortSignal): Promise<void> {
    await eachChange(this.#options.store.watch(this.#key, { signal }), (change) => this.#see(change));
  }

  #see(change: Change<Entry>): void {
    const entry = (change.kind === 'reset' ? change.items : change.puts).find(({ key }) => key === this.#key);
    const isGone = change.kind === 'reset' || change.deletes.includes(this.#key);
    if (entry !== undefined || isGone) this.#look(entry);
    this.#bell.ring();
  }

  /** Takes what is there, and tells when that makes the host id ours or another's. */
  #look(entry: Entry | undefined): void {
    const { claim, conditions, hostId, onChange } = this.#options;
    const before = this.#told && this.#other === undefined;
    this.#seen = entry;
    this.#other = claim?.otherIn(entry);
    this.#told = true;
    if (this.#other === undefined) conditions.clear(duplicateId);
    else {
      const message = `${duplicateText(hostId, this.#other)}; this one stands back: it writes nothing of its own to the store`;
      conditions.raise(duplicateId, 'error', message, duplicateHint);
    }
    if (before !== this.isOurs) onChange();
  }

  async #keep(signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#options;
    const backoff = new Backoff(100, 5000, this.#options.random);
    while (!signal.aborted && !this.#left) {
      try {
        if (this.#told) await this.#assure(signal);
        backoff.reset();
      } catch (error) {
        if (!isLegateError(error) || error.code === 'E_CLOSED') throw error;
        log.debug('the sign of life could not be written', { 'registrar.reason': describeError(error) });
        await clock.sleep(backoff.nextMs(), signal).catch(() => undefined);
        this.#bell.ring();
      }
      await this.#bell.wait(signal);
    }
  }

  /** Makes sure that there is a living lease and that the sign of life there is ours. */
  async #assure(signal: AbortSignal): Promise<void> {
    const { store, ttlMs, clock, log, claim } = this.#options;
    if (this.#other !== undefined) return await this.#giveBack();
    if (!this.#begun) return;
    if (this.#lease?.lost.aborted === true) {
      log.warn('the lease of this host was lost; it is asked for again', {
        'registrar.reason': describeError(this.#lease.lost.reason),
      });
      this.#lease = undefined;
      await clock.sleep(this.#options.random() * regrantSpreadMs, signal).catch(() => undefined);
      if (signal.aborted || this.#left || this.#other !== undefined) return;
    }
    if (this.#lease === undefined) {
      const lease = await store.lease(ttlMs, { signal });
      lease.lost.addEventListener('abort', () => this.#bell.ring(), { once: true });
      this.#lease = lease;
      this.#granted.value += 1;
      if (this.#left) return await this.leave();
    }
    const isThere = this.#seen !== undefined && (claim === undefined || claim.isMine(this.#seen));
    if (!isThere || this.#written !== this.#lease) await this.#write(this.#lease, signal);
  }

  /** Only what was last seen is replaced: whoever was faster is looked at first. */
  async #write(lease: Lease, signal: AbortSignal): Promise<void> {
    const { store } = this.#options;
    const key = this.#key;
    const seen = this.#seen;
    const guard: Guard =
      seen === undefined ? { kind: 'absent', key } : { kind: 'revision', key, revision: seen.revision };
    try {
      const result = await store.txn([guard], [{ kind: 'put', key, value: this.#value, lease }], { signal });
      if (result.ok) {
        this.#written = lease;
        this.#look({ key, value: this.#value, revision: result.revision });
        return;
      }
    } catch (error) {
      // A store that answers and refuses may no longer know the lease, whatever it told its holder.
      if (!isLegateError(error, 'E_STORE_AWAY')) this.#lease = undefined;
      throw error;
    }
    this.#look(await store.get(key, { signal }));
    this.#bell.ring();
  }
}
