import { type IncomingHttpHeaders, type OutgoingHttpHeaders, sensitiveHeaders } from 'node:http2';
import type { Forwarding } from '../../src/model/service-settings.ts';
import { HttpFault } from '../http/fault.ts';
import { isAuthority, isTarget } from '../http/grammar.ts';
import { maxFields, maxHeadBytes, maxTargetBytes } from '../http/head.ts';
import { loops, maxTimesThrough } from '../http/refusals.ts';
import { grpcTimeoutMs, isGrpc } from './grpc.ts';

/** What the head of a request is given on its way, the same for all of one client's connection. */
export interface ClientMarks {
  readonly address: string;
  readonly scheme: 'http' | 'https';
}

/** A request as it leaves. */
export interface RequestHead {
  readonly method: string;
  /** What a CONNECT makes of its stream (RFC 8441 section 4); undefined: a tunnel, or it is none. */
  readonly protocol: string | undefined;
  readonly path: string;
  /** The body's length, where the client says it. */
  readonly declaredBytes: number | undefined;
  readonly grpc: boolean;
  /** What the client allows for all of it; undefined: it does not say. */
  readonly timeoutMs: number | undefined;
  /** 32 lower-case hexadecimal digits. */
  readonly traceId: string;
  readonly headers: OutgoingHttpHeaders;
  /** Of names and values, as they came. */
  readonly bytes: number;
}

/** W3C Trace Context, section 3.2. */
const traceparent = /^00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$/;
/** RFC 9110 section 9.2.2. */
const idempotent: ReadonlySet<string> = new Set(['GET', 'HEAD', 'PUT', 'DELETE', 'OPTIONS']);
/** RFC 9113 section 8.2.2. */
const ofConnections: ReadonlySet<string> = new Set([
  'connection',
  'keep-alive',
  'proxy-connection',
  'transfer-encoding',
  'upgrade',
  'http2-settings',
]);

/** Whether it is what clients say about whom they speak for. */
function isSaid(name: string): boolean {
  // Servers that hand fields on as environment variables take `_` for `-`.
  const plain = name.replaceAll('_', '-');
  return plain === 'forwarded' || plain === 'x-real-ip' || plain.startsWith('x-forwarded-');
}

export function isIdempotentMethod(method: string): boolean {
  return idempotent.has(method);
}

/**
 * Throws an HttpFault if a head has more than is allowed: of its path, its fields, or its size, where each field counts 32
 * bytes more than its name and value (RFC 9113 section 6.5.2). `raw`: names and values in turn, each a byte a character.
 */
export function checkSize(headers: IncomingHttpHeaders, raw: readonly string[]): void {
  const path = headers[':path'];
  if (path !== undefined && path.length > maxTargetBytes)
    throw new HttpFault('too-large', 'a target that is too long', 414);
  let fields = 0;
  let bytes = 0;
  for (let index = 0; index < raw.length; index += 2) {
    const name = raw[index] ?? '';
    if (!name.startsWith(':')) fields += 1;
    bytes += name.length + (raw[index + 1]?.length ?? 0) + 32;
  }
  if (fields > maxFields) throw new HttpFault('too-large', `more than ${maxFields} fields`, 431);
  if (bytes > maxHeadBytes) throw new HttpFault('too-large', 'a head that is too large', 431);
}

/**
 * Checks the head of a request (RFC 9113 section 8.3.1) and writes the one for an instance. What the runtime checks itself
 * is not repeated here: names, values, the order and number of pseudo fields. Throws an HttpFault.
 */
export function requestHead(
  headers: IncomingHttpHeaders,
  marks: ClientMarks,
  forwarding: Forwarding,
  service: string,
  newId: () => string,
): RequestHead {
  const method = headers[':method'] ?? '';
  const path = headers[':path'] ?? '';
  const out: Record<string, string | string[]> = Object.create(null);
  const protocol = method === 'CONNECT' ? protocolOf(headers) : undefined;
  out[':method'] = method;
  out[':authority'] = authorityOf(headers) ?? service;
  if (method !== 'CONNECT' || protocol !== undefined) {
    // A CONNECT without a protocol has neither (RFC 9113 section 8.5).
    out[':scheme'] = schemeOf(headers);
    checkPath(method, path);
    out[':path'] = path;
  }
  if (protocol !== undefined) out[':protocol'] = protocol;
  let bytes = 0;
  for (const name in headers) {
    const value = headers[name];
    if (value === undefined) continue;
    bytes += name.length + (typeof value === 'string' ? value.length : value.join().length);
    if (name.startsWith(':') || name === 'host') continue;
    if (ofConnections.has(name)) throw new HttpFault('connection', `${name} has no place in HTTP/2`);
    if (name === 'te' && value !== 'trailers') throw new HttpFault('connection', 'te other than trailers');
    out[name] = value;
  }
  const given = headers.traceparent;
  const kept = typeof given === 'string' ? traceparent.exec(given)?.[1] : undefined;
  const traceId = kept ?? newId();
  if (headers.via !== undefined && headers.via.split(' legate').length > maxTimesThrough)
    throw new HttpFault('loop', loops, 508);
  out.via = headers.via === undefined ? '2 legate' : `${headers.via}, 2 legate`;
  // Who comes over TLS is a stranger, and not believed about whom it speaks for.
  forward(out, marks, marks.scheme === 'https' ? 'set' : forwarding);
  out['x-request-id'] ??= traceId;
  out.traceparent ??= `00-${traceId}-${traceId.slice(16)}-01`;
  keepSecrets(headers, out);
  const grpc = isGrpc(headers['content-type']);
  const timeout = headers['grpc-timeout'];
  const timeoutMs = grpc && typeof timeout === 'string' ? grpcTimeoutMs(timeout) : undefined;
  const length = headers['content-length'];
  const declaredBytes = length === undefined ? undefined : Number(length);
  return { method, protocol, path, declaredBytes, grpc, timeoutMs, traceId, headers: out, bytes };
}

/** Says who the client is, beside, instead of, or in spite of what it says itself. */
function forward(out: Record<string, string | string[]>, { address, scheme }: ClientMarks, how: Forwarding): void {
  if (how === 'leave') return;
  if (how === 'set') for (const name in out) if (isSaid(name)) delete out[name];
  const forwarded = out['x-forwarded-for'];
  out['x-forwarded-for'] = forwarded === undefined ? address : `${forwarded}, ${address}`;
  out['x-forwarded-proto'] ??= scheme;
}

function protocolOf(headers: IncomingHttpHeaders): string | undefined {
  const protocol = headers[':protocol'];
  return typeof protocol === 'string' ? protocol : undefined;
}

/** The head or the trailers of a response, or the trailers of a request, for the other side. */
export function passedOn(headers: IncomingHttpHeaders, withStatus: boolean): OutgoingHttpHeaders {
  const out: Record<string, number | string | string[]> = Object.create(null);
  for (const name in headers) {
    const value: string | string[] | number | undefined = headers[name];
    if (value === undefined || name === 'te' || ofConnections.has(name)) continue;
    if (!name.startsWith(':') || (withStatus && name === ':status')) out[name] = value;
  }
  keepSecrets(headers, out);
  return out;
}

/** What may not be kept in a table for compression is not, on the next hop either (RFC 7541 section 7.1.3). */
function keepSecrets(from: IncomingHttpHeaders, to: OutgoingHttpHeaders): void {
  const names: unknown = Reflect.get(from, sensitiveHeaders);
  if (Array.isArray(names) && names.length > 0) Reflect.set(to, sensitiveHeaders, names);
}

function schemeOf(headers: IncomingHttpHeaders): string {
  const scheme = headers[':scheme'] ?? 'http';
  if (scheme === 'http' || scheme === 'https') return scheme;
  throw new HttpFault('target', 'a scheme other than http and https');
}

/** RFC 9113 section 8.3.1: `host` says the same as `:authority`, or stands for it. */
function authorityOf(headers: IncomingHttpHeaders): string | undefined {
  const { host } = headers;
  const authority = headers[':authority'] ?? host;
  if (authority === undefined) return undefined;
  if (!consistsOf(authority, isAuthority) || authority === '') throw new HttpFault('host', 'an authority that is none');
  if (host !== undefined && host.toLowerCase() !== authority.toLowerCase())
    throw new HttpFault('host', 'a host other than the authority');
  return authority;
}

function checkPath(method: string, path: string): void {
  if (!consistsOf(path, isTarget)) throw new HttpFault('target', 'a path with bytes that have no place there');
  if (!path.startsWith('/') && !(path === '*' && method === 'OPTIONS'))
    throw new HttpFault('target', 'a path that does not begin with a slash');
}

function consistsOf(text: string, table: Uint8Array): boolean {
  for (let index = 0; index < text.length; index += 1) {
    if (table[text.charCodeAt(index)] !== 1) return false;
  }
  return true;
}
