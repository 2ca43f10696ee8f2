/**
 * The wire format of tunnels; docs/tunnel-protocol.md describes it to the byte. Every frame: the payload's length (3
 * bytes), type (1), stream (4; 0 is the connection itself), payload; all big endian.
 */
export const headerBytes = 8;

/** Frames of types from `firstIgnored` are skipped by those who do not know them; all other unknown ones are a fault. */
export const frameTypes = {
  hello: 1,
  open: 2,
  opened: 3,
  data: 4,
  end: 5,
  reset: 6,
  window: 7,
  ping: 8,
  pong: 9,
  goAway: 10,
  firstIgnored: 0x80,
} as const;

/** What is spoken within `legate-tunnel/1`; a later version adds only what this one may ignore. */
export const protocolVersion = 1;

/** The largest payload of a DATA frame, in bytes. */
export const maxDataBytes = 262_144;
/** The largest payload of any other frame, ignored ones included. */
export const maxControlBytes = 2048;
/** The text of RESET and GOAWAY, in bytes of UTF-8. */
export const maxDetailBytes = 200;
export const helloBytes = 14;
export const pingBytes = 8;
export const windowBytes = 4;

/** What a side grants to the other one; each is the receiver's to choose and is told in its HELLO. */
export interface Hello {
  readonly version: number;
  /** Bytes of one stream that may be under way, not yet consumed. */
  readonly streamCredit: number;
  /** The same of all streams of the connection together. */
  readonly connectionCredit: number;
  /** Streams that may be open at a time. */
  readonly maxStreams: number;
}

/** The smallest credit that a side may grant: less would be a way to make a peer send byte by byte. */
export const minCredit = 16_384;

/** Why a side wants no more of a connection. Unknown ones are taken for `leaving`. */
export const goAwayReasons = {
  /** It drains or stops. */
  leaving: 0,
  /** The certificate that it knows has run out: come again with the present one. */
  renew: 1,
  /** It does not accept who the other side is. */
  refused: 2,
  /** The other side broke the protocol, or flooded it. */
  protocol: 3,
} as const;
export type GoAwayReason = keyof typeof goAwayReasons;

export interface GoAway {
  readonly reason: GoAwayReason;
  readonly detail: string;
}

/** The other side broke the protocol: the connection is cut. `kind` is for the metric. */
export class ProtocolFault extends Error {
  readonly kind: 'malformed' | 'order' | 'credit' | 'flood';

  constructor(kind: ProtocolFault['kind'], message: string) {
    super(message);
    this.kind = kind;
  }
}

/** Puts a header at `at` of a buffer that has room for it. */
export function putHeader(into: Buffer, at: number, length: number, type: number, stream: number): void {
  into[at] = length >>> 16;
  into[at + 1] = length >>> 8;
  into[at + 2] = length;
  into[at + 3] = type;
  into[at + 4] = stream >>> 24;
  into[at + 5] = stream >>> 16;
  into[at + 6] = stream >>> 8;
  into[at + 7] = stream;
}
