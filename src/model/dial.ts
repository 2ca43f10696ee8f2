import { isIP } from 'node:net';
import type { Endpoint } from './address.ts';
import type { Instance } from './instance.ts';
import { emptyTopology, undialable } from './topology.ts';

/** The host that dials. */
export interface Dialler {
  readonly hostId: string;
  /** Whether links to other hosts may go in the clear. */
  readonly clearUnderlay: boolean;
}

/** What a host's links dial for an instance, or, for people, why they cannot or should not. */
export function dialOf(instance: Instance, { hostId, clearUnderlay }: Dialler): Endpoint | string {
  const own = instance.hostId === hostId;
  const { address, port } = own ? instance : (instance.published ?? instance);
  const fault = undialable({ kind: 'host' }, emptyTopology, { address, reach: instance.reach, own, clearUnderlay });
  if (fault !== undefined) return fault;
  return isIP(address) === 0 ? 'it has no IP address' : { address, port };
}
