import type { Endpoint } from '../../src/model/address.ts';
import type { Backend } from '../balance/backend.ts';
import type { HttpEnvironment } from './environment.ts';
import { fields } from './fields.ts';
import type { Head } from './head.ts';
import type { RequestEnd } from './request-metrics.ts';
import type { Lane } from './routing/lane.ts';

/** W3C Trace Context, section 3.2. */
const traceparent = /^00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$/;

export interface ReportOptions {
  readonly environment: HttpEnvironment;
  readonly consumer: string;
  readonly client: Endpoint | undefined;
}

/** What metrics and the access log will say of a request; used again for the next one. */
export class RequestReport {
  /** What the client was told; 0 for nothing yet. */
  status = 0;
  /** Bytes from and to the client. */
  received = 0;
  sent = 0;
  retries = 0;
  /** Why it did not end in order. */
  problem: string | undefined;
  answeredBy: Backend | undefined;
  /** Whose instances are asked. */
  service = '';
  /** Where a route or a split has led it; undefined where it went to the link's own service as it is. */
  lane: Lane | undefined;
  /** Monotonic. */
  startedMs = 0;
  readonly #options: ReportOptions;
  #line = { method: '', target: '', traceId: '' };

  constructor(options: ReportOptions) {
    this.#options = options;
  }

  begin(head: Head, service: string, nowMs: number): void {
    this.service = service;
    this.lane = undefined;
    const { accessLog, traceIds } = this.#options.environment;
    this.startedMs = nowMs;
    this.status = 0;
    this.received = head.end - head.start;
    this.sent = 0;
    this.retries = 0;
    this.problem = undefined;
    this.answeredBy = undefined;
    if (accessLog === undefined) return;
    const at = head.find(fields.traceparent);
    const given = at < 0 ? undefined : traceparent.exec(head.value(at))?.[1];
    this.#line = {
      method: head.text(head.start, head.methodEnd),
      target: head.text(head.targetStart, head.targetEnd),
      traceId: given ?? traceIds.next(),
    };
  }

  /** Writes the id of a request that brings none: the one that the log will say. */
  readonly putId = (out: Buffer, at: number): void => {
    const { accessLog, traceIds } = this.#options.environment;
    if (accessLog === undefined) traceIds.put(out, at);
    else out.write(this.#line.traceId, at, 'latin1');
  };

  end(end: RequestEnd, nowMs: number): void {
    const { environment, consumer, client } = this.#options;
    const durationMs = nowMs - this.startedMs;
    const { status, retries, answeredBy, service } = this;
    environment.metrics.ended(service, answeredBy, end, durationMs / 1000);
    this.lane?.finished(answeredBy, end, end === '5xx' || end === 'broken', durationMs / 1000);
    environment.accessLog?.request({
      ...this.#line,
      client,
      consumer,
      service,
      status,
      instance: answeredBy && {
        id: answeredBy.id,
        hostId: answeredBy.instance.hostId,
        via: answeredBy.dial.via,
      },
      receivedBytes: this.received,
      sentBytes: this.sent,
      durationMs,
      retries,
      end,
      reason: this.problem,
    });
  }
}
