/** From the first attempt until the client is given up. */
export const connectTotalMs = 5000;
/**
 * How long one instance may take while another is left to try; the last one has what remains of the total. It is also what
 * a host that lost power costs the connections that meet it first, one after another: with the time that the others then
 * take, the gap stays under 2 s. Half of it would take many a lost SYN, which is sent again after 1 s (RFC 6298 section
 * 2), for a dead host on a path that only drops a few.
 */
export const connectAttemptMs = 1000;
/**
 * When every instance was tried in vain, all are tried again after each of these: a single server that restarts, or one
 * whose queue was full for a moment while the others are gone, is then not noticed.
 */
export const roundAgainMs = [50, 100, 150] as const;
/** How long a connection waits for the tunnel to the only host that has instances: a sidecar there may be replaced. */
export const tunnelWaitMs = 1000;
/** How often a connection that is held tries again while there are instances, which may not be known to be back. */
export const heldRetryMs = 250;
/**
 * Bytes of a client that are sent with the opening of a stream and kept until it is open, so that another instance can have
 * them. With so many kept no more are read; the last read may go beyond.
 */
export const maxReplayBytes = 65_536;
/** How long a client may go on sending after its upstream answered fully and went away, before it is reset. */
export const lingerMs = 2000;
/** Idle time until the kernel probes whether the other end still exists. */
export const keepAliveMs = 30_000;
/**
 * How often connections are asked to begin with that. It takes four system calls a socket, which short connections need
 * not pay; the kernel counts idle time from the last byte, so nothing is lost by asking late.
 */
export const keepAliveSweepMs = 10_000;
/** Bytes at which a write counts as waiting: any that the kernel did not take at once. */
export const writeHighWaterMark = 1;

/** Errors of a connect that say that the host was silent, or that no path leads to it (connect(2)). */
export const silences: ReadonlySet<string> = new Set(['ETIMEDOUT', 'EHOSTUNREACH', 'ENETUNREACH', 'EHOSTDOWN']);

/** Errors of a connect that this machine causes and not the instance. */
export const ownLimits: ReadonlySet<string> = new Set(['EMFILE', 'ENFILE', 'ENOBUFS', 'ENOMEM', 'EADDRNOTAVAIL']);
