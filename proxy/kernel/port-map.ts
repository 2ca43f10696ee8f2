/**
 * The seam to what steers VIP:port in the kernel. One map for the sidecar; each user of it owns the entries under its own
 * owner word and replaces them as a whole. Implementations apply changes atomically, batch what arrives within one turn of
 * the event loop, rebuild the table when somebody flushed it, and take everything back on close.
 */
export interface PortMapping {
  readonly transport: 'tcp' | 'udp';
  /** The virtual address. */
  readonly address: string;
  readonly port: number;
  /** Where the sidecar listens, on the same address; never the same number as `port`. */
  readonly privatePort: number;
}

/**
 * Where several processes listen for the same ports, each has a slot, from 0: new connections go to them in turn, and to the
 * others where one has not mapped the port. `former`: for what no slot has mapped, those that listened before.
 */
export type Slot = number | 'former';

export interface PortMap {
  /**
   * Replaces the mappings of `owner`, of TCP only where they are those of a slot. Resolves when the kernel has them;
   * rejects when it refuses.
   */
  set(owner: string, mappings: readonly PortMapping[], slot?: Slot): Promise<void>;
}
