import { parseDuration } from '../../src/base/duration.ts';
import { LegateError } from '../../src/base/errors.ts';
import type { Lease, Store } from '../../src/store/store.ts';

const minTtlMs = 1000;
const maxTtlMs = 7 * 24 * 3_600_000;
/** Keys whose lease is remembered, so that the next write of the key ends it. */
const maxRemembered = 10_000;

/**
 * The leases of users' keys that are to vanish by themselves: one a write, which nobody keeps alive. A key that is
 * written again leaves its former lease, which is ended then; one that was forgotten here lapses by itself.
 */
export class KeyLeases {
  readonly #byKey = new Map<string, Lease>();

  /** Parses `lease_ttl`; E_INVALID when it is no duration within bounds. */
  static ttlMs(text: string): number {
    const ttlMs = parseDuration(text);
    if (ttlMs !== undefined && ttlMs >= minTtlMs && ttlMs <= maxTtlMs) return ttlMs;
    throw new LegateError('E_INVALID', 'lease_ttl is not a duration of 1s to 7d', { hint: 'write it as 30s or 2m' });
  }

  /** Runs `write` with a new lease. When it wrote nothing (false) or failed, the lease is given back. */
  async with<T extends { readonly ok: boolean }>(
    store: Store,
    key: string,
    ttlMs: number,
    write: (lease: Lease) => Promise<T>,
  ): Promise<T> {
    const lease = await store.lease(ttlMs, { keepAlive: false });
    const giveBack = (): Promise<void> => lease.revoke().catch(() => undefined);
    let result: T;
    try {
      result = await write(lease);
    } catch (error) {
      // Whether it was written is not known: the lease stays, and lapses.
      if (!(error instanceof LegateError && error.code === 'E_STORE_AWAY')) await giveBack();
      throw error;
    }
    if (!result.ok) await giveBack();
    else await this.#remember(key, lease);
    return result;
  }

  /** The key was written without a lease, or deleted. */
  async forget(key: string): Promise<void> {
    const lease = this.#byKey.get(key);
    this.#byKey.delete(key);
    await lease?.revoke().catch(() => undefined);
  }

  async #remember(key: string, lease: Lease): Promise<void> {
    await this.forget(key);
    for (const [other, { lost }] of this.#byKey) {
      if (this.#byKey.size < maxRemembered && !lost.aborted) break;
      this.#byKey.delete(other);
    }
    this.#byKey.set(key, lease);
    lease.lost.addEventListener(
      'abort',
      () => {
        if (this.#byKey.get(key) === lease) this.#byKey.delete(key);
      },
      { once: true },
    );
  }
}
