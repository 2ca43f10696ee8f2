import type { Endpoint } from '../src/model/address.ts';
import type { LinkDocument } from './link-document.ts';
import type { ConnectionFilter } from './link-plane.ts';
import type { SidesOfProcess } from './side-document.ts';
import type { Probe, ProbeResult } from './tunnel/probe.ts';
import type { TunnelDocument } from './tunnel/tunnel-document.ts';

/**
 * All that carries bytes, seen from control: in this process, or in processes of its own. Nothing here waits for the
 * store.
 */
export interface DataPlane {
  /** Resolves when every listener of the present snapshot listens or has a condition, and the kernel has been told. */
  start(): Promise<void>;
  /** All links of this host, by service. */
  links(): Promise<readonly LinkDocument[]>;
  /** What sides of splits have carried, by process. */
  sides(): Promise<readonly SidesOfProcess[]>;
  /** One for each other host that links have asked for, or that has connected to this one. */
  tunnels(): Promise<readonly TunnelDocument[]>;
  /** Connects to an instance of another host through its tunnel, and hangs up at once. Never rejects. */
  probe(probe: Probe): Promise<ProbeResult>;
  /** Where this host's configured listener for the service listens. */
  listenerOf(service: string): Endpoint | undefined;
  /** How many connections run. */
  activeConnections(filter?: ConnectionFilter): Promise<number>;
  /** Takes nothing new, waits up to `timeoutMs` for what runs, and resets the rest; how many were reset. */
  drain(timeoutMs: number): Promise<number>;
  close(): Promise<void>;
}
