/**
 * The runtime copies the options of each stream and fills in what they leave out. An object that grows is slow, and was a
 * good part of what a request takes: these have all the fields that it asks for, and leave their values to it.
 */
const filledIn = {
  weight: undefined,
  parent: undefined,
  exclusive: undefined,
  silent: undefined,
  signal: undefined,
  sendDate: undefined,
} as const;

/** For a head that is all there is. */
export const headAlone = { ...filledIn, endStream: true, waitForTrailers: false } as const;

/**
 * For a head that a body or trailers may follow. Without waiting for trailers the runtime would also end a request in order
 * before it resets it.
 */
export const withMore = { ...filledIn, endStream: false, waitForTrailers: true } as const;
