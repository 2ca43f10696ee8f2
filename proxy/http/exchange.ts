import type { Socket } from 'node:net';
import { formatDuration } from '../../src/base/duration.ts';
import type { Endpoint } from '../../src/model/address.ts';
import type { Backend } from '../balance/backend.ts';
import type { Account } from '../tcp/carried.ts';
import { connectAttemptMs } from '../tcp/relay-bounds.ts';
import type { Route } from '../tcp/route.ts';
import { abort } from '../tcp/socket-ends.ts';
import type { SocketWriter } from '../tcp/socket-writer.ts';
import { type OwnAnswer, ownAnswer } from './answers.ts';
import { endedClientMs, freshMs, maxSegmentBytes, silentResponseMs } from './bounds.ts';
import { ClientRequest, type ClientRequestUser } from './client-request.ts';
import { Destination } from './destination.ts';
import type { HttpEnvironment } from './environment.ts';
import { HttpFault } from './fault.ts';
import { type Head, methods } from './head.ts';
import { Hedge, type HedgeEvents } from './hedge.ts';
import { dialFor, takeKept } from './instance-ways.ts';
import { asksForHttp2, refusalOf } from './refusals.ts';
import { endOf, type RequestEnd } from './request-metrics.ts';
import { RequestReport } from './request-report.ts';
import { blameForTimeout } from './request-times.ts';
import { Response, type ResponseEvents } from './response.ts';
import type { RetryBudget } from './retry-budget.ts';
import type { HttpSettings } from './settings.ts';
import { Tries, type TriesUser } from './tries.ts';
import { Turn, type TurnUser } from './turn.ts';
import type { HttpUpstream, UpstreamFailure, UpstreamUser } from './upstream.ts';

export interface ExchangeOptions {
  readonly client: Socket;
  /** Writes to it. */
  readonly writer: SocketWriter;
  readonly peer: Endpoint | undefined;
  readonly scheme: 'http' | 'https';
  readonly route: Route;
  readonly account: Account;
  readonly budget: RetryBudget;
  readonly environment: HttpEnvironment;
  /** Takes what the client has sent behind its request, once the connection is another protocol's. */
  readonly takeAhead: () => Buffer | undefined;
  /** The answer has left this process, or the client is gone; whether the connection may carry another request. */
  readonly over: (keepAlive: boolean, nowMs: number) => void;
}

/**
 * One request and its answer; used again for the next request of the same client. What was sent of a request is kept while
 * it is little, so that another instance can have it when the first one fails before it has answered.
 */
export class Exchange implements ClientRequestUser, UpstreamUser, ResponseEvents, TurnUser, TriesUser, HedgeEvents {
  readonly #options: ExchangeOptions;
  readonly #client: Socket;
  readonly #writer: SocketWriter;
  readonly #to: Destination;
  readonly #turn: Turn;
  readonly #tries: Tries;
  #hedge: Hedge | undefined;
  readonly #request = new ClientRequest(this);
  readonly #response: Response;
  readonly #report: RequestReport;
  #running = false;
  #keepAlive = false;
  #isLast = false;
  #upstream: HttpUpstream | undefined;
  /** The final head was read, and is on its way to the client. */
  #answered = false;
  /** The connection to the instance may carry another request. */
  #upstreamStays = false;
  /** The answer is complete, and the client has yet to take it; whether its connection goes on then. */
  #lastKeepsClient: boolean | undefined;
  /** The instance has ended, in another protocol, and the client has yet to take what came before. */
  #endsClient = false;
  /** Something has come since the last tick. */
  #moved = false;
  #raw = false;
  #clientHasEnded = false;
  #upstreamHasEnded = false;
  /** Monotonic; until when something more has to come of an answer that has begun. */
  #deadlineMs = Number.POSITIVE_INFINITY;

  constructor(options: ExchangeOptions) {
    this.#options = options;
    this.#client = options.client;
    this.#writer = options.writer;
    const { writer, environment, account, peer, budget } = options;
    const { clock, metrics } = environment;
    this.#to = new Destination(options);
    this.#turn = new Turn({ user: this, clock, metrics });
    this.#tries = new Tries({ user: this, clock, metrics, budget });
    this.#response = new Response(writer, environment, this);
    this.#report = new RequestReport({ environment, consumer: account.consumer, client: peer });
  }

  get backendId(): string | undefined {
    return this.#tries.backend?.id;
  }

  get route(): Route {
    return this.#to.route;
  }

  get settings(): HttpSettings {
    return this.#to.settings;
  }

  get isOpen(): boolean {
    return this.#running;
  }

  get isRepeatable(): boolean {
    return this.#request.isIdempotent && this.#request.kept.isWhole;
  }

  /** Whether the client is to send more of its body. */
  get waitsForBody(): boolean {
    return this.#running && !this.#raw && !this.#request.done && !this.#client.isPaused();
  }

  /** No other request follows this one, or, if its answer has begun or there is none, the next one. */
  lastOne(): void {
    this.#isLast = true;
    if (!this.#answered) this.#keepAlive = false;
  }

  /** Why it may not go on, now that policy has changed. */
  denial(): string | undefined {
    return this.#running ? this.#to.lane?.denial(this.#options.account) : undefined;
  }

  // The request

  /** Takes the request over whose head the environment has just read, at `nowMs`; gives where it ends in `chunk`. */
  begin(chunk: Buffer, at: number, nowMs: number): number {
    const { environment, peer } = this.#options;
    const head = environment.requestHead;
    const ownAnswer = this.#reset(head, nowMs);
    const to = this.#to;
    const refusal = ownAnswer === undefined ? refusalOf(head, to.settings) : undefined;
    if (refusal !== undefined) {
      this.#keepAlive = false;
      environment.metrics.refused(refusal.kind);
      this.#answer(refusal.answer);
      return chunk.length;
    }
    const upgrade = head.upgrades && !asksForHttp2(head);
    this.#response.begin({ method: head.method, minor: head.minor, upgrade });
    this.#request.beginBody(head);
    this.#tries.key = to.route.hashKey?.ofHead(head, peer);
    this.#request.head = environment.composer.request(head, {
      lines: to.lines,
      host: to.route.service,
      putId: this.#report.putId,
      upgrade,
      target: to.target,
      edits: to.edits,
    });
    if (!upgrade && to.mirror !== undefined) this.#request.beginCopy(to.mirror, head.contentLength, this.#options);
    const used = this.#readBody(chunk, at);
    if (!this.#running) return used;
    if (ownAnswer === undefined) this.#turn.enter(nowMs);
    else this.#answer(ownAnswer);
    this.#request.sendCopy();
    return used;
  }

  /** Gives what to answer where the request goes nowhere. */
  #reset(head: Head, nowMs: number): OwnAnswer | undefined {
    const to = this.#to;
    this.#running = true;
    this.#report.begin(head, this.#options.route.service, nowMs);
    const ownAnswer = to.choose(head);
    this.#report.service = to.route.service;
    this.#report.lane = to.lane;
    const { timeoutMs, tryTimeoutMs, hedgeAfterMs, maxBodyBytes } = to.settings;
    this.#turn.times.begin(this.#report.startedMs, timeoutMs, tryTimeoutMs, hedgeAfterMs);
    this.#request.begin(head.method, maxBodyBytes);
    // What follows a CONNECT is no further request, whatever the instance says to it.
    const isLast = this.#isLast || head.method === methods.connect;
    this.#keepAlive = !isLast && (head.minor === 1 ? !head.closes : head.keepsAlive && !head.closes);
    this.#tries.begin();
    this.#answered = false;
    this.#upstreamStays = false;
    this.#lastKeepsClient = undefined;
    this.#deadlineMs = Number.POSITIVE_INFINITY;
    return ownAnswer;
  }

  /** More of the body, or what follows it; gives how much of it belongs to this request. */
  requestBytes(chunk: Buffer): number {
    if (this.#raw) {
      this.#rawFromClient(chunk);
      return chunk.length;
    }
    if (this.#request.done || !this.#running) return 0;
    const used = this.#readBody(chunk, 0);
    this.#request.sendCopy();
    if (this.#request.done && !this.#answered && this.#upstream?.flows === true) {
      const nowMs = this.#options.environment.clock.monotonicMs();
      this.#turn.times.asked(nowMs, nowMs);
    }
    return used;
  }

  #readBody(chunk: Buffer, at: number): number {
    try {
      return this.#request.read(chunk, at);
    } catch (error) {
      if (!(error instanceof HttpFault)) throw error;
      this.#options.environment.metrics.refused(error.kind);
      // What is left of the chunk is not looked at.
      this.#keepAlive = false;
      this.#dropUpstream();
      if (this.#answered) this.#breakOff();
      else this.#answer({ status: error.status, reason: error.message });
      return chunk.length;
    }
  }

  bodyCame(piece: Buffer): void {
    const upstream = this.#upstream;
    const goesOn = this.#request.kept.add(piece, upstream?.open ?? false);
    this.#report.received += piece.length;
    this.#moved = true;
    if (!goesOn) this.#client.pause();
    if (upstream?.flows !== true) return;
    upstream.write(piece);
    if (upstream.full) this.#client.pause();
  }

  clientDrained(): void {
    if (this.#endsClient) {
      this.#endsClient = false;
      this.#client.end();
    }
    this.#upstream?.resume();
    if (this.#lastKeepsClient !== undefined) this.#finish(this.#lastKeepsClient);
  }

  /** The client sends no more: it may still wait for the answer, but neither for one to half a request nor in a queue. */
  clientEnded(): void {
    this.#clientHasEnded = true;
    if (this.#raw) {
      this.#upstream?.end();
      if (this.#upstreamHasEnded) this.#finishWhenTaken(false);
    } else if (!this.#request.done || this.#turn.queues) {
      this.#giveClientUp();
    } else this.#deadlineMs = this.#nowMs() + endedClientMs;
  }

  /** How long nothing may come of what has begun. */
  get #silenceMs(): number {
    return this.#clientHasEnded && !this.#raw ? endedClientMs : silentResponseMs;
  }

  #nowMs(): number {
    return this.#options.environment.clock.monotonicMs();
  }

  #giveClientUp(): void {
    this.abort();
    abort(this.#client, true);
  }

  /** The client is gone. */
  abort(): void {
    if (!this.#running) return;
    this.#running = false;
    this.#end('client gone');
    this.#tries.stopWaiting();
    this.#dropUpstream();
    this.#forgetRequest();
    this.#turn.leave();
  }

  bodyTimedOut(): void {
    this.#dropUpstream();
    if (this.#answered) this.#breakOff();
    else this.#answer({ status: 408, reason: 'the body of the request does not come' });
  }

  tick(nowMs: number): void {
    this.#turn.times.check(nowMs);
    if (this.#moved) {
      this.#moved = false;
      if (this.#answered) this.#deadlineMs = nowMs + this.#silenceMs;
    }
    if (nowMs < this.#deadlineMs) return;
    this.#deadlineMs = Number.POSITIVE_INFINITY;
    if (this.#lastKeepsClient !== undefined || (this.#clientHasEnded && !this.#raw)) this.#giveClientUp();
    else this.upstreamFailed({ problem: 'the response does not go on', blame: 'instance' });
  }

  // Its turn, and its time

  itsTurn(nowMs: number): void {
    if (this.#running) this.#tries.attempt(nowMs);
  }

  rejected(reason: string): void {
    this.#answer({ status: 503, reason, retryAfter: 1 });
  }

  requestTimedOut(nowMs: number): void {
    const problem = `the request has taken longer than ${formatDuration(this.#to.settings.timeoutMs)}`;
    if (this.#answered) {
      this.#report.problem = problem;
      this.#dropUpstream();
      this.#to.route.refused(problem);
      this.#breakOff();
      return;
    }
    const isAsked = this.#upstream?.open === true && this.#request.done;
    const askedForMs = isAsked ? nowMs - this.#tries.sentMs : undefined;
    if (isAsked) this.#tries.tookAtLeast(nowMs);
    this.#dropUpstream({ problem, blame: blameForTimeout(this.#to.settings, askedForMs) });
    this.#answer({ status: 504, reason: this.#turn.queues ? `${problem}, waiting for its turn` : problem });
  }

  tryTimedOut(nowMs: number): void {
    const problem = `no response within ${formatDuration(this.#to.settings.tryTimeoutMs)}`;
    const upstream = this.#upstream;
    if (upstream === undefined) {
      this.#hedge?.fail({ problem, blame: 'instance', timedOut: true });
      return;
    }
    if (upstream.open) this.#tries.tookAtLeast(nowMs);
    this.upstreamFailed({ problem, blame: upstream.open ? 'instance' : 'way', timedOut: true });
  }

  // A second instance

  /** Asks another instance as well, when there is one and all of the request is there to be asked again. */
  beginHedge(): void {
    if (this.#answered || this.#response.upgrades || !this.#request.done || this.#upstream === undefined) return;
    const next = this.#tries.beside();
    if (next === undefined) return;
    this.#hedge = new Hedge({
      ...next,
      asker: this.#options,
      route: this.#to.route,
      request: this.#request.whole(),
      events: this,
    });
    this.#hedge.start();
  }

  hedgeAnswered(hedge: Hedge, upstream: HttpUpstream, bytes: Buffer): boolean {
    this.#hedge = undefined;
    this.#tries.stopWaiting();
    if (this.#upstream?.open === true) this.#tries.tookAtLeast(this.#nowMs());
    this.#dropUpstream();
    this.#response.forget();
    this.#upstream = upstream;
    this.#tries.backend = hedge.backend;
    this.#tries.sentMs = hedge.sentMs;
    upstream.use(this);
    return this.upstreamBytes(bytes);
  }

  hedgeFailed({ backend }: Hedge, failure: UpstreamFailure): void {
    this.#hedge = undefined;
    if (this.#tries.besideFailed(backend, failure, this.#upstream === undefined)) return;
    this.#answer({ status: statusOf(failure), reason: failure.problem });
  }

  /** The first instance has failed: the second one is asked alone, and has its time. */
  #leaveToHedge(hedge: Hedge, failure: UpstreamFailure): void {
    this.#tries.stopWaiting();
    this.#dropUpstream(failure, true);
    this.#response.forget();
    this.#turn.times.asked(hedge.sentMs, this.#nowMs());
  }

  // To the instance

  nobody(reason: string): void {
    this.#answer({ status: 503, reason, retryAfter: 1 });
  }

  ask(backend: Backend, limitMs: number): void {
    const route = this.#to.route;
    // What may not be asked twice goes only where somebody listened a moment ago.
    const mayRepeat = this.#request.isIdempotent && this.#to.settings.retries > 0;
    const maxIdleMs = mayRepeat ? Number.POSITIVE_INFINITY : freshMs;
    const kept = takeKept(this.#options, route, backend, this.#tries.attemptMs - maxIdleMs, this);
    if (kept !== undefined) {
      this.#upstream = kept;
      this.#send(kept, this.#tries.attemptMs);
      return;
    }
    const dialled = dialFor(this.#options, route, backend, this);
    if (typeof dialled === 'string') {
      this.#failAttempt({ problem: dialled, blame: 'way' });
      return;
    }
    this.#upstream = dialled;
    this.#tries.connecting(backend, Math.min(limitMs, this.#to.settings.tryTimeoutMs));
    if (dialled.flows) this.#send(dialled, this.#tries.attemptMs);
  }

  connectTimedOut(failure: UpstreamFailure): void {
    this.upstreamFailed(failure);
  }

  upstreamOpened(): void {
    const upstream = this.#upstream;
    const { backend } = this.#tries;
    if (upstream === undefined || backend === undefined) return;
    this.#tries.connected(backend);
    if (backend.dial.via === 'direct') {
      if (this.#to.route.announcesClient) upstream.announce(this.#options.peer);
      this.#send(upstream, this.#nowMs());
    } else this.#letGo(upstream);
  }

  /** The head, and what is there of the body. */
  #send(upstream: HttpUpstream, nowMs: number): void {
    upstream.requests += 1;
    this.#tries.sentMs = nowMs;
    if (this.#request.done) this.#turn.times.asked(this.#tries.attemptMs, nowMs);
    upstream.write(this.#request.whole());
    if (upstream.full) this.#client.pause();
    if (upstream.open) this.#letGo(upstream);
  }

  /** The instance is there: what is too much to be kept need not be kept any more. */
  #letGo(upstream: HttpUpstream): void {
    this.#request.kept.taken();
    if (!upstream.full && !this.#request.done && this.#client.isPaused()) this.#client.resume();
  }

  upstreamDrained(): void {
    if (!this.#request.done || this.#raw) this.#client.resume();
  }

  // From the instance

  upstreamBytes(chunk: Buffer): boolean {
    if (!this.#running) return true;
    try {
      this.#moved = true;
      if (this.#raw) this.toClient(chunk);
      else this.#response.bytes(chunk);
    } catch (error) {
      if (!(error instanceof HttpFault)) throw error;
      this.upstreamFailed({ problem: `the instance answers with ${error.message}`, blame: 'instance' });
    }
    return this.#writer.pending === 0;
  }

  answered(status: number): boolean {
    const { backend, sentMs } = this.#tries;
    this.#answered = true;
    this.#turn.times.notAsked();
    this.#hedge?.letGo();
    this.#hedge = undefined;
    this.#report.status = status;
    this.#report.answeredBy = backend;
    this.#to.edit(this.#response, backend);
    const nowMs = this.#nowMs();
    this.#deadlineMs = nowMs + this.#silenceMs;
    if (backend !== undefined) {
      // What is not implemented (501) is no sign of trouble.
      const ms = nowMs - sentMs;
      this.#to.route.answered(backend, status >= 500 && status !== 501, status < 400 ? ms : undefined);
      backend.latency.observe(ms, nowMs);
    }
    return this.#keepAlive && this.#request.done;
  }

  toClient(bytes: Buffer): void {
    const { traffic, cells } = this.#options.route;
    traffic.sent += bytes.length;
    cells.sent.value += bytes.length;
    this.#report.sent += bytes.length;
    this.#writer.write(bytes);
  }

  whole({ client, instance }: { readonly client: boolean; readonly instance: boolean }): void {
    this.#upstreamStays = instance;
    this.#turn.times.end();
    this.#finishWhenTaken(client);
  }

  upgraded(): void {
    this.#raw = true;
    this.#deadlineMs = Number.POSITIVE_INFINITY;
    this.#turn.times.end();
    this.#forgetRequest();
    const ahead = this.#options.takeAhead();
    if (ahead !== undefined) this.#rawFromClient(ahead);
    if (this.#client.isPaused() && this.#upstream?.full === false) this.#client.resume();
    if (this.#clientHasEnded) this.#upstream?.end();
  }

  upstreamEnded(): void {
    this.#upstreamHasEnded = true;
    if (this.#lastKeepsClient !== undefined) return;
    if (this.#raw) {
      if (this.#clientHasEnded) this.#finishWhenTaken(false);
      else if (this.#writer.pending > 0) this.#endsClient = true;
      else this.#client.end();
    } else if (this.#response.endsByClose) this.#finishWhenTaken(false);
    else this.upstreamFailed({ problem: 'the connection was closed', blame: 'instance' });
  }

  #rawFromClient(chunk: Buffer): void {
    this.#upstream?.write(chunk);
    if (this.#upstream?.full) this.#client.pause();
  }

  // Ends

  upstreamFailed(failure: UpstreamFailure): void {
    if (!this.#running || this.#upstream === undefined) return;
    if (this.#lastKeepsClient !== undefined) {
      // It had said all before.
      this.#upstreamHasEnded = true;
      return;
    }
    const upstream = this.#upstream;
    const wasOpen = upstream.open;
    if (this.#answered) {
      this.#report.problem = failure.problem;
      this.#dropUpstream();
      this.#to.route.refused(failure.problem);
      this.#breakOff();
    } else if (failure.timedOut !== true && this.#wasStale(upstream) && this.#mayAskAnew(failure)) {
      const { backend } = this.#tries;
      this.#dropUpstream();
      if (backend !== undefined) this.#tries.to(backend, connectAttemptMs);
    } else if (this.#hedge !== undefined) this.#leaveToHedge(this.#hedge, failure);
    else if (failure.exhausted !== undefined || failure.denied === true) this.#giveUp(failure);
    else if (wasOpen && !this.#tries.mayRepeat(failure)) {
      this.#dropUpstream(failure);
      this.#answer({ status: statusOf(failure), reason: failure.problem });
    } else this.#failAttempt(failure, wasOpen ? statusOf(failure) : 503);
  }

  /** Whether the instance perhaps closed a connection that was kept, before it had heard of this request: nothing has failed. */
  #wasStale(upstream: HttpUpstream): boolean {
    return upstream.requests >= 2 && !this.#response.begun && this.#request.kept.isWhole;
  }

  /** What was proved unread is asked anew for nothing; else it may have been read, and that counts like any repeat. */
  #mayAskAnew(failure: UpstreamFailure): boolean {
    // Of what is one segment nothing was read, when the whole of it met a closed socket.
    const isUnread = failure.closedBefore === true && this.#request.bytes <= maxSegmentBytes;
    return isUnread || this.#tries.mayRepeat(failure);
  }

  #giveUp(failure: UpstreamFailure): void {
    this.#upstream?.destroy();
    this.#upstream = undefined;
    this.#tries.giveUp(failure, this.#options.account);
    this.#answer({ status: failure.denied === true ? 403 : 503, reason: failure.problem });
  }

  /** `status`: what the client is told when there is no other try. */
  #failAttempt(failure: UpstreamFailure, status = 503): void {
    this.#turn.times.notAsked();
    this.#upstream?.destroy();
    this.#upstream = undefined;
    this.#response.forget();
    if (this.#tries.failed(failure)) return;
    this.#answer({ status, reason: failure.problem, ...(status === 503 && { retryAfter: 1 }) });
  }

  /** Answers in the instance's stead. What is left of the request is not read, so that nothing can follow it. */
  #answer(answer: OwnAnswer): void {
    this.#answered = true;
    this.#report.status = answer.status;
    this.#report.problem = answer.reason;
    const keepAlive = this.#keepAlive && this.#request.done;
    this.toClient(ownAnswer(answer, { close: !keepAlive, head: this.#request.method === methods.head }));
    this.#finish(keepAlive);
  }

  #end(end: RequestEnd, nowMs = this.#nowMs()): void {
    this.#report.retries = this.#tries.retries;
    this.#report.end(end, nowMs);
  }

  /** The client has half an answer: a reset is the only way to say so. */
  #breakOff(): void {
    this.#running = false;
    this.#end('broken');
    this.#forgetRequest();
    this.#turn.leave();
    abort(this.#client, true);
  }

  #dropUpstream(failure?: UpstreamFailure, retried = false): void {
    this.#upstream?.destroy();
    this.#upstream = undefined;
    this.#tries.drop(failure, retried);
  }

  #forgetRequest(): void {
    this.#request.forget();
    this.#response.forget();
    this.#hedge?.letGo();
    this.#hedge = undefined;
  }

  /** What the client has not taken yet lies in the buffer that the instance's next bytes would be read into. */
  #finishWhenTaken(keepAlive: boolean): void {
    if (this.#writer.pending > 0) this.#lastKeepsClient = keepAlive;
    else this.#finish(keepAlive);
  }

  #finish(keepAlive: boolean): void {
    const { environment, over } = this.#options;
    const nowMs = this.#nowMs();
    this.#running = false;
    this.#lastKeepsClient = undefined;
    this.#tries.stopWaiting();
    const upstream = this.#upstream;
    this.#upstream = undefined;
    this.#end(endOf(this.#report.status), nowMs);
    this.#forgetRequest();
    if (upstream !== undefined) {
      if (this.#upstreamStays && this.#request.done && !this.#upstreamHasEnded && !this.#to.route.announcesClient) {
        environment.pool.give(upstream, nowMs);
      } else upstream.destroy();
    }
    this.#tries.done();
    this.#raw = false;
    this.#upstreamHasEnded = false;
    this.#turn.leave();
    over(keepAlive, nowMs);
  }
}

/** What a client is told of an instance that was asked and has not answered. */
function statusOf({ timedOut }: UpstreamFailure): number {
  return timedOut === true ? 504 : 502;
}
