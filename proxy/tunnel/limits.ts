import type { Hello } from './frames.ts';
import { protocolVersion } from './frames.ts';

/** What this side grants on each connection. A megabyte a stream is a full pipe of 50 MB/s at 20 ms of round trip. */
export const grants: Hello = {
  version: protocolVersion,
  streamCredit: 1_048_576,
  connectionCredit: 16 * 1_048_576,
  maxStreams: 16_384,
};

/**
 * A stream may have this share of what is left of the connection's credit under way, at least `minShareBytes`. While few
 * streams are slow it is more than a stream's own credit and says nothing; the more of them hold unconsumed bytes, the less
 * each further one gets, and some is always left for those who are quick. (The rule is known from buffers of switches:
 * Choudhury and Hahne, "Dynamic queue length thresholds", 1998.) Times `maxStreams`, the minimum is half of the credit.
 */
export const connectionShare = 1 / 4;
export const minShareBytes = 512;

/** Consumed bytes are told to the other side when they are so many; a stream's at once while the connection is crowded. */
export const streamReturnBytes = 262_144;
export const connectionReturnBytes = 2 * 1_048_576;
/** More unconsumed bytes than this are a crowd. */
export const crowdedBytes = grants.connectionCredit / 2;
/** In a crowd a stream that has consumed all, or so much, is told. */
export const crowdedReturnBytes = 4096;

/** A stream's unsent bytes: from here on `write` gives false, and below a quarter of it `drained` is called. */
export const streamQueueBytes = 262_144;
/** Written chunks are put together up to about this size of a frame, slabs excepted. */
export const gatheredFrameBytes = 65_536;

/** A peer that was heard longer ago than this is asked by a ping as soon as somebody opens a stream. */
export const staleMs = 250;
/** How often a silent peer is asked otherwise: by the side that dialled, and by the other one. */
export const pingEveryMs = { dialled: 1000, accepted: 5000 } as const;
/** An unanswered ping makes a peer suspect after the first, and closes its connection after the second. */
export const suspectAfterMs = 500;
export const closeAfterMs = 15_000;
/** How often all connections look at their silence. */
export const tickMs = 125;

/** What frames that carry little cost their sender; see FloodBudget. */
export const frameCosts = { open: 20, reset: 20, tiny: 1, empty: 20, late: 20, ping: 400, ignored: 400 } as const;
export const floodBurst = 2_000_000;
export const floodPerSecond = 400_000;
/** DATA of fewer bytes than this is tiny. */
export const tinyBytes = 64;
/** Credit returned in pieces: so many WINDOWs in advance, more for each DATA frame that was sent, and no more saved up. */
export const windowsInAdvance = 4096;
export const windowsPerFrame = 3;
export const bytesPerWindow = 1024;
export const maxWindows = 65_536;
