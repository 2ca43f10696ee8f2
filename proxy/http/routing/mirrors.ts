import type { Clock } from '../../../src/base/clock.ts';
import type { Metrics } from '../../../src/base/metrics.ts';
import type { Backend } from '../../balance/backend.ts';
import { maxReplayBytes } from '../../tcp/relay-bounds.ts';
import type { RequestEnd } from '../request-metrics.ts';
import type { Lane } from './lane.ts';

/** Copies at a time, also those whose bodies have yet to come; further requests are not copied. */
export const maxCopies = 256;
/** How long a body may take to come, and then how long it may take from being sent to the end of the answer. */
export const copyMs = 10_000;
/** By this an instance knows a copy. */
export const copyMark = { name: 'X-Legate-Mirror', value: '1' } as const;

/** How a copy ended: those that are `busy`, `too large` or `streaming` were never sent. */
export type CopyEnd = RequestEnd | 'busy' | 'too large' | 'streaming' | 'no instance' | 'failed' | 'timeout';

/** Where a copy goes; with whatever else its sender needs to know. */
export interface CopyOf {
  readonly lane: Lane;
  /** The body's length, where it is known. */
  readonly contentLength: number | undefined;
}

/** Asks an instance in one version of HTTP, and reads its answer. */
export interface CopySender {
  /** Sends the request; says how it ended once, perhaps at once, unless nobody waits any longer. */
  send(backend: Backend, body: readonly Buffer[]): void;
  /** It is over: what it holds is given back, and nothing more is to be said. */
  letGo(): void;
}

export interface MirrorsOptions<Of extends CopyOf> {
  readonly clock: Clock;
  readonly metrics: Metrics;
  readonly senderFor: (of: Of, ended: (end: CopyEnd) => void) => CopySender;
}

/**
 * Copies of requests, whose answers nobody sees. They take part in nothing: no retry, no ejection, no figure of the
 * service; what there is no room for, or does not come to an end, is dropped and counted.
 */
export class Mirrors<Of extends CopyOf> {
  readonly #options: MirrorsOptions<Of>;
  readonly #running = new Set<Copy>();

  constructor(options: MirrorsOptions<Of>) {
    this.#options = options;
  }

  /** Makes room for a copy; undefined where there is none. */
  begin(of: Of): Copy | undefined {
    const { lane } = of;
    if (this.#running.size >= maxCopies) this.#count(lane.service, 'busy');
    else if ((of.contentLength ?? 0) > maxReplayBytes) this.#count(lane.service, 'too large');
    else {
      const { clock, senderFor } = this.#options;
      const copy = new Copy({
        lane,
        clock,
        senderFor: (ended) => senderFor(of, ended),
        over: (end) => {
          this.#running.delete(copy);
          if (end !== undefined) this.#count(lane.service, end);
        },
      });
      this.#running.add(copy);
      return copy;
    }
    return undefined;
  }

  close(): void {
    for (const copy of [...this.#running]) copy.close();
  }

  #count(service: string, end: CopyEnd): void {
    const help = 'Copies of requests (mirror), by how they ended; busy, too large and streaming were never sent.';
    this.#options.metrics.counter('legate_http_mirrored_requests_total', help, { service, end }).value += 1;
  }
}

interface CopyOptions {
  readonly lane: Lane;
  readonly clock: Clock;
  readonly senderFor: (ended: (end: CopyEnd) => void) => CopySender;
  /** `end`: how it ended; undefined: there was nothing to copy. */
  readonly over: (end: CopyEnd | undefined) => void;
}

/** One of them. The body is collected first, so that it never waits for the client or makes it wait. */
export class Copy {
  readonly #options: CopyOptions;
  readonly #body: Buffer[] = [];
  #bodyBytes = 0;
  #sender: CopySender | undefined;
  #backend: Backend | undefined;
  #cancelTimer: () => void;
  #isOver = false;

  constructor(options: CopyOptions) {
    this.#options = options;
    this.#cancelTimer = options.clock.after(copyMs, () => this.#end('streaming'));
  }

  /** Some more of the body. */
  add(piece: Buffer): void {
    if (this.#isOver) return;
    this.#bodyBytes += piece.length;
    if (this.#bodyBytes > maxReplayBytes) this.#end('too large');
    // Whoever has read it may use its buffer again, or it is a small part of a large one.
    else this.#body.push(Buffer.from(piece));
  }

  /** The request did not come to its end, or, with `streaming`, others do not understand it without its answer. */
  drop(end?: 'streaming'): void {
    if (this.#sender === undefined) this.#end(end);
  }

  /** The request is whole. */
  send(): void {
    if (this.#isOver || this.#sender !== undefined) return;
    const { lane, clock, senderFor } = this.#options;
    const backend = lane.pick([]);
    if (backend === undefined) {
      this.#end('no instance');
      return;
    }
    backend.active += 1;
    this.#backend = backend;
    this.#cancelTimer();
    this.#cancelTimer = clock.after(copyMs, () => this.#end('timeout'));
    this.#sender = senderFor((end) => this.#end(end));
    this.#sender.send(backend, this.#body);
  }

  /** Whatever has become of it. */
  close(): void {
    this.#end(undefined);
  }

  #end(end: CopyEnd | undefined): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#cancelTimer();
    this.#sender?.letGo();
    this.#body.length = 0;
    if (this.#backend !== undefined) this.#options.lane.ended(this.#backend);
    this.#options.over(end);
  }
}
