import { isIPv4 } from 'node:net';
import ipaddr from 'ipaddr.js';
import { isPort, numberToIpv4 } from '../../src/model/address.ts';
import { ProtocolFault } from './frames.ts';
import type { StreamHead } from './tunnels.ts';

/** Octets of a consumer's, service's or instance's name on the wire. */
const maxNameBytes = 255;
/** Flags, trace id, port, a long address, three names: an OPEN that this version writes is never longer. */
export const maxHeadBytes = 1 + 16 + 2 + 17 + 3 * (1 + maxNameBytes);
const namePattern = /^[\x21-\x7e]{1,255}$/;
const traceIdPattern = /^[0-9a-f]{32}$/;
const declaredFlag = 1;

/** Why a head cannot be sent; undefined when it can. */
export function headFault(head: StreamHead): string | undefined {
  if (!namePattern.test(head.consumer)) return 'the consumer has no usable name';
  if (!namePattern.test(head.service)) return 'the service has no usable name';
  if (!namePattern.test(head.instance)) return 'the instance has no usable name';
  if (!traceIdPattern.test(head.traceId)) return 'the trace id is not 32 hexadecimal digits';
  if (!isPort(head.client.port) || !ipaddr.isValid(head.client.address)) return 'the client has no usable address';
  return undefined;
}

/** Writes a head that has no fault; gives where it ends. `into` has `maxHeadBytes` of room. */
export function putHead(into: Buffer, at: number, head: StreamHead): number {
  let end = at;
  into[end++] = head.declared ? declaredFlag : 0;
  end += into.write(head.traceId, end, 'hex');
  end = into.writeUInt16BE(head.client.port, end);
  end = putAddress(into, end, head.client.address);
  end = putName(into, end, head.consumer);
  end = putName(into, end, head.service);
  return putName(into, end, head.instance);
}

/** The head in an OPEN's payload. What follows the last name belongs to later versions. */
export function parseHead(payload: Buffer): StreamHead {
  let at = 0;
  const take = (bytes: number): number => {
    const start = at;
    at += bytes;
    if (at > payload.length) throw new ProtocolFault('malformed', 'an OPEN is too short');
    return start;
  };
  const name = (): string => {
    const length = payload[take(1)] ?? 0;
    const start = take(length);
    const text = payload.toString('latin1', start, at);
    if (!namePattern.test(text)) throw new ProtocolFault('malformed', 'an OPEN has a name that is none');
    return text;
  };
  const flags = payload[take(1)] ?? 0;
  const trace = take(16);
  const traceId = payload.toString('hex', trace, at);
  const port = payload.readUInt16BE(take(2));
  if (port === 0) throw new ProtocolFault('malformed', 'an OPEN has client port 0');
  const length = payload[take(1)] ?? 0;
  if (length !== 4 && length !== 16) throw new ProtocolFault('malformed', `an address of ${length} octets`);
  const start = take(length);
  const address = length === 4 ? numberToIpv4(payload.readUInt32BE(start)) : longAddress(payload.subarray(start, at));
  const declared = (flags & declaredFlag) !== 0;
  return { consumer: name(), declared, service: name(), instance: name(), client: { address, port }, traceId };
}

function putName(into: Buffer, at: number, name: string): number {
  into[at] = name.length;
  return at + 1 + into.write(name, at + 1, 'latin1');
}

function putAddress(into: Buffer, at: number, address: string): number {
  let end = at;
  if (isIPv4(address)) {
    into[end++] = 4;
    let part = 0;
    for (let index = 0; index <= address.length; index += 1) {
      const code = index < address.length ? address.charCodeAt(index) : 46;
      if (code === 46) {
        into[end++] = part;
        part = 0;
      } else part = part * 10 + code - 48;
    }
    return end;
  }
  into[end++] = 16;
  for (const octet of ipaddr.parse(address).toByteArray()) into[end++] = octet;
  return end;
}

function longAddress(octets: Buffer): string {
  return ipaddr.fromByteArray([...octets]).toString();
}
