import { maxFields, maxHeadBytes } from '../http/head.ts';

/**
 * What the runtime reads of a head, and what clients are told that it does: more than is allowed, so that it is here that
 * they are refused, in words. What is beyond is the runtime's, and cannot be changed: it resets the stream with
 * ENHANCE_YOUR_CALM, and where one field alone has more than 64 KiB, or a head more than nine frames, it says goodbye to the
 * client (COMPRESSION_ERROR and INTERNAL_ERROR). Names and values, and 32 for each field (RFC 9113 section 6.5.2).
 */
export const maxReadHeadBytes = 2 * maxHeadBytes;
/** The same in fields, with those that begin with a colon. */
export const maxReadFields = 2 * maxFields;
/** Streams that one client may have at a time; the rest are refused, and may be repeated (RFC 9113 section 5.1.2). */
export const maxClientStreams = 256;
/** Streams beyond that until the client is cut off. */
export const maxRejectedStreams = 256;
/** Bytes of one stream that may wait here in each direction: what its sender is granted (RFC 9113 section 6.9). */
export const streamWindowBytes = 65_535;
/** The same through tunnels, whose ends may be far away. */
export const tunnelStreamWindowBytes = 262_144;
/** Bytes that all streams of a connection may have on their way together. */
export const connectionWindowBytes = 1_048_576;
/**
 * MiB that the runtime may use for a connection, with what waits to be written: more than `maxReplayBytes` and a frame for
 * each of the most streams.
 */
export const sessionMemoryMib = 32;
/** Frames of one connection that say nothing or nothing valid, until it is cut off. */
export const maxInvalidFrames = 100;
/** SETTINGS of one client: so many at once, and so many a second later on. */
export const settingsBudget = { burst: 50, perSecond: 2 } as const;
/** PINGs; each piece of a body that is sent to the client allows one more, for those who measure the way with them. */
export const pingBudget = { burst: 500, perSecond: 50 } as const;
/** Requests that the client takes back; each one that it lets come to its end allows one more (CVE-2023-44487). */
export const resetBudget = { burst: 200, perSecond: 50 } as const;
/** Streams over one connection to an instance, where it would take more. */
export const maxSessionStreams = 256;
/** Those that may wait for a connection that is being opened; the instance then says how many it takes. */
export const assumedStreams = 100;
/** Connections to one instance for one owner, each as full as the instance allows. */
export const maxSessionsPerInstance = 16;
/** How long a connection to an instance is kept without streams. */
export const idleSessionMs = 60_000;
/** How long nothing may come of an instance that was asked something until it is asked whether it is there at all. */
export const silentSessionMs = 5000;
/** How long it may take to say so. */
export const pingAnswerMs = 15_000;
/** How often a request goes elsewhere because an instance has refused to look at it. */
export const maxRefusals = 6;
/** How long a connection that is cut has to tell its client why. */
export const cutMs = 500;
