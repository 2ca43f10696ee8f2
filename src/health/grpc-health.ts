/**
 * The two messages of grpc.health.v1 (github.com/grpc/grpc-proto, health.proto) in protobuf's wire format, with gRPC's
 * five bytes before each (PROTOCOL-HTTP2.md: a compressed flag and the length).
 */

/** HealthCheckResponse.ServingStatus, by number. */
const servingStatuses = ['UNKNOWN', 'SERVING', 'NOT_SERVING', 'SERVICE_UNKNOWN'] as const;

/** An answer, with its five bytes; ours has two or seven, and newer versions of the message may add fields. */
export const maxAnswerBytes = 1024;
const maxServiceBytes = 1024;

/** HealthCheckRequest { string service = 1; } */
export function encodeRequest(service: string): Buffer {
  const name = Buffer.from(service, 'utf8').subarray(0, maxServiceBytes);
  const field =
    name.length === 0 ? Buffer.alloc(0) : Buffer.concat([Buffer.from([0x0a, ...varint(name.length)]), name]);
  const head = Buffer.alloc(5);
  head.writeUInt32BE(field.length, 1);
  return Buffer.concat([head, field]);
}

/** The status in an answer, or what is wrong with its bytes. */
export function decodeAnswer(bytes: Buffer): { readonly status: string } | { readonly fault: string } {
  if (bytes.length < 5) return { fault: 'has no message' };
  if (bytes[0] !== 0) return { fault: 'is compressed, which nobody asked for' };
  if (bytes.readUInt32BE(1) !== bytes.length - 5) return { fault: 'is not one message' };
  const value = statusField(bytes.subarray(5));
  if (value === undefined) return { fault: 'is not a HealthCheckResponse' };
  return { status: servingStatuses[value] ?? `status ${value}` };
}

/** The value of field 1; 0 when it is absent, as protobuf has it; undefined when the bytes are no such message. */
function statusField(message: Buffer): number | undefined {
  const reader = new WireReader(message);
  let status = 0;
  while (!reader.atEnd) {
    const tag = reader.varint();
    if (tag === undefined || tag >>> 3 === 0) return undefined;
    if (tag === 0x08) {
      const value = reader.varint();
      if (value === undefined) return undefined;
      status = value;
    } else if (tag >>> 3 === 1 || !reader.skip(tag & 7)) return undefined;
  }
  return status;
}

class WireReader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get atEnd(): boolean {
    return this.#at >= this.#bytes.length;
  }

  /** Up to ten bytes, as 32 bits; undefined when they do not end. */
  varint(): number | undefined {
    let value = 0;
    for (let index = 0; index < 10; index += 1) {
      const byte = this.#bytes[this.#at];
      if (byte === undefined) return undefined;
      this.#at += 1;
      if (index < 5) value |= (byte & 0x7f) << (7 * index);
      if (byte < 0x80) return value >>> 0;
    }
    return undefined;
  }

  /** Goes past a field of a wire type; false when it does not fit, or is of a type that nobody uses any more. */
  skip(wireType: number): boolean {
    if (wireType === 0) return this.varint() !== undefined;
    const length = wireType === 1 ? 8 : wireType === 5 ? 4 : wireType === 2 ? this.varint() : undefined;
    if (length === undefined || length > this.#bytes.length - this.#at) return false;
    this.#at += length;
    return true;
  }
}

function varint(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  for (; rest >= 0x80; rest >>>= 7) bytes.push((rest & 0x7f) | 0x80);
  return [...bytes, rest];
}
