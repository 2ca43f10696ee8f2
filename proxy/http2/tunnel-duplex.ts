import { Duplex } from 'node:stream';
import { describeError } from '../../src/base/errors.ts';
import type { UpstreamFailure } from '../http/upstream.ts';
import { streamFaults } from '../tcp/stream-faults.ts';
import { type StreamListener, StreamUpstream } from '../tunnel/stream-upstream.ts';
import type { ResetReason, StreamHead, Tunnels } from '../tunnel/tunnels.ts';

export interface TunnelDuplexEvents {
  opened(): void;
  failed(failure: UpstreamFailure): void;
}

/** A stream of a tunnel for those who expect one of the runtime's. */
export class TunnelDuplex extends Duplex implements StreamListener {
  bytesRead = 0;
  readonly #events: TunnelDuplexEvents;
  #upstream: StreamUpstream | undefined;
  #written: (() => void) | undefined;

  private constructor(events: TunnelDuplexEvents) {
    super({ allowHalfOpen: false });
    this.#events = events;
    this.on('error', () => undefined);
  }

  /** Opens a stream, or says why there is no tunnel. */
  static open(tunnels: Tunnels, hostId: string, head: StreamHead, events: TunnelDuplexEvents): TunnelDuplex | string {
    const duplex = new TunnelDuplex(events);
    const upstream = StreamUpstream.open(tunnels, hostId, head, duplex);
    if (typeof upstream === 'string') return upstream;
    duplex.#upstream = upstream;
    return duplex;
  }

  streamOpened(): void {
    this.#events.opened();
  }

  /** The bytes are the stream's again as soon as they are acknowledged, which may be before they are read here. */
  streamBytes(upstream: StreamUpstream, chunk: Buffer): void {
    this.bytesRead += chunk.length;
    if (this.push(Buffer.from(chunk))) upstream.resume();
  }

  streamEnded(): void {
    this.push(null);
  }

  streamDrained(): void {
    const done = this.#written;
    this.#written = undefined;
    done?.();
  }

  streamFailed(_upstream: StreamUpstream, reason: ResetReason, detail: string): void {
    const { problem, blame } = streamFaults[reason];
    const failure = { problem: detail === '' ? problem : detail, blame, denied: reason === 'denied' };
    this.#events.failed(failure);
    this.destroy(new Error(failure.problem));
  }

  streamClosed(): void {
    this.destroy();
  }

  override _read(): void {
    this.#upstream?.resume();
  }

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    const upstream = this.#upstream;
    upstream?.write(chunk);
    if (upstream !== undefined && upstream.writableLength > 0) this.#written = done;
    else done();
  }

  override _final(done: () => void): void {
    this.#upstream?.end();
    done();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    if (error !== null) this.#events.failed({ problem: describeError(error), blame: 'way' });
    const upstream = this.#upstream;
    this.#upstream = undefined;
    upstream?.destroy();
    done(error);
  }
}
