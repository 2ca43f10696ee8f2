import { printable } from '../../src/base/text.ts';
import {
  frameTypes,
  type GoAway,
  type GoAwayReason,
  goAwayReasons,
  type Hello,
  headerBytes,
  helloBytes,
  maxControlBytes,
  maxDataBytes,
  maxDetailBytes,
  minCredit,
  ProtocolFault,
  pingBytes,
  protocolVersion,
  windowBytes,
} from './frames.ts';
import { parseHead } from './stream-head.ts';
import { type ResetReason, resetReasons, type StreamHead } from './tunnels.ts';

/** What a parser finds. Each may throw a ProtocolFault, which ends the parsing. */
export interface FrameSink {
  hello(hello: Hello): void;
  open(stream: number, head: StreamHead): void;
  opened(stream: number): void;
  /** A DATA frame begins: so many bytes follow, in as many `data` as they arrive in. */
  dataBegins(stream: number, bytes: number): void;
  data(piece: Buffer): void;
  end(stream: number): void;
  reset(stream: number, reason: ResetReason, detail: string): void;
  window(stream: number, bytes: number): void;
  /** The payload may be looked at only during the call. */
  ping(payload: Buffer): void;
  pong(payload: Buffer): void;
  goAway(goAway: GoAway): void;
  /** A frame of a later version, skipped. */
  ignored(): void;
}

const resetNames = new Map<number, ResetReason>(
  (Object.entries(resetReasons) as [ResetReason, number][]).filter(([name]) => name !== 'lost').map(([a, b]) => [b, a]),
);
const goAwayNames = new Map<number, GoAwayReason>(
  (Object.entries(goAwayReasons) as [GoAwayReason, number][]).map(([name, number]) => [number, name]),
);

/**
 * Takes a connection's bytes apart as they come, however they are cut. Bodies of DATA are handed on as parts of what was
 * pushed, never gathered; other payloads are small, and gathered only when they are cut. Holds at most one header and one
 * such payload.
 */
export class FrameParser {
  readonly #sink: FrameSink;
  readonly #header = Buffer.alloc(headerBytes);
  /** How much of the next header is there. */
  #headerFilled = 0;
  #payload: Buffer | undefined;
  #payloadFilled = 0;
  #type = 0;
  #stream = 0;
  /** Bytes of a DATA frame's body that are still to come. */
  #bodyLeft = 0;
  #greeted = false;
  #stopped = false;

  constructor(sink: FrameSink) {
    this.#sink = sink;
  }

  /** Throws a ProtocolFault, after which nothing more may be pushed. The chunk belongs to those who get its parts. */
  push(chunk: Buffer): void {
    let at = 0;
    const size = chunk.length;
    while (at < size && !this.#stopped) {
      if (this.#bodyLeft > 0) {
        const end = Math.min(size, at + this.#bodyLeft);
        this.#bodyLeft -= end - at;
        this.#sink.data(at === 0 && end === size ? chunk : chunk.subarray(at, end));
        at = end;
      } else if (this.#payload !== undefined) at = this.#gather(this.#payload, chunk, at);
      else if (this.#headerFilled === 0 && size - at >= headerBytes)
        at = this.#frame(chunk, at, chunk, at + headerBytes);
      else at = this.#gatherHeader(chunk, at);
    }
  }

  /** Nothing more is handed on, also of what is being pushed. */
  stop(): void {
    this.#stopped = true;
  }

  #gatherHeader(chunk: Buffer, at: number): number {
    const end = Math.min(chunk.length, at + headerBytes - this.#headerFilled);
    chunk.copy(this.#header, this.#headerFilled, at, end);
    this.#headerFilled += end - at;
    if (this.#headerFilled < headerBytes) return end;
    this.#headerFilled = 0;
    return this.#frame(this.#header, 0, chunk, end);
  }

  #gather(payload: Buffer, chunk: Buffer, at: number): number {
    const end = Math.min(chunk.length, at + payload.length - this.#payloadFilled);
    chunk.copy(payload, this.#payloadFilled, at, end);
    this.#payloadFilled += end - at;
    if (this.#payloadFilled === payload.length) {
      this.#payload = undefined;
      this.#control(this.#type, this.#stream, payload);
    }
    return end;
  }

  /** A whole header at `from` of `header`; what follows it begins at `at` of `chunk`. Gives how far the chunk is done. */
  #frame(header: Buffer, from: number, chunk: Buffer, at: number): number {
    const length = ((header[from] ?? 0) << 16) | ((header[from + 1] ?? 0) << 8) | (header[from + 2] ?? 0);
    const type = header[from + 3] ?? 0;
    const stream = header.readUInt32BE(from + 4);
    if (!this.#greeted) this.#greet(type);
    if (type === frameTypes.data) {
      if (length > maxDataBytes) throw new ProtocolFault('malformed', `a DATA frame of ${length} bytes`);
      if (stream === 0) throw new ProtocolFault('malformed', 'DATA of no stream');
      this.#bodyLeft = length;
      this.#sink.dataBegins(stream, length);
      return at;
    }
    checkLength(type, length);
    if ((stream === 0) !== isOfConnection(type) && type < frameTypes.firstIgnored && type !== frameTypes.window)
      throw new ProtocolFault('malformed', `a frame of type ${type} for stream ${stream}`);
    if (chunk.length - at >= length) {
      this.#control(type, stream, chunk.subarray(at, at + length));
      return at + length;
    }
    this.#type = type;
    this.#stream = stream;
    this.#payload = Buffer.allocUnsafeSlow(length);
    this.#payloadFilled = 0;
    return at;
  }

  /** HELLO comes first, once; a side that refuses the other from the start says only GOAWAY. */
  #greet(type: number): void {
    if (type !== frameTypes.hello && type !== frameTypes.goAway)
      throw new ProtocolFault('order', `a frame of type ${type} before HELLO`);
  }

  #control(type: number, stream: number, payload: Buffer): void {
    const sink = this.#sink;
    switch (type) {
      case frameTypes.open:
        sink.open(stream, parseHead(payload));
        break;
      case frameTypes.opened:
        sink.opened(stream);
        break;
      case frameTypes.end:
        sink.end(stream);
        break;
      case frameTypes.window: {
        const bytes = payload.readUInt32BE(0);
        if (bytes === 0) throw new ProtocolFault('malformed', 'a WINDOW of nothing');
        sink.window(stream, bytes);
        break;
      }
      case frameTypes.reset:
        sink.reset(stream, resetNames.get(payload.readUInt16BE(0)) ?? 'reset', textOf(payload));
        break;
      case frameTypes.ping:
        sink.ping(payload);
        break;
      case frameTypes.pong:
        sink.pong(payload);
        break;
      case frameTypes.goAway:
        sink.goAway({
          reason: goAwayNames.get(payload.readUInt16BE(0)) ?? 'leaving',
          detail: textOf(payload),
        });
        break;
      case frameTypes.hello:
        if (this.#greeted) throw new ProtocolFault('order', 'a second HELLO');
        this.#greeted = true;
        sink.hello(helloOf(payload));
        break;
      default:
        sink.ignored();
        break;
    }
  }
}

function isOfConnection(type: number): boolean {
  return (
    type === frameTypes.hello || type === frameTypes.ping || type === frameTypes.pong || type === frameTypes.goAway
  );
}

/** Exact where a later version has no need for more; what is ignored is bounded all the same. */
function checkLength(type: number, length: number): void {
  let fits = length <= maxControlBytes;
  switch (type) {
    case frameTypes.hello:
      fits &&= length >= helloBytes;
      break;
    case frameTypes.open:
      break;
    case frameTypes.opened:
    case frameTypes.end:
      fits = length === 0;
      break;
    case frameTypes.reset:
    case frameTypes.goAway:
      fits = length >= 2 && length <= 2 + maxDetailBytes;
      break;
    case frameTypes.window:
      fits = length === windowBytes;
      break;
    case frameTypes.ping:
    case frameTypes.pong:
      fits = length === pingBytes;
      break;
    default:
      if (type < frameTypes.firstIgnored) throw new ProtocolFault('malformed', `a frame of the unknown type ${type}`);
  }
  if (!fits) throw new ProtocolFault('malformed', `a frame of type ${type} with ${length} bytes`);
}

function helloOf(payload: Buffer): Hello {
  const version = payload.readUInt16BE(0);
  const hello = {
    version,
    streamCredit: payload.readUInt32BE(2),
    connectionCredit: payload.readUInt32BE(6),
    maxStreams: payload.readUInt32BE(10),
  };
  if (version < protocolVersion) throw new ProtocolFault('malformed', `version ${version}, which does not exist`);
  if (hello.streamCredit < minCredit || hello.connectionCredit < hello.streamCredit || hello.maxStreams === 0)
    throw new ProtocolFault('malformed', 'a HELLO that grants too little');
  return hello;
}

function textOf(payload: Buffer): string {
  return printable(payload.toString('utf8', 2));
}
