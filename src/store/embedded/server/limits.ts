/** What the server takes and holds at most, all clients together unless said otherwise. */
export const limits = {
  connections: 1024,
  /** TLS handshakes under way, in all and of one address. */
  handshakes: 256,
  handshakesPerAddress: 64,
  /** Streams of HTTP/2 that one connection may have open, calls and watches alike. */
  streamsPerConnection: 128,
  /** Calls under way. */
  calls: 8192,
  /** A message from a client; what etcd takes, and a little for what surrounds it. */
  messageBytes: 2 * 1024 * 1024,
  requestBytes: 1536 * 1024,
  /** Compares, or operations of one branch, of a transaction. */
  txnOperations: 128,
  watchStreams: 2048,
  watchesPerStream: 1024,
  watches: 32_768,
  /** Watches of ranges that are neither a key nor a prefix: each change is compared with each of them. */
  oddWatches: 1024,
  /** Written to the streams and not yet taken by their clients. */
  outstandingBytes: 128 * 1024 * 1024,
  /** Of one stream of watches; beyond it the stream's watches fall behind and read on from history. */
  streamOutstandingBytes: 256 * 1024,
  /** About how large a message of events becomes; a revision is never cut. */
  eventMessageBytes: 512 * 1024,
  /** Events kept in memory for watches that are behind, all together and of one range. */
  recentBytes: 32 * 1024 * 1024,
  recentGroupBytes: 4 * 1024 * 1024,
  recentGroupEvents: 10_000,
  /** Large reads (ranges, watches catching up) at a time: the more wait, the more share one. */
  reads: 2,
  /** Moments of the store that are kept for the further pages of reads, and the bytes of such pages. */
  keptViews: 256,
  keptBytes: 32 * 1024 * 1024,
  /** One answer. */
  responseBytes: 64 * 1024 * 1024,
} as const;

export const times = {
  /** A connection must have said that it speaks HTTP/2 by then. */
  prefaceMs: 5000,
  /** A TLS handshake must be through by then. */
  handshakeMs: 5000,
  keepaliveMs: 20_000,
  keepaliveTimeoutMs: 10_000,
  /** A client that takes nothing of what waits for it for so long loses its connection. */
  stalledMs: 60_000,
  /** The least time between two messages of changes; longer, up to the most, when sending takes long. */
  windowMs: 25,
  maxWindowMs: 250,
  /** How often a quiet watch that asked for it is told how far it is. */
  progressMs: 60_000,
  /** The next page must be asked for by then, or the read may have to begin anew. */
  keptViewMs: 20_000,
  closeGraceMs: 250,
} as const;
