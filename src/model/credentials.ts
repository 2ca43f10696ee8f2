/**
 * What a host shows to others and believes of them, as of now. An immutable value that is replaced as a whole: when the
 * certificate was renewed, when roots come or go.
 */
export interface Credentials {
  /** The mesh's name, which is the trust domain. */
  readonly mesh: string;
  readonly hostId: string;
  /** PEM: the host's certificate, then those between it and a root, if any. */
  readonly chain: string;
  /** PEM, PKCS#8. Never to be logged. */
  readonly key: string;
  /** PEM, each one certificate: the roots that certificates of other hosts may come from. */
  readonly roots: readonly string[];
  /** The certificate's serial number, lower-case hexadecimal. */
  readonly serial: string;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
}
