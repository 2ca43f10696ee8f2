import { SocketAddress } from 'node:net';
import type { Ipv4Range } from '../src/model/address.ts';
import type { Name } from './wire/name.ts';
import { addressOctets } from './wire/resource.ts';

/** The address of a reverse name (RFC 1035 section 3.5, RFC 3596 section 2.5) in its usual text; undefined for others. */
export function reverseAddress(name: Name): string | undefined {
  const zone = name.slice(-2).join('.');
  if (zone === 'in-addr.arpa' && name.length === 6) {
    const parts = name.slice(0, 4).reverse();
    const regular = parts.every((part) => /^(?:0|[1-9]\d{0,2})$/.test(part) && Number(part) <= 255);
    return regular ? parts.join('.') : undefined;
  }
  if (zone === 'ip6.arpa' && name.length === 34) {
    const digits = name.slice(0, 32).reverse();
    if (!digits.every((digit) => /^[0-9a-f]$/.test(digit))) return undefined;
    const address = digits.join('').replace(/(.{4})(?=.)/g, '$1:');
    return new SocketAddress({ address, family: 'ipv6' }).address;
  }
  return undefined;
}

/** The reverse name of an address in its usual text: what a PTR question about it asks for. */
export function reverseName(address: string): Name {
  const octets = [...addressOctets(address)].reverse();
  if (octets.length === 4) return [...octets.map(String), 'in-addr', 'arpa'];
  const digits = octets.flatMap((octet) => [octet & 15, octet >> 4]);
  return [...digits.map((digit) => digit.toString(16)), 'ip6', 'arpa'];
}

/** The owner for a negative answer about an address of the range: the reverse name of its whole octets. */
export function reverseZone(range: Ipv4Range, name: Name): Name {
  return name.slice(4 - Math.floor(range.prefixLength / 8));
}
