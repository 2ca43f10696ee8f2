/** How long a client may take from the first byte of a request's head to its last. */
export const headMs = 15_000;
/** How long a client's connection may be idle between requests, and before the first. */
export const idleClientMs = 75_000;
/** As that, once this process takes no further requests but the one that may be on its way, which is told to be the last. */
export const leavingClientMs = 1000;
/**
 * How long nothing may come of a request's body that has begun. One that goes on byte by byte is ended only by the
 * service's `timeout`, if it has one: what is slow for one service is usual for another.
 */
export const bodyMs = 60_000;
/** How long nothing may come of a response's body that has begun, and of what a connection was upgraded to. */
export const silentResponseMs = 3_600_000;
/** As that, once the client has ended its side: some still wait for the rest, but most are gone. */
export const endedClientMs = 10_000;
/** How long a client may go on sending after its last answer before it is cut (RFC 9112 section 9.6). */
export const lingerMs = 2000;
/** How often connections are asked whether their time is up: what these limits are precise to. */
export const sweepMs = 250;
/** Bytes of further requests that a client may send before it has its answer. */
export const maxAheadBytes = 65_536;
/** Responses before the final one (RFC 9110 section 15.2). */
export const maxInformational = 16;
/** Bytes of a response's body that are copied behind its head, so that both leave in one write. */
export const maxJoinedBytes = 8192;
/** How long ago a kept connection may have been used by a request that may not be repeated. */
export const freshMs = 1000;
/** Bytes that an Ethernet carries in one piece, whatever is around them. */
export const maxSegmentBytes = 1200;
