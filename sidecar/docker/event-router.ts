import type { Drains } from './draining.ts';
import { type DockerEvent, SeenEvents } from './events.ts';
import type { Inventory } from './inventory.ts';
import type { NetworkWatch } from './network-watch.ts';
import type { Session } from './session.ts';
import type { SourceCounters } from './source-metrics.ts';

export interface EventRouterOptions {
  readonly inventory: Inventory;
  readonly drains: Drains;
  readonly networks: NetworkWatch;
  readonly counters: SourceCounters;
  /** A container runs no more. */
  readonly onGone: (id: string) => void;
}

/**
 * What an event means. Three count by themselves, at once: a kill begins draining, a death takes the container out, and
 * a disconnection ends an address of it.
 * All others are hints to look again.
 */
export class EventRouter {
  readonly #options: EventRouterOptions;
  readonly #seen = new SeenEvents();

  constructor(options: EventRouterOptions) {
    this.#options = options;
  }

  /** The engine's time of the newest event, in nanoseconds; 0 before the first. */
  get lastNano(): number {
    return this.#seen.lastNano;
  }

  route(event: DockerEvent, session: Session): void {
    const { counters } = this.#options;
    counters.events.value += 1;
    if (!this.#seen.add(event)) counters.repeated.value += 1;
    else if (event.type === 'network') this.#network(event, session);
    else this.#container(event, session);
  }

  #container(event: DockerEvent & { type: 'container' }, session: Session): void {
    const { inventory, drains, onGone } = this.#options;
    const { id, action } = event;
    const eventMs = event.timeNano / 1e6;
    const known = inventory.get(id);
    switch (action) {
      case 'kill':
        if (event.signal !== undefined) drains.kill(id, event.signal, eventMs, known);
        return;
      case 'die':
      case 'destroy':
        // An event that `since` repeats may be about an earlier run of the container.
        if (known !== undefined && eventMs < Date.parse(known.startedAt)) session.look(id);
        else {
          session.inspections.invalidate(id);
          onGone(id);
        }
        return;
      case 'start':
      case 'restart':
      case 'pause':
      case 'unpause':
      case 'rename':
      case 'update':
      case 'oom':
        session.look(id);
        return;
      default:
        // Others, such as exec_start at each health probe, change nothing that matters here.
        if (action.startsWith('health_status')) session.look(id);
    }
  }

  #network(event: DockerEvent & { type: 'network' }, session: Session): void {
    const { inventory, networks } = this.#options;
    if (event.action !== 'connect' && event.action !== 'disconnect') {
      networks.refresh(session.signal).catch(() => session.compareSoon());
      return;
    }
    // Before its start and after its death a container is connected and disconnected too.
    const { container } = event;
    if (container === undefined) return;
    if (event.action === 'disconnect') inventory.disconnected(container, event.id);
    if (inventory.get(container) !== undefined || session.inspections.has(container)) session.look(container);
  }
}
