import type { Upstream } from '../tcp/upstream.ts';
import type { ResetReason, StreamEvents, StreamHead, TunnelStream, Tunnels } from './tunnels.ts';

/** What the relay hears of a stream; each call names the stream, so that those of one it has given up can be ignored. */
export interface StreamListener {
  streamOpened(upstream: StreamUpstream): void;
  streamBytes(upstream: StreamUpstream, chunk: Buffer): void;
  streamEnded(upstream: StreamUpstream): void;
  streamDrained(upstream: StreamUpstream): void;
  /** It was reset or lost; `streamClosed` follows. */
  streamFailed(upstream: StreamUpstream, reason: ResetReason, detail: string): void;
  /** Nothing more comes of it. */
  streamClosed(upstream: StreamUpstream): void;
}

/**
 * A stream with the manners of a socket. Bytes may be written at once. Those that came are acknowledged by `resume`, when
 * they have left: until then the other side sends at most what its credit allows.
 */
export class StreamUpstream implements Upstream, StreamEvents {
  writableLength = 0;
  writableEnded = false;
  destroyed = false;
  readonly #listener: StreamListener;
  #stream: TunnelStream | undefined;
  #ended = false;
  #owed = 0;

  private constructor(listener: StreamListener) {
    this.#listener = listener;
  }

  /** Opens a stream, or says why there is no tunnel. */
  static open(tunnels: Tunnels, hostId: string, head: StreamHead, listener: StreamListener): StreamUpstream | string {
    const upstream = new StreamUpstream(listener);
    const stream = tunnels.open(hostId, head, upstream);
    if (typeof stream === 'string') return stream;
    upstream.#stream = stream;
    return upstream;
  }

  /** What was written is sent in any case. */
  get writableFinished(): boolean {
    return this.writableEnded;
  }

  write(chunk: Buffer): void {
    if (this.#stream?.write(chunk) === false) this.writableLength = 1;
  }

  end(): void {
    if (this.writableEnded) return;
    this.writableEnded = true;
    this.#stream?.end();
  }

  pause(): void {}

  /** All bytes that came have left. */
  resume(): void {
    const owed = this.#owed;
    if (owed === 0) return;
    this.#owed = 0;
    this.#stream?.consumed(owed);
  }

  /** Tunnels look after themselves. */
  setKeepAlive(): void {}

  destroy(): void {
    if (this.destroyed) return;
    if (this.#ended) {
      this.resume();
      this.end();
    } else this.#stream?.reset('reset');
    this.#close();
  }

  resetAndDestroy(): void {
    if (this.destroyed) return;
    this.#stream?.reset('reset');
    this.#close();
  }

  opened(): void {
    if (!this.destroyed) this.#listener.streamOpened(this);
  }

  data(chunk: Buffer): void {
    this.#owed += chunk.length;
    if (this.destroyed) this.resume();
    else this.#listener.streamBytes(this, chunk);
  }

  ended(): void {
    this.#ended = true;
    if (!this.destroyed) this.#listener.streamEnded(this);
  }

  drained(): void {
    this.writableLength = 0;
    if (!this.destroyed) this.#listener.streamDrained(this);
  }

  closed(reason: ResetReason | undefined, detail: string): void {
    if (this.destroyed) return;
    this.writableLength = 0;
    if (reason !== undefined) this.#listener.streamFailed(this, reason, detail);
    this.#close();
  }

  #close(): void {
    if (this.destroyed) return;
    this.destroyed = true;
    this.#listener.streamClosed(this);
  }
}
