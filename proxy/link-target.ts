import type { Clock } from '../src/base/clock.ts';
import type { CounterCell } from '../src/base/metrics.ts';
import type { Service } from '../src/catalog/snapshot.ts';
import { type Endpoint, formatEndpoint } from '../src/model/address.ts';
import { type Instance, transportOf } from '../src/model/instance.ts';
import { Backends } from './backends.ts';
import type { Link } from './link.ts';
import type { LinkBackendDocument } from './link-document.ts';
import type { LinkCells, LinkMetrics } from './link-metrics.ts';
import type { Suspects } from './suspects.ts';

export interface LinkTargetOptions {
  readonly name: string;
  readonly clock: Clock;
  readonly random: () => number;
  readonly metrics: LinkMetrics;
  readonly suspects: Suspects;
  readonly dial: (instance: Instance) => Endpoint | undefined;
}

/** A service that this host has links to: its instances with their state, shared by all of its links. */
export class LinkTarget {
  readonly name: string;
  readonly backends: Backends;
  readonly cells: LinkCells;
  readonly connectSeconds: { observe(value: number): void };
  /** The metric of one consumer's connections. */
  readonly consumerCell: (consumer: string) => CounterCell;
  readonly links = new Set<Link>();
  /** Connections that run, also those of links that are gone. */
  active = 0;
  #service: Service | undefined;
  readonly suspects: Suspects;
  readonly #clock: Clock;

  constructor({ name, clock, random, metrics, suspects, dial }: LinkTargetOptions) {
    this.name = name;
    this.cells = metrics.cells(name);
    this.connectSeconds = metrics.connectSeconds;
    this.consumerCell = (consumer) => metrics.consumer(name, consumer);
    this.backends = new Backends({ clock, random, ejections: this.cells.ejections, suspects, dial });
    this.suspects = suspects;
    this.#clock = clock;
  }

  /** Undefined while the catalog does not know it. */
  get service(): Service | undefined {
    return this.#service;
  }

  update(service: Service | undefined): void {
    this.#service = service;
    this.backends.update(service !== undefined && transportOf(service.protocol) === 'tcp' ? service : undefined);
  }

  backendDocuments(): LinkBackendDocument[] {
    const wallMs = this.#clock.nowMs() - this.#clock.monotonicMs();
    return this.backends.list().map((backend) => ({
      id: backend.id,
      address: formatEndpoint(backend.endpoint),
      active: backend.active,
      total: backend.total,
      ejectedUntil:
        backend.ejectedUntilMs === undefined ? null : new Date(wallMs + backend.ejectedUntilMs).toISOString(),
      ejections: backend.ejections,
      suspect: this.suspects.untilMs(backend.instance.hostId) !== undefined,
    }));
  }
}
