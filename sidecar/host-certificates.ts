import type { TunnelDocument } from '../proxy/tunnel/tunnel-document.ts';
import type { Credentials } from '../src/model/credentials.ts';
import { backdatedMs } from '../src/pki/issue.ts';
import type { LedgerEntry } from '../src/pki/ledger.ts';

/** Of a certificate's life: with less left it should have been renewed long ago. */
const lateShare = 1 / 3;

/** When hosts' certificates end, as far as this host knows. */
export interface HostCertificates {
  /** Wall clock, by host id. */
  readonly untilMs: ReadonlyMap<string, number>;
  /** With less time than this left they are late to be renewed. */
  readonly lateMs: number;
}

/**
 * Of this host by its own certificate, of others by what tunnels have shown, and on the authority's host by what it
 * issued; the newest counts. How long they live is told by our own: the authority gives all the same time.
 */
export function hostCertificates(
  own: Credentials | undefined,
  tunnels: readonly TunnelDocument[],
  ledger: readonly LedgerEntry[],
): HostCertificates {
  const untilMs = new Map<string, number>();
  const know = (hostId: string, ms: number): void => {
    if (ms > (untilMs.get(hostId) ?? 0)) untilMs.set(hostId, ms);
  };
  for (const { hostId, notAfterMs } of ledger) know(hostId, notAfterMs);
  for (const { hostId, peerCertificateUntil } of tunnels) {
    if (peerCertificateUntil !== null) know(hostId, Date.parse(peerCertificateUntil));
  }
  if (own === undefined) return { untilMs, lateMs: 0 };
  know(own.hostId, own.notAfterMs);
  return { untilMs, lateMs: (own.notAfterMs - own.notBeforeMs - backdatedMs) * lateShare };
}
