/** The far end of a connection as the relay uses it: a socket to an instance, or the stream of a tunnel. */
export interface Upstream {
  /** More than 0 while it takes no more: `drain` follows. */
  readonly writableLength: number;
  readonly writableEnded: boolean;
  readonly writableFinished: boolean;
  readonly destroyed: boolean;
  write(chunk: Buffer): unknown;
  end(): unknown;
  pause(): unknown;
  resume(): unknown;
  setKeepAlive(enable: boolean, initialDelayMs: number): unknown;
  /** Closes it; where one direction has not ended, the other side may see a reset. */
  destroy(): unknown;
  resetAndDestroy(): unknown;
}
