import { isIP, isIPv4 } from 'node:net';

export interface Endpoint {
  /** An IPv4 or IPv6 address in its usual text form, without brackets. */
  readonly address: string;
  /** 1 to 65535; 0 only where a listener asks for any free port. */
  readonly port: number;
}

/** The 32-bit number of an IPv4 address in dotted form. The caller has checked the form. */
export function ipv4ToNumber(address: string): number {
  let number = 0;
  for (const part of address.split('.')) number = number * 256 + Number(part);
  return number >>> 0;
}

export function numberToIpv4(number: number): string {
  return `${number >>> 24}.${(number >>> 16) & 255}.${(number >>> 8) & 255}.${number & 255}`;
}

/** An IPv4 range: `base` is its first address as a number, `size` how many addresses it has. */
export interface Ipv4Range {
  readonly text: string;
  readonly base: number;
  readonly prefixLength: number;
  readonly size: number;
}

/** Parses `240.77.0.0/16`. Undefined when the text is not an IPv4 range with its host bits zero. */
export function parseIpv4Range(text: string): Ipv4Range | undefined {
  const match = /^([0-9.]+)\/(\d{1,2})$/.exec(text);
  if (match === null) return undefined;
  const [, address = '', length = ''] = match;
  const prefixLength = Number(length);
  if (!isIPv4(address) || prefixLength > 32) return undefined;
  const size = 2 ** (32 - prefixLength);
  const base = ipv4ToNumber(address);
  return base % size === 0 ? { text, base, prefixLength, size } : undefined;
}

/** Whether an IPv4 address lies in the range; false for IPv6. */
export function inRange(range: Ipv4Range, address: string): boolean {
  if (!isIPv4(address)) return false;
  const number = ipv4ToNumber(address);
  return number >= range.base && number < range.base + range.size;
}

export function isLoopback(address: string): boolean {
  return (address.startsWith('127.') && isIPv4(address)) || address === '::1' || address === 'localhost';
}

/** IPv4 addresses that arrive on an IPv6 socket (`::ffff:10.0.0.1`, RFC 4291 section 2.5.5.2) in their IPv4 form. */
export function unmapped(address: string): string {
  return address.startsWith('::ffff:') && isIPv4(address.slice(7)) ? address.slice(7) : address;
}

/** Parses `127.0.0.1:7753` or `[::1]:7753`. Undefined when address or port are not that. */
export function parseEndpoint(text: string): Endpoint | undefined {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):(\d{1,5})$/.exec(text.trim());
  if (match === null) return undefined;
  const address = match[1] ?? match[2] ?? '';
  const port = Number(match[3]);
  return isIP(address) !== 0 && port <= 65535 ? { address, port } : undefined;
}

export function formatEndpoint({ address, port }: Endpoint): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}

export function isPort(value: number): boolean {
  return Number.isInteger(value) && value >= 1 && value <= 65535;
}
