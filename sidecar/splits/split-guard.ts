import { Rates } from '../../proxy/rates.ts';
import type { SidesOfProcess } from '../../proxy/side-document.ts';
import { Backoff } from '../../src/base/backoff.ts';
import type { Clock } from '../../src/base/clock.ts';
import type { Conditions } from '../../src/base/conditions.ts';
import { describeError, isLegateError } from '../../src/base/errors.ts';
import type { Observable } from '../../src/base/feed.ts';
import type { Log } from '../../src/base/log.ts';
import type { CounterCell, Metrics } from '../../src/base/metrics.ts';
import { emptySnapshot, type Service, type Snapshot } from '../../src/catalog/snapshot.ts';
import { httpDefaults, sameSetting } from '../../src/model/service-settings.ts';
import type { ServiceOrders } from '../../src/registrar/service-orders.ts';
import type { HeldBack, Trip } from './held-back.ts';
import { SideTraffic } from './traffic.ts';
import { failingSide, type SideSeen } from './verdict.ts';

/** What a side is judged by: its requests of so long, or since the split is as it is. */
export const guardWindowMs = 30_000;
/** How often figures are asked for, and sides judged. */
const lookEveryMs = Rates.everyMs;
/** The pause before a verdict that could not be written is tried again, and its ceiling. */
const firstPauseMs = 500;
const pauseCeilingMs = 30_000;

const unwritten = (service: string): string => `split.unwritten.${service}`;

export interface SplitGuardOptions {
  readonly hostId: string;
  /** As the mesh has them. */
  readonly snapshots: Observable<Snapshot>;
  readonly held: HeldBack;
  readonly sides: () => Promise<readonly SidesOfProcess[]>;
  /** Undefined while the store is not open. */
  readonly orders: () => Pick<ServiceOrders, 'takeBack'> | undefined;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
}

/**
 * Watches the sides of splits by what this host's consumers get from them, and takes one back to 0 that fails, where the
 * service has a guard: on this host at once, and for the mesh through the store. Without a split it does nothing.
 */
export class SplitGuard {
  readonly traffic = new SideTraffic(guardWindowMs);
  readonly #options: SplitGuardOptions;
  readonly #takenBack: CounterCell;
  /** Services with a split. */
  readonly #split = new Set<string>();
  readonly #ended = new AbortController();
  readonly #unsubscribe: () => void;
  #seen: Snapshot = emptySnapshot;
  #cancelLook: (() => void) | undefined;
  #looking = false;

  constructor(options: SplitGuardOptions) {
    this.#options = options;
    this.#takenBack = options.metrics.counter(
      'legate_http_sides_taken_back_total',
      "Sides of splits that this host's guard has taken back to 0.",
    );
    this.#follow(options.snapshots.value);
    this.#unsubscribe = options.snapshots.subscribe((snapshot) => this.#follow(snapshot));
  }

  close(): void {
    this.#ended.abort();
    this.#unsubscribe();
    this.#cancelLook?.();
  }

  #follow(snapshot: Snapshot): void {
    for (const { key, before, after } of snapshot.services.changesSince(this.#seen.services)) {
      if (sameSetting(before?.split, after?.split)) continue;
      // A side that was given more, or came back, is judged by what it does from now on.
      this.traffic.forget(key);
      if (hasSplit(after)) this.#split.add(key);
      else this.#split.delete(key);
    }
    this.#seen = snapshot;
    if (this.#split.size > 0 && this.#cancelLook === undefined && !this.#looking) void this.#look();
  }

  async #look(): Promise<void> {
    const { sides, clock, log } = this.#options;
    this.#looking = true;
    this.#cancelLook = undefined;
    try {
      this.traffic.take(await sides(), this.#split, clock.monotonicMs());
      for (const name of this.#split) this.#judge(name);
    } catch (error) {
      log.warn('what sides of splits carry is not known', { error: describeError(error) });
    }
    this.#looking = false;
    if (this.#ended.signal.aborted || this.#split.size === 0) return;
    this.#cancelLook = clock.after(lookEveryMs, () => void this.#look());
  }

  #judge(name: string): void {
    const { hostId, clock, held } = this.#options;
    const service = this.#options.snapshots.value.services.get(name);
    const factor = service?.splitGuard ?? httpDefaults.splitGuard;
    if (service?.split === undefined || factor <= 0 || held.trips.has(name)) return;
    const failing = failingSide(this.seen(service), factor);
    if (failing === undefined) return;
    const { side, against } = failing;
    const takenBack = {
      tag: side.tag,
      weight: side.weight,
      hostId,
      atMs: Math.trunc(clock.nowMs()),
      requests: side.requests,
      errors: side.errors,
      against: against.tag,
      againstRequests: against.requests,
      againstErrors: against.errors,
    };
    const trip = { split: service.split, takenBack };
    held.hold(name, trip);
    this.#takenBack.value += 1;
    void this.#write(name, trip);
  }

  /** What is known of a service's sides within the guard's window. */
  seen(service: Service): readonly SideSeen[] {
    const nowMs = this.#options.clock.monotonicMs();
    return Object.entries(service.split ?? {}).map(([tag, weight]) => {
      const { requests, errors } = this.traffic.since(service.name, tag, guardWindowMs, nowMs);
      return { tag, weight, requests, errors, usable: service.usable.some(({ tags }) => tags.includes(tag)) };
    });
  }

  /** Tries until the store has the verdict, or the split has become another one. */
  async #write(name: string, trip: Trip): Promise<void> {
    const { orders, held, clock, conditions } = this.#options;
    const { signal } = this.#ended;
    const backoff = new Backoff(firstPauseMs, pauseCeilingMs);
    while (!signal.aborted && held.trips.get(name)?.takenBack === trip.takenBack) {
      try {
        const order = orders();
        if (order !== undefined) {
          await order.takeBack(name, trip.split, trip.takenBack);
          break;
        }
      } catch (error) {
        if (signal.aborted) return;
        if (!isLegateError(error)) throw error;
        const { tag } = trip.takenBack;
        const message = `${tag} of ${name} is taken back on this host only: ${describeError(error)}`;
        conditions.raise(unwritten(name), 'warning', message, error.hint ?? 'it is tried again');
      }
      await clock.sleep(backoff.nextMs(), signal).catch(() => undefined);
    }
    conditions.clear(unwritten(name));
  }
}

function hasSplit(service: Service | undefined): boolean {
  return service?.split !== undefined && Object.keys(service.split).length > 0;
}
