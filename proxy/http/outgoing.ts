import type { Endpoint } from '../../src/model/address.ts';
import type { Forwarding } from '../../src/model/service-settings.ts';
import { TraceIds } from '../trace-ids.ts';
import { fields, saysForWhom } from './fields.ts';
import type { Head } from './head.ts';
import type { HeaderEdits } from './routing/header-edits.ts';

/** What the head of a request is given on its way, the same for all requests of one client's connection. */
export interface ClientLines {
  readonly forwarding: Forwarding;
  readonly address: string;
  /** Whole lines: `Via`, and those of the client where it says none itself. */
  readonly via: Buffer;
  readonly forwardedFor: Buffer;
  readonly forwardedProto: Buffer;
  /** These three together. */
  readonly all: Buffer;
}

const pseudonym = 'legate';
const lineEnd = Buffer.from('\r\n', 'latin1');
const version = Buffer.from(' HTTP/1.1\r\n', 'latin1');
const slash = Buffer.from('/', 'latin1');
const status = Buffer.from('HTTP/1.1', 'latin1');
const upgradeLine = Buffer.from('Connection: Upgrade\r\n', 'latin1');
const trailersLine = Buffer.from('TE: trailers\r\nConnection: TE\r\n', 'latin1');
const closeLine = Buffer.from('Connection: close\r\n', 'latin1');
const keepAliveLine = Buffer.from('Connection: keep-alive\r\n', 'latin1');
const idBegin = Buffer.from('X-Request-Id: ', 'latin1');
const traceBegin = Buffer.from('traceparent: 00-', 'latin1');
const dash = Buffer.from('-', 'latin1');
const traceEnd = Buffer.from('-01\r\n', 'latin1');
const forwardedForName = 'X-Forwarded-For: ';
/** What is written at most beside what came. */
const ownBytes = 2048;
/** Heads are written one behind another into blocks of so many bytes. */
const blockBytes = 16_384;
/** Fewer bytes are copied faster one by one than by the runtime, which makes an object for each copy. */
const fewBytes = 160;

export function clientLines(
  client: Endpoint | undefined,
  scheme: 'http' | 'https',
  forwarding: Forwarding,
): ClientLines {
  const address = client?.address ?? 'unknown';
  const via = Buffer.from(`Via: 1.1 ${pseudonym}\r\n`, 'latin1');
  const forwardedFor = Buffer.from(`${forwardedForName}${address}\r\n`, 'latin1');
  const forwardedProto = Buffer.from(`X-Forwarded-Proto: ${scheme}\r\n`, 'latin1');
  const all = Buffer.concat([via, forwardedFor, forwardedProto]);
  return { forwarding, address, via, forwardedFor, forwardedProto, all };
}

export interface RequestChanges {
  readonly lines: ClientLines;
  /** The `Host` of a request that has none (HTTP/1.0). */
  readonly host: string;
  /** Writes the id of a request whose client has named none (see `TraceIds`). */
  readonly putId: (out: Buffer, at: number) => void;
  /** Whether the connection may become another protocol's. */
  readonly upgrade: boolean;
  /** What a route makes of the target and of the fields; undefined: they stay. */
  readonly target: string | undefined;
  readonly edits: HeaderEdits | undefined;
}

/**
 * Writes the heads that leave. What came is copied in as few pieces as there are runs of fields that stay; nothing is
 * read twice. One for a process: what it gives is its receiver's.
 */
export class HeadComposer {
  #out = Buffer.allocUnsafeSlow(blockBytes);
  #from = 0;
  #at = 0;

  /** The request for an instance: RFC 9110 section 7.6. */
  request(head: Head, changes: RequestChanges): Buffer {
    const { lines, target, edits } = changes;
    const from = head.buffer;
    const added = (target?.length ?? 0) + (edits?.lines.length ?? 0);
    this.#begin(head.end - head.start + changes.host.length + lines.address.length + added);
    if (target !== undefined) {
      this.#copy(from, head.start, head.methodEnd + 1);
      this.#text(target);
    } else if (head.pathStart === head.targetStart && head.targetStart === head.methodEnd + 1) {
      this.#copy(from, head.start, head.targetEnd);
    } else {
      this.#copy(from, head.start, head.methodEnd + 1);
      if (head.pathStart === head.targetEnd || from[head.pathStart] === 0x3f) this.#put(slash);
      this.#copy(from, head.pathStart, head.targetEnd);
    }
    this.#put(version);
    let hasProto = false;
    let hasId = false;
    let hasTrace = false;
    let run = -1;
    for (let index = 0; index < head.count; index += 1) {
      const field = head.known[index];
      let stays = true;
      if (field !== fields.other) {
        switch (field) {
          case fields.connection:
          case fields.keepAlive:
          case fields.proxyConnection:
          case fields.te:
          case fields.http2Settings:
            stays = false;
            break;
          case fields.upgrade:
            stays = changes.upgrade && head.upgrades;
            break;
          case fields.forwardedFor:
            stays = lines.forwarding === 'leave' || (lines.forwarding === 'append' && index !== head.forwardedForAt);
            break;
          case fields.forwarded:
            stays = lines.forwarding !== 'set';
            break;
          case fields.forwardedProto:
            stays = lines.forwarding !== 'set';
            hasProto ||= stays;
            break;
          case fields.forwardedHost:
            stays = lines.forwarding !== 'set';
            break;
          case fields.requestId:
            hasId = true;
            break;
          case fields.traceparent:
            hasTrace = true;
            break;
        }
      } else if (lines.forwarding === 'set') {
        stays = !saysForWhom(from, head.spans[4 * index] ?? 0, head.spans[4 * index + 1] ?? 0);
      }
      if (stays && head.namedCount > 0) stays = !head.isNamed(index);
      if (stays && edits !== undefined) stays = !edits.takes(head, index);
      run = this.#step(head, from, index, stays, run);
    }
    this.#endRun(head, from, run);
    if (head.hostAt < 0) this.#text(`Host: ${changes.host}\r\n`);
    if (edits !== undefined) {
      // What a route sets or removes is not written again.
      if (!edits.touches('via')) this.#put(lines.via);
      hasProto ||= edits.touches('x-forwarded-proto');
      hasId ||= edits.touches('x-request-id');
      hasTrace ||= edits.touches('traceparent');
      this.#put(edits.lines);
      if (lines.forwarding !== 'leave') this.#client(head, from, lines, hasProto, edits);
    } else if (lines.forwarding !== 'leave' && head.forwardedForAt < 0 && !hasProto) this.#put(lines.all);
    else {
      this.#put(lines.via);
      if (lines.forwarding !== 'leave') this.#client(head, from, lines, hasProto, undefined);
    }
    if (!hasId || !hasTrace) {
      this.#put(hasId ? traceBegin : idBegin);
      const id = this.#at;
      changes.putId(this.#out, id);
      this.#at += TraceIds.length;
      if (!hasId) this.#put(lineEnd);
      if (!hasTrace) {
        if (!hasId) {
          this.#put(traceBegin);
          this.#copy(this.#out, id, id + TraceIds.length);
        }
        this.#put(dash);
        this.#copy(this.#out, id + TraceIds.length / 2, id + TraceIds.length);
        this.#put(traceEnd);
      }
    }
    if (changes.upgrade && head.upgrades) this.#put(upgradeLine);
    else if (head.takesTrailers) this.#put(trailersLine);
    this.#put(lineEnd);
    return this.#take();
  }

  /**
   * The response for a client, with `body`, if any, behind it. `connection`: what the client is told about it; `cookie`: the
   * value of a `Set-Cookie` of our own.
   */
  response(
    head: Head,
    connection: 'close' | 'keep-alive' | 'upgrade' | 'tunnel' | undefined,
    dropsChunking: boolean,
    body: Buffer | undefined,
    edits?: HeaderEdits,
    cookie?: string,
  ): Buffer {
    const from = head.buffer;
    const added = (edits?.lines.length ?? 0) + (cookie?.length ?? 0);
    this.#begin(head.end - head.start + (body?.length ?? 0) + added);
    // These have no content, and say nothing of its length: RFC 9110 section 8.6, RFC 9112 section 6.1.
    const isBare = head.status === 204 || head.status < 200;
    // The status and its reason; the version is ours.
    this.#put(status);
    const firstLine = head.count > 0 ? (head.spans[0] ?? 0) : head.end - 2;
    this.#copy(from, head.start + 8, firstLine);
    let run = -1;
    for (let index = 0; index < head.count; index += 1) {
      const field = head.known[index];
      let stays = true;
      if (field !== fields.other) {
        switch (field) {
          case fields.connection:
          case fields.keepAlive:
          case fields.proxyConnection:
          case fields.te:
            stays = false;
            break;
          case fields.upgrade:
            stays = connection === 'upgrade';
            break;
          case fields.transferEncoding:
          case fields.trailer:
            stays = !dropsChunking && !isBare;
            break;
          case fields.contentLength:
            stays = connection !== 'tunnel' && !isBare;
            break;
        }
      }
      if (stays && head.namedCount > 0) stays = !head.isNamed(index);
      if (stays && edits !== undefined) stays = !edits.takes(head, index);
      run = this.#step(head, from, index, stays, run);
    }
    this.#endRun(head, from, run);
    if (edits !== undefined) this.#put(edits.lines);
    if (cookie !== undefined) this.#text(`Set-Cookie: ${cookie}\r\n`);
    if (connection === 'close') this.#put(closeLine);
    else if (connection === 'keep-alive') this.#put(keepAliveLine);
    else if (connection === 'upgrade') this.#put(upgradeLine);
    this.#put(lineEnd);
    if (body !== undefined) this.#put(body);
    return this.#take();
  }

  /** Who the client is, where it came through others as well. */
  #client(head: Head, from: Buffer, lines: ClientLines, hasProto: boolean, edits: HeaderEdits | undefined): void {
    if (edits?.touches('x-forwarded-for') === true) {
      // It is the route's.
    } else if (head.forwardedForAt < 0 || lines.forwarding === 'set') this.#put(lines.forwardedFor);
    else {
      const slot = 4 * head.forwardedForAt;
      this.#text(forwardedForName);
      this.#copy(from, head.spans[slot + 2] ?? 0, head.spans[slot + 3] ?? 0);
      this.#text(`, ${lines.address}\r\n`);
    }
    if (!hasProto) this.#put(lines.forwardedProto);
  }

  /** Begins a run of fields that stay, goes on with it, or copies what it has so far. Gives where it begins, or -1. */
  #step(head: Head, from: Buffer, index: number, stays: boolean, run: number): number {
    const line = head.spans[4 * index] ?? 0;
    if (stays) return run < 0 ? line : run;
    if (run >= 0) this.#copy(from, run, line);
    return -1;
  }

  #endRun(head: Head, from: Buffer, run: number): void {
    if (run >= 0) this.#copy(from, run, head.end - 2);
  }

  #copy(from: Buffer, start: number, end: number): void {
    const size = end - start;
    if (size > fewBytes) from.copy(this.#out, this.#at, start, end);
    else {
      const out = this.#out;
      const at = this.#at - start;
      for (let index = start; index < end; index += 1) out[at + index] = from[index] as number;
    }
    this.#at += size;
  }

  #put(line: Buffer): void {
    this.#copy(line, 0, line.length);
  }

  #text(text: string): void {
    this.#at += this.#out.write(text, this.#at, 'latin1');
  }

  /** Room for what came and is copied, and for what is our own. */
  #begin(copiedBytes: number): void {
    const most = copiedBytes + ownBytes;
    if (this.#out.length - this.#at < most) {
      this.#out = Buffer.allocUnsafeSlow(Math.max(blockBytes, most));
      this.#at = 0;
    }
    this.#from = this.#at;
  }

  #take(): Buffer {
    return this.#out.subarray(this.#from, this.#at);
  }
}
