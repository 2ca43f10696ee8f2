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
import { bodyMs, maxInformational, silentResponseMs } from '../http/bounds.ts';
import { HttpFault } from '../http/fault.ts';
import { KeptBody } from '../http/kept-body.ts';
import { endOf, type RequestEnd } from '../http/request-metrics.ts';
import { blameForTimeout } from '../http/request-times.ts';
import type { RetryBudget } from '../http/retry-budget.ts';
import type { Lane } from '../http/routing/lane.ts';
import { Choice } from '../http/routing/link-routing.ts';
import type { Copy } from '../http/routing/mirrors.ts';
import type { HttpSettings } from '../http/settings.ts';
import { Tries, type TriesUser } from '../http/tries.ts';
import { Turn, type TurnUser } from '../http/turn.ts';
import type { UpstreamFailure } from '../http/upstream.ts';
import type { Route } from '../tcp/route.ts';
import { maxRefusals } from './bounds.ts';
import type { Http2Environment } from './environment.ts';
import type { Failure } from './failures.ts';
import { isGrpcFault } from './grpc.ts';
import { HeadersView } from './headers-view.ts';
import { type ClientMarks, checkSize, isIdempotentMethod, passedOn, type RequestHead, requestHead } from './heads.ts';
import { type Answering, Hedge, type HedgeEvents } from './hedge.ts';
import type { InstanceSession, SessionUser } from './instance-session.ts';
import { resetStream } from './outside-parser.ts';
import { bodyTooLarge, failureOf, type Refusal, refusalOf } from './refusals.ts';
import { Reply, type ReplyUser } from './reply.ts';
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

/**
 * One stream of a client, and those to instances that follow each other until one answers. What was sent of a request is kept
 * while it is little, so that another instance can have it when the first one has not looked at it.
 */
export class Exchange implements SessionUser, ReplyUser, TurnUser, TriesUser, HedgeEvents {
  readonly #options: ExchangeOptions;
  readonly #client: ServerHttp2Stream;
  readonly #startedMs: number;
  #request: RequestHead | undefined;
  #requestDone: boolean;
  #requestTrailers: OutgoingHttpHeaders | undefined;
  /** What was read of the body, while it may be needed again. */
  readonly #kept = new KeptBody();
  /** Where it goes. */
  #route: Route;
  /** What held for the service when it came. */
  #settings: HttpSettings;
  readonly #turn: Turn;
  readonly #tries: Tries;
  #hedge: Hedge | undefined;
  /** What routes make of it; undefined where its link has none. */
  #choice: Choice | undefined;
  /** For whom a route wants it copied. */
  #copy: Copy | undefined;
  #refusals = 0;
  /** What the whole request and each try may take, in milliseconds; 0: as long as it takes. */
  #requestMs = 0;
  #tryMs = 0;
  #session: InstanceSession | undefined;
  #instance: ClientHttp2Stream | undefined;
  #informational = 0;
  #answeredBy: Backend | undefined;
  #judged = false;
  /** How long the head of the answer took. */
  #answerMs = 0;
  #isFault = false;
  readonly #reply: Reply;
  #responseDone = false;
  /** Monotonic; when something last came from either side. */
  #progressMs: number;
  #received = 0;
  #sent = 0;

  constructor(client: ServerHttp2Stream, options: ExchangeOptions) {
    this.#client = client;
    this.#options = options;
    this.#route = options.route;
    this.#settings = options.route.http;
    const { environment, budget } = options;
    const { clock, metrics } = environment;
    this.#reply = new Reply({ client, clock, user: this });
    this.#turn = new Turn({ user: this, clock, metrics });
    this.#tries = new Tries({ user: this, clock, metrics, budget });
    this.#startedMs = this.#nowMs();
    this.#progressMs = this.#startedMs;
    this.#requestDone = client.endAfterHeaders;
  }

  get backendId(): string | undefined {
    return this.#tries.backend?.id;
  }

  get route(): Route {
    return this.#route;
  }

  get settings(): HttpSettings {
    return this.#settings;
  }

  get isRequestDone(): boolean {
    return this.#requestDone;
  }

  get isOpen(): boolean {
    return this.#reply.isOpen;
  }

  /** Calls of gRPC are never known to be idempotent. */
  get isRepeatable(): boolean {
    const request = this.#request;
    return request !== undefined && !request.grpc && isIdempotentMethod(request.method) && this.#kept.isWhole;
  }

  get #isGrpc(): boolean {
    return this.#request?.grpc === true;
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

  /** `raw`: names and values in turn, as they came. */
  begin(headers: IncomingHttpHeaders, raw: readonly string[]): void {
    const { route, environment, marks } = this.#options;
    const client = this.#client;
    client.on('error', () => undefined);
    client.on('aborted', () => this.#clientGone());
    client.on('close', () => this.#clientClosed());
    client.on('drain', () => this.#instance?.resume());
    this.#tries.begin();
    try {
      checkSize(headers, raw);
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
      this.#fail(failureOf(error));
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
    this.#tries.key = this.#route.hashKey?.ofHeaders(headers, this.#options.peer);
    this.#turn.enter(this.#startedMs);
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
    const isConversation = this.#responseDone || (this.#reply.status !== 0 && this.#request?.grpc === true);
    if (isConversation) this.#copy?.drop('streaming');
    else this.#copy?.send();
  }

  #refuse({ kind, failure }: Refusal): void {
    this.#options.environment.metrics.refused(kind);
    this.end(failure);
  }

  /** Goes where routes lead it; false: that is nowhere, and it is answered. */
  #follow({ lane, rule, target, redirect, refusal }: Choice, { headers }: RequestHead): boolean {
    if (redirect !== undefined) this.#reply.redirect(redirect.status, redirect.location);
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
    if (!this.#reply.isOpen) return;
    this.#received += chunk.length;
    this.#progressMs = this.#nowMs();
    const { maxBodyBytes } = this.#settings;
    if (maxBodyBytes > 0 && this.#received - (this.#request?.bytes ?? 0) > maxBodyBytes) {
      this.#refuse(bodyTooLarge(maxBodyBytes));
      return;
    }
    this.#copy?.add(chunk);
    const instance = this.#instance;
    if (!this.#kept.add(chunk, instance !== undefined)) this.#client.pause();
    if (instance?.write(chunk) === false) this.#client.pause();
  }

  #clientEnded(): void {
    if (this.#requestDone || this.#reply.outcome === 'client gone') return;
    this.#requestDone = true;
    const nowMs = this.#nowMs();
    this.#progressMs = nowMs;
    if (this.#instance === undefined) return;
    this.#instance.end();
    if (this.#reply.status === 0) this.#turn.times.asked(nowMs, nowMs);
  }

  /** The client has taken its request back, or is gone altogether. */
  #clientGone(): void {
    if (!this.#reply.isOpen) return;
    this.#reply.outcome = 'client gone';
    const { rstCode } = this.#client;
    this.#tries.stopWaiting();
    this.#dropInstance(rstCode === NGHTTP2_NO_ERROR || rstCode === undefined ? NGHTTP2_CANCEL : rstCode);
    this.#leave();
  }

  #clientClosed(): void {
    const { outcome, isOpen } = this.#reply;
    const isReset = outcome === 'client gone' || (isOpen && !this.#responseDone);
    this.#clientGone();
    this.#tries.stopWaiting();
    this.#dropInstance(NGHTTP2_CANCEL);
    this.#leave();
    this.#report();
    this.#kept.forget();
    this.#options.over(this, isReset);
  }

  // Its turn, and its time

  #beginTimes({ grpc, timeoutMs }: RequestHead): void {
    const settings = this.#settings;
    const ownMs = settings.timeoutMs || Number.POSITIVE_INFINITY;
    const requestMs = Math.max(1, Math.min(ownMs, timeoutMs ?? ownMs));
    this.#requestMs = requestMs === Number.POSITIVE_INFINITY ? 0 : requestMs;
    this.#tryMs = grpc ? settings.callTryTimeoutMs : settings.tryTimeoutMs;
    this.#turn.times.begin(this.#startedMs, this.#requestMs, this.#tryMs, settings.hedgeAfterMs);
  }

  itsTurn(nowMs: number): void {
    if (this.#reply.isOpen) this.#tries.attempt(nowMs);
  }

  rejected(reason: string): void {
    this.end({ kind: 'exhausted', reason });
  }

  /** Lets others have its turn. */
  #leave(): void {
    this.#copy?.drop();
    this.#hedge?.letGo();
    this.#hedge = undefined;
    this.#turn.leave();
  }

  requestTimedOut(nowMs: number): void {
    const isOwn = this.#requestMs === this.#settings.timeoutMs;
    const problem = isOwn
      ? `the request has taken longer than ${formatDuration(this.#requestMs)}`
      : `the call has taken longer than its limit of ${this.#requestMs} ms`;
    const reason = this.#turn.queues ? `${problem}, waiting for its turn` : problem;
    const isAsked = this.#reply.status === 0 && this.#instance !== undefined && this.#requestDone;
    if (isAsked && isOwn) {
      const blame = blameForTimeout(this.#settings, nowMs - this.#tries.sentMs);
      this.#tries.tookAtLeast(nowMs);
      this.#dropInstance(NGHTTP2_CANCEL, { problem, blame });
    }
    this.end({ kind: 'timeout', reason });
  }

  tryTimedOut(nowMs: number): void {
    const problem = `no response within ${formatDuration(this.#tryMs)}`;
    const failure: UpstreamFailure = { problem, blame: 'instance', timedOut: true };
    if (this.#instance === undefined) {
      this.#hedge?.fail(failure);
      return;
    }
    this.#tries.tookAtLeast(nowMs);
    if (this.#hedge !== undefined) this.#leaveToHedge(this.#hedge, failure);
    else if (this.#tries.mayRepeat(failure)) this.#failAttempt(failure);
    else {
      this.#dropInstance(NGHTTP2_CANCEL, failure);
      this.#fail({ kind: 'timeout', reason: problem });
    }
  }

  // A second instance

  /** Asks another instance as well, when there is one and all of the request is there to be asked again. */
  beginHedge(): void {
    const request = this.#request;
    if (this.#reply.status !== 0 || !this.#requestDone || request === undefined || this.#instance === undefined) return;
    const next = this.#tries.beside();
    if (next === undefined) return;
    this.#hedge = new Hedge({
      ...next,
      asker: this.#options,
      route: this.#route,
      headers: request.headers,
      body: this.#kept.pieces ?? [],
      trailers: this.#requestTrailers,
      events: this,
    });
    this.#hedge.start();
  }

  hedgeAnswered(hedge: Hedge, { session, stream, headers, flags }: Answering): void {
    this.#hedge = undefined;
    if (this.#instance !== undefined) this.#tries.tookAtLeast(this.#nowMs());
    this.#dropInstance(NGHTTP2_CANCEL);
    this.#session = session;
    this.#instance = stream;
    this.#tries.backend = hedge.backend;
    this.#tries.sentMs = hedge.sentMs;
    this.#listen(stream, session);
    this.#answered(stream, headers, (flags & NGHTTP2_FLAG_END_STREAM) !== 0);
  }

  hedgeFailed({ backend }: Hedge, failure: UpstreamFailure): void {
    this.#hedge = undefined;
    if (this.#tries.besideFailed(backend, failure, this.#instance === undefined)) return;
    this.#fail({ kind: failure.timedOut === true ? 'timeout' : 'lost', reason: failure.problem });
  }

  /** The first instance has failed: the second one is asked alone, and has its time. */
  #leaveToHedge(hedge: Hedge, failure: UpstreamFailure): void {
    this.#dropInstance(NGHTTP2_CANCEL, failure, true);
    this.#informational = 0;
    this.#turn.times.asked(hedge.sentMs, this.#nowMs());
  }

  // To an instance

  nobody(reason: string): void {
    this.#fail({ kind: 'unavailable', reason });
  }

  ask(backend: Backend, limitMs: number): void {
    const session = sessionFor(this.#options, this.#route, backend);
    if (session === 'full') {
      this.#failAttempt({ problem: 'all streams of all connections to it are taken', blame: 'way' }, 'exhausted');
    } else if (typeof session === 'string') this.#failAttempt({ problem: session, blame: 'way' });
    else {
      session.reserve();
      this.#session = session;
      if (session.isOpen) this.#send(session);
      else {
        session.wait(this);
        this.#tries.connecting(backend, Math.min(limitMs, this.#tryMs || limitMs));
      }
    }
  }

  connectTimedOut(failure: UpstreamFailure): void {
    this.#failAttempt(failure);
  }

  sessionOpened(session: InstanceSession): void {
    const { backend } = this.#tries;
    if (this.#session !== session || backend === undefined) return;
    this.#tries.connected(backend);
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
    const endStream = this.#requestDone && this.#kept.bytes === 0 && this.#requestTrailers === undefined;
    let instance: ClientHttp2Stream;
    try {
      instance = session.request(request.headers, endStream);
    } catch (error) {
      this.#failAttempt({ problem: describeError(error), blame: 'way' });
      return;
    }
    this.#instance = instance;
    const sentMs = this.#nowMs();
    this.#tries.sentMs = sentMs;
    this.#progressMs = sentMs;
    if (this.#requestDone) this.#turn.times.asked(this.#tries.attemptMs, sentMs);
    this.#listen(instance, session);
    let isFull = false;
    for (const chunk of this.#kept.pieces ?? []) isFull = !instance.write(chunk);
    this.#kept.taken();
    if (endStream) return;
    if (this.#requestDone) instance.end();
    else if (isFull) this.#client.pause();
    else this.#client.resume();
  }

  #listen(instance: ClientHttp2Stream, session: InstanceSession): void {
    const isCurrent = (): boolean => this.#instance === instance && this.#reply.isOpen;
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
      this.#reply.trailers = passedOn(headers, false);
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
    } else this.#reply.inform(headers);
  }

  #answered(instance: ClientHttp2Stream, headers: IncomingHttpHeaders, isAll: boolean): void {
    const { backend, sentMs } = this.#tries;
    const nowMs = this.#nowMs();
    const status = Number(headers[':status']);
    this.#reply.status = status;
    this.#hedge?.letGo();
    this.#hedge = undefined;
    this.#turn.times.notAsked();
    // What follows may take as long as it likes, as behind an upgrade.
    if (this.#request?.method === 'CONNECT' && status < 300) this.#turn.times.end();
    this.#answeredBy = backend;
    this.#progressMs = nowMs;
    this.#kept.forget();
    this.#answerMs = nowMs - sentMs;
    backend?.latency.observe(this.#answerMs, nowMs);
    if (!this.#isGrpc || status !== 200) {
      // What is not implemented (501) is no sign of trouble.
      this.#judge(status >= 500 && status !== 501, status < 400);
    } else this.#judgeGrpc(headers);
    const said = passedOn(headers, true);
    if (this.#choice !== undefined) this.#edit(said, this.#choice);
    if (!this.#reply.respond(said, isAll ? headAlone : withMore)) return;
    if (isAll) this.#responseCame();
    instance.on('data', (chunk: Buffer) => {
      if (this.#instance === instance && this.#reply.isOpen) this.#fromInstance(instance, chunk);
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

  /** Nothing of it is limited any more. */
  #responseCame(): void {
    this.#responseDone = true;
    this.#turn.times.end();
  }

  #instanceEnded(): void {
    this.#responseCame();
    // All others are judged by now: this is gRPC without a status.
    this.#judge(true);
    if (!this.#client.writableEnded) this.#client.end();
  }

  unsayable(problem: string): void {
    this.#dropInstance(NGHTTP2_CANCEL);
    this.#kept.forget();
    this.#leave();
    this.#reply.failUnsayable(problem, this.#isGrpc);
  }

  #judgeGrpc(headers: IncomingHttpHeaders): void {
    const status = headers['grpc-status'];
    if (typeof status === 'string' && this.#isGrpc) this.#judge(isGrpcFault(status), status === '0');
  }

  #judge(isError: boolean, isGood = false): void {
    const { backend } = this.#tries;
    if (this.#judged || backend === undefined) return;
    this.#judged = true;
    this.#isFault = isError;
    this.#route.answered(backend, isError, isGood ? this.#answerMs : undefined);
  }

  #instanceClosed(instance: ClientHttp2Stream, session: InstanceSession): void {
    if (this.#instance !== instance || this.#reply.outcome === 'client gone') return;
    if (this.#responseDone) {
      this.#dropInstance(NGHTTP2_NO_ERROR);
      this.#leave();
      this.#reply.stopRequest();
      return;
    }
    const code = instance.rstCode ?? NGHTTP2_CANCEL;
    if (this.#reply.status === 0 && session.hasIgnored(instance)) {
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
      this.#answeredBy = this.#tries.backend;
      this.#dropInstance(code);
      this.#reset(code, problem);
    }
  }

  /** The instance has not looked at the request: it may always be asked elsewhere. */
  #ignored(): void {
    const failure: UpstreamFailure = { problem: 'the instance takes no more streams', blame: 'way' };
    this.#refusals += 1;
    if (this.#hedge !== undefined) this.#leaveToHedge(this.#hedge, failure);
    else if (!this.#kept.isWhole) {
      this.#dropInstance(NGHTTP2_CANCEL, failure);
      // The client has all of it, and may repeat it.
      this.#reset(NGHTTP2_REFUSED_STREAM, failure.problem);
    } else if (this.#refusals > maxRefusals) {
      this.#dropInstance(NGHTTP2_CANCEL, failure);
      this.#route.refused(undefined);
      this.#fail({ kind: 'unavailable', reason: failure.problem });
    } else {
      this.#tries.unheard();
      this.#failAttempt(failure);
    }
  }

  /** The connection is gone, and nobody knows what became of the request. */
  #lost(failure: UpstreamFailure): void {
    if (this.#reply.status !== 0) {
      this.#dropInstance(NGHTTP2_CANCEL, failure);
      this.#breakOff({ kind: 'lost', reason: failure.problem });
    } else if (this.#hedge !== undefined) this.#leaveToHedge(this.#hedge, failure);
    else if (this.#tries.mayRepeat(failure)) this.#failAttempt(failure);
    else {
      this.#dropInstance(NGHTTP2_CANCEL, failure);
      this.#fail({ kind: 'lost', reason: failure.problem });
    }
  }

  #giveUp(failure: UpstreamFailure): void {
    this.#dropStream(NGHTTP2_CANCEL);
    this.#tries.giveUp(failure, this.#options.account);
    this.#fail({ kind: failure.denied === true ? 'denied' : 'exhausted', reason: failure.problem });
  }

  /** `kind`: what the client is told when there is no other try. */
  #failAttempt(failure: UpstreamFailure, kind: 'unavailable' | 'exhausted' = 'unavailable'): void {
    this.#turn.times.notAsked();
    this.#dropStream(NGHTTP2_CANCEL);
    this.#informational = 0;
    if (!this.#tries.failed(failure)) this.#fail({ kind, reason: failure.problem });
  }

  /** Gives everything back that was taken to ask an instance. */
  #dropInstance(code: number, failure?: UpstreamFailure, retried = false): void {
    this.#dropStream(code);
    if (this.#responseDone) this.#tries.done();
    else this.#tries.drop(failure, retried);
  }

  #dropStream(code: number): void {
    const instance = this.#instance;
    const session = this.#session;
    this.#instance = undefined;
    this.#session = undefined;
    // A reset of what has come to its end on both sides would only look like an attack.
    const isWhole = this.#responseDone && instance?.writableFinished === true;
    if (instance !== undefined && !instance.closed && !isWhole) resetStream(instance, code);
    session?.release(this);
  }

  // Ends

  /** Ends it in the instance's stead, in the client's own words. */
  end(failure: Failure): void {
    if (this.#reply.outcome !== 'open' || this.#responseDone) return;
    this.#tries.stopWaiting();
    this.#dropInstance(NGHTTP2_CANCEL);
    if (this.#reply.status === 0) this.#fail(failure);
    else this.#breakOff(failure);
  }

  /** To be called every `sweepMs`: ends what takes too long. */
  tick(nowMs: number): void {
    this.#turn.times.check(nowMs);
    if (this.#reply.outcome !== 'open' || this.#responseDone) {
      if (!this.#reply.isOpen) this.#reply.linger(nowMs);
      return;
    }
    const silentMs = nowMs - this.#progressMs;
    const isAnswered = this.#reply.status !== 0;
    if (silentMs >= silentResponseMs) {
      this.end({ kind: 'timeout', reason: isAnswered ? 'the response does not go on' : 'no response' });
    } else if (!isAnswered && !this.#isGrpc && !this.#requestDone && silentMs >= bodyMs) {
      if (!this.#client.isPaused()) this.end({ kind: 'slow body', reason: 'the body of the request does not come' });
    }
  }

  /** Answers in the instance's stead. */
  #fail(failure: Failure): void {
    this.#kept.forget();
    this.#leave();
    this.#reply.fail(failure, this.#isGrpc);
  }

  /** The client has half an answer. */
  #breakOff(failure: Failure): void {
    this.#route.refused(failure.reason);
    this.#leave();
    this.#reply.breakOff(failure, this.#isGrpc);
  }

  #reset(code: number, problem: string): void {
    this.#leave();
    this.#reply.reset(code, problem);
  }

  #report(): void {
    const { environment, account, peer } = this.#options;
    const route = this.#route;
    const { service } = route;
    const durationMs = this.#nowMs() - this.#startedMs;
    const backend = this.#answeredBy;
    const { outcome, status, problem } = this.#reply;
    const isWhole = outcome === 'whole' || (outcome !== 'broken' && this.#responseDone);
    const end: RequestEnd = isWhole ? endOf(status) : outcome === 'broken' ? 'broken' : 'client gone';
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
      status,
      instance: backend && { id: backend.id, hostId: backend.instance.hostId, via: backend.dial.via },
      receivedBytes: this.#received,
      sentBytes: this.#sent,
      durationMs,
      retries: this.#tries.retries,
      end,
      reason: problem,
    });
  }
}
