/** What connects this host with another one, as the admin API shows it. Times are RFC 3339. */
export interface TunnelDocument {
  readonly hostId: string;
  /** The host's name; its id where the name is not known. */
  readonly host: string;
  /** Where it is dialled: `10.77.0.2:7711`; null while that is not known. */
  readonly address: string | null;
  readonly state: 'ready' | 'suspect' | 'connecting' | 'idle';
  /** Since when it has been in this state; one that was suspect before it was connecting, since then. */
  readonly since: string;
  /** Why it is not ready; null while it is. */
  readonly problem: string | null;
  /** Connections that this host dialled, and that the other one did. */
  readonly connections: { readonly dialled: number; readonly accepted: number };
  readonly streams: { readonly active: number; readonly opened: number; readonly accepted: number };
  readonly bytes: { readonly received: number; readonly sent: number };
  /** Of the last ping, in milliseconds; null before the first. */
  readonly roundTripMs: number | null;
  /** When the certificate that the other host showed ends; null while none was seen. */
  readonly peerCertificateUntil: string | null;
}
