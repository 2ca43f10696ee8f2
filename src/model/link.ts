import type { PersistentMap } from '../base/persistent-map.ts';
import type { Endpoint } from './address.ts';

/** A consumer's named dependency (`legate.links`): it says `alias`, and means `service` at `port`. */
export interface DeclaredLink {
  readonly alias: string;
  readonly service: string;
  /** The port that the consumer uses; undefined: the service's own. */
  readonly port: number | undefined;
}

/**
 * The services that containers of this host declare links to, each with the ports that they want of it where they name
 * one, ascending.
 */
export type DeclaredPorts = PersistentMap<readonly number[]>;

/** A listener of the configuration: consumers on this host reach `service` there. */
export interface LinkListener {
  readonly service: string;
  readonly listen: Endpoint;
  /** The identity that the connections of this listener stand for; default `host`. */
  readonly consumer?: string;
  /** It is a door for the outside: what it shows there; at least one. */
  readonly tls?: readonly CertificateFiles[];
}

/** Paths of files in PEM. */
export interface CertificateFiles {
  /** The certificate, and those between it and a root. */
  readonly cert: string;
  /** Its private key, which only its owner may read. */
  readonly key: string;
}
