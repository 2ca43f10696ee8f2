import type { Socket } from 'node:net';
import type { Endpoint } from '../../src/model/address.ts';
import type { Backend } from '../balance/backend.ts';
import { Attempts } from '../tcp/attempts.ts';
import type { Account } from '../tcp/carried.ts';
import { connectAttemptMs, maxReplayBytes } from '../tcp/relay-bounds.ts';
import type { Route } from '../tcp/route.ts';
import { abort } from '../tcp/socket-ends.ts';
import { type OwnAnswer, ownAnswer, refusalAnswer } from './answers.ts';
import { BodyReader, chunkedBody } from './body.ts';
import { freshMs, maxRetries, responseMs, silentResponseMs } from './bounds.ts';
import type { HttpEnvironment } from './environment.ts';
import { HttpFault } from './fault.ts';
import { fields } from './fields.ts';
import { type Head, isIdempotent, type Method, methods } from './head.ts';
import type { ClientLines } from './outgoing.ts';
import { endOf } from './request-metrics.ts';
import { RequestReport } from './request-report.ts';
import { Response, type ResponseEvents } from './response.ts';
import type { RetryBudget } from './retry-budget.ts';
import type { Lane } from './routing/lane.ts';
import { Choice, type LinkRouting } from './routing/link-routing.ts';
import type { Copy } from './routing/mirrors.ts';
import { HttpUpstream, type UpstreamFailure, type UpstreamUser } from './upstream.ts';

export interface ExchangeOptions {
  readonly client: Socket;
  readonly peer: Endpoint | undefined;
  readonly scheme: 'http' | 'https';
  readonly lines: ClientLines;
  readonly route: Route;
  readonly account: Account;
  readonly budget: RetryBudget;
  readonly environment: HttpEnvironment;
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
export class Exchange implements UpstreamUser, ResponseEvents {
  readonly #options: ExchangeOptions;
  readonly #client: Socket;
  /** Where the present request goes. */
  #route: Route;
  /** What routes make of it; undefined as long as its link has had none. */
  #choice: Choice | undefined;
  readonly #request = new BodyReader();
  readonly #response: Response;
  readonly #report: RequestReport;
  #running = false;
  #method: Method = methods.get;
  #keepAlive = false;
  /** The head as it leaves. */
  #head: Buffer = nothing;
  /** What was read of the body, while it may be needed again; undefined once it was too much. */
  #kept: Buffer[] | undefined;
  #keptBytes = 0;
  /** For whom a route wants it copied, while its body comes. */
  #copy: Copy | undefined;
  #attempts: Attempts | undefined;
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
  /** Monotonic; until when something has to come. */
  #deadlineMs = Number.POSITIVE_INFINITY;

  constructor(options: ExchangeOptions) {
    this.#options = options;
    this.#client = options.client;
    const { client, environment, route, account, peer } = options;
    this.#route = route;
    this.#response = new Response(client, environment, this);
    this.#report = new RequestReport({ environment, consumer: account.consumer, client: peer });
  }

  get backendId(): string | undefined {
    return this.#backend?.id;
  }

  /** Whether the client is to send more of its body. */
  get waitsForBody(): boolean {
    return this.#running && !this.#raw && !this.#request.done && !this.#client.isPaused();
  }

  /** No other request follows this one. */
  lastOne(): void {
    if (!this.#answered) this.#keepAlive = false;
  }

  /** Why it may not go on, now that policy has changed. */
  denial(): string | undefined {
    return this.#running ? this.#choice?.lane?.denial(this.#options.account) : undefined;
  }

  // The request

  /** Takes the request over whose head the environment has just read; gives where it ends in `chunk`. */
  begin(chunk: Buffer, at: number): number {
    const { environment, lines, budget, route: link } = this.#options;
    const head = environment.requestHead;
    this.#reset(head);
    budget.add();
    if (head.method === methods.connect || head.method === methods.trace) {
      this.#keepAlive = false;
      this.#answer({
        status: 405,
        reason: 'this method is not passed on',
        allow: 'GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH',
      });
      return chunk.length;
    }
    const upgrade = head.upgrades && !asksForHttp2(head);
    this.#response.begin({ method: head.method, minor: head.minor, upgrade });
    this.#request.begin(head.chunked ? chunkedBody : { kind: 'length', bytes: head.contentLength ?? 0 });
    const ownAnswer = link.routing === undefined ? undefined : this.#choose(link.routing);
    const { newId } = this.#report;
    const host = this.#route.service;
    const { target, rule } = this.#choice ?? { target: undefined, rule: undefined };
    const edits = rule?.request;
    this.#head = environment.composer.request(head, { lines, host, newId, upgrade, target, edits });
    const mirror = upgrade ? undefined : this.#choice?.mirror;
    if (mirror !== undefined) this.#beginCopy(mirror, head.contentLength);
    const used = this.#readBody(chunk, at);
    if (!this.#running) return used;
    if (ownAnswer === undefined) this.#attempt();
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
    return undefined;
  }

  #reset(head: Head): void {
    this.#running = true;
    this.#route = this.#options.route;
    this.#choice?.reset();
    this.#report.begin(head, this.#route.service);
    this.#method = head.method;
    this.#keepAlive = head.minor === 1 ? !head.closes : head.keepsAlive && !head.closes;
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
    return used;
  }

  #readBody(chunk: Buffer, at: number): number {
    try {
      return this.#request.read(chunk, at, this.#onRequestBody);
    } catch (error) {
      if (!(error instanceof HttpFault)) throw error;
      this.#options.environment.metrics.refused(error.kind);
      this.#dropUpstream();
      if (this.#answered) this.#breakOff();
      else this.#answer({ status: error.status, reason: error.message });
      return chunk.length;
    }
  }

  readonly #onRequestBody = (buffer: Buffer, start: number, end: number): void => {
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
      this.abort();
      abort(this.#client, true);
    }
  }

  /** The client is gone. */
  abort(): void {
    if (!this.#running) return;
    this.#running = false;
    this.#report.end('client gone');
    this.#stopWaiting();
    this.#dropUpstream();
    this.#forgetRequest();
  }

  bodyTimedOut(): void {
    this.#dropUpstream();
    if (this.#answered) this.#breakOff();
    else this.#answer({ status: 408, reason: 'the body of the request does not come' });
  }

  tick(nowMs: number): void {
    if (this.#moved) {
      this.#moved = false;
      this.#deadlineMs = nowMs + (this.#answered ? silentResponseMs : responseMs);
    }
    if (nowMs < this.#deadlineMs || (!this.#answered && !this.#request.done)) return;
    this.#deadlineMs = Number.POSITIVE_INFINITY;
    const problem = this.#answered ? 'the response does not go on' : `no response within ${responseMs / 1000} s`;
    this.upstreamFailed({ problem, blame: 'instance' }, true);
  }

  // To the instance

  #attempt(): void {
    const { environment } = this.#options;
    const route = this.#route;
    this.#attempts ??= new Attempts(route, environment.clock);
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
    const owner = backend.dial.via === 'direct' && !route.announcesClient ? '' : this.#options.account.consumer;
    // What may not be asked twice goes only where somebody listened a moment ago.
    const maxIdleMs = isIdempotent(this.#method) ? Number.POSITIVE_INFINITY : freshMs;
    const pooled = route.announcesClient ? undefined : environment.pool.take(backend, owner, nowMs - maxIdleMs);
    if (pooled !== undefined) {
      pooled.use(this);
      this.#upstream = pooled;
      this.#send(pooled);
      return;
    }
    this.#attemptMs = nowMs;
    const dialled = this.#dial(backend, owner);
    if (typeof dialled === 'string') {
      this.#failAttempt({ problem: dialled, blame: 'way' });
      return;
    }
    this.#upstream = dialled;
    this.#cancelTimer = environment.clock.after(limitMs, () => {
      const blame = backend.dial.via === 'direct' ? 'host' : 'way';
      this.upstreamFailed({ problem: `no answer within ${Math.round(limitMs)} ms`, blame });
    });
    if (dialled.flows) this.#send(dialled);
  }

  #dial(backend: Backend, owner: string): HttpUpstream | string {
    const { environment, account, peer } = this.#options;
    const { tunnels, buffers, pool, traceIds } = environment;
    const { service, name } = backend.instance;
    const { consumer } = account;
    const declared = service === account.service ? account.declared : account.declares(service);
    const client = peer ?? { address: '0.0.0.0', port: 0 };
    const way =
      tunnels === undefined
        ? undefined
        : { tunnels, head: { consumer, declared, service, instance: name, client, traceId: traceIds.next() } };
    const lost = (upstream: HttpUpstream): void => pool.lost(upstream);
    return HttpUpstream.dial({ backend, owner, buffers, user: this, lost }, way);
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
    this.#deadlineMs = this.#sentMs + responseMs;
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
    return this.#client.writableLength === 0;
  }

  answered(status: number): boolean {
    const { environment } = this.#options;
    const route = this.#route;
    const backend = this.#backend;
    this.#answered = true;
    this.#report.status = status;
    this.#report.answeredBy = backend;
    const choice = this.#choice;
    if (choice !== undefined) {
      this.#response.edits = choice.rule?.response;
      this.#response.cookie = choice.setCookie(backend, this.#options.scheme === 'https');
    }
    const nowMs = environment.clock.monotonicMs();
    this.#deadlineMs = nowMs + silentResponseMs;
    if (backend !== undefined) {
      // What is not implemented (501) is no sign of trouble.
      route.answered(backend, status >= 500 && status !== 501);
      backend.latency.observe(nowMs - this.#sentMs, nowMs);
    }
    return this.#keepAlive && this.#request.done;
  }

  toClient(bytes: Buffer): void {
    const { traffic, cells } = this.#options.route;
    traffic.sent += bytes.length;
    cells.sent.value += bytes.length;
    this.#report.sent += bytes.length;
    this.#client.write(bytes);
  }

  whole({ client, instance }: { readonly client: boolean; readonly instance: boolean }): void {
    this.#upstreamStays = instance;
    this.#finishWhenTaken(client);
  }

  upgraded(): void {
    this.#raw = true;
    this.#deadlineMs = Number.POSITIVE_INFINITY;
    this.#forgetRequest();
    if (this.#clientHasEnded) this.#upstream?.end();
  }

  upstreamEnded(): void {
    this.#upstreamHasEnded = true;
    if (this.#lastKeepsClient !== undefined) return;
    if (this.#raw) {
      if (this.#clientHasEnded) this.#finishWhenTaken(false);
      else if (this.#client.writableLength > 0) this.#endsClient = true;
      else this.#client.end();
    } else if (this.#response.endsByClose) this.#finishWhenTaken(false);
    else this.upstreamFailed({ problem: 'the connection was closed', blame: 'instance' });
  }

  #rawFromClient(chunk: Buffer): void {
    this.#upstream?.write(chunk);
    if (this.#upstream?.full) this.#client.pause();
  }

  // Ends

  upstreamFailed(failure: UpstreamFailure, timedOut = false): void {
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
    } else if (this.#wasStale(upstream)) {
      const backend = this.#backend;
      this.#dropUpstream();
      if (backend !== undefined) this.#to({ backend, limitMs: connectAttemptMs });
    } else if (failure.exhausted !== undefined || failure.denied === true) this.#giveUp(failure);
    else if (wasOpen && !this.#mayRepeat()) {
      this.#dropUpstream(failure);
      this.#answer({ status: timedOut ? 504 : 502, reason: failure.problem });
    } else this.#failAttempt(failure, timedOut ? 504 : wasOpen ? 502 : 503);
  }

  /** Whether the instance closed a connection that was kept, before it had heard of this request: nothing has failed. */
  #wasStale(upstream: HttpUpstream): boolean {
    if (upstream.requests < 2 || this.#response.begun) return false;
    return isIdempotent(this.#method) && (this.#kept !== undefined || this.#keptBytes === 0);
  }

  /** Whether another instance may be asked what one has perhaps heard already: RFC 9110 section 9.2.2. */
  #mayRepeat(): boolean {
    if (!isIdempotent(this.#method) || this.#report.retries >= maxRetries) return false;
    if (this.#kept === undefined && this.#keptBytes > 0) return false;
    if (!this.#options.budget.take()) return false;
    this.#report.retries += 1;
    this.#options.environment.metrics.repeated(this.#route.service);
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
    abort(this.#client, true);
  }

  #dropUpstream(failure?: UpstreamFailure): void {
    const route = this.#route;
    this.#upstream?.destroy();
    this.#upstream = undefined;
    const backend = this.#backend;
    this.#backend = undefined;
    if (backend === undefined) return;
    route.ended(backend);
    if (failure !== undefined) route.attemptFailed(backend, { ...failure, retried: false });
  }

  #forgetRequest(): void {
    this.#head = nothing;
    this.#copy?.drop();
    this.#copy = undefined;
    this.#kept = undefined;
    this.#response.forget();
  }

  /** What the client has not taken yet lies in the buffer that the instance's next bytes would be read into. */
  #finishWhenTaken(keepAlive: boolean): void {
    if (this.#client.writableLength > 0) this.#lastKeepsClient = keepAlive;
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
    over(keepAlive);
  }
}

/** Upgrades to HTTP/2 over clear text: nobody uses them, and what comes behind would not be looked at (RFC 9113 section 3.1). */
function asksForHttp2(head: Head): boolean {
  for (let index = 0; index < head.count; index += 1) {
    if (head.known[index] === fields.upgrade && head.value(index).toLowerCase().includes('h2c')) return true;
  }
  return false;
}
