import type { Socket } from 'node:net';
import type { Endpoint } from '../../src/model/address.ts';
import type { Backend } from '../balance/backend.ts';
import type { Account } from '../tcp/carried.ts';
import type { HttpEnvironment } from './environment.ts';
import { HttpFault } from './fault.ts';
import type { Method } from './head.ts';
import { dialFor, takeKept } from './instance-ways.ts';
import { endOf } from './request-metrics.ts';
import { Response, type ResponseEvents } from './response.ts';
import { type CopyEnd, type CopyOf, type CopySender, copyMark } from './routing/mirrors.ts';
import type { HttpUpstream, UpstreamUser } from './upstream.ts';

const mark = Buffer.from(`${copyMark.name}: ${copyMark.value}\r\n\r\n`, 'latin1');
/** Answers go nowhere. */
const nowhere = { cork: () => undefined, uncork: () => undefined } satisfies Pick<Socket, 'cork' | 'uncork'>;

/** What is copied, and as whom. */
export interface HttpCopyOf extends CopyOf {
  readonly method: Method;
  /** As it leaves, with the empty line. */
  readonly head: Buffer;
  readonly account: Account;
  readonly peer: Endpoint | undefined;
}

/** Sends one copy over HTTP/1.1. */
export class HttpCopySender implements CopySender, UpstreamUser, ResponseEvents {
  readonly #of: HttpCopyOf;
  readonly #environment: Omit<HttpEnvironment, 'mirrors'>;
  readonly #ended: (end: CopyEnd) => void;
  readonly #response: Response;
  #body: readonly Buffer[] = [];
  #backend: Backend | undefined;
  #upstream: HttpUpstream | undefined;
  #status = 0;
  #isOver = false;

  constructor(of: HttpCopyOf, environment: Omit<HttpEnvironment, 'mirrors'>, ended: (end: CopyEnd) => void) {
    this.#of = of;
    this.#environment = environment;
    this.#ended = ended;
    this.#response = new Response(nowhere, environment, this);
  }

  send(backend: Backend, body: readonly Buffer[]): void {
    this.#backend = backend;
    this.#body = body;
    this.#response.begin({ method: this.#of.method, minor: 1, upgrade: false });
    this.#open(backend);
  }

  letGo(): void {
    this.#isOver = true;
    this.#upstream?.destroy();
    this.#upstream = undefined;
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
      this.#ended('failed');
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
      this.#ended('failed');
    }
    return true;
  }

  upstreamDrained(): void {}

  upstreamEnded(): void {
    this.#ended(this.#response.endsByClose ? endOf(this.#status) : 'failed');
  }

  upstreamFailed(): void {
    const backend = this.#backend;
    const wasStale = this.#upstream !== undefined && this.#upstream.requests > 1 && !this.#response.begun;
    if (this.#isOver || backend === undefined || !wasStale) this.#ended('failed');
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
    this.#ended('failed');
  }

  whole({ instance }: { readonly instance: boolean }): void {
    const upstream = this.#upstream;
    if (instance && upstream !== undefined && !this.#of.lane.announcesClient) {
      this.#upstream = undefined;
      this.#environment.pool.give(upstream, this.#environment.clock.monotonicMs());
    }
    this.#ended(endOf(this.#status));
  }
}
