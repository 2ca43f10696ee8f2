import type { Endpoint, Ipv4Range } from '../../src/model/address.ts';

/** An address of a container, and the one interface and MAC address from which frames may carry it. */
export interface Binding {
  readonly address: string;
  /** The host's end of the container's veth pair. */
  readonly interface: string;
  /** Lower case, with colons. */
  readonly mac: string;
}

/** From where the segments of a TCP connection came, while its source was not bound or had just been. */
export interface Contact {
  readonly interface: string;
  readonly mac: string;
  readonly source: Endpoint;
  readonly destination: string;
}

/**
 * The seam to what holds containers to their addresses in the kernel. A frame to a virtual address or a watched endpoint
 * whose source is bound, and which comes from elsewhere, is dropped and counted. One whose source nobody is bound to
 * passes, and where it came from is recorded for some seconds, as it is for a new binding until `settle`; what such a
 * source begins at a port of a virtual address that is not mapped yet is dropped instead of refused, and comes again.
 */
export interface CallerFilter {
  /** Why frames of containers cannot be told apart on this host, for people; null when they can. */
  readonly filterProblem: string | null;
  /** Binds addresses anew and ends other bindings. Resolves when the kernel has it; rejects when it refuses. */
  bind(puts: readonly Binding[], deletes: readonly string[]): Promise<void>;
  /** Records no more where the segments of these bound addresses come from. */
  settle(addresses: readonly string[]): Promise<void>;
  /** The ranges in which sources that are not bound are recorded: those of containers' bridges. */
  setCallerRanges(ranges: readonly Ipv4Range[]): Promise<void>;
  /**
   * Whether callers are told apart at all now; at first they are. Else nobody's segments are recorded, and new callers
   * are refused at once where nothing is mapped.
   */
  setTelling(on: boolean): Promise<void>;
  /** Endpoints besides virtual addresses and guarded ones at which bound addresses are held to their interfaces. */
  setWatched(endpoints: readonly Endpoint[]): Promise<void>;
  /** What is recorded now. */
  contacts(): Promise<readonly Contact[]>;
}
