import type { Backend } from '../balance/backend.ts';
import type { Route } from '../tcp/route.ts';
import { maxInformational } from './bounds.ts';
import { HttpFault } from './fault.ts';
import { type Asker, dialFor, takeKept } from './instance-ways.ts';
import { noAnswer } from './tries.ts';
import type { HttpUpstream, UpstreamFailure, UpstreamUser } from './upstream.ts';

/** What whoever hedges hears; exactly one of the two, once, unless it lets go before. */
export interface HedgeEvents {
  /** A final head has come, which `bytes` begins with. Gives what `UpstreamUser.upstreamBytes` gives. */
  hedgeAnswered(hedge: Hedge, upstream: HttpUpstream, bytes: Buffer): boolean;
  hedgeFailed(hedge: Hedge, failure: UpstreamFailure): void;
}

export interface HedgeOptions {
  readonly asker: Asker;
  readonly route: Route;
  readonly backend: Backend;
  /** How long connecting may take. */
  readonly limitMs: number;
  /** The whole request, as it leaves. */
  readonly request: Buffer;
  readonly events: HedgeEvents;
}

/**
 * A second instance that is asked the same, because the first one takes long: whichever gives the head of a final answer
 * first is believed. Its informational answers are kept to itself, for the client is told those of the first one.
 */
export class Hedge implements UpstreamUser {
  readonly backend: Backend;
  /** Monotonic; when the request was sent, or connecting began. */
  sentMs: number;
  readonly #options: HedgeOptions;
  #upstream: HttpUpstream | undefined;
  #cancelTimer: (() => void) | undefined;
  /** The part of a head that has come. */
  #partial: Buffer | undefined;
  #informational = 0;
  #isSent = false;

  constructor(options: HedgeOptions) {
    this.#options = options;
    this.backend = options.backend;
    this.sentMs = this.#nowMs();
  }

  start(): void {
    const { asker, route, limitMs } = this.#options;
    const { backend } = this;
    backend.active += 1;
    const kept = takeKept(asker, route, backend, Number.NEGATIVE_INFINITY, this);
    if (kept !== undefined) {
      this.#upstream = kept;
      this.#send(kept);
      return;
    }
    const dialled = dialFor(asker, route, backend, this);
    if (typeof dialled === 'string') {
      this.fail({ problem: dialled, blame: 'way' });
      return;
    }
    this.#upstream = dialled;
    this.#cancelTimer = asker.environment.clock.after(limitMs, () => this.fail(noAnswer(backend, limitMs)));
    if (dialled.flows) this.#send(dialled);
  }

  /** Nobody wants its answer any more. It has not failed: how long it has taken so far is all that is known of it. */
  letGo(): void {
    if (this.#isSent) this.backend.latency.atLeast(this.#nowMs() - this.sentMs, this.#nowMs());
    this.#drop();
    this.#options.route.ended(this.backend);
  }

  upstreamOpened(): void {
    const { route, asker } = this.#options;
    const upstream = this.#upstream;
    if (upstream === undefined) return;
    this.#stopTimer();
    route.connected(this.backend, this.#nowMs() - this.sentMs);
    if (this.#isSent) return;
    if (route.announcesClient) upstream.announce(asker.peer);
    this.#send(upstream);
  }

  upstreamBytes(chunk: Buffer): boolean {
    const upstream = this.#upstream;
    if (upstream === undefined) return true;
    try {
      const answer = this.#finalHead(chunk);
      if (answer === undefined) return true;
      this.#stopTimer();
      this.#upstream = undefined;
      return this.#options.events.hedgeAnswered(this, upstream, answer);
    } catch (error) {
      if (!(error instanceof HttpFault)) throw error;
      this.fail({ problem: `the instance answers with ${error.message}`, blame: 'instance' });
      return true;
    }
  }

  upstreamDrained(): void {
    // All of the request is written already.
  }

  upstreamEnded(): void {
    this.upstreamFailed({ problem: 'the connection was closed', blame: 'instance' });
  }

  upstreamFailed(failure: UpstreamFailure): void {
    // A kept connection may have been closed before the instance had heard of this.
    const wasStale = (this.#upstream?.requests ?? 0) > 1 && this.#partial === undefined;
    this.fail(wasStale ? { ...failure, blame: 'way' } : failure);
  }

  fail(failure: UpstreamFailure): void {
    this.#drop();
    const { route, events } = this.#options;
    route.ended(this.backend);
    events.hedgeFailed(this, failure);
  }

  #nowMs(): number {
    return this.#options.asker.environment.clock.monotonicMs();
  }

  #send(upstream: HttpUpstream): void {
    upstream.requests += 1;
    this.sentMs = this.#nowMs();
    this.#isSent = true;
    upstream.write(this.#options.request);
  }

  /** What has come from the head of a final answer on; undefined while there is none. */
  #finalHead(piece: Buffer): Buffer | undefined {
    const head = this.#options.asker.environment.responseHead;
    const chunk = this.#partial === undefined ? piece : Buffer.concat([this.#partial, piece]);
    this.#partial = undefined;
    for (let at = 0; ; ) {
      const end = head.readResponse(chunk, at);
      if (end < 0) {
        this.#partial = Buffer.from(chunk.subarray(at));
        return undefined;
      }
      if (head.status >= 200) return chunk.subarray(at);
      this.#informational += 1;
      if (head.status === 101 || this.#informational > maxInformational)
        throw new HttpFault('status-line', 'informational responses that nobody asked for');
      at = end;
    }
  }

  #stopTimer(): void {
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
  }

  #drop(): void {
    this.#stopTimer();
    this.#upstream?.destroy();
    this.#upstream = undefined;
  }
}
