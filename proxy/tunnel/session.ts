import type { TLSSocket } from 'node:tls';
import type { Clock } from '../../src/base/clock.ts';
import { describeError } from '../../src/base/errors.ts';
import { FloodBudget } from './flood-budget.ts';
import { FrameParser, type FrameSink } from './frame-parser.ts';
import type { GatherBuffers } from './frame-writer.ts';
import { type GoAway, type GoAwayReason, type Hello, ProtocolFault } from './frames.ts';
import { Inflow } from './inflow.ts';
import { frameCosts, grants, staleMs, tinyBytes } from './limits.ts';
import { Outflow } from './outflow.ts';
import type { RecordReader } from './record-reader.ts';
import { SessionStream, type StreamOwner } from './session-stream.ts';
import { Silence } from './silence.ts';
import type { Slabs } from './slabs.ts';
import type { TunnelTraffic } from './tunnel-metrics.ts';
import type { AcceptStream, ResetReason, StreamEvents, StreamHead, TunnelStream } from './tunnels.ts';

export interface SessionOptions {
  /** After the handshake; the session owns it from now on. */
  readonly socket: TLSSocket;
  /** Of a socket that is read past its stream. */
  readonly reader?: RecordReader;
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
  readonly #outflow: Outflow;
  readonly #inflow: Inflow;
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

  /** The stream of the DATA frame that is coming in; undefined when nobody wants its bytes. */
  #current: SessionStream | undefined;
  /** Some of the bytes that are being taken apart are not consumed yet. */
  #keeps = false;

  constructor(options: SessionOptions) {
    const { socket, reader, role, hostId, clock, buffers, traffic } = options;
    this.#options = options;
    this.#socket = socket;
    this.#traffic = traffic;
    this.role = role;
    this.hostId = hostId;
    this.#flood = new FloodBudget(() => clock.monotonicMs());
    this.#silence = new Silence(role, clock.monotonicMs());
    this.#outflow = new Outflow({
      socket,
      buffers,
      onSent: (bytes) => this.#sent(bytes),
      onEndSent: (stream) => this.#finishIfEnded(stream),
    });
    const { writer } = this.#outflow;
    this.#inflow = new Inflow({ writer, streams: this.#streams, schedule: () => this.#outflow.schedule() });
    socket.on('error', (error) => this.#lose(describeError(error)));
    socket.on('close', () => this.#lose('the connection was closed'));
    socket.on('end', () => {
      reader?.flush();
      this.#lose('the other side closed the connection');
    });
    if (socket.destroyed) setImmediate(() => this.#lose('the connection was closed'));
    writer.hello(grants);
    writer.flush();
    if (reader === undefined) socket.on('data', (chunk: Buffer) => this.#onBytes(chunk));
    else if (reader.attach((chunk) => this.#onBytes(chunk))) socket.resume();
  }

  /** Streams that run. */
  get streams(): number {
    return this.#streams.size;
  }

  /** Bytes received and not yet consumed. */
  get heldBytes(): number {
    return this.#inflow.held;
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
    this.#outflow.writer.open(stream.id, head);
    const nowMs = this.#options.clock.monotonicMs();
    if (this.#silence.silentMs(nowMs) > staleMs) this.#ping(nowMs);
    this.#outflow.schedule();
    return stream;
  }

  /** No new streams; those that run finish, and then the connection is closed. */
  leave(reason: GoAwayReason, detail = ''): void {
    if (this.#leaving || this.#closed) return;
    this.#leaving = true;
    this.#outflow.writer.goAway({ reason, detail });
    this.#outflow.schedule();
    this.#closeWhenEmpty();
  }

  /** Ends it at once, with a word to the other side. */
  cut(reason: GoAwayReason, detail: string): void {
    if (this.#closed) return;
    this.#outflow.writer.goAway({ reason, detail });
    this.#outflow.writer.flush();
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

  get slabs(): Slabs {
    return this.#options.buffers.slabs;
  }

  wake(stream: SessionStream): void {
    this.#outflow.wake(stream);
  }

  accepted(stream: SessionStream): void {
    this.#outflow.writer.opened(stream.id);
    this.#outflow.schedule();
  }

  resetByUs(stream: SessionStream, reason: ResetReason, detail: string): void {
    this.#outflow.writer.reset(stream.id, reason, detail);
    this.#outflow.schedule();
    this.#forget(stream, false);
  }

  consumedBy(stream: SessionStream, bytes: number): void {
    this.#inflow.consumed(stream, bytes);
  }

  #sent(bytes: number): void {
    this.#moved += bytes;
    this.#traffic.sent.value += bytes;
  }

  #ping(nowMs: number): void {
    const number = this.#silence.asked(nowMs);
    if (number === undefined) return;
    this.#outflow.writer.ping(number);
    this.#outflow.schedule();
  }

  // Receiving

  /** True when nothing of the chunk is held any more. */
  #onBytes(chunk: Buffer): boolean {
    if (this.#closed) return true;
    this.#keeps = false;
    const changed = this.#silence.heard(this.#options.clock.monotonicMs());
    try {
      this.#parser.push(chunk);
    } catch (error) {
      if (!(error instanceof ProtocolFault)) throw error;
      this.#fault(error);
      return false;
    }
    if (changed && !this.#closed) this.#options.events.changed();
    return !this.#keeps;
  }

  #fault(fault: ProtocolFault): void {
    this.#traffic.fault(fault.kind);
    this.cut('protocol', fault.message);
  }

  hello(hello: Hello): void {
    this.#peer = hello;
    this.#outflow.granted(hello);
    this.#options.events.greeted();
  }

  ping(payload: Buffer): void {
    this.#flood.spend(frameCosts.ping, 'pings');
    this.#outflow.writer.pong(payload);
    this.#outflow.schedule();
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
      this.#outflow.writer.reset(id, 'busy', 'this host leaves');
      this.#outflow.schedule();
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
    if (bytes < tinyBytes) {
      if (bytes === 0) this.#flood.spend(frameCosts.empty, 'empty frames');
      else this.#flood.spend(frameCosts.tiny, 'tiny frames');
    }
    const stream = this.#known(id);
    if (stream?.remoteEnded === true) throw new ProtocolFault('order', `DATA of stream ${id} after its END`);
    this.#inflow.begins(stream, bytes);
    this.#current = stream;
    this.#moved += bytes;
    this.#traffic.received.value += bytes;
  }

  data(piece: Buffer): void {
    const stream = this.#current?.over === false ? this.#current : undefined;
    this.#inflow.arrived(stream, piece.length);
    stream?.data(piece);
    if (stream !== undefined && (stream.held > 0 || stream.over)) this.#keeps = true;
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
    this.#outflow.payForWindow();
    const stream = id === 0 ? 'connection' : this.#known(id, false);
    if (stream !== undefined) this.#outflow.window(stream, bytes);
  }

  /** The stream, or undefined when it has ended here, which the other side may not know yet. */
  #known(id: number, costly = true): SessionStream | undefined {
    const stream = this.#streams.get(id);
    if (stream !== undefined) return stream;
    if (id > this.#lastStream) throw new ProtocolFault('order', `a frame for stream ${id}, which was never opened`);
    if (costly) this.#flood.spend(frameCosts.late, 'frames for streams that have ended');
    return undefined;
  }

  // Ends

  #finishIfEnded(stream: SessionStream): void {
    if (stream.endSent && stream.remoteEnded) this.#forget(stream, true);
  }

  #forget(stream: SessionStream, tell: boolean, reason?: ResetReason, detail = ''): void {
    if (!this.#streams.delete(stream.id)) return;
    stream.finish(tell, reason, detail);
    this.#inflow.forget(stream);
    this.#closeWhenEmpty();
  }

  /** When both sides are done with it; the side that dialled closes. */
  #closeWhenEmpty(): void {
    if (this.#streams.size > 0 || this.#closed) return;
    if (!this.#leaving && this.#goingAway === undefined) return;
    if (this.role === 'accepted' && this.#goingAway === undefined) return;
    this.#outflow.writer.flush();
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
    this.#parser.stop();
    this.#outflow.close();
    if (gently) {
      // What was written before still leaves; nobody waits for the other side's word.
      this.#socket.end();
      this.#options.clock.after(1000, () => this.#socket.destroy());
    } else this.#socket.destroy();
    const streams = [...this.#streams.values()];
    this.#streams.clear();
    for (const stream of streams) stream.finish(true, 'lost', problem ?? 'the tunnel was closed');
    this.#options.events.closed(problem);
  }
}
