import { LegateError } from '../base/errors.ts';

/** What is spoken on 7711, by TLS's application protocol (RFC 7301). */
export const applicationProtocols = {
  /** Links: both sides show certificates of hosts. */
  tunnel: 'legate-tunnel/1',
  /** A new host: the token in the request is what it has instead of a certificate. */
  enrol: 'legate-enrol/1',
  /** A host that asks for its next certificate, by the present one. */
  renew: 'legate-renew/1',
} as const;

/** Where that is, unless a host's record says otherwise. */
export const defaultTunnelPort = 7711;

/** A request or an answer on 7711 beyond links: its length as 4 bytes, big endian, then as many bytes of JSON. */
export const maxDeskBytes = 256 * 1024;

/** Who asks. */
export interface DeskCaller {
  /** The address that the connection comes from. */
  readonly address: string;
  /** The host that the caller's certificate names, authenticated; absent for `enrol`. */
  readonly hostId?: string;
}

/**
 * Where new hosts are let in and certificates are renewed: one request, one answer, on a connection of its own. Requests
 * are hostile. A refusal is an answer too; it rejects only when there is nothing to say, and the connection is closed then.
 */
export interface EnrolmentDesk {
  answer(kind: 'enrol' | 'renew', request: Uint8Array, from: DeskCaller): Promise<Uint8Array>;
}

/** The desk has as much to do as it takes on: an answer after which a caller comes again by itself. */
export function deskBusy(): LegateError {
  return new LegateError('E_IN_USE', 'the authority is busy with other hosts', { hint: 'try again in a moment' });
}

export function isDeskBusy({ code }: LegateError): boolean {
  return code === 'E_IN_USE';
}
