import { isIPv4 } from 'node:net';
import ipaddr from 'ipaddr.js';
import { recordType } from './constants.ts';
import type { Name } from './name.ts';

/** A record to be encoded. `ttl` is in seconds. */
export type Resource = { readonly owner: Name; readonly ttl: number } & (
  | { readonly type: 'A' | 'AAAA'; readonly address: string }
  | { readonly type: 'NS' | 'PTR'; readonly target: Name }
  | {
      readonly type: 'SRV';
      readonly priority: number;
      readonly weight: number;
      readonly port: number;
      readonly target: Name;
    }
  | { readonly type: 'TXT'; readonly strings: readonly Buffer[] }
  | { readonly type: 'HINFO'; readonly cpu: string; readonly os: string }
  | { readonly type: 'SOA'; readonly soa: Soa }
);

/** RFC 1035 section 3.3.13; times in seconds. */
export interface Soa {
  readonly primary: Name;
  readonly mailbox: Name;
  readonly serial: number;
  readonly refresh: number;
  readonly retry: number;
  readonly expire: number;
  /** How long a negative answer holds (RFC 2308 section 4). */
  readonly minimum: number;
}

export function numberOfType(resource: Resource): number {
  return recordType[resource.type];
}

/** The 4 or 16 octets of an address; the caller has checked it with `isIP`. */
export function addressOctets(address: string): readonly number[] {
  return isIPv4(address) ? address.split('.').map(Number) : ipaddr.parse(address).toByteArray();
}

/** The label by which an address is a name below `addr`: 8 or 32 hexadecimal digits, as Consul writes it. */
export function addressLabel(address: string): string {
  return Buffer.from(addressOctets(address)).toString('hex');
}

/** The reverse of `addressLabel`; undefined when it is not 8 or 32 lower-case hexadecimal digits. */
export function addressOfLabel(label: string): string | undefined {
  if (!/^(?:[0-9a-f]{8}|[0-9a-f]{32})$/.test(label)) return undefined;
  return ipaddr.fromByteArray([...Buffer.from(label, 'hex')]).toString();
}
