import type { Socket } from 'node:net';
import { formatDuration } from '../../src/base/duration.ts';
import type { Endpoint } from '../../src/model/address.ts';
import type { Backend } from '../balance/backend.ts';
import { Attempts } from '../tcp/attempts.ts';
import type { Account } from '../tcp/carried.ts';
import { connectAttemptMs, maxReplayBytes } from '../tcp/relay-bounds.ts';
import type { Route } from '../tcp/route.ts';
import { abort } from '../tcp/socket-ends.ts';
import type { SocketWriter } from '../tcp/socket-writer.ts';
import type { Admission, Waiting } from './admission.ts';
import { type OwnAnswer, ownAnswer, refusalAnswer } from './answers.ts';
import { BodyReader, chunkedBody } from './body.ts';
import { endedClientMs, freshMs, maxSegmentBytes, silentResponseMs } from './bounds.ts';
import type { HttpEnvironment } from './environment.ts';
import { HttpFault } from './fault.ts';
import { type Head, isIdempotent, type Method, methods } from './head.ts';
import { Hedge, type HedgeEvents } from './hedge.ts';
import { dialFor, takeKept } from './instance-ways.ts';
import { type ClientLines, clientLines } from './outgoing.ts';
import { asksForHttp2, bodyTooLarge, refusalOf } from './refusals.ts';
import { endOf } from './request-metrics.ts';
import { RequestReport } from './request-report.ts';
import { blameForTimeout, RequestTimes, type TimeLimit } from './request-times.ts';
import { Response, type ResponseEvents } from './response.ts';
import type { RetryBudget } from './retry-budget.ts';
import type { Lane } from './routing/lane.ts';
import { Choice, type LinkRouting } from './routing/link-routing.ts';
import type { Copy } from './routing/mirrors.ts';
import type { HttpSettings } from './settings.ts';
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
  readonly over: (keepAlive: boolean) => void;
}

const nothing = Buffer.alloc(0);

interface Try {
  readonly backend: Backend;
  readonly limitMs: number;
}

/**
 * One request and its answer; used again for the next request of the same client. What was sent of a request is kept while
 * it is little, so that another instance can have it when the first one fails before it has answered.
 */
export class Exchange implements UpstreamUser, ResponseEvents, Waiting, HedgeEvents {
  readonly #options: ExchangeOptions;
  readonly #client: Socket;
  readonly #writer: SocketWriter;
  /** Where the present request goes. */
  #route: Route;
  /** What routes make of it; undefined as long as its link has had none. */
  #choice: Choice | undefined;
  /** What held for the service when it came. */
  #settings: HttpSettings;
  #lines: ClientLines;
  readonly #times: RequestTimes;
  /** Where it is counted as running, or waits. */
  #admission: Admission | undefined;
  #queues = false;
  #hedge: Hedge | undefined;
  readonly #request = new BodyReader();
  readonly #response: Response;
  readonly #report: RequestReport;
  #running = false;
  #method: Method = methods.get;
  #keepAlive = false;
  #isLast = false;
  /** The head as it leaves. */
  #head: Buffer = nothing;
  /** What was read of the body, while it may be needed again; undefined once it was too much. */
  #kept: Buffer[] | undefined;
  #keptBytes = 0;
  /** For whom a route wants it copied, while its body comes. */
  #copy: Copy | undefined;
  #attempts: Attempts | undefined;
  /** What decides where it goes, where that is so; see `Route.pick`. */
  #key: number | undefined;
  #backend: Backend | undefined;
  #upstream: HttpUpstream | undefined;
  #cancelTimer: (() => void) | undefined;
  #leaveLobby: (() => void) | undefined;
  #attemptMs = 0;
  #sentMs = 0;
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
    const { writer, environment, route, account, peer } = options;
    this.#route = route;
    this.#settings = route.http;
    this.#lines = clientLines(peer, options.scheme, route.http.forwarding);
    this.#times = new RequestTimes(environment.clock, (limit, nowMs) => this.#timeIsUp(limit, nowMs));
    this.#response = new Response(writer, environment, this);
    this.#report = new RequestReport({ environment, consumer: account.consumer, client: peer });
  }

  get backendId(): string | undefined {
    return this.#backend?.id;
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
    return this.#running ? this.#choice?.lane?.denial(this.#options.account) : undefined;
  }

  // The request

  /** Takes the request over whose head the environment has just read; gives where it ends in `chunk`. */
  begin(chunk: Buffer, at: number): number {
    const { environment, budget, route: link } = this.#options;
    const head = environment.requestHead;
    this.#reset(head);
    budget.add();
    // A CONNECT names no resource that a route could be about.
    const routing = head.method === methods.connect ? undefined : link.routing;
    const ownAnswer = routing === undefined ? undefined : this.#choose(routing);
    const refusal = ownAnswer === undefined ? refusalOf(head, this.#settings) : undefined;
    if (refusal !== undefined) {
      this.#keepAlive = false;
      environment.metrics.refused(refusal.kind);
      this.#answer(refusal.answer);
      return chunk.length;
    }
    const upgrade = head.upgrades && !asksForHttp2(head);
    this.#response.begin({ method: head.method, minor: head.minor, upgrade });
    this.#request.begin(head.chunked ? chunkedBody : { kind: 'length', bytes: head.contentLength ?? 0 });
    const { newId } = this.#report;
    const host = this.#route.service;
    this.#key = this.#route.hashKey?.ofHead(head, this.#options.peer);
    const { target, rule } = this.#choice ?? { target: undefined, rule: undefined };
    const edits = rule?.request;
    this.#head = environment.composer.request(head, {
      lines: this.#linesFor(link.http),
      host,
      newId,
      upgrade,
      target,
      edits,
    });
    const mirror = upgrade ? undefined : this.#choice?.mirror;
    if (mirror !== undefined) this.#beginCopy(mirror, head.contentLength);
    const used = this.#readBody(chunk, at);
    if (!this.#running) return used;
    if (ownAnswer === undefined) this.#enter();
    else this.#answer(ownAnswer);
    if (this.#copy !== undefined) this.#sendCopy();
    return used;
  }

  #beginCopy(lane: Lane, contentLength: number | undefined): void {
    const { account, peer, environment } = this.#options;
    this.#copy = environment.mirrors.begin({
      lane,
      method: this.#method,
      head: this.#head,
      contentLength,
      account,
      peer,
    });
  }

  /** The copy goes once the request is whole, and never before it. */
  #sendCopy(): void {
    if (!this.#request.done) return;
    this.#copy?.send();
    this.#copy = undefined;
  }

  /** Where the routes of the link lead this request; gives what to answer it with where that is nowhere. */
  #choose(routing: LinkRouting): OwnAnswer | undefined {
    const { environment, account } = this.#options;
    const choice = this.#choice ?? new Choice();
    try {
      routing.choose(environment.view.reset(), account, 'http/1.1', choice);
    } catch (error) {
      if (!(error instanceof HttpFault)) throw error;
      environment.metrics.refused(error.kind);
      return { status: error.status, reason: error.message };
    }
    this.#choice = choice;
    const { lane, redirect, refusal } = choice;
    if (redirect !== undefined) return { ...redirect, reason: 'a route redirects it' };
    if (refusal !== undefined) return refusalAnswer(refusal);
    if (lane === undefined) return undefined;
    this.#route = lane;
    this.#report.service = lane.service;
    this.#report.lane = lane;
    this.#settle(lane.http);
    return undefined;
  }

  /** Who comes over TLS is a stranger, and not believed about whom it speaks for. */
  #linesFor(settings: HttpSettings): ClientLines {
    const { scheme, peer } = this.#options;
    const forwarding = scheme === 'https' ? 'set' : settings.forwarding;
    if (forwarding !== this.#lines.forwarding) this.#lines = clientLines(peer, scheme, forwarding);
    return this.#lines;
  }

  /** How it is treated: as the service says that it goes to. */
  #settle(settings: HttpSettings): void {
    this.#settings = settings;
    this.#times.begin(this.#report.startedMs, settings.timeoutMs, settings.tryTimeoutMs, settings.hedgeAfterMs);
  }

  #reset(head: Head): void {
    this.#running = true;
    this.#route = this.#options.route;
    this.#choice?.reset();
    this.#report.begin(head, this.#route.service);
    this.#settle(this.#route.http);
    this.#method = head.method;
    // What follows a CONNECT is no further request, whatever the instance says to it.
    const isLast = this.#isLast || head.method === methods.connect;
    this.#keepAlive = !isLast && (head.minor === 1 ? !head.closes : head.keepsAlive && !head.closes);
    this.#kept = undefined;
    this.#keptBytes = 0;
    this.#attempts = undefined;
    this.#answered = false;
    this.#upstreamStays = false;
    this.#lastKeepsClient = undefined;
    this.#deadlineMs = Number.POSITIVE_INFINITY;
  }

  /** More of the body, or what follows it; gives how much of it belongs to this request. */
  requestBytes(chunk: Buffer): number {
    if (this.#raw) {
      this.#rawFromClient(chunk);
      return chunk.length;
    }
    if (this.#request.done || !this.#running) return 0;
    const used = this.#readBody(chunk, 0);
    if (this.#copy !== undefined) this.#sendCopy();
    if (this.#request.done && !this.#answered && this.#upstream?.flows === true) {
      const nowMs = this.#options.environment.clock.monotonicMs();
      this.#times.asked(nowMs, nowMs);
    }
    return used;
  }

  #readBody(chunk: Buffer, at: number): number {
    try {
      return this.#request.read(chunk, at, this.#onRequestBody);
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

  readonly #onRequestBody = (buffer: Buffer, start: number, end: number): void => {
    const { maxBodyBytes } = this.#settings;
    if (maxBodyBytes > 0 && this.#request.contentBytes > maxBodyBytes) throw bodyTooLarge(maxBodyBytes);
    const piece = start === 0 && end === buffer.length ? buffer : buffer.subarray(start, end);
    this.#copy?.add(piece);
    const upstream = this.#upstream;
    const isOpen = upstream?.open ?? false;
    if (this.#keptBytes <= maxReplayBytes || !isOpen) {
      this.#kept ??= [];
      this.#kept.push(piece);
    }
    this.#keptBytes += piece.length;
    this.#report.received += piece.length;
    this.#moved = true;
    if (this.#keptBytes > maxReplayBytes) {
      if (isOpen) this.#kept = undefined;
      else this.#client.pause();
    }
    if (upstream?.flows !== true) return;
    upstream.write(piece);
    if (upstream.full) this.#client.pause();
  };

  clientDrained(): void {
    if (this.#endsClient) {
      this.#endsClient = false;
      this.#client.end();
    }
    this.#upstream?.resume();
    if (this.#lastKeepsClient !== undefined) this.#finish(this.#lastKeepsClient);
  }

  /** The client sends no more: it may still wait for the answer, but not for one to half a request. */
  clientEnded(): void {
    this.#clientHasEnded = true;
    if (this.#raw) {
      this.#upstream?.end();
      if (this.#upstreamHasEnded) this.#finishWhenTaken(false);
    } else if (!this.#request.done) {
      this.#giveClientUp();
    } else if (this.#answered) this.#deadlineMs = this.#nowMs() + endedClientMs;
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
    this.#report.end('client gone');
    this.#stopWaiting();
    this.#dropUpstream();
    this.#forgetRequest();
    this.#leave();
  }

  bodyTimedOut(): void {
    this.#dropUpstream();
    if (this.#answered) this.#breakOff();
    else this.#answer({ status: 408, reason: 'the body of the request does not come' });
  }

  tick(nowMs: number): void {
    this.#times.check(nowMs);
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

  /** Asks an instance at once, or when it is its turn. */
  #enter(): void {
    const { admission } = this.#route;
    const entry = admission.enter(this);
    if (entry === 'full') {
      this.#reject('too many requests run, and too many wait for their turn');
      return;
    }
    this.#admission = admission;
    if (entry === 'runs') this.#attempt();
    else {
      this.#queues = true;
      this.#times.queued(this.#settings.queueTimeoutMs, this.#options.environment.clock.monotonicMs());
    }
  }

  admitted(): void {
    this.#queues = false;
    this.#times.admitted();
    if (this.#running) this.#attempt();
  }

  #reject(reason: string): void {
    this.#options.environment.metrics.happened('rejected', this.#route.service);
    this.#answer({ status: 503, reason, retryAfter: 1 });
  }

  /** Lets others have its turn. */
  #leave(): void {
    this.#times.end();
    const admission = this.#admission;
    if (admission === undefined) return;
    this.#admission = undefined;
    if (this.#queues) admission.giveUp(this);
    else admission.leave();
    this.#queues = false;
  }

  #timeIsUp(limit: TimeLimit, nowMs: number): void {
    const { metrics } = this.#options.environment;
    const { queueTimeoutMs, tryTimeoutMs } = this.#settings;
    if (limit === 'queue')
      this.#reject(`too many requests run: it was not its turn within ${formatDuration(queueTimeoutMs)}`);
    else if (limit === 'hedge') this.#beginHedge();
    else {
      metrics.happened('timeouts', this.#route.service);
      if (limit === 'request') this.#requestTimedOut(nowMs);
      else this.#tryTimedOut(`no response within ${formatDuration(tryTimeoutMs)}`, nowMs);
    }
  }

  #requestTimedOut(nowMs: number): void {
    const problem = `the request has taken longer than ${formatDuration(this.#settings.timeoutMs)}`;
    if (this.#answered) {
      this.#report.problem = problem;
      this.#dropUpstream();
      this.#route.refused(problem);
      this.#breakOff();
      return;
    }
    const isAsked = this.#upstream?.open === true && this.#request.done;
    const askedForMs = isAsked ? nowMs - this.#sentMs : undefined;
    if (askedForMs !== undefined) this.#backend?.latency.atLeast(askedForMs, nowMs);
    this.#dropUpstream({ problem, blame: blameForTimeout(this.#settings, askedForMs) });
    this.#answer({ status: 504, reason: this.#queues ? `${problem}, waiting for its turn` : problem });
  }

  #tryTimedOut(problem: string, nowMs: number): void {
    const upstream = this.#upstream;
    if (upstream === undefined) {
      this.#hedge?.fail({ problem, blame: 'instance', timedOut: true });
      return;
    }
    if (upstream.open) this.#backend?.latency.atLeast(nowMs - this.#sentMs, nowMs);
    this.upstreamFailed({ problem, blame: upstream.open ? 'instance' : 'way', timedOut: true });
  }

  // A second instance

  /** Asks another instance as well, when there is one and all of the request is there to be asked again. */
  #beginHedge(): void {
    const { budget, environment } = this.#options;
    const route = this.#route;
    if (this.#answered || this.#response.upgrades || !isIdempotent(this.#method)) return;
    if (!this.#request.done || !this.#isReplayable) return;
    if (this.#upstream === undefined || this.#attempts?.hasOther !== true || !budget.take()) return;
    const next = this.#attempts.beside();
    if (next === undefined) return;
    environment.metrics.happened('hedges', route.service);
    const request = this.#kept === undefined ? this.#head : Buffer.concat([this.#head, ...this.#kept]);
    this.#hedge = new Hedge({ ...next, asker: this.#options, route, request, events: this });
    this.#hedge.start();
  }

  hedgeAnswered(hedge: Hedge, upstream: HttpUpstream, bytes: Buffer): boolean {
    const { clock } = this.#options.environment;
    this.#hedge = undefined;
    this.#stopWaiting();
    const first = this.#upstream;
    const nowMs = clock.monotonicMs();
    if (first?.open === true) this.#backend?.latency.atLeast(nowMs - this.#sentMs, nowMs);
    this.#dropUpstream();
    this.#response.forget();
    this.#upstream = upstream;
    this.#backend = hedge.backend;
    this.#sentMs = hedge.sentMs;
    upstream.use(this);
    return this.upstreamBytes(bytes);
  }

  hedgeFailed(hedge: Hedge, failure: UpstreamFailure): void {
    const { backend } = hedge;
    const route = this.#route;
    this.#hedge = undefined;
    const isAlone = this.#upstream === undefined;
    if (failure.exhausted !== undefined) route.exhausted(failure.exhausted);
    if (!isAlone) route.attemptFailed(backend, { ...failure, retried: true });
    else if (this.#mayRepeat(failure))
      this.#afterFailure('attempt', failure.problem, { backend, failure, status: statusOf(failure) });
    else {
      route.attemptFailed(backend, { ...failure, retried: false });
      this.#answer({ status: statusOf(failure), reason: failure.problem });
    }
  }

  /** The first instance has failed: the second one is asked alone, and has its time. */
  #leaveToHedge(hedge: Hedge, failure: UpstreamFailure): void {
    this.#stopWaiting();
    this.#dropUpstream(failure, true);
    this.#response.forget();
    this.#times.asked(hedge.sentMs, this.#options.environment.clock.monotonicMs());
  }

  // To the instance

  #attempt(): void {
    const { environment } = this.#options;
    const route = this.#route;
    this.#attempts ??= new Attempts(route, environment.clock, this.#key);
    const next = this.#attempts.next();
    if (next === undefined) {
      this.#afterFailure('pick', route.problemToPick);
      return;
    }
    this.#to(next);
  }

  #to({ backend, limitMs }: Try): void {
    const { environment } = this.#options;
    const route = this.#route;
    const nowMs = environment.clock.monotonicMs();
    backend.active += 1;
    this.#backend = backend;
    // What may not be asked twice goes only where somebody listened a moment ago.
    const mayRepeat = isIdempotent(this.#method) && this.#settings.retries > 0;
    const maxIdleMs = mayRepeat ? Number.POSITIVE_INFINITY : freshMs;
    this.#attemptMs = nowMs;
    const kept = takeKept(this.#options, route, backend, nowMs - maxIdleMs, this);
    if (kept !== undefined) {
      this.#upstream = kept;
      this.#send(kept);
      return;
    }
    const dialled = dialFor(this.#options, route, backend, this);
    if (typeof dialled === 'string') {
      this.#failAttempt({ problem: dialled, blame: 'way' });
      return;
    }
    this.#upstream = dialled;
    const connectMs = Math.min(limitMs, this.#settings.tryTimeoutMs);
    this.#cancelTimer = environment.clock.after(connectMs, () => {
      const blame = backend.dial.via === 'direct' ? 'host' : 'way';
      this.upstreamFailed({ problem: `no answer within ${Math.round(connectMs)} ms`, blame });
    });
    if (dialled.flows) this.#send(dialled);
  }

  upstreamOpened(): void {
    const upstream = this.#upstream;
    const backend = this.#backend;
    if (upstream === undefined || backend === undefined) return;
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    const { environment, peer } = this.#options;
    const route = this.#route;
    route.connected(backend, environment.clock.monotonicMs() - this.#attemptMs);
    if (backend.dial.via === 'direct') {
      if (route.announcesClient) upstream.announce(peer);
      this.#send(upstream);
    } else this.#letGo(upstream);
  }

  /** The head, and what is there of the body. */
  #send(upstream: HttpUpstream): void {
    upstream.requests += 1;
    this.#sentMs = this.#options.environment.clock.monotonicMs();
    if (this.#request.done) this.#times.asked(this.#attemptMs, this.#sentMs);
    const kept = this.#kept;
    if (kept === undefined) upstream.write(this.#head);
    else upstream.write(Buffer.concat([this.#head, ...kept]));
    if (upstream.full) this.#client.pause();
    if (upstream.open) this.#letGo(upstream);
  }

  /** The instance is there: what is too much to be kept need not be kept any more. */
  #letGo(upstream: HttpUpstream): void {
    if (this.#keptBytes > maxReplayBytes) this.#kept = undefined;
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
    const { environment } = this.#options;
    const route = this.#route;
    const backend = this.#backend;
    this.#answered = true;
    this.#times.notAsked();
    this.#hedge?.letGo();
    this.#hedge = undefined;
    this.#report.status = status;
    this.#report.answeredBy = backend;
    const choice = this.#choice;
    if (choice !== undefined) {
      this.#response.edits = choice.rule?.response;
      this.#response.cookie = choice.setCookie(backend, this.#options.scheme === 'https');
    }
    const nowMs = environment.clock.monotonicMs();
    this.#deadlineMs = nowMs + this.#silenceMs;
    if (backend !== undefined) {
      // What is not implemented (501) is no sign of trouble.
      const ms = nowMs - this.#sentMs;
      route.answered(backend, status >= 500 && status !== 501, status < 400 ? ms : undefined);
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
    this.#times.end();
    this.#finishWhenTaken(client);
  }

  upgraded(): void {
    this.#raw = true;
    this.#deadlineMs = Number.POSITIVE_INFINITY;
    this.#times.end();
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
      this.#route.refused(failure.problem);
      this.#breakOff();
    } else if (failure.timedOut !== true && this.#wasStale(upstream) && this.#mayAskAnew(failure)) {
      const backend = this.#backend;
      this.#dropUpstream();
      if (backend !== undefined) this.#to({ backend, limitMs: connectAttemptMs });
    } else if (this.#hedge !== undefined) this.#leaveToHedge(this.#hedge, failure);
    else if (failure.exhausted !== undefined || failure.denied === true) this.#giveUp(failure);
    else if (wasOpen && !this.#mayRepeat(failure)) {
      this.#dropUpstream(failure);
      this.#answer({ status: statusOf(failure), reason: failure.problem });
    } else this.#failAttempt(failure, wasOpen ? statusOf(failure) : 503);
  }

  /** Whether the instance perhaps closed a connection that was kept, before it had heard of this request: nothing has failed. */
  #wasStale(upstream: HttpUpstream): boolean {
    return upstream.requests >= 2 && !this.#response.begun && this.#isReplayable;
  }

  /** What was proved unread is asked anew for nothing; else it may have been read, and that counts like any repeat. */
  #mayAskAnew(failure: UpstreamFailure): boolean {
    // Of what is one segment nothing was read, when the whole of it met a closed socket.
    const isUnread = failure.closedBefore === true && this.#head.length + this.#keptBytes <= maxSegmentBytes;
    return isUnread || this.#mayRepeat(failure);
  }

  /** Whether all that was read of the request is still there. */
  get #isReplayable(): boolean {
    return this.#kept !== undefined || this.#keptBytes === 0;
  }

  /** Whether another instance may be asked what one has perhaps heard already: RFC 9110 section 9.2.2. */
  #mayRepeat({ timedOut }: UpstreamFailure): boolean {
    // Who has not answered in its time is not asked a second time.
    if (timedOut === true && this.#attempts?.hasOther !== true) return false;
    if (!isIdempotent(this.#method) || this.#report.retries >= this.#settings.retries) return false;
    if (!this.#isReplayable || !this.#options.budget.take()) return false;
    this.#report.retries += 1;
    this.#attempts?.anew();
    this.#options.environment.metrics.happened('retries', this.#route.service);
    return true;
  }

  #giveUp(failure: UpstreamFailure): void {
    const { account } = this.#options;
    const route = this.#route;
    const backend = this.#backend;
    this.#dropUpstream();
    if (failure.exhausted !== undefined) route.exhausted(failure.exhausted);
    if (failure.denied === true && backend !== undefined) route.refusedByHost(backend, account, failure.problem);
    else route.refused(failure.problem);
    this.#answer({ status: failure.denied === true ? 403 : 503, reason: failure.problem });
  }

  /** `status`: what the client is told when there is no other try. */
  #failAttempt(failure: UpstreamFailure, status = 503): void {
    const backend = this.#backend;
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    this.#times.notAsked();
    this.#upstream?.destroy();
    this.#upstream = undefined;
    this.#response.forget();
    this.#backend = undefined;
    if (backend !== undefined) this.#route.ended(backend);
    this.#afterFailure('attempt', failure.problem, backend && { backend, failure, status });
  }

  /** Tries again, at once or later, waits for something to connect to, or gives up. */
  #afterFailure(
    what: 'attempt' | 'pick',
    problem: string | undefined,
    failed?: { readonly backend: Backend; readonly failure: UpstreamFailure; readonly status: number },
  ): void {
    const { environment } = this.#options;
    const route = this.#route;
    const next = this.#attempts?.after(what) ?? { kind: 'over' };
    const wait = next.kind === 'hold' ? route.hold(() => this.#again()) : undefined;
    const retried = next.kind === 'again' || wait !== undefined;
    if (failed !== undefined) route.attemptFailed(failed.backend, { ...failed.failure, retried });
    if (!retried) {
      route.refused(what === 'pick' ? problem : undefined);
      const status = failed?.status ?? 503;
      this.#answer({ status, reason: problem ?? 'no instance is usable', ...(status === 503 && { retryAfter: 1 }) });
    } else if (next.kind === 'again' && next.afterMs === 0) this.#attempt();
    else if (next.kind !== 'over') {
      this.#leaveLobby = wait;
      this.#cancelTimer = environment.clock.after(next.kind === 'again' ? next.afterMs : next.limitMs, () =>
        this.#again(),
      );
    }
  }

  #again(): void {
    this.#stopWaiting();
    if (this.#running) this.#attempt();
  }

  #stopWaiting(): void {
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    this.#leaveLobby?.();
    this.#leaveLobby = undefined;
  }

  /** Answers in the instance's stead. What is left of the request is not read, so that nothing can follow it. */
  #answer(answer: OwnAnswer): void {
    this.#answered = true;
    this.#report.status = answer.status;
    this.#report.problem = answer.reason;
    const keepAlive = this.#keepAlive && this.#request.done;
    this.toClient(ownAnswer(answer, { close: !keepAlive, head: this.#method === methods.head }));
    this.#finish(keepAlive);
  }

  /** The client has half an answer: a reset is the only way to say so. */
  #breakOff(): void {
    this.#running = false;
    this.#report.end('broken');
    this.#forgetRequest();
    this.#leave();
    abort(this.#client, true);
  }

  #dropUpstream(failure?: UpstreamFailure, retried = false): void {
    const route = this.#route;
    this.#upstream?.destroy();
    this.#upstream = undefined;
    const backend = this.#backend;
    this.#backend = undefined;
    if (backend === undefined) return;
    route.ended(backend);
    if (failure !== undefined) route.attemptFailed(backend, { ...failure, retried });
  }

  #forgetRequest(): void {
    this.#head = nothing;
    this.#copy?.drop();
    this.#copy = undefined;
    this.#kept = undefined;
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
    const route = this.#route;
    this.#running = false;
    this.#lastKeepsClient = undefined;
    this.#stopWaiting();
    const upstream = this.#upstream;
    const backend = this.#backend;
    this.#upstream = undefined;
    this.#backend = undefined;
    this.#report.end(endOf(this.#report.status));
    this.#forgetRequest();
    if (upstream !== undefined) {
      if (this.#upstreamStays && this.#request.done && !this.#upstreamHasEnded && !route.announcesClient) {
        environment.pool.give(upstream, environment.clock.monotonicMs());
      } else upstream.destroy();
    }
    if (backend !== undefined) {
      backend.total += 1;
      route.ended(backend);
    }
    this.#raw = false;
    this.#upstreamHasEnded = false;
    this.#leave();
    over(keepAlive);
  }
}

/** What a client is told of an instance that was asked and has not answered. */
function statusOf({ timedOut }: UpstreamFailure): number {
  return timedOut === true ? 504 : 502;
}
