import type { CounterCell, Metrics } from '../src/base/metrics.ts';
import type { EjectionReason } from './outlier.ts';

/** What is counted of one service's links. */
export interface LinkCells {
  readonly connections: CounterCell;
  readonly failures: CounterCell;
  readonly refused: CounterCell;
  readonly denied: CounterCell;
  readonly retries: CounterCell;
  readonly ejections: Readonly<Record<EjectionReason, CounterCell>>;
  readonly received: CounterCell;
  readonly sent: CounterCell;
}

/** What is asked for at each scrape. */
export interface LinkSamples {
  /** Services with their running connections. */
  readonly active: () => Iterable<readonly [service: string, connections: number]>;
  /** Services whose requests are limited, with those that wait for their turn. */
  readonly queued: () => Iterable<readonly [service: string, requests: number]>;
  /** Hosts that did not answer just now. */
  readonly suspects: () => number;
  /** Bytes of all large read buffers. */
  readonly bufferBytes: () => number;
  /** Connections that wait until there is something to connect to. */
  readonly held: () => number;
}

/** The metrics of all links; `legate_link_…`. */
export class LinkMetrics {
  static readonly connectBucketsSeconds = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];
  readonly #metrics: Metrics;
  readonly connectSeconds: { observe(value: number): void };
  readonly overLimit: CounterCell;
  /** Connections that found no room to wait. */
  readonly lobbyFull: CounterCell;

  /** A registry takes one `LinkMetrics`. */
  constructor(metrics: Metrics, { active, queued, suspects, bufferBytes, held }: LinkSamples) {
    this.#metrics = metrics;
    this.connectSeconds = metrics.histogram(
      'legate_link_connect_seconds',
      'Time until an instance was connected to, by successful attempt.',
      LinkMetrics.connectBucketsSeconds,
    );
    this.overLimit = metrics.counter(
      'legate_link_connections_over_limit_total',
      'Connections of consumers that were reset because this sidecar carries no more.',
    );
    metrics.gauge(
      'legate_link_suspect_hosts_count',
      'Other hosts that did not answer just now, whose instances are tried last.',
      [],
      () => [[[], suspects()]],
    );
    this.lobbyFull = metrics.counter(
      'legate_link_held_over_limit_total',
      'Connections that were reset because too many wait for an instance already.',
    );
    metrics.gauge('legate_link_held_connections', 'Connections that wait for an instance now.', [], () => [
      [[], held()],
    ]);
    metrics.gauge('legate_link_read_buffers_bytes', 'Large read buffers, in use and spare.', [], () => [
      [[], bufferBytes()],
    ]);
    metrics.gauge(
      'legate_link_active_connections',
      'Connections of consumers that run now.',
      ['service'],
      function* () {
        for (const [service, connections] of active()) yield [[service], connections];
      },
    );
    metrics.gauge(
      'legate_http_queued_count',
      'Requests that wait for their turn, where max_requests limits them.',
      ['service'],
      function* () {
        for (const [service, requests] of queued()) yield [[service], requests];
      },
    );
  }

  /** The connections of one consumer to a service. */
  consumer(service: string, consumer: string): CounterCell {
    return this.#metrics.counter(
      'legate_link_consumer_connections_total',
      'Connections by who made them: a consumer, host or anonymous.',
      { service, consumer },
    );
  }

  /** Requests to one side of a service's split. */
  split(service: string, tag: string, end: string): CounterCell {
    const help = 'Requests to services with a split, by the tag of whose instances answered and by how they ended.';
    return this.#metrics.counter('legate_http_split_requests_total', help, { service, tag, end });
  }

  cells(service: string): LinkCells {
    const counter = (what: string, help: string): CounterCell =>
      this.#metrics.counter(`legate_link_${what}_total`, help, { service });
    const ejections = (reason: EjectionReason): CounterCell =>
      this.#metrics.counter('legate_link_ejections_total', 'Instances that were left out for a while, by why.', {
        service,
        reason,
      });
    return {
      connections: counter('connections', 'Connections of consumers that were accepted.'),
      failures: counter('connect_failures', 'Attempts to connect to an instance that failed.'),
      refused: counter('connections_refused', 'Connections of consumers that were reset because no instance answered.'),
      denied: counter(
        'connections_denied_by_hosts',
        'Connections of consumers that the instance’s host did not let in.',
      ),
      retries: counter('retries', 'Failed attempts that were repeated, unnoticed by the consumer.'),
      ejections: { failures: ejections('failures'), errors: ejections('errors'), slowness: ejections('slowness') },
      received: counter('received_bytes', 'Bytes from consumers.'),
      sent: counter('sent_bytes', 'Bytes to consumers.'),
    };
  }
}
