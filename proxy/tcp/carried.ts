import type { Asked, DenialDocument } from '../permission.ts';

/** A connection that this process carries, whichever way. */
export interface CarriedConnection {
  /** Begins to connect. */
  start(): void;
  /** Policy has changed: ends what goes on to another service that the consumer may not call any more. */
  review?(): void;
  /** Resets both sides. `denied`: why policy does not allow it any more; undefined when this sidecar stops. */
  cut(denied?: string): void;
  /** Lets the kernel look now and then whether the ends on this host still exist. */
  keepAlive(): void;
  /** The id of the instance that it goes to now; of several, one of them. */
  readonly backendId: string | undefined;
  /** Where it goes to several at a time: whether this is one of them. */
  carries?(instance: string): boolean;
}

/** What a connection is known by to policy, and counted under; one for all connections of which both are the same. */
export interface Account extends Asked {
  /** The host whose sidecar asked for it; undefined for this host's own consumers. */
  readonly peer: string | undefined;
  /** Whether the consumer declares a link to another service, which a route may lead to. */
  declares(service: string): boolean;
  begin(): void;
  end(): void;
  /** Policy cut it. */
  denied(denial: DenialDocument): void;
}
