import { createHash, randomBytes } from 'node:crypto';

/**
 * Whose a lease is can be seen by its id, which outlives a restart of the store with the lease itself: its second half is
 * a digest of the host's id, its first half random.
 */
export function leaseIdFor(hostId: string): string {
  const random = randomBytes(4);
  // Not zero, and positive as a signed number of 64 bits.
  random.writeUInt8(((random[0] ?? 0) & 0x3f) | 0x40, 0);
  return random.toString('hex') + markOf(hostId);
}

/** `id`: 16 hexadecimal digits. */
export function isLeaseOf(id: string, hostId: string): boolean {
  return id.slice(8) === markOf(hostId);
}

function markOf(hostId: string): string {
  return createHash('sha256').update(`lease of ${hostId}`).digest('hex').slice(0, 8);
}
