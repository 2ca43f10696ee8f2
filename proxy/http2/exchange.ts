import {
  type ClientHttp2Stream,
  constants,
  type IncomingHttpHeaders,
  type OutgoingHttpHeaders,
  type ServerHttp2Stream,
} from 'node:http2';
import { formatDuration } from '../../src/base/duration.ts';
import { describeError } from '../../src/base/errors.ts';
import type { Backend } from '../balance/backend.ts';
import type { Admission, Waiting } from '../http/admission.ts';
import { bodyMs, lingerMs, maxInformational, silentResponseMs } from '../http/bounds.ts';
import { HttpFault } from '../http/fault.ts';
import { endOf, type RequestEnd } from '../http/request-metrics.ts';
import { blameForTimeout, RequestTimes, type TimeLimit } from '../http/request-times.ts';
import type { RetryBudget } from '../http/retry-budget.ts';
import type { Lane } from '../http/routing/lane.ts';
import { Choice } from '../http/routing/link-routing.ts';
import type { Copy } from '../http/routing/mirrors.ts';
import type { HttpSettings } from '../http/settings.ts';
import type { UpstreamFailure } from '../http/upstream.ts';
import { Attempts } from '../tcp/attempts.ts';
import { connectAttemptMs, maxReplayBytes } from '../tcp/relay-bounds.ts';
import type { Route } from '../tcp/route.ts';
import { maxRefusals } from './bounds.ts';
import type { Http2Environment } from './environment.ts';
import { type Failure, grpcTrailers, ownAnswer, resetCodeOf } from './failures.ts';
import { isGrpcFault } from './grpc.ts';
import { HeadersView } from './headers-view.ts';
import { type ClientMarks, isIdempotentMethod, passedOn, type RequestHead, requestHead } from './heads.ts';
import { type Answering, Hedge, type HedgeEvents } from './hedge.ts';
import type { InstanceSession, SessionUser } from './instance-session.ts';
import { resetStream } from './outside-parser.ts';
import { bodyTooLarge, type Refusal, refusalOf } from './refusals.ts';
import { type Asker, sessionFor } from './session-ways.ts';
import { headAlone, withMore } from './stream-options.ts';

const { NGHTTP2_NO_ERROR, NGHTTP2_CANCEL, NGHTTP2_REFUSED_STREAM, NGHTTP2_FLAG_END_STREAM } = constants;

export interface ExchangeOptions extends Asker {
  readonly environment: Http2Environment;
  readonly route: Route;
  readonly budget: RetryBudget;
  readonly marks: ClientMarks;
  /** Bytes of an answer have gone to the client. */
  readonly carried: () => void;
  /** Nothing is left of it. `reset`: the client took it back. */
  readonly over: (exchange: Exchange, reset: boolean) => void;
}

/** How it ends on the client's side. */
type Outcome = 'open' | 'whole' | 'broken' | 'client gone';

/**
 * One stream of a client, and those to instances that follow each other until one answers. What was sent of a request is kept
 * while it is little, so that another instance can have it when the first one has not looked at it.
 */
export class Exchange implements SessionUser, Waiting, HedgeEvents {
  readonly #options: ExchangeOptions;
  readonly #client: ServerHttp2Stream;
  readonly #startedMs: number;
  #request: RequestHead | undefined;
  #requestDone: boolean;
  #requestTrailers: OutgoingHttpHeaders | undefined;
  /** What was read of the body, while it may be needed again; undefined once it was too much. */
  #kept: Buffer[] | undefined = [];
  #keptBytes = 0;
  /** Where it goes. */
  #route: Route;
  /** What held for the service when it came. */
  #settings: HttpSettings;
  readonly #times: RequestTimes;
  /** Where it is counted as running, or waits. */
  #admission: Admission | undefined;
  #queues = false;
  #hedge: Hedge | undefined;
  /** What decides where it goes, where that is so; see `Route.pick`. */
  #key: number | undefined;
  /** What routes make of it; undefined where its link has none. */
  #choice: Choice | undefined;
  /** For whom a route wants it copied. */
  #copy: Copy | undefined;
  #attempts: Attempts | undefined;
  #cancelTimer: (() => void) | undefined;
  #leaveLobby: (() => void) | undefined;
  #retries = 0;
  #refusals = 0;
  /** What the whole request and each try may take, in milliseconds; 0: as long as it takes. */
  #requestMs = 0;
  #tryMs = 0;
  #attemptMs = 0;
  #sentMs = 0;
  #backend: Backend | undefined;
  #session: InstanceSession | undefined;
  #instance: ClientHttp2Stream | undefined;
  #informational = 0;
  #answeredBy: Backend | undefined;
  #judged = false;
  /** How long the head of the answer took. */
  #answerMs = 0;
  #isFault = false;
  /** What the client was told; 0 for nothing yet. */
  #status = 0;
  #responseDone = false;
  #responseTrailers: OutgoingHttpHeaders | undefined;
  /** The end of the answer has been handed to the runtime. */
  #saidAll = false;
  /** The rest of the request is refused as soon as that is so. */
  #stopsRequest = false;
  #outcome: Outcome = 'open';
  #problem: string | undefined;
  /** Monotonic; when something last came from either side, and when it was over as far as this side is concerned. */
  #progressMs: number;
  #overMs = Number.POSITIVE_INFINITY;
  #received = 0;
  #sent = 0;

  constructor(client: ServerHttp2Stream, options: ExchangeOptions) {
    this.#client = client;
    this.#options = options;
    this.#route = options.route;
    this.#settings = options.route.http;
    this.#times = new RequestTimes(options.environment.clock, (limit, nowMs) => this.#timeIsUp(limit, nowMs));
    this.#startedMs = this.#nowMs();
    this.#progressMs = this.#startedMs;
    this.#requestDone = client.endAfterHeaders;
  }

  get backendId(): string | undefined {
    return this.#backend?.id;
  }

  #nowMs(): number {
    return this.#options.environment.clock.monotonicMs();
  }

  /** Policy has changed. */
  review(): void {
    const denial = this.#choice?.lane?.denial(this.#options.account);
    if (denial !== undefined) this.end({ kind: 'denied', reason: denial });
  }

  // The request

  begin(headers: IncomingHttpHeaders): void {
    const { budget, environment, marks } = this.#options;
    const { route } = this.#options;
    const client = this.#client;
    client.on('error', () => undefined);
    client.on('aborted', () => this.#clientGone());
    client.on('close', () => this.#clientClosed());
    client.on('wantTrailers', () => this.#sayLast());
    client.on('drain', () => this.#instance?.resume());
    budget.add();
    try {
      const { forwarding } = route.http;
      this.#request = requestHead(headers, marks, forwarding, route.service, () => environment.traceIds.next());
      // A plain CONNECT names no resource that a route could be about.
      if (route.routing !== undefined && headers[':path'] !== undefined) {
        this.#choice = new Choice();
        route.routing.choose(new HeadersView(headers), this.#options.account, 'h2', this.#choice);
      }
    } catch (error) {
      if (!(error instanceof HttpFault)) throw error;
      environment.metrics.refused(error.kind);
      this.#fail({ kind: 'malformed', reason: error.message });
      return;
    }
    this.#received = this.#request.bytes;
    if (this.#choice !== undefined && !this.#follow(this.#choice, this.#request)) return;
    this.#settings = this.#route.http;
    this.#beginTimes(this.#request);
    const refusal = refusalOf(this.#request, this.#settings);
    if (refusal !== undefined) {
      this.#refuse(refusal);
      return;
    }
    if (this.#choice?.mirror !== undefined) this.#beginCopy(this.#choice.mirror, this.#request);
    if (!this.#requestDone) {
      client.on('data', (chunk: Buffer) => this.#fromClient(chunk));
      client.on('trailers', (trailers) => {
        this.#requestTrailers = passedOn(trailers, false);
      });
      client.on('end', () => {
        this.#clientEnded();
        this.#sendCopy();
      });
    }
    this.#key = this.#route.hashKey?.ofHeaders(headers, this.#options.peer);
    this.#enter();
    this.#sendCopy();
  }

  #beginCopy(lane: Lane, { protocol, declaredBytes, headers }: RequestHead): void {
    if (protocol !== undefined) return;
    const { environment } = this.#options;
    const trailers = (): OutgoingHttpHeaders | undefined => this.#requestTrailers;
    this.#copy = environment.mirrors.begin({
      lane,
      contentLength: declaredBytes,
      headers,
      trailers,
      asker: this.#options,
    });
  }

  /** The copy goes once the request is whole, and never before it. What is answered before is a conversation. */
  #sendCopy(): void {
    if (!this.#requestDone) return;
    const isConversation = this.#responseDone || (this.#status !== 0 && this.#request?.grpc === true);
    if (isConversation) this.#copy?.drop('streaming');
    else this.#copy?.send();
  }

  #refuse({ kind, failure }: Refusal): void {
    this.#options.environment.metrics.refused(kind);
    this.end(failure);
  }

  /** Goes where routes lead it; false: that is nowhere, and it is answered. */
  #follow({ lane, rule, target, redirect, refusal }: Choice, { headers }: RequestHead): boolean {
    if (redirect !== undefined) this.#redirect(redirect);
    else if (refusal !== undefined) this.#fail(refusal);
    else {
      if (lane !== undefined) this.#route = lane;
      if (target !== undefined) headers[':path'] = target;
      rule?.request?.apply(headers);
      return true;
    }
    return false;
  }

  #fromClient(chunk: Buffer): void {
    if (this.#outcome !== 'open') return;
    this.#received += chunk.length;
    this.#progressMs = this.#nowMs();
    const { maxBodyBytes } = this.#settings;
    if (maxBodyBytes > 0 && this.#received - (this.#request?.bytes ?? 0) > maxBodyBytes) {
      this.#refuse(bodyTooLarge(maxBodyBytes));
      return;
    }
    this.#copy?.add(chunk);
    const instance = this.#instance;
    if (this.#kept !== undefined) {
      this.#kept.push(chunk);
      this.#keptBytes += chunk.length;
      if (this.#keptBytes > maxReplayBytes) {
        if (instance === undefined) this.#client.pause();
        else this.#kept = undefined;
      }
    }
    if (instance?.write(chunk) === false) this.#client.pause();
  }

  #clientEnded(): void {
    if (this.#requestDone || this.#outcome === 'client gone') return;
    this.#requestDone = true;
    const nowMs = this.#nowMs();
    this.#progressMs = nowMs;
    if (this.#instance === undefined) return;
    this.#instance.end();
    if (this.#status === 0) this.#times.asked(nowMs, nowMs);
  }

  /** The client has taken its request back, or is gone altogether. */
  #clientGone(): void {
    if (this.#outcome !== 'open') return;
    this.#outcome = 'client gone';
    const { rstCode } = this.#client;
    this.#stopWaiting();
    this.#dropInstance(rstCode === NGHTTP2_NO_ERROR || rstCode === undefined ? NGHTTP2_CANCEL : rstCode);
    this.#leave();
  }

  #clientClosed(): void {
    const isReset = this.#outcome === 'client gone' || (this.#outcome === 'open' && !this.#responseDone);
    this.#clientGone();
    this.#stopWaiting();
    this.#dropInstance(NGHTTP2_CANCEL);
    this.#leave();
    this.#report();
    this.#kept = undefined;
    this.#options.over(this, isReset);
  }

  // Its turn, and its time

  #beginTimes({ grpc, timeoutMs }: RequestHead): void {
    const settings = this.#settings;
    const ownMs = settings.timeoutMs || Number.POSITIVE_INFINITY;
    const requestMs = Math.max(1, Math.min(ownMs, timeoutMs ?? ownMs));
    this.#requestMs = requestMs === Number.POSITIVE_INFINITY ? 0 : requestMs;
    this.#tryMs = grpc ? settings.callTryTimeoutMs : settings.tryTimeoutMs;
    this.#times.begin(this.#startedMs, this.#requestMs, this.#tryMs, settings.hedgeAfterMs);
  }

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
      this.#times.queued(this.#settings.queueTimeoutMs, this.#nowMs());
    }
  }

  admitted(): void {
    this.#queues = false;
    this.#times.admitted();
    if (this.#outcome === 'open') this.#attempt();
  }

  #reject(reason: string): void {
    this.#options.environment.metrics.happened('rejected', this.#route.service);
    this.end({ kind: 'exhausted', reason });
  }

  /** Lets others have its turn. */
  #leave(): void {
    this.#times.end();
    this.#copy?.drop();
    this.#hedge?.letGo();
    this.#hedge = undefined;
    const admission = this.#admission;
    if (admission === undefined) return;
    this.#admission = undefined;
    if (this.#queues) admission.giveUp(this);
    else admission.leave();
    this.#queues = false;
  }

  #timeIsUp(limit: TimeLimit, nowMs: number): void {
    if (this.#outcome !== 'open' || this.#responseDone) return;
    const { queueTimeoutMs } = this.#settings;
    if (limit === 'queue')
      this.#reject(`too many requests run: it was not its turn within ${formatDuration(queueTimeoutMs)}`);
    else if (limit === 'hedge') this.#beginHedge();
    else {
      this.#options.environment.metrics.happened('timeouts', this.#route.service);
      if (limit === 'request') this.#requestTimedOut(nowMs);
      else this.#tryTimedOut(nowMs);
    }
  }

  #requestTimedOut(nowMs: number): void {
    const isOwn = this.#requestMs === this.#settings.timeoutMs;
    const problem = isOwn
      ? `the request has taken longer than ${formatDuration(this.#requestMs)}`
      : `the call has taken longer than its limit of ${this.#requestMs} ms`;
    const reason = this.#queues ? `${problem}, waiting for its turn` : problem;
    const isAsked = this.#status === 0 && this.#instance !== undefined && this.#requestDone;
    if (isAsked && isOwn) {
      const askedForMs = nowMs - this.#sentMs;
      this.#backend?.latency.atLeast(askedForMs, nowMs);
      this.#dropInstance(NGHTTP2_CANCEL, { problem, blame: blameForTimeout(this.#settings, askedForMs) });
    }
    this.end({ kind: 'timeout', reason });
  }

  #tryTimedOut(nowMs: number): void {
    const problem = `no response within ${formatDuration(this.#tryMs)}`;
    const failure: UpstreamFailure = { problem, blame: 'instance', timedOut: true };
    if (this.#instance === undefined) {
      this.#hedge?.fail(failure);
      return;
    }
    this.#backend?.latency.atLeast(nowMs - this.#sentMs, nowMs);
    if (this.#hedge !== undefined) this.#leaveToHedge(this.#hedge, failure);
    else if (this.#mayRepeat(failure)) this.#failAttempt(failure);
    else {
      this.#dropInstance(NGHTTP2_CANCEL, failure);
      this.#fail({ kind: 'timeout', reason: problem });
    }
  }

  // A second instance

  /** Asks another instance as well, when there is one and all of the request is there to be asked again. */
  #beginHedge(): void {
    const { budget, environment } = this.#options;
    const request = this.#request;
    if (request === undefined || request.grpc || !isIdempotentMethod(request.method)) return;
    if (this.#status !== 0 || !this.#requestDone || this.#kept === undefined || this.#instance === undefined) return;
    if (this.#attempts?.hasOther !== true || !budget.take()) return;
    const next = this.#attempts.beside();
    if (next === undefined) return;
    environment.metrics.happened('hedges', this.#route.service);
    this.#hedge = new Hedge({
      ...next,
      asker: this.#options,
      route: this.#route,
      headers: request.headers,
      body: this.#kept,
      trailers: this.#requestTrailers,
      events: this,
    });
    this.#hedge.start();
  }

  hedgeAnswered(hedge: Hedge, { session, stream, headers, flags }: Answering): void {
    const nowMs = this.#nowMs();
    this.#hedge = undefined;
    if (this.#instance !== undefined) this.#backend?.latency.atLeast(nowMs - this.#sentMs, nowMs);
    this.#dropInstance(NGHTTP2_CANCEL);
    this.#session = session;
    this.#instance = stream;
    this.#backend = hedge.backend;
    this.#sentMs = hedge.sentMs;
    this.#listen(stream, session);
    this.#answered(stream, headers, (flags & NGHTTP2_FLAG_END_STREAM) !== 0);
  }

  hedgeFailed({ backend }: Hedge, failure: UpstreamFailure): void {
    const route = this.#route;
    this.#hedge = undefined;
    if (failure.exhausted !== undefined) route.exhausted(failure.exhausted);
    if (this.#instance !== undefined) route.attemptFailed(backend, { ...failure, retried: true });
    else if (this.#mayRepeat(failure)) this.#afterFailure('attempt', failure.problem, { backend, failure });
    else {
      route.attemptFailed(backend, { ...failure, retried: false });
      this.#fail({ kind: failure.timedOut === true ? 'timeout' : 'lost', reason: failure.problem });
    }
  }

  /** The first instance has failed: the second one is asked alone, and has its time. */
  #leaveToHedge(hedge: Hedge, failure: UpstreamFailure): void {
    this.#dropInstance(NGHTTP2_CANCEL, failure, true);
    this.#informational = 0;
    this.#times.asked(hedge.sentMs, this.#nowMs());
  }

  // To an instance

  #search(): Attempts {
    return new Attempts(this.#route, this.#options.environment.clock, this.#key);
  }

  #attempt(): void {
    this.#attempts ??= this.#search();
    const next = this.#attempts.next();
    if (next === undefined) this.#afterFailure('pick', this.#route.problemToPick);
    else this.#to(next.backend, next.limitMs);
  }

  #to(backend: Backend, limitMs: number): void {
    const { environment } = this.#options;
    const route = this.#route;
    backend.active += 1;
    this.#backend = backend;
    this.#attemptMs = this.#nowMs();
    const session = sessionFor(this.#options, route, backend);
    if (session === 'full') {
      this.#failAttempt({ problem: 'all streams of all connections to it are taken', blame: 'way' }, 'exhausted');
    } else if (typeof session === 'string') this.#failAttempt({ problem: session, blame: 'way' });
    else {
      session.reserve();
      this.#session = session;
      if (session.isOpen) this.#send(session);
      else {
        session.wait(this);
        const connectMs = Math.min(limitMs, this.#tryMs || limitMs);
        this.#cancelTimer = environment.clock.after(connectMs, () => {
          const blame = backend.dial.via === 'direct' ? 'host' : 'way';
          this.#failAttempt({ problem: `no answer within ${Math.round(connectMs)} ms`, blame });
        });
      }
    }
  }

  sessionOpened(session: InstanceSession): void {
    const backend = this.#backend;
    if (this.#session !== session || backend === undefined) return;
    this.#stopWaiting();
    this.#route.connected(backend, this.#nowMs() - this.#attemptMs);
    this.#send(session);
  }

  sessionFailed(session: InstanceSession, failure: UpstreamFailure): void {
    if (this.#session !== session) return;
    if (failure.exhausted !== undefined || failure.denied === true) this.#giveUp(failure);
    else this.#failAttempt(failure);
  }

  /** The head, and what is there of the body. */
  #send(session: InstanceSession): void {
    const request = this.#request;
    if (request === undefined) return;
    if (request.protocol !== undefined && !session.takesProtocols) {
      this.end({ kind: 'unsupported', reason: 'the instance takes no CONNECT with a protocol' });
      return;
    }
    const endStream = this.#requestDone && this.#keptBytes === 0 && this.#requestTrailers === undefined;
    let instance: ClientHttp2Stream;
    try {
      instance = session.request(request.headers, endStream);
    } catch (error) {
      this.#failAttempt({ problem: describeError(error), blame: 'way' });
      return;
    }
    this.#instance = instance;
    this.#sentMs = this.#nowMs();
    this.#progressMs = this.#sentMs;
    if (this.#requestDone) this.#times.asked(this.#attemptMs, this.#sentMs);
    this.#listen(instance, session);
    let isFull = false;
    for (const chunk of this.#kept ?? []) isFull = !instance.write(chunk);
    if (this.#keptBytes > maxReplayBytes) this.#kept = undefined;
    if (endStream) return;
    if (this.#requestDone) instance.end();
    else if (isFull) this.#client.pause();
    else this.#client.resume();
  }

  #listen(instance: ClientHttp2Stream, session: InstanceSession): void {
    const isCurrent = (): boolean => this.#instance === instance && this.#outcome === 'open';
    instance.on('error', () => undefined);
    instance.on('close', () => this.#instanceClosed(instance, session));
    instance.on('drain', () => {
      if (isCurrent() && !this.#requestDone) this.#client.resume();
    });
    instance.on('wantTrailers', () => {
      if (this.#requestDone && this.#instance === instance) instance.sendTrailers(this.#requestTrailers ?? {});
    });
    instance.on('headers', (headers) => {
      if (isCurrent()) this.#inform(headers);
    });
    instance.on('response', (headers, flags) => {
      if (isCurrent()) this.#answered(instance, headers, (flags & NGHTTP2_FLAG_END_STREAM) !== 0);
    });
    instance.on('trailers', (headers) => {
      if (!isCurrent()) return;
      this.#responseTrailers = passedOn(headers, false);
      this.#judgeGrpc(headers);
    });
    instance.on('end', () => {
      // The runtime says this of a stream that was reset as well.
      if (isCurrent() && instance.rstCode === NGHTTP2_NO_ERROR) this.#instanceEnded();
    });
  }

  // From the instance

  #inform(headers: IncomingHttpHeaders): void {
    this.#informational += 1;
    this.#progressMs = this.#nowMs();
    if (this.#informational > maxInformational) {
      this.#dropInstance(NGHTTP2_CANCEL);
      this.#fail({ kind: 'bad answer', reason: 'the instance answers with too many informational responses' });
    } else if (this.#status === 0) this.#tryToSay(() => this.#client.additionalHeaders(passedOn(headers, true)));
  }

  #answered(instance: ClientHttp2Stream, headers: IncomingHttpHeaders, isAll: boolean): void {
    const backend = this.#backend;
    const nowMs = this.#nowMs();
    this.#status = Number(headers[':status']);
    this.#hedge?.letGo();
    this.#hedge = undefined;
    this.#times.notAsked();
    // What follows may take as long as it likes, as behind an upgrade.
    if (this.#request?.method === 'CONNECT' && this.#status < 300) this.#times.end();
    this.#answeredBy = backend;
    this.#progressMs = nowMs;
    this.#kept = undefined;
    this.#answerMs = nowMs - this.#sentMs;
    backend?.latency.observe(this.#answerMs, nowMs);
    if (this.#request?.grpc !== true || this.#status !== 200) {
      // What is not implemented (501) is no sign of trouble.
      this.#judge(this.#status >= 500 && this.#status !== 501, this.#status < 400);
    } else this.#judgeGrpc(headers);
    const said = passedOn(headers, true);
    if (this.#choice !== undefined) this.#edit(said, this.#choice);
    if (!this.#tryToSay(() => this.#client.respond(said, isAll ? headAlone : withMore))) return;
    if (isAll) {
      this.#responseDone = true;
      this.#saidAll = true;
    }
    instance.on('data', (chunk: Buffer) => {
      if (this.#instance === instance && this.#outcome === 'open') this.#fromInstance(instance, chunk);
    });
  }

  #edit(headers: OutgoingHttpHeaders, choice: Choice): void {
    choice.rule?.response?.apply(headers);
    const cookie = choice.setCookie(this.#answeredBy, this.#options.marks.scheme === 'https');
    if (cookie === undefined) return;
    const given = headers['set-cookie'];
    headers['set-cookie'] = [...(given === undefined ? [] : [given].flat().map(String)), cookie];
  }

  #fromInstance(instance: ClientHttp2Stream, chunk: Buffer): void {
    this.#sent += chunk.length;
    this.#progressMs = this.#nowMs();
    this.#options.carried();
    // An answer that has no body says so by its status or method already (RFC 9110 section 6.4.1).
    if (this.#client.writableEnded) return;
    if (!this.#client.write(chunk)) instance.pause();
  }

  #instanceEnded(): void {
    this.#responseDone = true;
    // All others are judged by now: this is gRPC without a status.
    this.#judge(true);
    if (!this.#client.writableEnded) this.#client.end();
  }

  /** The body is out: the trailers, if any, end the answer. */
  #sayLast(): void {
    if (this.#outcome === 'client gone') return;
    this.#saidAll = this.#tryToSay(() => this.#client.sendTrailers(this.#responseTrailers ?? {}));
    if (this.#stopsRequest) this.#stopRequest();
  }

  /** Nobody wants the rest of a request that is answered: its sender is told behind the answer (RFC 9113 section 8.1). */
  #stopRequest(): void {
    if (this.#requestDone) return;
    if (this.#saidAll) resetStream(this.#client, NGHTTP2_NO_ERROR);
    else this.#stopsRequest = true;
  }

  #tryToSay(say: () => void): boolean {
    if (this.#client.destroyed || this.#client.closed) return false;
    try {
      say();
      return true;
    } catch (error) {
      this.#dropInstance(NGHTTP2_CANCEL);
      if (this.#client.headersSent) this.#reset('broken', constants.NGHTTP2_INTERNAL_ERROR, describeError(error));
      else this.#fail({ kind: 'bad answer', reason: `the instance answers with ${describeError(error)}` });
      return false;
    }
  }

  #judgeGrpc(headers: IncomingHttpHeaders): void {
    const status = headers['grpc-status'];
    if (typeof status === 'string' && this.#request?.grpc === true) this.#judge(isGrpcFault(status), status === '0');
  }

  #judge(isError: boolean, isGood = false): void {
    if (this.#judged || this.#backend === undefined) return;
    this.#judged = true;
    this.#isFault = isError;
    this.#route.answered(this.#backend, isError, isGood ? this.#answerMs : undefined);
  }

  #instanceClosed(instance: ClientHttp2Stream, session: InstanceSession): void {
    if (this.#instance !== instance || this.#outcome === 'client gone') return;
    if (this.#responseDone) {
      this.#dropInstance(NGHTTP2_NO_ERROR);
      this.#leave();
      this.#stopRequest();
      return;
    }
    const code = instance.rstCode ?? NGHTTP2_CANCEL;
    if (this.#status === 0 && session.hasIgnored(instance)) {
      this.#ignored();
      return;
    }
    const loss = session.loss();
    if (loss !== undefined) this.#lost(loss);
    else {
      const problem = `the instance reset the stream with code ${code}`;
      if (this.#hedge !== undefined) {
        this.#leaveToHedge(this.#hedge, { problem, blame: 'way' });
        return;
      }
      this.#judge(code !== NGHTTP2_NO_ERROR && code !== NGHTTP2_CANCEL);
      this.#answeredBy = this.#backend;
      this.#dropInstance(code);
      this.#reset('broken', code, problem);
    }
  }

  /** The instance has not looked at the request: it may always be asked elsewhere. */
  #ignored(): void {
    const failure: UpstreamFailure = { problem: 'the instance takes no more streams', blame: 'way' };
    this.#refusals += 1;
    if (this.#hedge !== undefined) this.#leaveToHedge(this.#hedge, failure);
    else if (this.#kept === undefined) {
      this.#dropInstance(NGHTTP2_CANCEL, failure);
      // The client has all of it, and may repeat it.
      this.#reset('broken', NGHTTP2_REFUSED_STREAM, failure.problem);
    } else if (this.#refusals > maxRefusals) {
      this.#dropInstance(NGHTTP2_CANCEL, failure);
      this.#route.refused(undefined);
      this.#fail({ kind: 'unavailable', reason: failure.problem });
    } else {
      if (this.#attempts !== undefined && this.#attempts.elapsedMs > connectAttemptMs) this.#attempts = this.#search();
      this.#countRetry();
      this.#failAttempt(failure);
    }
  }

  /** The connection is gone, and nobody knows what became of the request. */
  #lost(failure: UpstreamFailure): void {
    if (this.#status !== 0) {
      this.#dropInstance(NGHTTP2_CANCEL, failure);
      this.#breakOff({ kind: 'lost', reason: failure.problem });
    } else if (this.#hedge !== undefined) this.#leaveToHedge(this.#hedge, failure);
    else if (this.#mayRepeat(failure)) this.#failAttempt(failure);
    else {
      this.#dropInstance(NGHTTP2_CANCEL, failure);
      this.#fail({ kind: 'lost', reason: failure.problem });
    }
  }

  /** RFC 9110 section 9.2.2; calls of gRPC are never known to be idempotent. */
  #mayRepeat({ timedOut }: UpstreamFailure): boolean {
    // Who has not answered in its time is not asked a second time.
    if (timedOut === true && this.#attempts?.hasOther !== true) return false;
    const request = this.#request;
    if (request === undefined || request.grpc || !isIdempotentMethod(request.method)) return false;
    if (this.#retries >= this.#settings.retries || this.#kept === undefined || !this.#options.budget.take())
      return false;
    this.#countRetry();
    this.#attempts?.anew();
    return true;
  }

  #countRetry(): void {
    this.#retries += 1;
    this.#options.environment.metrics.happened('retries', this.#route.service);
  }

  #giveUp(failure: UpstreamFailure): void {
    const { account } = this.#options;
    const route = this.#route;
    const backend = this.#backend;
    this.#stopWaiting();
    this.#dropInstance(NGHTTP2_CANCEL);
    if (failure.exhausted !== undefined) route.exhausted(failure.exhausted);
    if (failure.denied === true && backend !== undefined) route.refusedByHost(backend, account, failure.problem);
    else route.refused(failure.problem);
    this.#fail({ kind: failure.denied === true ? 'denied' : 'exhausted', reason: failure.problem });
  }

  #failAttempt(failure: UpstreamFailure, kind: 'unavailable' | 'exhausted' = 'unavailable'): void {
    const backend = this.#backend;
    this.#stopWaiting();
    this.#times.notAsked();
    this.#dropInstance(NGHTTP2_CANCEL);
    this.#informational = 0;
    this.#afterFailure('attempt', failure.problem, backend && { backend, failure }, kind);
  }

  /** Tries again, at once or later, waits for something to connect to, or gives up. */
  #afterFailure(
    what: 'attempt' | 'pick',
    problem: string | undefined,
    failed?: { readonly backend: Backend; readonly failure: UpstreamFailure },
    kind: 'unavailable' | 'exhausted' = 'unavailable',
  ): void {
    const { environment } = this.#options;
    const route = this.#route;
    const next = this.#attempts?.after(what) ?? { kind: 'over' };
    const leave = next.kind === 'hold' ? route.hold(() => this.#again()) : undefined;
    const retried = next.kind === 'again' || leave !== undefined;
    if (failed !== undefined) route.attemptFailed(failed.backend, { ...failed.failure, retried });
    if (!retried) {
      route.refused(what === 'pick' ? problem : undefined);
      this.#fail({ kind, reason: problem ?? 'no instance is usable' });
    } else if (next.kind === 'again' && next.afterMs === 0) this.#attempt();
    else if (next.kind !== 'over') {
      this.#leaveLobby = leave;
      const afterMs = next.kind === 'again' ? next.afterMs : next.limitMs;
      this.#cancelTimer = environment.clock.after(afterMs, () => this.#again());
    }
  }

  #again(): void {
    this.#stopWaiting();
    if (this.#outcome === 'open') this.#attempt();
  }

  #stopWaiting(): void {
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    this.#leaveLobby?.();
    this.#leaveLobby = undefined;
  }

  /** Gives everything back that was taken to ask an instance. */
  #dropInstance(code: number, failure?: UpstreamFailure, retried = false): void {
    const instance = this.#instance;
    const session = this.#session;
    const backend = this.#backend;
    this.#instance = undefined;
    this.#session = undefined;
    this.#backend = undefined;
    // A reset of what has come to its end on both sides would only look like an attack.
    const isWhole = this.#responseDone && instance?.writableFinished === true;
    if (instance !== undefined && !instance.closed && !isWhole) resetStream(instance, code);
    session?.release(this);
    if (backend === undefined) return;
    if (this.#responseDone) backend.total += 1;
    this.#route.ended(backend);
    if (failure !== undefined) this.#route.attemptFailed(backend, { ...failure, retried });
  }

  // Ends

  /** Ends it in the instance's stead, in the client's own words; `code` for those who have the beginning of an answer. */
  end(failure: Failure): void {
    if (this.#outcome !== 'open' || this.#responseDone) return;
    this.#stopWaiting();
    this.#dropInstance(NGHTTP2_CANCEL);
    if (this.#status === 0) this.#fail(failure);
    else this.#breakOff(failure);
  }

  /** To be called every `sweepMs`: ends what takes too long. */
  tick(nowMs: number): void {
    this.#times.check(nowMs);
    if (this.#outcome !== 'open' || this.#responseDone) {
      if (this.#outcome !== 'open' && nowMs - this.#overMs >= lingerMs) resetStream(this.#client, NGHTTP2_CANCEL);
      return;
    }
    const silentMs = nowMs - this.#progressMs;
    const isAnswered = this.#status !== 0;
    if (silentMs >= silentResponseMs) {
      this.end({ kind: 'timeout', reason: isAnswered ? 'the response does not go on' : 'no response' });
    } else if (!isAnswered && this.#request?.grpc !== true && !this.#requestDone && silentMs >= bodyMs) {
      if (!this.#client.isPaused()) this.end({ kind: 'slow body', reason: 'the body of the request does not come' });
    }
  }

  #redirect({ status, location }: { readonly status: number; readonly location: string }): void {
    this.#status = status;
    this.#problem = 'a route redirects it';
    this.#answerWith({ ':status': status, location, 'content-length': '0' }, '');
  }

  /** Answers in the instance's stead. */
  #fail(failure: Failure): void {
    const grpc = this.#request?.grpc ?? false;
    const { headers, body } = ownAnswer(failure, grpc);
    this.#status = Number(headers[':status']);
    this.#problem = failure.reason;
    this.#answerWith(headers, body);
  }

  #answerWith(headers: OutgoingHttpHeaders, body: string): void {
    this.#kept = undefined;
    const client = this.#client;
    this.#leave();
    if (client.destroyed || client.closed || client.headersSent) return;
    this.#outcome = 'whole';
    this.#overMs = this.#nowMs();
    this.#saidAll = true;
    client.once('finish', () => this.#stopRequest());
    client.respond(headers, { endStream: body === '' });
    if (!client.writableEnded) client.end(body);
  }

  /** The client has half an answer: gRPC has a word for that, others are told by a reset. */
  #breakOff(failure: Failure): void {
    this.#route.refused(failure.reason);
    if (this.#request?.grpc !== true || this.#client.writableEnded) {
      this.#reset('broken', resetCodeOf(failure), failure.reason);
      return;
    }
    this.#outcome = 'broken';
    this.#problem = failure.reason;
    this.#overMs = this.#nowMs();
    this.#responseTrailers = grpcTrailers(failure);
    this.#leave();
    this.#stopRequest();
    this.#client.end();
  }

  #reset(outcome: Outcome, code: number, problem: string): void {
    this.#outcome = outcome;
    this.#problem = problem;
    this.#overMs = this.#nowMs();
    this.#leave();
    resetStream(this.#client, code);
  }

  #report(): void {
    const { environment, account, peer } = this.#options;
    const route = this.#route;
    const { service } = route;
    const durationMs = this.#nowMs() - this.#startedMs;
    const backend = this.#answeredBy;
    const isWhole = this.#outcome === 'whole' || (this.#outcome !== 'broken' && this.#responseDone);
    const end: RequestEnd = isWhole ? endOf(this.#status) : this.#outcome === 'broken' ? 'broken' : 'client gone';
    environment.metrics.ended(service, backend, end, durationMs / 1000);
    const isError = this.#isFault || end === '5xx' || end === 'broken';
    this.#choice?.lane?.finished(backend, end, isError && end !== 'client gone', durationMs / 1000);
    environment.accessLog?.request({
      method: this.#request?.method ?? '',
      target: this.#request?.path ?? '',
      traceId: this.#request?.traceId ?? environment.traceIds.next(),
      client: peer,
      consumer: account.consumer,
      service,
      status: this.#status,
      instance: backend && { id: backend.id, hostId: backend.instance.hostId, via: backend.dial.via },
      receivedBytes: this.#received,
      sentBytes: this.#sent,
      durationMs,
      retries: this.#retries,
      end,
      reason: this.#problem,
    });
  }
}
