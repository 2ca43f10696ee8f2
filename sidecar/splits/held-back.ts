import { Latest, type Observable } from '../../src/base/feed.ts';
import type { Service, Snapshot } from '../../src/catalog/snapshot.ts';
import type { Weights } from '../../src/model/routes.ts';
import { httpDefaults, sameSetting } from '../../src/model/service-settings.ts';
import { type TakenBack, withoutSide } from '../../src/model/taken-back.ts';

/** A verdict of this host's guard, and the split that it is about. */
export interface Trip {
  readonly split: Weights;
  readonly takenBack: TakenBack;
}

interface Held extends Trip {
  /** The service as the mesh has it, and as this host has it meanwhile. */
  was: Service | undefined;
  is: Service | undefined;
}

/**
 * The snapshots with the sides at 0 that this host's guard has taken back, from the moment of its verdict: its own consumers
 * do not wait for the store. It ends when the split of the mesh is another one, which it is as soon as the verdict is written.
 */
export class HeldBack {
  readonly snapshots: Observable<Snapshot>;
  readonly #source: Observable<Snapshot>;
  readonly #latest: Latest<Snapshot>;
  readonly #trips = new Map<string, Held>();
  readonly #unsubscribe: () => void;

  constructor(source: Observable<Snapshot>) {
    this.#source = source;
    this.#latest = new Latest(source.value);
    this.snapshots = this.#latest;
    this.#unsubscribe = source.subscribe(() => this.#apply());
  }

  /** Those that hold, by service. */
  get trips(): ReadonlyMap<string, Trip> {
    return this.#trips;
  }

  hold(service: string, trip: Trip): void {
    this.#trips.set(service, { ...trip, was: undefined, is: undefined });
    this.#apply();
  }

  close(): void {
    this.#unsubscribe();
  }

  #apply(): void {
    const snapshot = this.#source.value;
    const held: [string, Service][] = [];
    for (const [name, trip] of this.#trips) {
      const service = snapshot.services.get(name);
      if (service === undefined || !concerns(trip, service)) {
        this.#trips.delete(name);
        continue;
      }
      // The same object as long as the service is the same, so that nothing seems to have changed.
      if (trip.was !== service) {
        const { split, takenBack } = trip;
        trip.is = Object.freeze({
          ...service,
          split: withoutSide(split, takenBack.tag),
          formerSplit: split,
          takenBack,
        });
        trip.was = service;
      }
      if (trip.is !== undefined) held.push([name, trip.is]);
    }
    const services = snapshot.services.with(held, []);
    this.#latest.set(services === snapshot.services ? snapshot : Object.freeze({ ...snapshot, services }));
  }
}

/** Whether the split is still the one that was judged, and guarded. */
function concerns({ split }: Trip, service: Service): boolean {
  return sameSetting(service.split, split) && (service.splitGuard ?? httpDefaults.splitGuard) > 0;
}
