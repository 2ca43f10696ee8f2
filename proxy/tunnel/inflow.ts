import type { FrameWriter } from './frame-writer.ts';
import { ProtocolFault } from './frames.ts';
import { connectionReturnBytes, crowdedBytes, crowdedReturnBytes, grants, streamReturnBytes } from './limits.ts';
import type { SessionStream } from './session-stream.ts';

export interface InflowOptions {
  readonly writer: FrameWriter;
  readonly streams: ReadonlyMap<number, SessionStream>;
  /** A WINDOW was written. */
  readonly schedule: () => void;
}

/**
 * What this side holds of a connection and grants anew. Consumed bytes are told to the other side now and then, which costs
 * next to nothing; while many bytes wait to be consumed they are told at once, so that the other side's picture of who is
 * slow is right.
 */
export class Inflow {
  readonly #options: InflowOptions;
  #credit = grants.connectionCredit;
  #held = 0;
  #unreturned = 0;
  #crowded = false;

  constructor(options: InflowOptions) {
    this.#options = options;
  }

  /** Bytes received and not yet consumed. */
  get held(): number {
    return this.#held;
  }

  /** A DATA frame of so many bytes begins; `stream` is undefined where it has ended. */
  begins(stream: SessionStream | undefined, bytes: number): void {
    this.#credit -= bytes;
    if (this.#credit < 0) throw new ProtocolFault('credit', 'more bytes than the connection may carry');
    if (stream === undefined) return;
    stream.credit -= bytes;
    if (stream.credit < 0) throw new ProtocolFault('credit', `more bytes than stream ${stream.id} may carry`);
  }

  /** Bytes came: the stream holds them from now on, or nobody does. */
  arrived(stream: SessionStream | undefined, bytes: number): void {
    this.#held += bytes;
    if (stream === undefined) {
      this.#release(bytes);
      return;
    }
    stream.held += bytes;
    if (this.#crowded || this.#held <= crowdedBytes) return;
    this.#crowded = true;
    for (const each of this.#options.streams.values()) this.#tell(each);
  }

  consumed(stream: SessionStream, bytes: number): void {
    stream.held -= bytes;
    stream.unreturned += bytes;
    this.#release(bytes);
    const enough = this.#crowded ? (stream.held > 0 ? crowdedReturnBytes : 1) : streamReturnBytes;
    if (stream.unreturned >= enough) this.#tell(stream);
  }

  /** The stream has ended: what it still holds counts no more. */
  forget(stream: SessionStream): void {
    const { held } = stream;
    stream.held = 0;
    if (held > 0) this.#release(held);
  }

  #tell(stream: SessionStream): void {
    if (stream.remoteEnded || stream.over || stream.unreturned === 0) return;
    this.#options.writer.window(stream.id, stream.unreturned);
    stream.credit += stream.unreturned;
    stream.unreturned = 0;
    this.#options.schedule();
  }

  #release(bytes: number): void {
    this.#held -= bytes;
    this.#unreturned += bytes;
    if (this.#crowded && this.#held <= crowdedBytes / 2) this.#crowded = false;
    if (this.#unreturned < (this.#crowded ? crowdedReturnBytes : connectionReturnBytes)) return;
    this.#options.writer.window(0, this.#unreturned);
    this.#credit += this.#unreturned;
    this.#unreturned = 0;
    this.#options.schedule();
  }
}
