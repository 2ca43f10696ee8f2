import { headerLength, maxMessage, plainUdpAnswer, recordType } from './constants.ts';

/** What is to become of a packet, by its form alone. */
export type Verdict = 'query' | 'drop' | 'formerr' | 'notimp' | 'badvers';

const hashPrime = 16_777_619;
/** Beyond OPT, TSIG and SIG(0) there is no use for additional records in a query. */
const maxAdditional = 8;

/**
 * Reads a query in place, without allocating: the fields hold what the last `read` found. One is reused for all packets.
 * Everything is checked against the packet's length; a question has no compression, because nothing stands before it.
 */
export class QueryScan {
  id = 0;
  opcode = 0;
  recursionDesired = false;
  /** The offset just behind the question; 0 when there is none that could be read. */
  questionEnd = 0;
  type = 0;
  class = 0;
  /** Of the question with its letters in lower case. */
  hash = 0;
  hasEdns = false;
  /** The offset of the OPT record's class field, where the sender's limit stands. */
  ednsAt = 0;
  /** The largest UDP answer that the sender takes; 512 without EDNS. */
  limit = plainUdpAnswer;
  dnssecOk = false;
  readonly #seed: number;

  /** `seed` makes the hash differ between processes, so that nobody can aim at the cache's slots. */
  constructor(seed: number) {
    this.#seed = seed;
  }

  read(packet: Buffer): Verdict {
    const length = packet.length;
    if (length < headerLength || length > maxMessage) return 'drop';
    const flags = packet[2] ?? 0;
    if (flags >= 0x80) return 'drop';
    this.id = ((packet[0] ?? 0) << 8) | (packet[1] ?? 0);
    this.opcode = (flags >> 3) & 15;
    this.recursionDesired = (flags & 1) === 1;
    this.questionEnd = 0;
    this.hasEdns = false;
    this.limit = plainUdpAnswer;
    this.dnssecOk = false;
    if (this.opcode !== 0) return 'notimp';
    const additional = ((packet[10] ?? 0) << 8) | (packet[11] ?? 0);
    // One question (RFC 9619), no answer and no authority; and what is announced must have room in the packet.
    if (((packet[4] ?? 0) | (packet[6] ?? 0) | (packet[7] ?? 0) | (packet[8] ?? 0) | (packet[9] ?? 0)) !== 0)
      return 'formerr';
    if (packet[5] !== 1 || additional > maxAdditional) return 'formerr';
    if (headerLength + 5 + additional * 11 > length) return 'formerr';
    const end = this.#readQuestion(packet, length);
    if (end === 0) return 'formerr';
    if (additional === 0) return end === length ? 'query' : 'formerr';
    return this.#readAdditional(packet, end, additional);
  }

  #readQuestion(packet: Buffer, length: number): number {
    let hash = this.#seed;
    let at = headerLength;
    for (;;) {
      const labelLength = packet[at] ?? 255;
      if (labelLength === 0) break;
      const next = at + 1 + labelLength;
      // Five octets must follow a label: the root, type and class. A name has at most 255 octets.
      if (labelLength > 63 || next + 5 > length || next - headerLength > 254) return 0;
      hash = Math.imul(hash ^ labelLength, hashPrime);
      for (let index = at + 1; index < next; index += 1) {
        const octet = packet[index] ?? 0;
        hash = Math.imul(hash ^ (octet >= 65 && octet <= 90 ? octet + 32 : octet), hashPrime);
      }
      at = next;
    }
    if (at + 5 > length) return 0;
    this.type = ((packet[at + 1] ?? 0) << 8) | (packet[at + 2] ?? 0);
    this.class = ((packet[at + 3] ?? 0) << 8) | (packet[at + 4] ?? 0);
    hash = Math.imul(hash ^ this.type, hashPrime);
    this.hash = (hash ^ (hash >>> 15)) >>> 0;
    this.questionEnd = at + 5;
    return at + 5;
  }

  #readAdditional(packet: Buffer, start: number, count: number): Verdict {
    const length = packet.length;
    let at = start;
    let version = 0;
    for (let record = 0; record < count; record += 1) {
      const nameEnd = skipName(packet, at);
      if (nameEnd === 0 || nameEnd + 10 > length) return 'formerr';
      const dataLength = packet.readUInt16BE(nameEnd + 8);
      const next = nameEnd + 10 + dataLength;
      if (next > length) return 'formerr';
      if (packet.readUInt16BE(nameEnd) === recordType.OPT) {
        // One OPT at most, owned by the root (RFC 6891 section 6.1.1), with well-formed options.
        if (this.hasEdns || nameEnd !== at + 1 || !optionsFit(packet, nameEnd + 10, next)) return 'formerr';
        this.hasEdns = true;
        this.ednsAt = nameEnd + 2;
        this.limit = Math.max(plainUdpAnswer, packet.readUInt16BE(nameEnd + 2));
        version = packet[nameEnd + 5] ?? 0;
        this.dnssecOk = ((packet[nameEnd + 6] ?? 0) & 0x80) !== 0;
      }
      at = next;
    }
    if (at !== length) return 'formerr';
    return version === 0 ? 'query' : 'badvers';
  }
}

/** The offset behind a possibly compressed name; 0 when it does not end within the packet. Pointers are not followed. */
export function skipName(packet: Buffer, offset: number): number {
  let at = offset;
  for (;;) {
    const length = packet[at] ?? 255;
    if (length === 0) return at + 1;
    if (length >= 0xc0) return at + 2 <= packet.length ? at + 2 : 0;
    if (length > 63 || at + 1 + length >= packet.length || at - offset > 255) return 0;
    at += 1 + length;
  }
}

function optionsFit(packet: Buffer, start: number, end: number): boolean {
  let at = start;
  while (at + 4 <= end) at += 4 + packet.readUInt16BE(at + 2);
  return at === end;
}
