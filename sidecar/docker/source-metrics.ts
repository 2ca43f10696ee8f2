import type { CounterCell, Metrics } from '../../src/base/metrics.ts';

export interface SourceCounters {
  readonly events: CounterCell;
  readonly repeated: CounterCell;
  readonly garbage: CounterCell;
  readonly inspections: CounterCell;
  readonly comparisons: CounterCell;
  readonly differences: CounterCell;
  readonly lost: CounterCell;
}

export interface SourceGauges {
  readonly containers: () => number;
  readonly instances: () => number;
  readonly refusals: () => number;
  readonly draining: () => number;
  readonly waiting: () => number;
  readonly images: () => number;
  readonly connected: () => number;
}

/** The metrics of the Docker source. */
export function sourceMetrics(metrics: Metrics, gauges: SourceGauges): SourceCounters {
  const gauge = (name: string, help: string, value: () => number): void => {
    metrics.gauge(name, help, [], () => [[[], value()]]);
  };
  gauge('legate_docker_containers_count', 'Containers that run.', gauges.containers);
  gauge('legate_docker_instances_count', 'Instances that containers offer.', gauges.instances);
  gauge('legate_docker_refusals_count', 'Requests of containers that cannot be met.', gauges.refusals);
  gauge('legate_docker_draining_count', 'Containers that have been told to stop and still run.', gauges.draining);
  gauge('legate_docker_inspections_waiting_count', 'Containers that wait to be inspected.', gauges.waiting);
  gauge('legate_docker_images_cached_count', 'Images whose configuration is remembered.', gauges.images);
  gauge('legate_docker_engine_connected_bool', '1 while the Docker Engine answers.', gauges.connected);
  return {
    events: metrics.counter('legate_docker_events_total', 'Events of the Docker Engine.'),
    repeated: metrics.counter('legate_docker_events_repeated_total', 'Events that had been seen before.'),
    garbage: metrics.counter('legate_docker_events_garbage_total', 'Lines of the event stream that are no events.'),
    inspections: metrics.counter('legate_docker_inspections_total', 'Containers inspected.'),
    comparisons: metrics.counter('legate_docker_comparisons_total', 'Full comparisons with the Docker Engine.'),
    differences: metrics.counter('legate_docker_differences_total', 'Full comparisons that found something new.'),
    lost: metrics.counter('legate_docker_connections_lost_total', 'Connections to the Docker Engine that failed.'),
  };
}
