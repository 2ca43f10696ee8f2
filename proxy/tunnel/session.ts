import type { TLSSocket } from 'node:tls';
import type { Clock } from '../../src/base/clock.ts';
import { describeError } from '../../src/base/errors.ts';
import { FloodBudget } from './flood-budget.ts';
import { FrameParser, type FrameSink } from './frame-parser.ts';
import { FrameWriter, type GatherBuffers } from './frame-writer.ts';
import { type GoAway, type GoAwayReason, type Hello, maxDataBytes, ProtocolFault } from './frames.ts';
import {
  bytesPerWindow,
  connectionReturnBytes,
  connectionShare,
  crowdedBytes,
  crowdedReturnBytes,
  frameCosts,
  grants,
  largeChunkBytes,
  maxUnsentBytes,
  minShareBytes,
  staleMs,
  streamReturnBytes,
  tinyBytes,
  windowsInAdvance,
} from './limits.ts';
import { SessionStream, type StreamOwner } from './session-stream.ts';
import { Silence } from './silence.ts';
import type { TunnelTraffic } from './tunnel-metrics.ts';
import type { AcceptStream, ResetReason, StreamEvents, StreamHead, TunnelStream } from './tunnels.ts';

export interface SessionOptions {
  /** After the handshake; the session owns it from now on. */
  readonly socket: TLSSocket;
  readonly role: 'dialled' | 'accepted';
  /** Authenticated. */
  readonly hostId: string;
  readonly clock: Clock;
  readonly buffers: GatherBuffers;
  readonly traffic: TunnelTraffic;
  /** For the side that accepted. */
  readonly accept?: AcceptStream;
  readonly events: SessionEvents;
}

export interface SessionEvents {
  /** The other side has said HELLO: streams may be opened. */
  greeted(): void;
  /** It turned suspect or is not any more, or the other side wants no more streams on it. */
  changed(): void;
  /** The last call. `problem`: one line; undefined when it ended in order. */
  closed(problem: string | undefined): void;
}

/**
 * One connection between two sidecars, either side of it: many streams, each with its own credit. Frames of one turn of the
 * event loop leave together. What the kernel does not take at once is bounded, and streams take turns, so that a small
 * request next to a large transfer waits for little.
 */
export class TunnelSession implements FrameSink, StreamOwner {
  readonly role: 'dialled' | 'accepted';
  readonly hostId: string;
  readonly #options: SessionOptions;
  readonly #socket: TLSSocket;
  readonly #traffic: TunnelTraffic;
  readonly #parser = new FrameParser(this);
  readonly #writer: FrameWriter;
  readonly #flood: FloodBudget;
  readonly #silence: Silence;
  readonly #streams = new Map<number, SessionStream>();
  /** The greatest stream that was opened. */
  #lastStream = 0;
  #peer: Hello | undefined;
  #goingAway: GoAway | undefined;
  #leaving = false;
  #closed = false;
  #moved = 0;
  #recent = 0;

  // Sending
  #ready: SessionStream[] = [];
  #blocked: SessionStream[] = [];
  #inFlight = 0;
  #unsent = 0;
  #flushing = false;
  #scheduled = false;
  #windowsLeft = windowsInAdvance;
  #bytesToWindow = 0;

  // Receiving
  /** The stream of the DATA frame that is coming in; undefined when nobody wants its bytes. */
  #current: SessionStream | undefined;
  #credit = grants.connectionCredit;
  #held = 0;
  #unreturned = 0;
  #crowded = false;

  constructor(options: SessionOptions) {
    const { socket, role, hostId, clock, buffers, traffic } = options;
    this.#options = options;
    this.#socket = socket;
    this.#traffic = traffic;
    this.role = role;
    this.hostId = hostId;
    this.#flood = new FloodBudget(() => clock.monotonicMs());
    this.#silence = new Silence(role, clock.monotonicMs());
    this.#writer = new FrameWriter(buffers, (bytes, gathered) => this.#write(bytes, gathered));
    socket.on('data', (chunk: Buffer) => this.#onBytes(chunk));
    socket.on('error', (error) => this.#lose(describeError(error)));
    socket.on('close', () => this.#lose('the connection was closed'));
    socket.on('end', () => this.#lose('the other side closed the connection'));
    if (socket.destroyed) setImmediate(() => this.#lose('the connection was closed'));
    this.#writer.hello(grants);
    this.#writer.flush();
  }

  /** Streams that run. */
  get streams(): number {
    return this.#streams.size;
  }

  /** Bytes received and not yet consumed. */
  get heldBytes(): number {
    return this.#held;
  }

  /** Bytes that it carried in both directions in about the last two ticks. */
  get recentBytes(): number {
    return this.#recent + this.#moved;
  }

  get suspect(): boolean {
    return this.#silence.suspect;
  }

  /** Of the last ping, in milliseconds. */
  get roundTripMs(): number | undefined {
    return this.#silence.roundTripMs;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Whether this side wants no more of it. */
  get leaving(): boolean {
    return this.#leaving;
  }

  /** What the other side said when it wanted no more of this connection. */
  get goingAway(): GoAway | undefined {
    return this.#goingAway;
  }

  /** Whether a stream may be opened. */
  get usable(): boolean {
    return (
      this.#peer !== undefined &&
      this.#goingAway === undefined &&
      !this.#leaving &&
      !this.#closed &&
      this.#streams.size < this.#peer.maxStreams
    );
  }

  /** The caller has seen `usable`, and that the head has no fault. */
  openStream(head: StreamHead, events: StreamEvents): TunnelStream {
    this.#lastStream += 1;
    const stream = new SessionStream(this, this.#lastStream, true, grants.streamCredit);
    stream.events = events;
    this.#streams.set(stream.id, stream);
    this.#traffic.opened.value += 1;
    this.#writer.open(stream.id, head);
    const nowMs = this.#options.clock.monotonicMs();
    if (this.#silence.silentMs(nowMs) > staleMs) this.#ping(nowMs);
    this.#schedule();
    return stream;
  }

  /** No new streams; those that run finish, and then the connection is closed. */
  leave(reason: GoAwayReason, detail = ''): void {
    if (this.#leaving || this.#closed) return;
    this.#leaving = true;
    this.#writer.goAway({ reason, detail });
    this.#schedule();
    this.#closeWhenEmpty();
  }

  /** Ends it at once, with a word to the other side. */
  cut(reason: GoAwayReason, detail: string): void {
    if (this.#closed) return;
    this.#writer.goAway({ reason, detail });
    this.#writer.flush();
    this.#close(detail, true);
  }

  /** To be called every `tickMs`. */
  tick(nowMs: number): void {
    if (this.#closed) return;
    this.#recent = this.#moved;
    this.#moved = 0;
    switch (this.#silence.tick(nowMs)) {
      case 'ping':
        this.#ping(nowMs);
        break;
      case 'changed':
        this.#options.events.changed();
        break;
      case 'dead':
        this.#close(`no answer for ${Math.round(this.#silence.silentMs(nowMs) / 1000)} s`, false);
        break;
    }
  }

  // What streams ask for

  wake(stream: SessionStream): void {
    stream.listed = true;
    this.#ready.push(stream);
    this.#schedule();
  }

  accepted(stream: SessionStream): void {
    this.#writer.opened(stream.id);
    this.#schedule();
  }

  resetByUs(stream: SessionStream, reason: ResetReason, detail: string): void {
    this.#writer.reset(stream.id, reason, detail);
    this.#schedule();
    this.#forget(stream, false);
  }

  consumedBy(stream: SessionStream, bytes: number): void {
    stream.held -= bytes;
    stream.unreturned += bytes;
    this.#returnCredit(bytes);
    const enough = this.#crowded && stream.held > 0 ? crowdedReturnBytes : this.#crowded ? 1 : streamReturnBytes;
    if (stream.unreturned >= enough) this.#returnStreamCredit(stream);
  }

  #returnStreamCredit(stream: SessionStream): void {
    if (stream.remoteEnded || stream.over || stream.unreturned === 0) return;
    this.#writer.window(stream.id, stream.unreturned);
    stream.credit += stream.unreturned;
    stream.unreturned = 0;
    this.#schedule();
  }

  /** Bytes have left this connection's keeping. */
  #returnCredit(bytes: number): void {
    this.#held -= bytes;
    this.#unreturned += bytes;
    if (this.#crowded && this.#held <= crowdedBytes / 2) this.#crowded = false;
    if (this.#unreturned < (this.#crowded ? crowdedReturnBytes : connectionReturnBytes)) return;
    this.#writer.window(0, this.#unreturned);
    this.#credit += this.#unreturned;
    this.#unreturned = 0;
    this.#schedule();
  }

  /** Many bytes wait to be consumed: from now on the other side hears at once of all that was. */
  #crowd(): void {
    this.#crowded = true;
    for (const stream of this.#streams.values()) this.#returnStreamCredit(stream);
  }

  // Sending

  #schedule(): void {
    if (this.#scheduled || this.#closed) return;
    this.#scheduled = true;
    setImmediate(this.#onTurn);
  }

  readonly #onTurn = (): void => {
    this.#scheduled = false;
    this.#flush();
  };

  #flush(): void {
    if (this.#closed || this.#flushing) return;
    this.#flushing = true;
    while (this.#ready.length > 0 && this.#unsent + this.#writer.pending < maxUnsentBytes && !this.#closed) {
      const round = this.#ready;
      this.#ready = [];
      for (let index = 0; index < round.length; index += 1) {
        if (this.#unsent + this.#writer.pending >= maxUnsentBytes || this.#closed) {
          this.#ready = round.slice(index).concat(this.#ready);
          break;
        }
        const stream = round[index];
        if (stream !== undefined) this.#sendOf(stream);
      }
    }
    this.#flushing = false;
    if (!this.#closed) this.#writer.flush();
  }

  /** One frame of a stream, and its end behind the last. */
  #sendOf(stream: SessionStream): void {
    stream.listed = false;
    if (stream.over) return;
    if (stream.queuedBytes > 0) {
      const bytes = stream.nextFrameBytes(this.#allowance(stream));
      if (bytes <= 0) {
        stream.listed = true;
        this.#blocked.push(stream);
        return;
      }
      this.#sendFrame(stream, bytes);
      stream.relieve();
      if (stream.over || stream.listed) return;
    }
    if (stream.queuedBytes > 0) {
      stream.listed = true;
      this.#ready.push(stream);
    } else if (stream.ended && !stream.endSent) {
      stream.endSent = true;
      this.#writer.end(stream.id);
      this.#finishIfEnded(stream);
    }
  }

  #allowance(stream: SessionStream): number {
    const peer = this.#peer;
    if (peer === undefined) return 0;
    const left = peer.connectionCredit - this.#inFlight;
    const share = Math.max(minShareBytes, Math.floor(left * connectionShare));
    return Math.min(left, Math.min(share, peer.streamCredit) - stream.inFlight, maxDataBytes);
  }

  #sendFrame(stream: SessionStream, bytes: number): void {
    this.#writer.data(stream.id, bytes);
    stream.inFlight += bytes;
    this.#inFlight += bytes;
    this.#moved += bytes;
    this.#traffic.sent.value += bytes;
    this.#bytesToWindow += bytes;
    let left = bytes;
    while (left > 0) {
      const piece = stream.take(left);
      left -= piece.length;
      if (piece.length >= largeChunkBytes) this.#writer.large(piece);
      else this.#writer.body(piece);
    }
  }

  #write(bytes: Buffer, gathered: Buffer | undefined): void {
    const size = bytes.length;
    this.#unsent += size;
    this.#socket.write(bytes, () => {
      this.#unsent -= size;
      if (gathered !== undefined) this.#options.buffers.release(gathered);
      if (this.#ready.length > 0 && !this.#scheduled) this.#flush();
    });
  }

  #ping(nowMs: number): void {
    const number = this.#silence.asked(nowMs);
    if (number === undefined) return;
    this.#writer.ping(number);
    this.#schedule();
  }

  // Receiving

  #onBytes(chunk: Buffer): void {
    if (this.#closed) return;
    const changed = this.#silence.heard(this.#options.clock.monotonicMs());
    try {
      this.#parser.push(chunk);
    } catch (error) {
      if (!(error instanceof ProtocolFault)) throw error;
      // What came behind the last frame of a connection that is gone is nobody's.
      if (!this.#closed) this.#fault(error);
      return;
    }
    if (changed && !this.#closed) this.#options.events.changed();
  }

  #fault(fault: ProtocolFault): void {
    this.#traffic.fault(fault.kind);
    this.cut('protocol', fault.message);
  }

  hello(hello: Hello): void {
    this.#peer = hello;
    this.#unblock();
    this.#options.events.greeted();
  }

  ping(payload: Buffer): void {
    this.#flood.spend(frameCosts.ping, 'pings');
    this.#writer.pong(payload);
    this.#schedule();
  }

  pong(payload: Buffer): void {
    if (!this.#silence.answered(payload.readUInt32BE(4), this.#options.clock.monotonicMs()))
      throw new ProtocolFault('order', 'a PONG that nobody asked for');
  }

  goAway(goAway: GoAway): void {
    this.#goingAway ??= goAway;
    this.#options.events.changed();
    this.#closeWhenEmpty();
  }

  ignored(): void {
    this.#flood.spend(frameCosts.ignored, 'unknown frames');
  }

  opened(id: number): void {
    const stream = this.#known(id);
    if (stream === undefined) return;
    if (!stream.isOurs) throw new ProtocolFault('order', `OPENED for stream ${id}, which the other side opened itself`);
    stream.opened();
  }

  open(id: number, head: StreamHead): void {
    const { accept } = this.#options;
    if (accept === undefined) throw new ProtocolFault('order', 'OPEN from the side that was dialled');
    if (id <= this.#lastStream) throw new ProtocolFault('order', `stream ${id} is opened again`);
    if (this.#streams.size >= grants.maxStreams) throw new ProtocolFault('credit', 'more streams than were granted');
    this.#lastStream = id;
    this.#flood.spend(frameCosts.open, 'openings');
    if (this.#leaving) {
      this.#writer.reset(id, 'busy', 'this host leaves');
      this.#schedule();
      return;
    }
    const stream = new SessionStream(this, id, false, grants.streamCredit);
    this.#streams.set(id, stream);
    this.#traffic.accepted.value += 1;
    const answer = accept(head, this.hostId, stream);
    if ('refused' in answer) stream.reset(answer.refused, answer.detail);
    else stream.events = answer;
  }

  dataBegins(id: number, bytes: number): void {
    this.#credit -= bytes;
    if (this.#credit < 0) throw new ProtocolFault('credit', 'more bytes than the connection may carry');
    this.#moved += bytes;
    this.#traffic.received.value += bytes;
    if (bytes < tinyBytes) {
      if (bytes === 0) this.#flood.spend(frameCosts.empty, 'empty frames');
      else this.#flood.spend(frameCosts.tiny, 'tiny frames');
    }
    this.#current = this.#known(id);
    if (this.#current === undefined) return;
    if (this.#current.remoteEnded) throw new ProtocolFault('order', `DATA of stream ${id} after its END`);
    this.#current.credit -= bytes;
    if (this.#current.credit < 0) throw new ProtocolFault('credit', `more bytes than stream ${id} may carry`);
  }

  data(piece: Buffer): void {
    const bytes = piece.length;
    const stream = this.#current;
    this.#held += bytes;
    if (stream === undefined || stream.over) {
      this.#returnCredit(bytes);
      return;
    }
    stream.held += bytes;
    if (!this.#crowded && this.#held > crowdedBytes) this.#crowd();
    stream.data(piece);
  }

  end(id: number): void {
    const stream = this.#known(id);
    if (stream === undefined) return;
    if (stream.remoteEnded) throw new ProtocolFault('order', `a second END of stream ${id}`);
    stream.remoteEnd();
    this.#finishIfEnded(stream);
  }

  reset(id: number, reason: ResetReason, detail: string): void {
    this.#flood.spend(frameCosts.reset, 'resets');
    const stream = this.#known(id);
    if (stream !== undefined) this.#forget(stream, true, reason, detail);
  }

  window(id: number, bytes: number): void {
    this.#payForWindow();
    if (id === 0) {
      this.#inFlight -= bytes;
      if (this.#inFlight < 0) throw new ProtocolFault('credit', 'more credit than was used');
      this.#unblock();
      return;
    }
    const stream = this.#known(id, false);
    if (stream === undefined) return;
    stream.inFlight -= bytes;
    if (stream.inFlight < 0) throw new ProtocolFault('credit', `more credit than stream ${id} used`);
    if (this.#blocked.length > 0) this.#unblock();
  }

  #payForWindow(): void {
    if (this.#bytesToWindow >= bytesPerWindow) {
      this.#windowsLeft = Math.min(
        windowsInAdvance,
        this.#windowsLeft + Math.floor(this.#bytesToWindow / bytesPerWindow),
      );
      this.#bytesToWindow %= bytesPerWindow;
    }
    this.#windowsLeft -= 1;
    if (this.#windowsLeft < 0) throw new ProtocolFault('flood', 'a flood of WINDOWs');
  }

  /** The stream, or undefined when it has ended here, which the other side may not know yet. */
  #known(id: number, costly = true): SessionStream | undefined {
    const stream = this.#streams.get(id);
    if (stream !== undefined) return stream;
    if (id > this.#lastStream) throw new ProtocolFault('order', `a frame for stream ${id}, which was never opened`);
    if (costly) this.#flood.spend(frameCosts.late, 'frames for streams that have ended');
    return undefined;
  }

  #unblock(): void {
    if (this.#blocked.length === 0) return;
    const blocked = this.#blocked;
    this.#blocked = [];
    for (const stream of blocked) if (!stream.over) this.#ready.push(stream);
    this.#schedule();
  }

  // Ends

  #finishIfEnded(stream: SessionStream): void {
    if (stream.endSent && stream.remoteEnded) this.#forget(stream, true);
  }

  #forget(stream: SessionStream, tell: boolean, reason?: ResetReason, detail = ''): void {
    if (!this.#streams.delete(stream.id)) return;
    const { held } = stream;
    stream.held = 0;
    stream.finish(tell, reason, detail);
    if (held > 0) this.#returnCredit(held);
    this.#closeWhenEmpty();
  }

  /** When both sides are done with it; the side that dialled closes. */
  #closeWhenEmpty(): void {
    if (this.#streams.size > 0 || this.#closed) return;
    if (!this.#leaving && this.#goingAway === undefined) return;
    if (this.role === 'accepted' && this.#goingAway === undefined) return;
    this.#writer.flush();
    this.#close(undefined, true);
  }

  #lose(problem: string): void {
    const { goingAway } = this;
    const said = goingAway === undefined || goingAway.detail === '' ? problem : `it said: ${goingAway.detail}`;
    this.#close(
      (this.#leaving || goingAway?.reason === 'leaving') && this.#streams.size === 0 ? undefined : said,
      false,
    );
  }

  #close(problem: string | undefined, gently: boolean): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#writer.discard();
    if (gently) {
      // What was written before still leaves; nobody waits for the other side's word.
      this.#socket.end();
      this.#options.clock.after(1000, () => this.#socket.destroy());
    } else this.#socket.destroy();
    const streams = [...this.#streams.values()];
    this.#streams.clear();
    this.#ready = [];
    this.#blocked = [];
    this.#held = 0;
    for (const stream of streams) stream.finish(true, 'lost', problem ?? 'the tunnel was closed');
    this.#options.events.closed(problem);
  }
}
