import { readFileSync } from 'node:fs';

/** Connections that a sidecar carries at most, whatever the system would allow. */
export const maxConnections = 65_536;
/** Descriptors that are left to everything else: listeners, the store, Docker, names. */
const reservedDescriptors = 1024;

/** How many connections this process may carry, at two descriptors each (RLIMIT_NOFILE). */
export function connectionLimit(descriptors = descriptorLimit()): number {
  const reserved = Math.min(reservedDescriptors, descriptors / 4);
  return Math.max(1, Math.min(maxConnections, Math.floor((descriptors - reserved) / 2)));
}

function descriptorLimit(): number {
  try {
    const soft = /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1];
    return soft === undefined ? Number.POSITIVE_INFINITY : Number(soft);
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}
