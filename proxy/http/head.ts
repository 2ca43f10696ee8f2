import { HttpFault } from './fault.ts';
import { type Field, fieldOf, fields } from './fields.ts';
import { bytes, hexValues, isAuthority, isTarget, isToken, isValue } from './grammar.ts';

/** Bytes of a head in all, of its target, and its fields; what is more is refused with 431 or 414. */
export const maxHeadBytes = 32_768;
export const maxTargetBytes = 16_384;
export const maxFields = 128;
const maxMethodBytes = 32;
/** Options of `Connection` that name further fields. */
const maxNamed = 16;

/** Methods that the relay knows; all others are passed on, and are neither safe nor idempotent. */
export const methods = {
  other: 0,
  get: 1,
  head: 2,
  post: 3,
  put: 4,
  delete: 5,
  options: 6,
  trace: 7,
  connect: 8,
  patch: 9,
} as const;
export type Method = (typeof methods)[keyof typeof methods];

const methodNames: readonly (readonly [Uint8Array, Method])[] = (
  ['get', 'head', 'post', 'put', 'delete', 'options', 'trace', 'connect', 'patch'] as const
).map((name) => [Uint8Array.from(Buffer.from(name.toUpperCase(), 'latin1')), methods[name]]);

/** RFC 9110 section 9.2.2: to do it twice is to do it once. */
export function isIdempotent(method: Method): boolean {
  return method !== methods.other && method !== methods.post && method !== methods.connect && method !== methods.patch;
}

/**
 * The head of one message: where its parts lie in the bytes that it was read from. One is used again and again; it is valid
 * while those bytes are.
 *
 * Strict, as RFC 9112 lets a server be: whatever another receiver might read in another way is refused. Lines end in CR LF,
 * a field's name is followed by its colon at once, no field is folded, a message has one length, and a request one host.
 */
export class Head {
  buffer: Buffer = Buffer.alloc(0);
  /** Where the first line begins, and where the body does. */
  start = 0;
  end = 0;
  /** The y of HTTP/1.y. */
  minor: 0 | 1 = 1;
  method: Method = methods.other;
  methodEnd = 0;
  targetStart = 0;
  targetEnd = 0;
  /** Where the target's host lies, when it is an absolute one; `pathStart` is then where its path begins, `targetEnd` if it has none. */
  authorityStart = 0;
  authorityEnd = 0;
  pathStart = 0;
  status = 0;
  count = 0;
  /** Four for each field: where its name and its value begin and end. */
  readonly spans = new Int32Array(4 * maxFields);
  readonly known = new Uint8Array(maxFields);
  /** Undefined when the head says none. */
  contentLength: number | undefined;
  chunked = false;
  /** The field's index, or -1. */
  hostAt = -1;
  /** The last `X-Forwarded-For`, or -1. */
  forwardedForAt = -1;
  /** Fields `Via`: each sidecar adds one. */
  viaCount = 0;
  closes = false;
  keepsAlive = false;
  /** `Connection` has the option `upgrade`, and there is an `Upgrade`. */
  upgrades = false;
  expectsContinue = false;
  /** `TE` has the option `trailers`. */
  takesTrailers = false;
  /** The names in `Connection` beside those it always may have: where each begins and ends. */
  readonly named = new Int32Array(2 * maxNamed);
  namedCount = 0;
  #asksUpgrade = false;
  #hasUpgrade = false;
  #transferEncodingAt = -1;
  #isRequest = true;

  /**
   * Reads a request's head from `at`. Gives where its body begins, or -1 while the head is not all there. One empty line
   * before it is passed over, as RFC 9112 section 2.2 asks ("at least one"): old clients put one behind a body. A second one
   * is refused with 400, so that nobody sends empty lines without end.
   */
  readRequest(buffer: Buffer, at: number): number {
    this.#begin(buffer, true);
    const end = buffer.length;
    let start = at;
    if (buffer[at] === bytes.cr) {
      if (at + 1 >= end) return -1;
      if (buffer[at + 1] !== bytes.lf) throw new HttpFault('request-line', 'a CR without its LF');
      start = at + 2;
    }
    this.start = start;
    const line = this.#requestLine(buffer, start, end);
    if (line < 0) return checkSize(end - start, start === at ? 0 : 2);
    const body = this.#fields(buffer, line, end);
    if (body < 0) return checkSize(end - start, 0);
    this.#checkRequest();
    this.end = body;
    return body;
  }

  /** Reads a response's head from `at`; the same. */
  readResponse(buffer: Buffer, at: number): number {
    this.#begin(buffer, false);
    const end = buffer.length;
    this.start = at;
    const line = this.#statusLine(buffer, at, end);
    if (line < 0) return checkSize(end - at, 0);
    const body = this.#fields(buffer, line, end);
    if (body < 0) return checkSize(end - at, 0);
    this.#checkFraming();
    this.end = body;
    return body;
  }

  /** Reads the fields behind the last chunk. */
  readTrailers(buffer: Buffer, at: number): number {
    this.#begin(buffer, false);
    this.start = at;
    const body = this.#fields(buffer, at, buffer.length);
    if (body < 0) return checkSize(buffer.length - at, 0);
    for (let index = 0; index < this.count; index += 1) {
      const field = this.known[index];
      if (field === fields.contentLength || field === fields.transferEncoding || field === fields.host)
        throw new HttpFault('trailer', 'a trailer that changes how the message is read');
    }
    this.end = body;
    return body;
  }

  /** The value of a field, as text. */
  value(index: number): string {
    return this.text(this.spans[4 * index + 2] ?? 0, this.spans[4 * index + 3] ?? 0);
  }

  /** The index of the first such field, or -1. */
  find(field: Field): number {
    for (let index = 0; index < this.count; index += 1) if (this.known[index] === field) return index;
    return -1;
  }

  text(start: number, end: number): string {
    return this.buffer.toString('latin1', start, end);
  }

  /** Whether `Connection` names this field, so that it concerns this hop only. */
  isNamed(index: number): boolean {
    const start = this.spans[4 * index] ?? 0;
    const size = (this.spans[4 * index + 1] ?? 0) - start;
    for (let each = 0; each < this.namedCount; each += 1) {
      const from = this.named[2 * each] ?? 0;
      if ((this.named[2 * each + 1] ?? 0) - from === size && this.#same(start, from, size)) return true;
    }
    return false;
  }

  #same(a: number, b: number, size: number): boolean {
    const { buffer } = this;
    for (let index = 0; index < size; index += 1) {
      if (small(buffer[a + index] as number) !== small(buffer[b + index] as number)) return false;
    }
    return true;
  }

  #begin(buffer: Buffer, isRequest: boolean): void {
    this.buffer = buffer;
    this.#isRequest = isRequest;
    this.count = 0;
    this.contentLength = undefined;
    this.chunked = false;
    this.hostAt = -1;
    this.forwardedForAt = -1;
    this.viaCount = 0;
    this.closes = false;
    this.keepsAlive = false;
    this.upgrades = false;
    this.expectsContinue = false;
    this.takesTrailers = false;
    this.namedCount = 0;
    this.#asksUpgrade = false;
    this.#hasUpgrade = false;
    this.#transferEncodingAt = -1;
  }

  // First lines

  /** RFC 9112 section 3: method, target and version, each one space apart. */
  #requestLine(buffer: Buffer, start: number, end: number): number {
    let at = start;
    while (at < end && isToken[buffer[at] as number] === 1) at += 1;
    if (at - start > maxMethodBytes) throw new HttpFault('request-line', 'a method of more than 32 bytes', 501);
    if (at === end) return -1;
    if (at === start || buffer[at] !== bytes.space) throw new HttpFault('request-line', 'a method that is no word');
    this.methodEnd = at;
    this.method = methodOf(buffer, start, at);
    at += 1;
    this.targetStart = at;
    while (at < end && isTarget[buffer[at] as number] === 1) at += 1;
    if (at - this.targetStart > maxTargetBytes) throw new HttpFault('too-large', 'a target that is too long', 414);
    if (at === end) return -1;
    if (at === this.targetStart || buffer[at] !== bytes.space)
      throw new HttpFault('target', 'a target with a byte that has no place in one');
    this.targetEnd = at;
    return this.#version(buffer, at + 1, end);
  }

  /** `HTTP/1.1` and the end of the line. */
  #version(buffer: Buffer, start: number, end: number): number {
    const after = this.#protocol(buffer, start, end);
    if (after < 0 || after + 1 >= end) {
      if (after >= 0 && after < end && buffer[after] !== bytes.cr)
        throw new HttpFault('request-line', 'a line that goes on');
      return -1;
    }
    if (buffer[after] !== bytes.cr || buffer[after + 1] !== bytes.lf)
      throw new HttpFault('request-line', 'a line that does not end in CR LF');
    return after + 2;
  }

  /** Gives where the version ends, or -1. */
  #protocol(buffer: Buffer, start: number, end: number): number {
    const there = Math.min(end - start, protocol.length);
    for (let index = 0; index < there; index += 1) {
      if (buffer[start + index] !== protocol[index]) {
        throw otherVersion(index === 5 ? buffer[start + index] : undefined);
      }
    }
    if (end - start <= protocol.length) return -1;
    const minor = buffer[start + protocol.length];
    if (minor !== 0x30 && minor !== 0x31) throw otherVersion(minor);
    this.minor = minor === 0x31 ? 1 : 0;
    return start + protocol.length + 1;
  }

  /** RFC 9112 section 4; the space before a reason that is left out may be left out too. */
  #statusLine(buffer: Buffer, start: number, end: number): number {
    let at = this.#protocol(buffer, start, end);
    if (at < 0 || at + 4 >= end) return -1;
    if (buffer[at] !== bytes.space) throw new HttpFault('status-line', 'no space behind the version');
    let status = 0;
    for (let index = 1; index <= 3; index += 1) {
      const digit = (buffer[at + index] as number) - 0x30;
      if (digit < 0 || digit > 9) throw new HttpFault('status-line', 'a status that is no number');
      status = status * 10 + digit;
    }
    if (status < 100 || status > 599) throw new HttpFault('status-line', 'a status that is none');
    this.status = status;
    at += 4;
    if (buffer[at] === bytes.space) {
      at += 1;
      while (at < end && isValue[buffer[at] as number] === 1) at += 1;
    }
    if (at + 1 >= end) return -1;
    if (buffer[at] !== bytes.cr || buffer[at + 1] !== bytes.lf)
      throw new HttpFault('status-line', 'a line that does not end in CR LF');
    return at + 2;
  }

  // Fields

  /** RFC 9112 section 5. Gives where the empty line behind them ends, or -1. */
  #fields(buffer: Buffer, start: number, end: number): number {
    const { spans, known } = this;
    let at = start;
    for (;;) {
      if (at >= end) return -1;
      const name = at;
      while (at < end && isToken[buffer[at] as number] === 1) at += 1;
      if (at >= end) return -1;
      if (at === name) {
        if (buffer[at] !== bytes.cr) throw new HttpFault('field', lineFault(buffer[at] as number));
        if (at + 1 >= end) return -1;
        if (buffer[at + 1] !== bytes.lf) throw new HttpFault('field', 'a CR without its LF');
        checkSize(at + 2 - this.start, 0);
        return at + 2;
      }
      if (buffer[at] !== bytes.colon) throw new HttpFault('field', 'a name that its colon does not follow at once');
      const nameEnd = at;
      at += 1;
      while (at < end && (buffer[at] === bytes.space || buffer[at] === bytes.tab)) at += 1;
      const value = at;
      while (at < end && isValue[buffer[at] as number] === 1) at += 1;
      if (at + 1 >= end) {
        if (at < end && buffer[at] !== bytes.cr) throw new HttpFault('field', 'a value with a control character');
        return -1;
      }
      if (buffer[at] !== bytes.cr) throw new HttpFault('field', 'a value with a control character');
      if (buffer[at + 1] !== bytes.lf) throw new HttpFault('field', 'a CR without its LF');
      let valueEnd = at;
      while (valueEnd > value && (buffer[valueEnd - 1] === bytes.space || buffer[valueEnd - 1] === bytes.tab))
        valueEnd -= 1;
      at += 2;
      const index = this.count;
      if (index >= maxFields) throw new HttpFault('too-large', `more than ${maxFields} fields`, 431);
      const slot = 4 * index;
      spans[slot] = name;
      spans[slot + 1] = nameEnd;
      spans[slot + 2] = value;
      spans[slot + 3] = valueEnd;
      this.count = index + 1;
      const field = fieldOf(buffer, name, nameEnd);
      known[index] = field;
      if (field !== fields.other) this.#take(field, index, value, valueEnd);
      if (at - this.start > maxHeadBytes) throw new HttpFault('too-large', 'a head that is too large', 431);
    }
  }

  #take(field: Field, index: number, start: number, end: number): void {
    switch (field) {
      case fields.contentLength:
        this.#length(start, end);
        break;
      case fields.transferEncoding:
        if (this.#transferEncodingAt >= 0) throw new HttpFault('framing', 'two Transfer-Encodings');
        this.#transferEncodingAt = index;
        if (!this.#is(start, end, 'chunked'))
          throw new HttpFault('framing', 'a transfer coding other than chunked', 501);
        this.chunked = true;
        break;
      case fields.host:
        if (this.hostAt >= 0) throw new HttpFault('host', 'two Hosts');
        this.hostAt = index;
        break;
      case fields.connection:
        this.#options(start, end);
        break;
      case fields.upgrade:
        this.#hasUpgrade = true;
        break;
      case fields.te:
        this.takesTrailers ||= this.#is(start, end, 'trailers');
        break;
      case fields.expect:
        if (!this.#isRequest) break;
        if (!this.#is(start, end, '100-continue'))
          throw new HttpFault('field', 'an expectation that nobody knows', 417);
        this.expectsContinue = true;
        break;
      case fields.forwardedFor:
        this.forwardedForAt = index;
        break;
      case fields.via:
        this.viaCount += 1;
        break;
    }
  }

  /** RFC 9112 section 6.3; also an equal second one is refused. */
  #length(start: number, end: number): void {
    if (this.contentLength !== undefined) throw new HttpFault('framing', 'two Content-Lengths');
    if (start === end || end - start > 15) throw new HttpFault('framing', 'a Content-Length that is no number');
    let length = 0;
    for (let at = start; at < end; at += 1) {
      const digit = (this.buffer[at] as number) - 0x30;
      if (digit < 0 || digit > 9) throw new HttpFault('framing', 'a Content-Length that is no number');
      length = length * 10 + digit;
    }
    this.contentLength = length;
  }

  /** RFC 9110 section 7.6.1. */
  #options(start: number, end: number): void {
    const { buffer } = this;
    let at = start;
    while (at < end) {
      const byte = buffer[at] as number;
      if (byte === bytes.comma || byte === bytes.space || byte === bytes.tab) {
        at += 1;
        continue;
      }
      const from = at;
      while (at < end && isToken[buffer[at] as number] === 1) at += 1;
      if (at === from) throw new HttpFault('connection', 'a Connection that is no list of names');
      this.#option(from, at);
      while (at < end && (buffer[at] === bytes.space || buffer[at] === bytes.tab)) at += 1;
      if (at < end && buffer[at] !== bytes.comma)
        throw new HttpFault('connection', 'a Connection that is no list of names');
    }
  }

  #option(start: number, end: number): void {
    if (this.#is(start, end, 'close')) this.closes = true;
    else if (this.#is(start, end, 'keep-alive')) this.keepsAlive = true;
    else if (this.#is(start, end, 'upgrade')) this.#asksUpgrade = true;
    else {
      const field = fieldOf(this.buffer, start, end);
      if (isForAll(field))
        throw new HttpFault('connection', 'a Connection that names a field which concerns everybody');
      if (this.namedCount === maxNamed) throw new HttpFault('connection', 'a Connection with too many names');
      this.named[2 * this.namedCount] = start;
      this.named[2 * this.namedCount + 1] = end;
      this.namedCount += 1;
    }
  }

  /** Whether the bytes are this word, in small letters, without regard to case. */
  #is(start: number, end: number, word: string): boolean {
    if (end - start !== word.length) return false;
    for (let index = 0; index < word.length; index += 1) {
      if (small(this.buffer[start + index] as number) !== word.charCodeAt(index)) return false;
    }
    return true;
  }

  // The whole

  #checkFraming(): void {
    this.upgrades = this.#asksUpgrade && this.#hasUpgrade;
    if (!this.chunked) return;
    if (this.contentLength !== undefined)
      throw new HttpFault('framing', 'both a Content-Length and a Transfer-Encoding');
    if (this.minor === 0) throw new HttpFault('framing', 'a Transfer-Encoding in HTTP/1.0');
  }

  #checkRequest(): void {
    this.#checkFraming();
    this.#checkTarget();
    if (this.hostAt < 0) {
      if (this.minor === 1) throw new HttpFault('host', 'no Host');
      return;
    }
    const start = this.spans[4 * this.hostAt + 2] ?? 0;
    const end = this.spans[4 * this.hostAt + 3] ?? 0;
    this.#checkAuthority(start, end);
    const size = this.authorityEnd - this.authorityStart;
    if (size > 0 && (size !== end - start || !this.#same(this.authorityStart, start, size)))
      throw new HttpFault('host', 'a Host that is not the one of the target');
  }

  /** RFC 9112 section 3.2: a path, `*` with OPTIONS, a host and port with CONNECT, or a whole URI. */
  #checkTarget(): void {
    const { buffer, targetStart: start, targetEnd: end } = this;
    this.authorityStart = 0;
    this.authorityEnd = 0;
    this.pathStart = start;
    if (this.method === methods.connect) {
      if (!this.#checkAuthority(start, end)) throw new HttpFault('target', 'a CONNECT that names no port');
      this.authorityStart = start;
      this.authorityEnd = end;
      return;
    }
    if (buffer[start] === bytes.slash) return;
    if (buffer[start] === 0x2a && end - start === 1) {
      if (this.method !== methods.options) throw new HttpFault('target', 'the target * without OPTIONS');
      return;
    }
    const scheme = this.#is(start, Math.min(end, start + 7), 'http://')
      ? 7
      : this.#is(start, Math.min(end, start + 8), 'https://')
        ? 8
        : 0;
    if (scheme === 0) throw new HttpFault('target', 'a target that is neither a path nor a URI');
    let at = start + scheme;
    this.authorityStart = at;
    while (at < end && buffer[at] !== bytes.slash && buffer[at] !== 0x3f) at += 1;
    this.authorityEnd = at;
    this.pathStart = at;
    this.#checkAuthority(this.authorityStart, at);
  }

  /** A host, and perhaps a port, with nothing else. Gives whether there is a port. */
  #checkAuthority(start: number, end: number): boolean {
    const { buffer } = this;
    if (start === end) throw new HttpFault('host', 'an empty host');
    let at = start;
    if (buffer[at] === 0x5b) {
      at += 1;
      while (at < end && (buffer[at] === bytes.colon || buffer[at] === 0x2e || hexValues[buffer[at] as number] !== 255))
        at += 1;
      if (at === start + 1 || buffer[at] !== 0x5d) throw new HttpFault('host', 'an address in brackets that is none');
      at += 1;
    } else {
      while (at < end && buffer[at] !== bytes.colon) {
        if (isAuthority[buffer[at] as number] === 0)
          throw new HttpFault('host', 'a host with a byte that has no place in one');
        if (buffer[at] === 0x5b || buffer[at] === 0x5d) throw new HttpFault('host', 'a host with brackets inside');
        at += 1;
      }
      if (at === start) throw new HttpFault('host', 'an empty host');
    }
    if (at === end) return false;
    const port = at + 1;
    if (buffer[at] !== bytes.colon || end - at > 6) throw new HttpFault('host', 'a port that is none');
    for (at += 1; at < end; at += 1) {
      const digit = (buffer[at] as number) - 0x30;
      if (digit < 0 || digit > 9) throw new HttpFault('host', 'a port that is none');
    }
    return at > port;
  }
}

const protocol = Uint8Array.from(Buffer.from('HTTP/1.', 'latin1'));

function methodOf(buffer: Buffer, start: number, end: number): Method {
  for (let index = 0; index < methodNames.length; index += 1) {
    const entry = methodNames[index];
    if (entry === undefined || entry[0].length !== end - start) continue;
    let at = 0;
    while (at < entry[0].length && buffer[start + at] === entry[0][at]) at += 1;
    if (at === entry[0].length) return entry[1];
  }
  return methods.other;
}

/** Fields that no `Connection` may take away: they say what the message is, where it goes and whom it came from. */
function isForAll(field: Field): boolean {
  switch (field) {
    case fields.host:
    case fields.contentLength:
    case fields.transferEncoding:
    case fields.via:
    case fields.forwarded:
    case fields.forwardedFor:
    case fields.forwardedProto:
    case fields.forwardedHost:
    case fields.cookie:
    case fields.expect:
      return true;
    default:
      return false;
  }
}

function small(byte: number): number {
  return byte >= 0x41 && byte <= 0x5a ? byte | 0x20 : byte;
}

/** A version that there may be is told from what is none. */
function otherVersion(digit: number | undefined): HttpFault {
  const isNumber = digit !== undefined && digit >= 0x30 && digit <= 0x39;
  return new HttpFault('version', 'a version other than HTTP/1.0 and HTTP/1.1', isNumber ? 505 : 400);
}

function lineFault(byte: number): string {
  if (byte === bytes.space || byte === bytes.tab) return 'a folded line';
  return byte === bytes.lf ? 'an LF without its CR' : 'a line that does not begin with a name';
}

/** -1, unless what is there is too much already: the same for what came at once and in pieces. */
function checkSize(size: number, skipped: number): -1 {
  if (size - skipped > maxHeadBytes) throw new HttpFault('too-large', 'a head that is too large', 431);
  return -1;
}
