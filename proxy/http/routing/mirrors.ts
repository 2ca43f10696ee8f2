import type { Socket } from 'node:net';
import type { Metrics } from '../../../src/base/metrics.ts';
import type { Endpoint } from '../../../src/model/address.ts';
import type { Backend } from '../../balance/backend.ts';
import type { Account } from '../../tcp/carried.ts';
import { maxReplayBytes } from '../../tcp/relay-bounds.ts';
import type { HttpEnvironment } from '../environment.ts';
import { HttpFault } from '../fault.ts';
import type { Method } from '../head.ts';
import { dialFor, takeKept } from '../instance-ways.ts';
import { endOf } from '../request-metrics.ts';
import { Response, type ResponseEvents } from '../response.ts';
import type { HttpUpstream, UpstreamUser } from '../upstream.ts';
import type { Lane } from './lane.ts';

/** Copies at a time, also those whose bodies have yet to come; further requests are not copied. */
export const maxCopies = 256;
/** How long one may take from being sent to the end of its answer. */
export const copyMs = 10_000;
/** By this an instance knows a copy. */
const mark = Buffer.from('X-Legate-Mirror: 1\r\n\r\n', 'latin1');
/** Answers go nowhere. */
const nowhere = { cork: () => undefined, uncork: () => undefined } satisfies Pick<Socket, 'cork' | 'uncork'>;

/** Where copies go and as whom. */
export interface CopyOf {
  readonly lane: Lane;
  readonly method: Method;
  /** As it leaves, with the empty line. */
  readonly head: Buffer;
  readonly contentLength: number | undefined;
  readonly account: Account;
  readonly peer: Endpoint | undefined;
}

/**
 * Copies of requests, whose answers nobody sees. They take part in nothing: no retry, no ejection, no figure of the
 * service; what there is no room for, or does not come to an end, is dropped and counted.
 */
export class Mirrors {
  readonly #environment: Omit<HttpEnvironment, 'mirrors'>;
  readonly #metrics: Metrics;
  readonly #running = new Set<Copy>();

  constructor(environment: Omit<HttpEnvironment, 'mirrors'>, metrics: Metrics) {
    this.#environment = environment;
    this.#metrics = metrics;
  }

  /** Makes room for a copy; undefined where there is none. */
  begin(of: CopyOf): Copy | undefined {
    const { service } = of.lane;
    if (this.#running.size >= maxCopies) this.#count(service, 'busy');
    else if ((of.contentLength ?? 0) > maxReplayBytes) this.#count(service, 'too large');
    else {
      const copy = new Copy(of, this.#environment, (end) => {
        this.#running.delete(copy);
        if (end !== undefined) this.#count(service, end);
      });
      this.#running.add(copy);
      return copy;
    }
    return undefined;
  }

  close(): void {
    for (const copy of [...this.#running]) copy.drop();
  }

  #count(service: string, end: string): void {
    const help = 'Copies of requests (mirror), by how they ended; busy and too large were never sent.';
    this.#metrics.counter('legate_http_mirrored_requests_total', help, { service, end }).value += 1;
  }
}

/** One of them. The body is collected first, so that it never waits for the client or makes it wait. */
export class Copy implements UpstreamUser, ResponseEvents {
  readonly #of: CopyOf;
  readonly #environment: Omit<HttpEnvironment, 'mirrors'>;
  readonly #over: (end: string | undefined) => void;
  readonly #response: Response;
  readonly #body: Buffer[] = [];
  #bodyBytes = 0;
  #backend: Backend | undefined;
  #upstream: HttpUpstream | undefined;
  #cancelTimer: (() => void) | undefined;
  #status = 0;
  #isOver = false;

  constructor(of: CopyOf, environment: Omit<HttpEnvironment, 'mirrors'>, over: (end: string | undefined) => void) {
    this.#of = of;
    this.#environment = environment;
    this.#over = over;
    this.#response = new Response(nowhere, environment, this);
  }

  /** Some more of the body. */
  add(piece: Buffer): void {
    if (this.#isOver) return;
    this.#bodyBytes += piece.length;
    if (this.#bodyBytes > maxReplayBytes) this.#end('too large');
    // Whoever has read it may use its buffer again.
    else this.#body.push(Buffer.from(piece));
  }

  /** The request did not come to its end. */
  drop(): void {
    this.#end(undefined);
  }

  send(): void {
    if (this.#isOver) return;
    const { lane, method } = this.#of;
    const { clock } = this.#environment;
    const backend = lane.pick([]);
    if (backend === undefined) {
      this.#end('no instance');
      return;
    }
    backend.active += 1;
    this.#backend = backend;
    this.#cancelTimer = clock.after(copyMs, () => this.#end('timeout'));
    this.#response.begin({ method, minor: 1, upgrade: false });
    this.#open(backend);
  }

  #open(backend: Backend): void {
    const { lane, account, peer } = this.#of;
    const asker = { account, peer, environment: this.#environment };
    const pooled = takeKept(asker, lane, backend, Number.NEGATIVE_INFINITY, this);
    if (pooled !== undefined) {
      this.#upstream = pooled;
      this.#write(pooled);
      return;
    }
    const dialled = dialFor(asker, lane, backend, this);
    if (typeof dialled === 'string') {
      this.#end('failed');
      return;
    }
    this.#upstream = dialled;
    if (dialled.flows) this.#write(dialled);
  }

  #write(upstream: HttpUpstream): void {
    const { head } = this.#of;
    upstream.requests += 1;
    upstream.write(Buffer.concat([head.subarray(0, -2), mark, ...this.#body]));
  }

  upstreamOpened(): void {
    const upstream = this.#upstream;
    if (upstream === undefined || upstream.backend.dial.via !== 'direct') return;
    if (this.#of.lane.announcesClient) upstream.announce(this.#of.peer);
    this.#write(upstream);
  }

  upstreamBytes(chunk: Buffer): boolean {
    try {
      if (!this.#isOver) this.#response.bytes(chunk);
    } catch (error) {
      if (!(error instanceof HttpFault)) throw error;
      this.#end('failed');
    }
    return true;
  }

  upstreamDrained(): void {}

  upstreamEnded(): void {
    this.#end(this.#response.endsByClose ? endOf(this.#status) : 'failed');
  }

  upstreamFailed(): void {
    const backend = this.#backend;
    const wasStale = this.#upstream !== undefined && this.#upstream.requests > 1 && !this.#response.begun;
    if (this.#isOver || backend === undefined || !wasStale) this.#end('failed');
    else {
      this.#upstream?.destroy();
      this.#open(backend);
    }
  }

  answered(status: number): boolean {
    this.#status = status;
    return true;
  }

  toClient(_bytes: Buffer): void {}

  upgraded(): void {
    this.#end('failed');
  }

  whole({ instance }: { readonly instance: boolean }): void {
    const upstream = this.#upstream;
    if (instance && upstream !== undefined && !this.#of.lane.announcesClient) {
      this.#upstream = undefined;
      this.#environment.pool.give(upstream, this.#environment.clock.monotonicMs());
    }
    this.#end(endOf(this.#status));
  }

  #end(end: string | undefined): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#cancelTimer?.();
    this.#upstream?.destroy();
    this.#upstream = undefined;
    this.#body.length = 0;
    if (this.#backend !== undefined) this.#of.lane.ended(this.#backend);
    this.#over(end);
  }
}
