import type { Clock } from '../base/clock.ts';
import { describeError, isLegateError } from '../base/errors.ts';
import type { Observable } from '../base/feed.ts';
import type { Log } from '../base/log.ts';
import type { CounterCell, Metrics } from '../base/metrics.ts';
import { Bell } from '../catalog/bell.ts';
import type { Snapshot } from '../catalog/snapshot.ts';
import { isInCharge, type Policy } from '../model/policy.ts';
import { batches } from '../store/batches.ts';
import type { Keys } from '../store/keys.ts';
import type { Entry, Guard, Store, Write } from '../store/store.ts';

/** After an attempt, whatever came of it, the next one waits this long, and up to as long again. */
const pauseMs = 60_000;

export interface HostSweeperOptions {
  readonly store: Store;
  readonly keys: Keys;
  readonly hostId: string;
  readonly snapshots: Observable<Snapshot>;
  /** Hosts that have been lost for so long that nobody shows them any more. */
  readonly forgotten: () => ReadonlySet<string>;
  /** Where there is one, the authority's host sweeps, and nobody else. */
  readonly policy?: Observable<Policy | undefined>;
  /** Whether the store is in this sidecar. Where it is in none, the living host with the lowest id sweeps. */
  readonly holdsStore: boolean;
  /** Whether this host's id is its own alone; another one's sweeps else. */
  readonly mayWrite: () => boolean;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly random?: () => number;
}

/**
 * Deletes what hosts have left in the store that have been lost for too long. Each transaction holds only while the host
 * gives no sign of life and what it deletes is as it was read: one that returns at that moment loses nothing, because its
 * sidecar writes back what is missing.
 */
export class HostSweeper {
  readonly #options: HostSweeperOptions;
  readonly #bell = new Bell();
  readonly #swept: CounterCell;

  constructor(options: HostSweeperOptions) {
    this.#options = options;
    this.#swept = options.metrics.counter(
      'legate_registrar_swept_hosts_total',
      'Hosts that were lost for a day and whose records this host deleted.',
    );
  }

  /** Runs until aborted. Throws only when the store was closed or something of ours is broken. */
  async run(signal: AbortSignal): Promise<void> {
    const { snapshots, clock, random = Math.random } = this.#options;
    const look = (): void => {
      if (this.#isDue()) this.#bell.ring();
    };
    const unsubscribe = [snapshots.subscribe(look), this.#options.policy?.subscribe(look)];
    if (this.#isDue()) this.#bell.ring();
    try {
      for (;;) {
        await this.#bell.wait(signal);
        if (signal.aborted) return;
        for (const hostId of this.#isDue() ? [...this.#options.forgotten()] : []) await this.#sweep(hostId, signal);
        await clock.sleep(pauseMs * (1 + random()), signal).catch(() => undefined);
        if (this.#isDue()) this.#bell.ring();
      }
    } finally {
      for (const end of unsubscribe) end?.();
    }
  }

  #isDue(): boolean {
    const { forgotten, holdsStore, mayWrite, snapshots, hostId } = this.#options;
    const policy = this.#options.policy?.value;
    if (forgotten().size === 0 || !mayWrite()) return false;
    if (policy !== undefined) return isInCharge(policy, hostId);
    if (holdsStore) return true;
    for (const { id, alive } of snapshots.value.hosts.values()) if (alive && id < hostId) return false;
    return true;
  }

  async #sweep(hostId: string, signal: AbortSignal): Promise<void> {
    const { log } = this.#options;
    try {
      if (!(await this.#delete(hostId, signal))) return;
      this.#swept.value += 1;
      log.info('a host was lost for a day; its records are deleted', { 'host.id': hostId });
    } catch (error) {
      if (!isLegateError(error) || error.code === 'E_CLOSED') throw error;
      log.debug('the records of a lost host could not be deleted', {
        'host.id': hostId,
        'registrar.reason': describeError(error),
      });
    }
  }

  /** Instances first: while its record is there, the host is known and tried again. */
  async #delete(hostId: string, signal: AbortSignal): Promise<boolean> {
    const { store, keys } = this.#options;
    const { entries } = await store.range(keys.instancesOf(hostId), { signal });
    const host = await store.get(keys.host(hostId), { signal });
    const revisions = new Map<string, string>();
    const writes = [...entries, ...(host === undefined ? [] : [host])].map(({ key, revision }: Entry): Write => {
      revisions.set(key, revision);
      return { kind: 'delete', key };
    });
    const lifeless: Guard = { kind: 'absent', key: keys.aliveOf(hostId) };
    const limits = { ...store.limits, txnOperations: store.limits.txnOperations - 1 };
    for (const batch of batches(writes, limits, 1)) {
      const unchanged = batch.map(({ key }): Guard => ({ kind: 'revision', key, revision: revisions.get(key) ?? '' }));
      if (!(await store.txn([lifeless, ...unchanged], batch, { signal })).ok) return false;
    }
    return writes.length > 0;
  }
}
