import type { VipClaim } from '../catalog/codec.ts';
import { type Ipv4Range, inRange, ipv4ToNumber, numberToIpv4 } from '../model/address.ts';

/** The name server's place in the range, never a service's. */
const nameServerOffset = 53;

export interface VipQuestion {
  readonly service: string;
  readonly range: Ipv4Range;
  /** By address; undefined for a claim that cannot be read, which is left alone. */
  readonly claims: ReadonlyMap<string, VipClaim | undefined>;
  /** The address that the service had before, as far as this host remembers. */
  readonly remembered?: string;
}

/**
 * The address to claim for a service: the one it had; else the one that its name hashes to, if nobody ever had it, or the
 * next one after that which nobody ever had; else the one that has been given back for the longest time. Undefined when
 * every address is taken. The network's own address, the name server's and the last one are never chosen.
 */
export function chooseVip({ service, range, claims, remembered }: VipQuestion): string | undefined {
  if (remembered !== undefined && isAllowed(range, remembered) && isFree(claims, remembered, service))
    return remembered;
  let oldest: { address: string; releasedAtMs: number } | undefined;
  for (const [address, claim] of claims) {
    if (claim?.releasedAtMs === undefined || !isAllowed(range, address)) continue;
    if (claim.service === service) return address;
    if (oldest === undefined || claim.releasedAtMs < oldest.releasedAtMs) {
      oldest = { address, releasedAtMs: claim.releasedAtMs };
    }
  }
  const begin = hashOf(service) % range.size;
  // Among so many addresses in a row one was never claimed, if there is any at all.
  const steps = Math.min(range.size, claims.size + 4);
  for (let step = 0; step < steps; step += 1) {
    const offset = (begin + step) % range.size;
    const address = numberToIpv4(range.base + offset);
    if (isAllowedOffset(range, offset) && !claims.has(address)) return address;
  }
  return oldest?.address;
}

/** Whether a service may hold the address: in the range, and none of the reserved ones. */
export function isAllowed(range: Ipv4Range, address: string): boolean {
  return inRange(range, address) && isAllowedOffset(range, ipv4ToNumber(address) - range.base);
}

function isAllowedOffset({ size }: Ipv4Range, offset: number): boolean {
  return offset !== 0 && offset !== nameServerOffset && offset !== size - 1;
}

function isFree(claims: VipQuestion['claims'], address: string, service: string): boolean {
  if (!claims.has(address)) return true;
  const claim = claims.get(address);
  return claim !== undefined && (claim.releasedAtMs !== undefined || claim.service === service);
}

/** FNV-1a with a final mix, because names differ mostly at their ends; the same on every host and for ever. */
function hashOf(name: string): number {
  let hash = 2166136261;
  for (let index = 0; index < name.length; index += 1) hash = Math.imul(hash ^ name.charCodeAt(index), 16777619);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}
