import { Backoff } from '../../base/backoff.ts';
import type { Clock } from '../../base/clock.ts';
import { describeError, LegateError } from '../../base/errors.ts';
import type { Log } from '../../base/log.ts';
import type { CounterCell, Metrics } from '../../base/metrics.ts';
import type { Lease } from '../store.ts';
import { type Connection, closedError } from './connection.ts';
import { lapsedError } from './operations.ts';

/** What Consul grants. */
const minTtlMs = 10_000;
const maxTtlMs = 24 * 3_600_000;
const maxLeases = 10_000;
const firstRetryMs = 250;
const retryCeilingMs = 2000;

interface Held {
  readonly id: string;
  readonly ttlMs: number;
  readonly lost: AbortController;
}

export interface LeasesOptions {
  readonly connection: Connection;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly random: () => number;
}

/**
 * Leases are sessions that delete what they hold. A third of its TTL passes between renewals. Consul itself lets one
 * lapse only after up to twice its TTL, and later still when its leader changes; a lease that nobody is to keep alive is
 * therefore ended by this client after its TTL, and by Consul if this client is gone by then.
 */
export class Leases {
  readonly #options: LeasesOptions;
  readonly #held = new Set<Held>();
  readonly #lapsed: CounterCell;

  constructor(options: LeasesOptions) {
    this.#options = options;
    this.#lapsed = options.metrics.counter('legate_store_leases_lapsed_total', 'Leases that lapsed unrenewed.');
    options.metrics.gauge('legate_store_leases_count', 'Leases that live.', [], () => [[[], this.#held.size]]);
  }

  async begin(ttlMs: number, keepAlive: boolean, signal: AbortSignal | undefined): Promise<Lease> {
    if (!Number.isFinite(ttlMs) || ttlMs <= 0 || ttlMs > maxTtlMs) {
      throw new LegateError(
        'E_INVALID',
        `a lease of ${ttlMs} ms: it must be above 0 and Consul takes at most ${maxTtlMs}`,
      );
    }
    if (this.#held.size >= maxLeases) throw new LegateError('E_TOO_LARGE', `there are ${maxLeases} leases already`);
    const realTtlMs = Math.ceil(Math.max(ttlMs, minTtlMs));
    const { connection } = this.#options;
    const id = await connection.use(signal, (link, until) =>
      link.client.createSession(realTtlMs, { signal: until, timeoutMs: 0 }),
    );
    const held: Held = { id, ttlMs: realTtlMs, lost: new AbortController() };
    this.#held.add(held);
    if (keepAlive) void this.#keep(held);
    else this.#expire(held);
    return { id, ttlMs: realTtlMs, lost: held.lost.signal, revoke: () => this.#revoke(held) };
  }

  /** Whoever holds one hears that nobody keeps it alive any more. */
  close(): void {
    for (const held of [...this.#held]) {
      this.#end(held, new LegateError('E_CLOSED', 'the store was closed, so its leases lapse'));
    }
  }

  async #revoke(held: Held): Promise<void> {
    this.#end(held, lapsedError(held.id));
    await this.#destroy(held);
  }

  async #destroy({ id }: Held): Promise<void> {
    await this.#options.connection.use(undefined, (link, until) =>
      link.client.destroySession(id, { signal: until, timeoutMs: 0 }),
    );
  }

  #end(held: Held, reason: LegateError): void {
    this.#held.delete(held);
    held.lost.abort(reason);
  }

  #expire(held: Held): void {
    const { clock, log } = this.#options;
    const cancel = clock.after(held.ttlMs, () => {
      this.#lapsed.value += 1;
      this.#end(held, lapsedError(held.id));
      this.#destroy(held).catch((error: unknown) =>
        log.debug('a lease is left to lapse by itself', { 'store.reason': describeError(error) }),
      );
    });
    held.lost.signal.addEventListener('abort', cancel, { once: true });
  }

  /** Renews until the lease ends. Only Consul knows whether it has lapsed, so a Consul that is away ends nothing. */
  async #keep(held: Held): Promise<void> {
    const { clock, random, log } = this.#options;
    const { signal } = held.lost;
    const backoff = new Backoff(firstRetryMs, retryCeilingMs, random);
    let pauseMs = held.ttlMs / 3;
    while (!signal.aborted) {
      await clock.sleep(pauseMs * (0.9 + 0.1 * random()), signal).catch(() => undefined);
      if (signal.aborted) return;
      try {
        if (await this.#renew(held)) {
          backoff.reset();
          pauseMs = held.ttlMs / 3;
          continue;
        }
        this.#lapsed.value += 1;
        this.#end(held, lapsedError(held.id));
      } catch (error) {
        if (signal.aborted) return;
        log.debug('a lease could not be renewed', { 'store.reason': describeError(error) });
        pauseMs = backoff.nextMs();
      }
    }
  }

  async #renew(held: Held): Promise<boolean> {
    const { connection } = this.#options;
    const { signal } = held.lost;
    if (connection.closed.aborted) throw closedError();
    return await connection.use(signal, async (link, until) => {
      const { client } = link;
      // Shorter than an operation's limit, so that a silent server is noticed while there is time to ask another.
      const alive = await client.renewSession(held.id, { signal: until, timeoutMs: held.ttlMs / 3 });
      return alive;
    });
  }
}
