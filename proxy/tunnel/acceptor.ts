import type { CounterCell, Metrics } from '../../src/base/metrics.ts';
import type { Service, Snapshot } from '../../src/catalog/snapshot.ts';
import type { Endpoint } from '../../src/model/address.ts';
import { dialOf } from '../../src/model/dial.ts';
import { type Instance, isExternal, transportOf } from '../../src/model/instance.ts';
import { decisionText } from '../../src/model/policy.ts';
import type { AccessEntry, AccessLog } from '../access-log.ts';
import type { Asked, DenialDocument, Permission } from '../permission.ts';
import type { Account } from '../tcp/carried.ts';
import type { RelayCrowd } from '../tcp/relay-crowd.ts';
import { IncomingConnection } from './incoming.ts';
import type { AcceptStream, ResetReason, StreamEvents, StreamHead, TunnelStream } from './tunnels.ts';

export interface AcceptorOptions {
  readonly hostId: string;
  readonly snapshot: () => Snapshot;
  readonly permission: Permission;
  readonly crowd: RelayCrowd;
  readonly metrics: Metrics;
  readonly accessLog: AccessLog | undefined;
}

interface Refusal {
  readonly refused: ResetReason;
  readonly detail: string;
}

/**
 * The receiving side of links between hosts: what another host asks for is checked against what this one knows itself, and
 * goes to an instance of this very host at its own address, or nowhere.
 */
export class Acceptor {
  readonly #options: AcceptorOptions;
  /** This host's own usable instances of a service, by name. */
  readonly #own = new WeakMap<Service, ReadonlyMap<string, Instance>>();
  #isLeaving = false;

  constructor(options: AcceptorOptions) {
    this.#options = options;
  }

  /** Takes no more streams. */
  leave(): void {
    this.#isLeaving = true;
  }

  readonly accept: AcceptStream = (head, hostId, stream) => {
    const { permission, crowd, accessLog } = this.#options;
    const { consumer, service, declared, client, traceId } = head;
    const entry = accessLog?.begin({ client, service, traceId, peer: hostId });
    if (entry !== undefined) entry.consumer = consumer;
    if (this.#isLeaving) return this.#refuse('busy', 'its host is leaving', entry);
    const asked: Asked = { consumer, service, declared };
    const decision = permission.permitsFrom(hostId, asked);
    if (!decision.allowed) {
      permission.denied(asked, decision, hostId);
      return this.#refuse('denied', decisionText(decision, asked), entry);
    }
    const found = this.#find(head);
    if ('refused' in found) return this.#refuse(found.refused, found.detail, entry);
    if (crowd.isFullForPeers) {
      return this.#refuse('busy', 'its host carries as many connections as it can', entry);
    }
    entry?.arrivesAt(found.id);
    return this.#carry({ head, hostId, stream, found, asked, entry });
  };

  /** The instance, when it is one of this host's own and may have new connections. */
  #find({ service: name, instance }: StreamHead): Found | Refusal {
    const service = this.#options.snapshot().services.get(name);
    const own = service && this.#ownOf(service).get(instance);
    if (service === undefined || own === undefined) {
      return { refused: 'gone', detail: 'its host has no such instance that is usable' };
    }
    const dial = dialOf(own, { hostId: this.#options.hostId, clearUnderlay: false, tunnels: false });
    if (typeof dial === 'string') return { refused: 'unreachable', detail: dial };
    if (dial.via !== 'direct') throw new Error('an instance of this host is dialled through a tunnel');
    return { id: own.id, endpoint: dial.endpoint, announcesClient: service.proxyProtocol === 'v2' };
  }

  #ownOf(service: Service): ReadonlyMap<string, Instance> {
    const known = this.#own.get(service);
    if (known !== undefined) return known;
    const own = new Map<string, Instance>();
    if (transportOf(service.protocol) === 'tcp') {
      for (const instance of service.usable) {
        if (instance.hostId === this.#options.hostId && !isExternal(instance)) own.set(instance.name, instance);
      }
    }
    this.#own.set(service, own);
    return own;
  }

  #carry({ head, hostId, stream, found, asked, entry }: Accepted): StreamEvents {
    const { crowd, metrics } = this.#options;
    const { id: instance, endpoint, announcesClient } = found;
    const account = new PeerAccount(asked, hostId, metrics);
    const refused = (reason: ResetReason): void => this.#countRefusal(reason);
    // Named one by one: to spread the environment took a thirtieth of the time of a new connection.
    return crowd.take(
      ({ clock, gate, exhausted, ended }) =>
        new IncomingConnection({
          stream,
          head,
          instance,
          endpoint,
          announcesClient,
          clock,
          gate,
          exhausted,
          refused,
          entry,
          ended,
        }),
      account,
    );
  }

  #refuse(refused: ResetReason, detail: string, entry: AccessEntry | undefined): Refusal {
    entry?.refuse(refused === 'denied' ? 'denied' : 'refused', detail);
    this.#countRefusal(refused);
    return { refused, detail };
  }

  #countRefusal(reason: ResetReason): void {
    this.#options.metrics.counter(
      'legate_link_incoming_refused_total',
      'Connections of other hosts that were refused, by reason.',
      { reason },
    ).value += 1;
  }
}

interface Found {
  readonly id: string;
  readonly endpoint: Endpoint;
  readonly announcesClient: boolean;
}

interface Accepted {
  readonly head: StreamHead;
  readonly hostId: string;
  readonly stream: TunnelStream;
  readonly found: Found;
  readonly asked: Asked;
  readonly entry: AccessEntry | undefined;
}

/** A connection of another host's consumer. */
class PeerAccount implements Account {
  readonly consumer: string;
  readonly service: string;
  readonly declared: boolean;
  readonly peer: string;
  readonly #total: CounterCell;

  constructor({ consumer, service, declared }: Asked, peer: string, metrics: Metrics) {
    this.consumer = consumer;
    this.service = service;
    this.declared = declared;
    this.peer = peer;
    this.#total = metrics.counter(
      'legate_link_incoming_connections_total',
      'Connections of other hosts that this one carried to its instances.',
      { service, consumer, host: peer },
    );
  }

  /** Its own host has followed the routes. */
  declares(_service: string): boolean {
    return false;
  }

  begin(): void {
    this.#total.value += 1;
  }

  end(): void {}

  denied(_denial: DenialDocument): void {}
}
