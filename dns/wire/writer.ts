import { classIn, maxMessage } from './constants.ts';
import type { Name } from './name.ts';
import { addressOctets, numberOfType, type Resource } from './resource.ts';

/** Pointers have 14 bits (RFC 1035 section 4.1.4). */
const maxPointer = 0x3fff;
const firstCapacity = 2048;

/**
 * Writes records behind each other, compressing names against those already written. The buffer grows up to the largest
 * message; a record that has no room there is not written.
 */
export class RecordWriter {
  #bytes = Buffer.allocUnsafe(firstCapacity);
  #length = 0;
  /** Offsets of name suffixes that stay where they are. */
  readonly #suffixes = new Map<string, number>();

  get length(): number {
    return this.#length;
  }

  /** What has been written; a copy. */
  bytes(): Buffer {
    return Buffer.from(this.#bytes.subarray(0, this.#length));
  }

  header(octets: Uint8Array): void {
    this.#reserve(octets.length);
    this.#bytes.set(octets, this.#length);
    this.#length += octets.length;
  }

  question(name: Name, type: number): void {
    this.#name(name, true, true);
    this.#number16(type);
    this.#number16(classIn);
  }

  /**
   * Writes one record. With `movable`, the record may be moved within the message later: no other name may point into
   * it. False, and nothing written, when it has no room.
   */
  record(resource: Resource, movable: boolean): boolean {
    const start = this.#length;
    const known = this.#suffixes.size;
    try {
      this.#name(resource.owner, true, !movable);
      this.#number16(numberOfType(resource));
      this.#number16(classIn);
      this.#number32(resource.ttl);
      this.#number16(0);
      const dataStart = this.#length;
      this.#data(resource, movable);
      this.#bytes.writeUInt16BE(this.#length - dataStart, dataStart - 2);
      return true;
    } catch (error) {
      if (!(error instanceof NoRoom)) throw error;
      this.#length = start;
      for (const suffix of [...this.#suffixes.keys()].slice(known)) this.#suffixes.delete(suffix);
      return false;
    }
  }

  #data(resource: Resource, movable: boolean): void {
    switch (resource.type) {
      case 'A':
      case 'AAAA':
        for (const octet of addressOctets(resource.address)) this.#number8(octet);
        return;
      case 'NS':
      case 'PTR':
        this.#name(resource.target, true, !movable);
        return;
      case 'SRV':
        this.#number16(resource.priority);
        this.#number16(resource.weight);
        this.#number16(resource.port);
        // RFC 2782: name compression is not to be used for the target.
        this.#name(resource.target, false, !movable);
        return;
      case 'TXT':
        for (const text of resource.strings) this.#string(text);
        return;
      case 'HINFO':
        this.#string(Buffer.from(resource.cpu, 'latin1'));
        this.#string(Buffer.from(resource.os, 'latin1'));
        return;
      case 'SOA': {
        const { soa } = resource;
        this.#name(soa.primary, true, !movable);
        this.#name(soa.mailbox, true, !movable);
        for (const number of [soa.serial, soa.refresh, soa.retry, soa.expire, soa.minimum]) this.#number32(number);
      }
    }
  }

  #name(name: Name, compress: boolean, remember: boolean): void {
    for (let index = 0; index < name.length; index += 1) {
      const suffix = suffixKey(name, index);
      const known = this.#suffixes.get(suffix);
      if (compress && known !== undefined) {
        this.#number16(0xc000 | known);
        return;
      }
      if (remember && known === undefined && this.#length <= maxPointer) this.#suffixes.set(suffix, this.#length);
      this.#string(Buffer.from(name[index] ?? '', 'latin1'));
    }
    this.#number8(0);
  }

  /** A length octet and that many octets; labels and character strings look the same. */
  #string(octets: Buffer): void {
    this.#number8(octets.length);
    this.#reserve(octets.length);
    this.#bytes.set(octets, this.#length);
    this.#length += octets.length;
  }

  #number8(value: number): void {
    this.#reserve(1);
    this.#bytes[this.#length] = value;
    this.#length += 1;
  }

  #number16(value: number): void {
    this.#reserve(2);
    this.#bytes.writeUInt16BE(value, this.#length);
    this.#length += 2;
  }

  #number32(value: number): void {
    this.#reserve(4);
    this.#bytes.writeUInt32BE(value, this.#length);
    this.#length += 4;
  }

  #reserve(count: number): void {
    const needed = this.#length + count;
    if (needed > maxMessage - reservedForOpt) throw new NoRoom();
    if (needed <= this.#bytes.length) return;
    const larger = Buffer.allocUnsafe(Math.min(maxMessage, Math.max(needed, this.#bytes.length * 4)));
    this.#bytes.copy(larger, 0, 0, this.#length);
    this.#bytes = larger;
  }
}

/** The OPT record with its largest option goes behind all records, so its room is kept free. */
const reservedForOpt = 256;

class NoRoom extends Error {}

function suffixKey(name: Name, from: number): string {
  let key = '';
  for (let index = from; index < name.length; index += 1) {
    const label = name[index] ?? '';
    key += String.fromCharCode(label.length) + label;
  }
  return key;
}
