import type { CounterCell, Metrics } from '../../src/base/metrics.ts';
import type { ProtocolFault } from './frames.ts';

/** What is counted of the tunnels with one host. */
export interface TunnelTraffic {
  readonly opened: CounterCell;
  readonly accepted: CounterCell;
  readonly received: CounterCell;
  readonly sent: CounterCell;
  /** The peer broke the protocol and was cut off. */
  fault(kind: ProtocolFault['kind']): void;
}

/** What is asked for at each scrape. */
export interface TunnelSamples {
  readonly connections: () => Iterable<readonly [role: 'dialled' | 'accepted', connections: number]>;
  readonly streams: () => number;
  readonly suspectHosts: () => number;
  /** Received and not yet consumed, of all connections. */
  readonly heldBytes: () => number;
}

/** The metrics of all tunnels; `legate_tunnel_…`. */
export class TunnelMetrics {
  readonly #metrics: Metrics;

  constructor(metrics: Metrics, { connections, streams, suspectHosts, heldBytes }: TunnelSamples) {
    this.#metrics = metrics;
    metrics.gauge(
      'legate_tunnel_open_connections',
      'Connections with other sidecars, by who dialled.',
      ['role'],
      function* () {
        for (const [role, count] of connections()) yield [[role], count];
      },
    );
    metrics.gauge('legate_tunnel_streams_count', 'Streams that run now.', [], () => [[[], streams()]]);
    metrics.gauge(
      'legate_tunnel_suspect_hosts_count',
      'Hosts that are connected and do not answer just now.',
      [],
      () => [[[], suspectHosts()]],
    );
    metrics.gauge('legate_tunnel_held_bytes', 'Bytes received through tunnels and not yet handed on.', [], () => [
      [[], heldBytes()],
    ]);
  }

  traffic(hostId: string): TunnelTraffic {
    const counter = (what: string, help: string): CounterCell =>
      this.#metrics.counter(`legate_tunnel_${what}_total`, help, { host: hostId });
    return {
      opened: counter('streams_opened', 'Streams that this host opened, by host.'),
      accepted: counter('streams_accepted', 'Streams that another host opened here, by host.'),
      received: counter('received_bytes', 'Bytes of streams received, by host.'),
      sent: counter('sent_bytes', 'Bytes of streams sent, by host.'),
      fault: (kind) => {
        this.#metrics.counter(
          'legate_tunnel_protocol_faults_total',
          'Connections that were cut because the other side broke the protocol or flooded it.',
          { kind },
        ).value += 1;
      },
    };
  }

  /** A try to connect to another host failed. */
  dialFailed(): void {
    this.#metrics.counter('legate_tunnel_dial_failures_total', 'Tries to connect to another host that failed.').value +=
      1;
  }

  /** A connection from outside was turned away before it could say anything. */
  turnedAway(reason: 'limit' | 'handshake' | 'certificate' | 'protocol'): void {
    this.#metrics.counter(
      'legate_tunnel_turned_away_total',
      'Connections to the tunnel address that were closed: too many at once, no handshake in time, not accepted certificates, unknown protocols.',
      { reason },
    ).value += 1;
  }
}
