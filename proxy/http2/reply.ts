import {
  constants,
  type IncomingHttpHeaders,
  type OutgoingHttpHeaders,
  type ServerHttp2Stream,
  type ServerStreamResponseOptions,
} from 'node:http2';
import type { Clock } from '../../src/base/clock.ts';
import { describeError } from '../../src/base/errors.ts';
import { lingerMs } from '../http/bounds.ts';
import { type Failure, grpcTrailers, ownAnswer, resetCodeOf } from './failures.ts';
import { passedOn } from './heads.ts';
import { resetStream } from './outside-parser.ts';

const { NGHTTP2_NO_ERROR, NGHTTP2_CANCEL, NGHTTP2_INTERNAL_ERROR } = constants;

/** How a request ends on the client's side. */
type Outcome = 'open' | 'whole' | 'broken' | 'client gone';

export interface ReplyUser {
  /** Whether all of the request has come. */
  readonly isRequestDone: boolean;
  /** The runtime refuses to say what an instance has answered. */
  unsayable(problem: string): void;
}

export interface ReplyOptions {
  readonly client: ServerHttp2Stream;
  readonly clock: Clock;
  readonly user: ReplyUser;
}

/** What the client of one stream is told, and how that ends. */
export class Reply {
  /** What the client was told; 0 for nothing yet. */
  status = 0;
  outcome: Outcome = 'open';
  /** Why it did not end in order. */
  problem: string | undefined;
  /** What comes behind the body. */
  trailers: OutgoingHttpHeaders | undefined;
  readonly #client: ServerHttp2Stream;
  readonly #clock: Clock;
  readonly #user: ReplyUser;
  /** The end of the answer has been handed to the runtime. */
  #saidAll = false;
  /** The rest of the request is refused as soon as that is so. */
  #stopsRequest = false;
  /** Monotonic; when it was over as far as this side is concerned. */
  #overMs = Number.POSITIVE_INFINITY;

  constructor({ client, clock, user }: ReplyOptions) {
    this.#client = client;
    this.#clock = clock;
    this.#user = user;
    client.on('wantTrailers', () => this.#sayLast());
  }

  /** Whether anything can still be said, as far as anybody knows. */
  get isOpen(): boolean {
    return this.outcome === 'open';
  }

  // In an instance's words

  inform(headers: IncomingHttpHeaders): void {
    if (this.status === 0) this.#tryToSay(() => this.#client.additionalHeaders(passedOn(headers, true)));
  }

  /** The head of the answer; false: it could not be said. */
  respond(headers: OutgoingHttpHeaders, options: ServerStreamResponseOptions): boolean {
    if (!this.#tryToSay(() => this.#client.respond(headers, options))) return false;
    if (options.endStream === true) this.#saidAll = true;
    return true;
  }

  /** The body is out: the trailers, if any, end the answer. */
  #sayLast(): void {
    if (this.outcome === 'client gone') return;
    this.#saidAll = this.#tryToSay(() => this.#client.sendTrailers(this.trailers ?? {}));
    if (this.#stopsRequest) this.stopRequest();
  }

  #tryToSay(say: () => void): boolean {
    if (this.#client.destroyed || this.#client.closed) return false;
    try {
      say();
      return true;
    } catch (error) {
      this.#user.unsayable(describeError(error));
      return false;
    }
  }

  /** Nobody wants the rest of a request that is answered: its sender is told behind the answer (RFC 9113 section 8.1). */
  stopRequest(): void {
    if (this.#user.isRequestDone) return;
    if (this.#saidAll) resetStream(this.#client, NGHTTP2_NO_ERROR);
    else this.#stopsRequest = true;
  }

  // In the instance's stead

  redirect(status: number, location: string): void {
    this.status = status;
    this.problem = 'a route redirects it';
    this.#answer({ ':status': status, location, 'content-length': '0' }, '');
  }

  fail(failure: Failure, grpc: boolean): void {
    const { headers, body } = ownAnswer(failure, grpc);
    this.status = Number(headers[':status']);
    this.problem = failure.reason;
    this.#answer(headers, body);
  }

  #answer(headers: OutgoingHttpHeaders, body: string): void {
    const client = this.#client;
    if (client.destroyed || client.closed || client.headersSent) return;
    this.#over('whole');
    this.#saidAll = true;
    client.once('finish', () => this.stopRequest());
    client.respond(headers, { endStream: body === '' });
    if (!client.writableEnded) client.end(body);
  }

  /** The client has half an answer: gRPC has a word for that, others are told by a reset. */
  breakOff(failure: Failure, grpc: boolean): void {
    if (!grpc || this.#client.writableEnded) {
      this.reset(resetCodeOf(failure), failure.reason);
      return;
    }
    this.problem = failure.reason;
    this.#over('broken');
    this.trailers = grpcTrailers(failure);
    this.stopRequest();
    this.#client.end();
  }

  /** What the runtime refused to say: by a reset as well, where the client has the beginning. */
  failUnsayable(problem: string, grpc: boolean): void {
    if (this.#client.headersSent) this.reset(NGHTTP2_INTERNAL_ERROR, problem);
    else this.fail({ kind: 'bad answer', reason: `the instance answers with ${problem}` }, grpc);
  }

  reset(code: number, problem: string): void {
    this.problem = problem;
    this.#over('broken');
    resetStream(this.#client, code);
  }

  #over(outcome: Outcome): void {
    this.outcome = outcome;
    this.#overMs = this.#clock.monotonicMs();
  }

  /** To be called now and then, once it is over: ends what the client does not take. */
  linger(nowMs: number): void {
    if (nowMs - this.#overMs >= lingerMs) resetStream(this.#client, NGHTTP2_CANCEL);
  }
}
