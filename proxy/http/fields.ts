/** Fields that mean something to the relay. */
export const fields = {
  other: 0,
  host: 1,
  connection: 2,
  contentLength: 3,
  transferEncoding: 4,
  upgrade: 5,
  expect: 6,
  te: 7,
  trailer: 8,
  keepAlive: 9,
  proxyConnection: 10,
  via: 11,
  forwarded: 12,
  forwardedFor: 13,
  forwardedProto: 14,
  forwardedHost: 15,
  requestId: 16,
  traceparent: 17,
  http2Settings: 18,
  cookie: 19,
} as const;

export type Field = (typeof fields)[keyof typeof fields];

const names: readonly (readonly [string, Field])[] = [
  ['host', fields.host],
  ['connection', fields.connection],
  ['content-length', fields.contentLength],
  ['transfer-encoding', fields.transferEncoding],
  ['upgrade', fields.upgrade],
  ['expect', fields.expect],
  ['te', fields.te],
  ['trailer', fields.trailer],
  ['keep-alive', fields.keepAlive],
  ['proxy-connection', fields.proxyConnection],
  ['via', fields.via],
  ['forwarded', fields.forwarded],
  ['x-forwarded-for', fields.forwardedFor],
  ['x-forwarded-proto', fields.forwardedProto],
  ['x-forwarded-host', fields.forwardedHost],
  ['x-request-id', fields.requestId],
  ['traceparent', fields.traceparent],
  ['http2-settings', fields.http2Settings],
  ['cookie', fields.cookie],
];

interface Known {
  readonly bytes: Uint8Array;
  readonly field: Field;
}

/** By length, then by first letter, at most a few each. */
const byLength: readonly (readonly Known[])[] = Array.from({ length: 32 }, (_, length) =>
  names
    .filter(([name]) => name.length === length)
    .map(([name, field]) => ({ bytes: Uint8Array.from(Buffer.from(name, 'latin1')), field })),
);
const none: readonly Known[] = [];

/** The field of a name that consists of token bytes; names are compared without regard to case. */
export function fieldOf(buffer: Uint8Array, start: number, end: number): Field {
  const length = end - start;
  const candidates = length < byLength.length ? (byLength[length] ?? none) : none;
  for (let index = 0; index < candidates.length; index += 1) {
    const known = candidates[index];
    if (known !== undefined && equals(buffer, start, known.bytes)) return known.field;
  }
  return fields.other;
}

const forwardedPrefix = Uint8Array.from(Buffer.from('x-forwarded-', 'latin1'));
const realIp = Uint8Array.from(Buffer.from('x-real-ip', 'latin1'));

/**
 * Whether a name that means nothing to the relay is one by which proxies say for whom they speak, or stands for one:
 * servers that hand fields on as environment variables take `_` for `-`.
 */
export function saysForWhom(buffer: Uint8Array, start: number, end: number): boolean {
  const length = end - start;
  if (length > forwardedPrefix.length) return resembles(buffer, start, forwardedPrefix);
  return length === realIp.length && resembles(buffer, start, realIp);
}

function resembles(buffer: Uint8Array, start: number, small: Uint8Array): boolean {
  for (let index = 0; index < small.length; index += 1) {
    const byte = buffer[start + index] ?? 0;
    if ((byte === 0x5f ? 0x2d : byte | 0x20) !== small[index]) return false;
  }
  return true;
}

/** Setting bit 5 makes letters small; of the other token bytes only `^` and `~`, `@` and the like change, which no known name has. */
function equals(buffer: Uint8Array, start: number, small: Uint8Array): boolean {
  for (let index = 0; index < small.length; index += 1) {
    if (((buffer[start + index] ?? 0) | 0x20) !== small[index]) return false;
  }
  return true;
}
