import { type CounterCell, type HistogramCell, type Metrics, observe } from '../../src/base/metrics.ts';
import type { Backend } from '../balance/backend.ts';
import type { HttpFaultKind } from './fault.ts';

/** Upper bounds of the histogram's buckets, in seconds. */
const bounds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];

/** How a request ended: the class of its status, or that there was no whole answer. */
export type RequestEnd = '1xx' | '2xx' | '3xx' | '4xx' | '5xx' | 'broken' | 'client gone';

const eventHelp = {
  retries: 'Requests that were asked again.',
  hedges: 'Requests that a second instance was asked as well because the first one took long.',
  timeouts: 'Requests, and tries of them, that took longer than the service allows.',
  rejected: 'Requests that were refused because too many were running and waiting.',
} as const;

/** What may happen to a request on its way; counted by service. */
type RequestEvent = keyof typeof eventHelp;

interface InstanceCells {
  readonly ends: Map<RequestEnd, CounterCell>;
  readonly seconds: HistogramCell;
}

/** What is counted of requests; `legate_http_…`. */
export class RequestMetrics {
  readonly #metrics: Metrics;
  /** By service; for answers that no instance gave. */
  readonly #own = new Map<string, InstanceCells>();
  readonly #instances = new WeakMap<Backend, InstanceCells>();
  readonly #refused = new Map<HttpFaultKind, CounterCell>();
  /** By name and service. */
  readonly #events = new Map<RequestEvent, Map<string, CounterCell>>();

  constructor(metrics: Metrics, idleConnections: () => number) {
    this.#metrics = metrics;
    metrics.gauge(
      'legate_http_idle_connections',
      'Connections to instances that are kept for further requests.',
      [],
      () => [[[], idleConnections()]],
    );
  }

  /** A request has ended after so many seconds; `backend` is undefined when this sidecar answered itself. */
  ended(service: string, backend: Backend | undefined, end: RequestEnd, seconds: number): void {
    const cells = this.#cellsOf(service, backend);
    let cell = cells.ends.get(end);
    if (cell === undefined) {
      cell = this.#metrics.counter('legate_http_requests_total', 'Requests by how they ended.', {
        service,
        instance: backend?.id ?? '',
        end,
      });
      cells.ends.set(end, cell);
    }
    cell.value += 1;
    observe(cells.seconds, bounds, seconds);
  }

  /** Something has happened to a request to this service. */
  happened(event: RequestEvent, service: string): void {
    let cells = this.#events.get(event);
    if (cells === undefined) {
      cells = new Map();
      this.#events.set(event, cells);
    }
    let cell = cells.get(service);
    if (cell === undefined) {
      cell = this.#metrics.counter(`legate_http_${event}_total`, eventHelp[event], { service });
      cells.set(service, cell);
    }
    cell.value += 1;
  }

  /** A request was refused for what it said. */
  refused(reason: HttpFaultKind): void {
    let cell = this.#refused.get(reason);
    if (cell === undefined) {
      const help = 'Requests that were refused for what they said, by reason.';
      cell = this.#metrics.counter('legate_http_refused_total', help, { reason });
      this.#refused.set(reason, cell);
    }
    cell.value += 1;
  }

  #cellsOf(service: string, backend: Backend | undefined): InstanceCells {
    let cells = backend === undefined ? this.#own.get(service) : this.#instances.get(backend);
    if (cells !== undefined) return cells;
    const help = 'Time from a request’s head to the end of its answer, by who answered.';
    const labels = { service, instance: backend?.id ?? '' };
    cells = {
      ends: new Map(),
      seconds: this.#metrics.histogramCell('legate_http_request_seconds', help, bounds, labels),
    };
    if (backend === undefined) this.#own.set(service, cells);
    else this.#instances.set(backend, cells);
    return cells;
  }
}

export function endOf(status: number): RequestEnd {
  return status < 200 ? '1xx' : status < 300 ? '2xx' : status < 400 ? '3xx' : status < 500 ? '4xx' : '5xx';
}
