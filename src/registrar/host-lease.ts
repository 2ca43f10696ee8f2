import { Backoff } from '../base/backoff.ts';
import type { Clock } from '../base/clock.ts';
import { describeError, isLegateError } from '../base/errors.ts';
import type { Log } from '../base/log.ts';
import type { CounterCell, Metrics } from '../base/metrics.ts';
import { Bell } from '../catalog/bell.ts';
import { encodeAlive } from '../catalog/codec.ts';
import type { Keys } from '../store/keys.ts';
import type { Lease, Store } from '../store/store.ts';

/** A lost lease is asked for anew within this time, at random, because many hosts lose theirs at the same moment. */
const regrantSpreadMs = 500;

export interface HostLeaseOptions {
  readonly store: Store;
  readonly keys: Keys;
  readonly hostId: string;
  readonly ttlMs: number;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly random: () => number;
}

/** Keeps this host's sign of life in the store: puts it there, and puts it back whenever it is lost. */
export class HostLease {
  readonly #options: HostLeaseOptions;
  readonly #key: string;
  readonly #bell = new Bell();
  readonly #granted: CounterCell;
  readonly #sinceMs: number;
  #lease: Lease | undefined;
  #left = false;

  constructor(options: HostLeaseOptions) {
    this.#options = options;
    this.#key = options.keys.aliveOf(options.hostId);
    this.#sinceMs = options.clock.nowMs();
    this.#granted = options.metrics.counter(
      'legate_registrar_leases_total',
      'Leases that the store granted to this host.',
    );
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
    await this.#lease?.revoke().catch((error: unknown) => {
      this.#options.log.debug('the lease could not be revoked', { 'registrar.reason': describeError(error) });
    });
  }

  async #follow(signal: AbortSignal): Promise<void> {
    for await (const _change of this.#options.store.watch(this.#key, { signal })) this.#bell.ring();
  }

  async #keep(signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#options;
    const backoff = new Backoff(100, 5000, this.#options.random);
    while (!signal.aborted && !this.#left) {
      try {
        await this.#assure(signal);
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

  /** Makes sure that there is a living lease and that the key is there. */
  async #assure(signal: AbortSignal): Promise<void> {
    const { store, ttlMs, clock, log } = this.#options;
    if (this.#lease?.lost.aborted === true) {
      log.warn('the lease of this host was lost; it is asked for again', {
        'registrar.reason': describeError(this.#lease.lost.reason),
      });
      this.#lease = undefined;
      await clock.sleep(this.#options.random() * regrantSpreadMs, signal).catch(() => undefined);
      if (signal.aborted || this.#left) return;
    }
    if (this.#lease === undefined) {
      const lease = await store.lease(ttlMs, { signal });
      lease.lost.addEventListener('abort', () => this.#bell.ring(), { once: true });
      this.#lease = lease;
      this.#granted.value += 1;
      if (this.#left) return await this.leave();
    } else if ((await store.get(this.#key, { signal })) !== undefined) return;
    try {
      await store.put(this.#key, encodeAlive({ sinceMs: this.#sinceMs }), { lease: this.#lease, signal });
    } catch (error) {
      // A store that answers and refuses may no longer know the lease, whatever it told its holder.
      if (!isLegateError(error, 'E_STORE_AWAY')) this.#lease = undefined;
      throw error;
    }
  }
}
