import {
  type ClientHttp2Stream,
  constants,
  type IncomingHttpHeaders,
  type OutgoingHttpHeaders,
  type ServerHttp2Stream,
} from 'node:http2';
import { describeError } from '../../src/base/errors.ts';
import type { Endpoint } from '../../src/model/address.ts';
import type { Backend } from '../balance/backend.ts';
import { bodyMs, lingerMs, maxInformational, maxRetries, responseMs, silentResponseMs } from '../http/bounds.ts';
import { HttpFault } from '../http/fault.ts';
import { endOf, type RequestEnd } from '../http/request-metrics.ts';
import type { RetryBudget } from '../http/retry-budget.ts';
import type { UpstreamFailure } from '../http/upstream.ts';
import { Attempts } from '../tcp/attempts.ts';
import type { Account } from '../tcp/carried.ts';
import { connectAttemptMs, maxReplayBytes } from '../tcp/relay-bounds.ts';
import type { Route } from '../tcp/route.ts';
import { maxRefusals } from './bounds.ts';
import type { Http2Environment } from './environment.ts';
import { type Failure, grpcTrailers, ownAnswer, resetCodeOf } from './failures.ts';
import { isGrpcFault } from './grpc.ts';
import { type ClientMarks, isIdempotentMethod, passedOn, type RequestHead, requestHead } from './heads.ts';
import { InstanceSession, type SessionUser } from './instance-session.ts';
import { resetStream } from './outside-parser.ts';

const { NGHTTP2_NO_ERROR, NGHTTP2_CANCEL, NGHTTP2_REFUSED_STREAM, NGHTTP2_FLAG_END_STREAM } = constants;

export interface ExchangeOptions {
  readonly route: Route;
  readonly account: Account;
  readonly budget: RetryBudget;
  readonly environment: Http2Environment;
  readonly peer: Endpoint | undefined;
  readonly marks: ClientMarks;
  /** Those who share connections to instances that are reached directly, or are told for whom they are. */
  readonly owner: string;
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
export class Exchange implements SessionUser {
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
  /** What decides where it goes, where that is so; see `Route.pick`. */
  #key: number | undefined;
  #attempts: Attempts | undefined;
  #cancelTimer: (() => void) | undefined;
  #leaveLobby: (() => void) | undefined;
  #retries = 0;
  #refusals = 0;
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

  // The request

  begin(headers: IncomingHttpHeaders): void {
    const { budget, environment, marks } = this.#options;
    const route = this.#route;
    const client = this.#client;
    client.on('error', () => undefined);
    client.on('aborted', () => this.#clientGone());
    client.on('close', () => this.#clientClosed());
    client.on('wantTrailers', () => this.#sayLast());
    client.on('drain', () => this.#instance?.resume());
    budget.add();
    try {
      this.#request = requestHead(headers, marks, route.service, () => environment.traceIds.next());
    } catch (error) {
      if (!(error instanceof HttpFault)) throw error;
      environment.metrics.refused(error.kind);
      this.#fail({ kind: 'malformed', reason: error.message });
      return;
    }
    this.#received = this.#request.bytes;
    const { method } = this.#request;
    if (method === 'CONNECT' || method === 'TRACE') {
      environment.metrics.refused('method');
      this.#fail({ kind: 'method', reason: 'this method is not passed on' });
      return;
    }
    this.#key = this.#route.hashKey?.ofHeaders(headers, this.#options.peer);
    if (!this.#requestDone) {
      client.on('data', (chunk: Buffer) => this.#fromClient(chunk));
      client.on('trailers', (trailers) => {
        this.#requestTrailers = passedOn(trailers, false);
      });
      client.on('end', () => this.#clientEnded());
    }
    this.#attempt();
  }

  #fromClient(chunk: Buffer): void {
    if (this.#outcome !== 'open') return;
    this.#received += chunk.length;
    this.#progressMs = this.#nowMs();
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
    this.#progressMs = this.#nowMs();
    this.#instance?.end();
  }

  /** The client has taken its request back, or is gone altogether. */
  #clientGone(): void {
    if (this.#outcome !== 'open') return;
    this.#outcome = 'client gone';
    const { rstCode } = this.#client;
    this.#stopWaiting();
    this.#dropInstance(rstCode === NGHTTP2_NO_ERROR || rstCode === undefined ? NGHTTP2_CANCEL : rstCode);
  }

  #clientClosed(): void {
    const isReset = this.#outcome === 'client gone' || (this.#outcome === 'open' && !this.#responseDone);
    this.#clientGone();
    this.#stopWaiting();
    this.#dropInstance(NGHTTP2_CANCEL);
    this.#report();
    this.#kept = undefined;
    this.#options.over(this, isReset);
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
    const { environment, account } = this.#options;
    const route = this.#route;
    backend.active += 1;
    this.#backend = backend;
    const isDirect = backend.dial.via === 'direct';
    const owner = isDirect || route.announcesClient ? this.#options.owner : account.consumer;
    const session = environment.pool.take(backend, owner) ?? this.#dial(backend, owner);
    if (session === 'full') {
      this.#failAttempt({ problem: 'all streams of all connections to it are taken', blame: 'way' }, 'exhausted');
    } else if (typeof session === 'string') this.#failAttempt({ problem: session, blame: 'way' });
    else {
      session.reserve();
      this.#session = session;
      if (session.isOpen) this.#send(session);
      else {
        this.#attemptMs = this.#nowMs();
        session.wait(this);
        this.#cancelTimer = environment.clock.after(limitMs, () => {
          const blame = isDirect ? 'host' : 'way';
          this.#failAttempt({ problem: `no answer within ${Math.round(limitMs)} ms`, blame });
        });
      }
    }
  }

  #dial(backend: Backend, owner: string): InstanceSession | string {
    const { environment, account, peer } = this.#options;
    const route = this.#route;
    const { tunnels, pool, traceIds } = environment;
    const { service, name } = backend.instance;
    const { consumer, declared } = account;
    const client = peer ?? { address: '0.0.0.0', port: 0 };
    const head = { consumer, declared, service, instance: name, client, traceId: traceIds.next() };
    const session = InstanceSession.dial(
      {
        backend,
        owner,
        nowMs: () => this.#nowMs(),
        closed: (which) => pool.remove(which),
        limit: pool.limitOf(backend),
        limited: (limit) => pool.limited(backend, limit),
        announced: route.announcesClient ? { client: peer } : undefined,
      },
      tunnels === undefined ? undefined : { tunnels, head },
    );
    if (typeof session !== 'string') pool.add(session);
    return session;
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
    const endStream = this.#requestDone && this.#keptBytes === 0 && this.#requestTrailers === undefined;
    let instance: ClientHttp2Stream;
    try {
      // Without waiting for trailers the runtime would end the request in order before it resets it.
      instance = session.request(request.headers, { endStream, waitForTrailers: !endStream });
    } catch (error) {
      this.#failAttempt({ problem: describeError(error), blame: 'way' });
      return;
    }
    this.#instance = instance;
    this.#sentMs = this.#nowMs();
    this.#progressMs = this.#sentMs;
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
    this.#answeredBy = backend;
    this.#progressMs = nowMs;
    this.#kept = undefined;
    this.#answerMs = nowMs - this.#sentMs;
    backend?.latency.observe(this.#answerMs, nowMs);
    if (this.#request?.grpc !== true || this.#status !== 200) {
      // What is not implemented (501) is no sign of trouble.
      this.#judge(this.#status >= 500 && this.#status !== 501, this.#status < 400);
    } else this.#judgeGrpc(headers);
    const options = isAll ? { endStream: true } : { waitForTrailers: true };
    if (!this.#tryToSay(() => this.#client.respond(passedOn(headers, true), options))) return;
    if (isAll) {
      this.#responseDone = true;
      this.#saidAll = true;
    }
    instance.on('data', (chunk: Buffer) => {
      if (this.#instance === instance && this.#outcome === 'open') this.#fromInstance(instance, chunk);
    });
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
    this.#route.answered(this.#backend, isError, isGood ? this.#answerMs : undefined);
  }

  #instanceClosed(instance: ClientHttp2Stream, session: InstanceSession): void {
    if (this.#instance !== instance || this.#outcome === 'client gone') return;
    if (this.#responseDone) {
      this.#dropInstance(NGHTTP2_NO_ERROR);
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
      this.#judge(code !== NGHTTP2_NO_ERROR && code !== NGHTTP2_CANCEL);
      this.#answeredBy = this.#backend;
      this.#dropInstance(code);
      this.#reset('broken', code, `the instance reset the stream with code ${code}`);
    }
  }

  /** The instance has not looked at the request: it may always be asked elsewhere. */
  #ignored(): void {
    const failure: UpstreamFailure = { problem: 'the instance takes no more streams', blame: 'way' };
    this.#refusals += 1;
    if (this.#kept === undefined) {
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
    } else if (this.#mayRepeat()) this.#failAttempt(failure);
    else {
      this.#dropInstance(NGHTTP2_CANCEL, failure);
      this.#fail({ kind: 'lost', reason: failure.problem });
    }
  }

  /** RFC 9110 section 9.2.2; calls of gRPC are never known to be idempotent. */
  #mayRepeat(): boolean {
    const request = this.#request;
    if (request === undefined || request.grpc || !isIdempotentMethod(request.method)) return false;
    if (this.#retries >= maxRetries || this.#kept === undefined || !this.#options.budget.take()) return false;
    this.#countRetry();
    return true;
  }

  #countRetry(): void {
    this.#retries += 1;
    this.#options.environment.metrics.repeated(this.#route.service);
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
  #dropInstance(code: number, failure?: UpstreamFailure): void {
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
    if (failure !== undefined) this.#route.attemptFailed(backend, { ...failure, retried: false });
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
    if (this.#outcome !== 'open' || this.#responseDone) {
      if (this.#outcome !== 'open' && nowMs - this.#overMs >= lingerMs) resetStream(this.#client, NGHTTP2_CANCEL);
      return;
    }
    const { timeoutMs, grpc } = this.#request ?? { timeoutMs: undefined, grpc: false };
    const silentMs = nowMs - this.#progressMs;
    if (timeoutMs !== undefined && nowMs - this.#startedMs >= timeoutMs) {
      this.end({ kind: 'timeout', reason: `the call has taken longer than its limit of ${timeoutMs} ms` });
    } else if (silentMs >= silentResponseMs) {
      this.end({ kind: 'timeout', reason: this.#status === 0 ? 'no response' : 'the response does not go on' });
    } else if (this.#status === 0 && !grpc) {
      if (!this.#requestDone && !this.#client.isPaused() && silentMs >= bodyMs)
        this.end({ kind: 'slow body', reason: 'the body of the request does not come' });
      else if (this.#requestDone && this.#instance !== undefined && silentMs >= responseMs) this.#timedOut();
    }
  }

  #timedOut(): void {
    const problem = `no response within ${responseMs / 1000} s`;
    const failure: UpstreamFailure = { problem, blame: 'instance' };
    if (this.#mayRepeat()) this.#failAttempt(failure);
    else {
      this.#dropInstance(NGHTTP2_CANCEL, failure);
      this.#fail({ kind: 'timeout', reason: problem });
    }
  }

  /** Answers in the instance's stead. */
  #fail(failure: Failure): void {
    const grpc = this.#request?.grpc ?? false;
    const { headers, body } = ownAnswer(failure, grpc);
    this.#status = Number(headers[':status']);
    this.#problem = failure.reason;
    this.#kept = undefined;
    const client = this.#client;
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
    this.#stopRequest();
    this.#client.end();
  }

  #reset(outcome: Outcome, code: number, problem: string): void {
    this.#outcome = outcome;
    this.#problem = problem;
    this.#overMs = this.#nowMs();
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
