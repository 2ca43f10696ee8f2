import type { Clock } from '../src/base/clock.ts';
import type { Log } from '../src/base/log.ts';
import { printable, truncate } from '../src/base/text.ts';
import { type Endpoint, formatEndpoint } from '../src/model/address.ts';
import { TraceIds } from './trace-ids.ts';

/** UTF-16 units of a reason in a line. */
const maxReasonLength = 300;
/** UTF-16 units of a request's target in a line. */
const maxTargetLength = 1000;

/** How a connection came to its end. `denied`: by policy, before or while it ran; `cut`: this sidecar stops. */
export type ConnectionEnd =
  | 'client closed'
  | 'instance closed'
  | 'client reset'
  | 'instance reset'
  | 'tunnel lost'
  | 'cut'
  | 'denied'
  | 'refused';

export interface AccessLogOptions {
  readonly log: Log;
  readonly clock: Clock;
  readonly hostId: string;
  /** The name of another host; undefined when it is not known. */
  readonly nameOf: (hostId: string) => string | undefined;
  /** One line is written of so many, of those about what did not fail. */
  readonly sample: number;
}

/** From this status on an answer says that something has failed. */
const serverError = 500;

/** What is known of a connection when it comes. */
interface Begun {
  readonly client: Endpoint | undefined;
  readonly service: string;
  /** On the receiving side: what the sending one has made. */
  readonly traceId?: string;
  /** On the receiving side: the host whose sidecar asked. */
  readonly peer?: string;
}

/**
 * For how many a line stands that is about what went well: undefined for one that is left out. The trace id decides, so
 * that both hosts of a connection write their line or neither does.
 */
function standsFor(traceId: string, sample: number): number | undefined {
  return Number.parseInt(traceId.slice(-8), 16) % sample === 0 ? sample : undefined;
}

/** One line for each connection at its end, on the side of its consumer and, through a tunnel, on that of its instance. */
export class AccessLog {
  readonly #options: AccessLogOptions;
  readonly #traceIds = new TraceIds();

  constructor(options: AccessLogOptions) {
    this.#options = options;
  }

  /** One line for each request of an HTTP link, at its end. */
  request(line: RequestLine): void {
    const { log, hostId, nameOf, sample } = this.#options;
    const { instance, client } = line;
    const isWhole = line.end !== 'broken' && line.end !== 'client gone';
    const isFailure = !isWhole || line.reason !== undefined || line.status >= serverError || line.status === 0;
    const count = isFailure ? 1 : standsFor(line.traceId, sample);
    if (count === undefined) return;
    const peer = instance === undefined || instance.hostId === hostId ? undefined : instance.hostId;
    const name = peer === undefined ? undefined : nameOf(peer);
    log.info('request', {
      'trace.id': line.traceId,
      'link.side': 'consumer',
      'link.service': printable(line.service),
      'link.instance': instance && printable(instance.id),
      'link.consumer': printable(line.consumer),
      'client.address': client && formatEndpoint(client),
      'peer.host': peer,
      'peer.name': name && printable(name),
      'link.via': instance?.via,
      'http.method': printable(truncate(line.method, maxReasonLength)),
      'http.target': printable(truncate(line.target, maxTargetLength)),
      'http.status': line.status,
      'link.received_bytes': line.receivedBytes,
      'link.sent_bytes': line.sentBytes,
      'link.duration_ms': Math.round(line.durationMs),
      'link.retries': line.retries,
      'link.end': line.end,
      'link.reason': line.reason && printable(truncate(line.reason, maxReasonLength)),
      sampled: count > 1 ? count : undefined,
    });
  }

  begin({ traceId, ...begun }: Begun): AccessEntry {
    return new AccessEntry({ ...begun, traceId: traceId ?? this.#traceIds.next() }, this.#options);
  }
}

/** What the log says about one request. */
export interface RequestLine {
  readonly traceId: string;
  readonly client: Endpoint | undefined;
  readonly consumer: string;
  readonly service: string;
  readonly method: string;
  readonly target: string;
  /** 0 when the client had no answer. */
  readonly status: number;
  readonly instance: { readonly id: string; readonly hostId: string; readonly via: 'direct' | 'tunnel' } | undefined;
  readonly receivedBytes: number;
  readonly sentBytes: number;
  readonly durationMs: number;
  readonly retries: number;
  /** How it ended, where it did not end in order. */
  readonly end: string;
  readonly reason: string | undefined;
}

/** What the log will say about one connection. */
export class AccessEntry {
  readonly traceId: string;
  /** Undefined while it is not known who calls. */
  consumer: string | undefined;
  /** Bytes from the client. */
  received = 0;
  /** Bytes to the client. */
  sent = 0;
  /** Attempts that failed and were repeated. */
  retries = 0;
  readonly #begun: Begun;
  readonly #options: AccessLogOptions;
  readonly #startedMs: number;
  #instance: string | undefined;
  #via: 'direct' | 'tunnel' | undefined;
  #peer: string | undefined;
  #closedFirst: 'client closed' | 'instance closed' | undefined;
  #broken: ConnectionEnd | undefined;
  #reason: string | undefined;

  constructor(begun: Begun & { readonly traceId: string }, options: AccessLogOptions) {
    this.#begun = begun;
    this.#options = options;
    this.traceId = begun.traceId;
    this.#peer = begun.peer;
    this.#startedMs = options.clock.monotonicMs();
    if (begun.peer !== undefined) this.#via = 'tunnel';
  }

  /** It is tried there; the last one counts. */
  goesTo(instance: string, hostId: string, via: 'direct' | 'tunnel'): void {
    this.#instance = instance;
    this.#via = via;
    this.#peer = hostId === this.#options.hostId ? undefined : hostId;
  }

  /** The receiving side: it goes to this host's own instance. */
  arrivesAt(instance: string): void {
    this.#instance = instance;
  }

  /** An attempt failed: why, in case that it was the last. */
  failed(problem: string, retried: boolean): void {
    this.#reason = problem;
    if (retried) this.retries += 1;
  }

  /** It is connected: what went wrong before is only counted. */
  connected(): void {
    this.#reason = undefined;
  }

  /** One side has said all that it had to say. The first one to do so ended it, if nothing breaks. */
  ended(who: 'client closed' | 'instance closed'): void {
    this.#closedFirst ??= who;
  }

  /** It did not end in order; what broke it first counts. */
  broke(how: ConnectionEnd, reason?: string): void {
    if (this.#broken !== undefined) return;
    this.#broken = how;
    if (reason !== undefined && reason !== '') this.#reason = reason;
  }

  /** It is not carried at all. */
  refuse(how: ConnectionEnd, reason: string): void {
    this.broke(how, reason);
    this.write();
  }

  /** To be called once, when all is over. */
  write(): void {
    const { log, clock, nameOf, sample } = this.#options;
    const isFailure = this.#broken !== undefined || this.#reason !== undefined;
    const count = isFailure ? 1 : standsFor(this.traceId, sample);
    if (count === undefined) return;
    const { client, service, peer } = this.#begun;
    const name = this.#peer === undefined ? undefined : nameOf(this.#peer);
    log.info('connection', {
      'trace.id': this.traceId,
      'link.side': peer === undefined ? 'consumer' : 'instance',
      'link.service': printable(service),
      'link.instance': this.#instance && printable(this.#instance),
      'link.consumer': this.consumer && printable(this.consumer),
      'client.address': client && formatEndpoint(client),
      'peer.host': this.#peer,
      'peer.name': name && printable(name),
      'link.via': this.#via,
      'link.received_bytes': this.received,
      'link.sent_bytes': this.sent,
      'link.duration_ms': Math.round(clock.monotonicMs() - this.#startedMs),
      'link.retries': this.retries,
      'link.end': this.#broken ?? this.#closedFirst ?? 'client closed',
      'link.reason': this.#reason && printable(truncate(this.#reason, maxReasonLength)),
      sampled: count > 1 ? count : undefined,
    });
  }
}
