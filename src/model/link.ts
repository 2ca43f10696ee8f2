import type { Endpoint } from './address.ts';

/** A listener of the configuration: consumers on this host reach `service` there. */
export interface LinkListener {
  readonly service: string;
  readonly listen: Endpoint;
  /** The identity that the connections of this listener stand for; default `host`. */
  readonly consumer?: string;
}
