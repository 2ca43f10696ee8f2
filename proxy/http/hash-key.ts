import type { IncomingHttpHeaders } from 'node:http2';
import type { Endpoint } from '../../src/model/address.ts';
import type { HashOn } from '../../src/model/hash-on.ts';
import { hashOfBytes, hashOfText } from '../balance/hashing.ts';
import { fields } from './fields.ts';
import { bytes } from './grammar.ts';
import { type Head, maxHeadBytes } from './head.ts';

const equalsSign = 0x3d;
/** What stands between the values of a header that came in several lines (RFC 9110 section 5.3). */
const between = Uint8Array.of(bytes.comma, bytes.space);

/**
 * Hashes what a service's requests are told apart by: the client's address, a header or a cookie. Equal values give equal
 * keys, whichever version of HTTP they come in. Undefined where a request has no such value, or an empty one.
 */
export class HashKey {
  readonly #kind: HashOn['kind'];
  readonly #name: string;
  readonly #nameBytes: Uint8Array;
  /** Where headers that come as text are written to. */
  #scratch: Buffer | undefined;

  constructor(hashOn: HashOn) {
    this.#kind = hashOn.kind;
    this.#name = hashOn.kind === 'source' ? '' : hashOn.name;
    this.#nameBytes = Buffer.from(this.#name, 'latin1');
  }

  /** Of a connection, whatever it carries. */
  static ofSource(peer: Endpoint | undefined): number | undefined {
    return peer === undefined ? undefined : hashOfText(peer.address);
  }

  /** Of a request of HTTP/1, to be called while its head is valid. */
  ofHead(head: Head, peer: Endpoint | undefined): number | undefined {
    if (this.#kind === 'source') return HashKey.ofSource(peer);
    return this.#kind === 'header' ? this.#ofFields(head) : this.#ofCookies(head);
  }

  /** Of a request of HTTP/2. */
  ofHeaders(headers: IncomingHttpHeaders, peer: Endpoint | undefined): number | undefined {
    if (this.#kind === 'source') return HashKey.ofSource(peer);
    const name = this.#kind === 'header' ? this.#name : 'cookie';
    const value = name === 'host' ? (headers[':authority'] ?? headers.host) : headers[name];
    if (value === undefined) return undefined;
    this.#scratch ??= Buffer.allocUnsafeSlow(maxHeadBytes);
    const end = this.#scratch.write(typeof value === 'string' ? value : value.join(', '), 'latin1');
    if (this.#kind === 'cookie') return this.#ofCookie(this.#scratch, 0, end);
    return end === 0 ? undefined : hashOfBytes(this.#scratch, 0, end);
  }

  #ofFields({ buffer, spans, count }: Head): number | undefined {
    let hash: number | undefined;
    let isEmpty = true;
    for (let slot = 0; slot < 4 * count; slot += 4) {
      const nameStart = spans[slot] as number;
      if ((spans[slot + 1] as number) - nameStart !== this.#nameBytes.length) continue;
      if (!this.#isNameAt(buffer, nameStart)) continue;
      const start = spans[slot + 2] as number;
      const end = spans[slot + 3] as number;
      isEmpty &&= hash === undefined && start === end;
      if (hash !== undefined) hash = hashOfBytes(between, 0, between.length, hash);
      hash = hashOfBytes(buffer, start, end, hash);
    }
    return isEmpty ? undefined : hash;
  }

  /** A header's name, which says the same in capitals. */
  #isNameAt(buffer: Uint8Array, at: number): boolean {
    const name = this.#nameBytes;
    for (let index = 0; index < name.length; index += 1) {
      const byte = buffer[at + index] as number;
      const small = byte >= 0x41 && byte <= 0x5a ? byte | 0x20 : byte;
      if (small !== name[index]) return false;
    }
    return true;
  }

  #ofCookies(head: Head): number | undefined {
    for (let index = 0; index < head.count; index += 1) {
      if (head.known[index] !== fields.cookie) continue;
      const start = head.spans[4 * index + 2] as number;
      const key = this.#ofCookie(head.buffer, start, head.spans[4 * index + 3] as number);
      if (key !== undefined) return key;
    }
    return undefined;
  }

  /** The first cookie of the name; RFC 6265 section 4.2.1, with as many or few spaces as come. */
  #ofCookie(buffer: Uint8Array, start: number, end: number): number | undefined {
    let at = start;
    while (at < end) {
      while (at < end && (buffer[at] === bytes.space || buffer[at] === bytes.tab)) at += 1;
      let next = at;
      while (next < end && buffer[next] !== bytes.semicolon) next += 1;
      const value = this.#cookieValueAt(buffer, at, next);
      if (value >= 0) {
        let valueEnd = next;
        while (valueEnd > value && (buffer[valueEnd - 1] === bytes.space || buffer[valueEnd - 1] === bytes.tab)) {
          valueEnd -= 1;
        }
        if (valueEnd > value) return hashOfBytes(buffer, value, valueEnd);
      }
      at = next + 1;
    }
    return undefined;
  }

  /** Where the cookie's value begins, or -1 if it is another cookie. */
  #cookieValueAt(buffer: Uint8Array, start: number, end: number): number {
    const name = this.#nameBytes;
    if (end - start <= name.length || buffer[start + name.length] !== equalsSign) return -1;
    for (let index = 0; index < name.length; index += 1) if (buffer[start + index] !== name[index]) return -1;
    return start + name.length + 1;
  }
}
