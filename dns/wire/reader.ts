import { SocketAddress } from 'node:net';
import { printable } from '../../src/base/text.ts';
import { classIn, headerLength, recordType, typeName } from './constants.ts';
import { formatName } from './name.ts';
import { skipName } from './query.ts';

/** A record in words, for people. */
export interface ReadableRecord {
  readonly name: string;
  readonly type: string;
  readonly ttl: number;
  readonly data: string;
}

export interface ReadableMessage {
  readonly rcode: number;
  readonly answers: readonly ReadableRecord[];
  readonly authorities: readonly ReadableRecord[];
  readonly additionals: readonly ReadableRecord[];
}

/** Pointers followed in one name. */
const maxPointers = 64;

/** Reads an answer, ours or an upstream's; undefined when it is malformed. OPT is not shown. */
export function readMessage(packet: Buffer): ReadableMessage | undefined {
  try {
    let at = headerLength;
    for (let left = packet.readUInt16BE(4); left > 0; left -= 1) at = past(packet, at) + 4;
    const section = (count: number): ReadableRecord[] => {
      const records: ReadableRecord[] = [];
      for (let left = count; left > 0; left -= 1) {
        const fixed = past(packet, at);
        const end = fixed + 10 + packet.readUInt16BE(fixed + 8);
        if (end > packet.length) throw new RangeError('record beyond the packet');
        if (packet.readUInt16BE(fixed) !== recordType.OPT) records.push(readRecord(packet, at, fixed, end));
        at = end;
      }
      return records;
    };
    const rcode = packet.readUInt8(3) & 15;
    const answers = section(packet.readUInt16BE(6));
    const authorities = section(packet.readUInt16BE(8));
    return { rcode, answers, authorities, additionals: section(packet.readUInt16BE(10)) };
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}

function readRecord(packet: Buffer, start: number, fixed: number, end: number): ReadableRecord {
  const type = packet.readUInt16BE(fixed);
  const plain = packet.readUInt16BE(fixed + 2) === classIn;
  const data = plain ? readData(packet, type, fixed + 10, end) : unknownData(packet, fixed + 10, end);
  return { name: readName(packet, start), type: typeName(type), ttl: packet.readUInt32BE(fixed + 4), data };
}

function readData(packet: Buffer, type: number, at: number, end: number): string {
  switch (type) {
    case recordType.A:
      return end - at === 4 ? packet.subarray(at, end).join('.') : unknownData(packet, at, end);
    case recordType.AAAA: {
      if (end - at !== 16) return unknownData(packet, at, end);
      const address = packet.toString('hex', at, end).replace(/(.{4})(?=.)/g, '$1:');
      return new SocketAddress({ address, family: 'ipv6' }).address;
    }
    case recordType.NS:
    case recordType.CNAME:
    case recordType.PTR:
      return readName(packet, at);
    case recordType.MX:
      return `${packet.readUInt16BE(at)} ${readName(packet, at + 2)}`;
    case recordType.SRV: {
      const [priority, weight, port] = [0, 2, 4].map((offset) => packet.readUInt16BE(at + offset));
      return `${priority} ${weight} ${port} ${readName(packet, at + 6)}`;
    }
    case recordType.TXT:
    case recordType.HINFO:
      return readStrings(packet, at, end);
    case recordType.SOA: {
      const mailboxAt = past(packet, at);
      const numbersAt = past(packet, mailboxAt);
      const numbers = [0, 4, 8, 12, 16].map((offset) => packet.readUInt32BE(numbersAt + offset));
      return `${readName(packet, at)} ${readName(packet, mailboxAt)} ${numbers.join(' ')}`;
    }
    default:
      return unknownData(packet, at, end);
  }
}

function readStrings(packet: Buffer, start: number, end: number): string {
  const strings: string[] = [];
  for (let at = start; at < end; ) {
    const next = at + 1 + packet.readUInt8(at);
    if (next > end) throw new RangeError('string beyond its record');
    strings.push(`"${printable(packet.toString('utf8', at + 1, next)).replace(/["\\]/g, '\\$&')}"`);
    at = next;
  }
  return strings.join(' ');
}

/** RFC 3597 section 5. */
function unknownData(packet: Buffer, at: number, end: number): string {
  return `\\# ${end - at} ${packet.toString('hex', at, end)}`.trimEnd();
}

function readName(packet: Buffer, start: number): string {
  const labels: string[] = [];
  let at = start;
  let pointers = 0;
  for (;;) {
    const length = packet.readUInt8(at);
    if (length === 0) return formatName(labels);
    if (length >= 0xc0) {
      at = packet.readUInt16BE(at) & 0x3fff;
      pointers += 1;
      if (pointers > maxPointers) throw new RangeError('name without an end');
      continue;
    }
    if (length > 63 || at + 1 + length > packet.length || labels.length > 127)
      throw new RangeError('label beyond a bound');
    labels.push(packet.toString('latin1', at + 1, at + 1 + length));
    at += 1 + length;
  }
}

function past(packet: Buffer, offset: number): number {
  const end = skipName(packet, offset);
  if (end === 0) throw new RangeError('name beyond the packet');
  return end;
}
