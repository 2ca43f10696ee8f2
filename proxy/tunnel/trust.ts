import { X509Certificate } from 'node:crypto';
import type { TLSSocket } from 'node:tls';
import { span } from '../../src/base/duration.ts';
import { printable, truncate } from '../../src/base/text.ts';
import type { Credentials } from '../../src/model/credentials.ts';
import { isRevoked, type Policy } from '../../src/model/policy.ts';
import { hostIdOfNames } from '../../src/model/spiffe.ts';

/** Certificates between a host's and a root that are looked at. */
const maxChain = 4;

/** Who is at the other end of a connection. */
export interface PeerIdentity {
  readonly hostId: string;
  /** The certificate, then those that issued it as far as the peer showed them. */
  readonly chain: readonly X509Certificate[];
  readonly notAfterMs: number;
}

export interface TrustContext {
  readonly credentials: Credentials;
  readonly policy: Policy | undefined;
  readonly nowMs: number;
}

/**
 * Who the peer of a finished handshake is, by its certificate, or, for people, why it is not accepted: "its certificate
 * ended 3 h ago". Nothing that it says is believed but what a trusted root has signed.
 */
export function peerOf(socket: TLSSocket, context: TrustContext): PeerIdentity | string {
  const leaf = socket.getPeerX509Certificate();
  if (leaf === undefined) return 'it shows no certificate';
  const chain = chainOf(leaf);
  const dates = dateFault(leaf, context.nowMs);
  const named = hostIdOfNames(leaf.subjectAltName, context.credentials.mesh);
  if (!socket.authorized) return dates ?? untrusted(socket, named);
  if (dates !== undefined) return dates;
  if (typeof named === 'string') return named;
  const { hostId } = named;
  if (isRevoked(context.policy, hostId)) return `host ${hostId} is revoked`;
  return { hostId, chain, notAfterMs: Date.parse(leaf.validTo) };
}

/** The host of this mesh that the peer's certificate names, whoever has made it; undefined where it names none. */
export function claimOf(socket: TLSSocket, mesh: string): string | undefined {
  const named = hostIdOfNames(socket.getPeerX509Certificate()?.subjectAltName, mesh);
  return typeof named === 'string' ? undefined : named.hostId;
}

/** Why a peer that was accepted is not to be talked to any more, whenever it showed its certificate; dates aside. */
export function refusalOf(
  peer: PeerIdentity,
  { credentials, policy }: Omit<TrustContext, 'nowMs'>,
): string | undefined {
  if (isRevoked(policy, peer.hostId)) return `host ${peer.hostId} is revoked`;
  const named = hostIdOfNames(peer.chain[0]?.subjectAltName, credentials.mesh);
  return typeof named === 'string' ? named : undefined;
}

function chainOf(leaf: X509Certificate): X509Certificate[] {
  const chain = [leaf];
  let next = leaf.issuerCertificate;
  while (next !== undefined && chain.length < maxChain) {
    chain.push(next);
    next = next.issuerCertificate;
  }
  return chain;
}

/** Whether some certificate of the chain was signed by one of the roots, or is one. */
export function isUnder(chain: readonly X509Certificate[], roots: readonly string[]): boolean {
  const trusted = roots.map((pem) => new X509Certificate(pem));
  return chain.some((certificate) =>
    trusted.some(
      (root) =>
        root.fingerprint256 === certificate.fingerprint256 ||
        (certificate.checkIssued(root) && certificate.verify(root.publicKey)),
    ),
  );
}

function dateFault({ validFrom, validTo }: X509Certificate, nowMs: number): string | undefined {
  const fromMs = Date.parse(validFrom);
  const toMs = Date.parse(validTo);
  if (nowMs > toMs) return `its certificate ended ${span(nowMs - toMs)} ago`;
  if (nowMs < fromMs) return `its certificate begins in ${span(fromMs - nowMs)}: compare the clocks`;
  return undefined;
}

/** What OpenSSL found, in words where they are known. */
function untrusted(socket: TLSSocket, named: { readonly hostId: string } | string): string {
  const reason = String(socket.authorizationError);
  switch (reason) {
    case 'CERT_HAS_EXPIRED':
      return 'its certificate has ended';
    case 'CERT_NOT_YET_VALID':
      return 'its certificate has not begun: compare the clocks';
    case 'INVALID_PURPOSE':
      return 'its certificate is not for this purpose';
    case 'DEPTH_ZERO_SELF_SIGNED_CERT':
      return 'its certificate is signed by itself';
    case 'SELF_SIGNED_CERT_IN_CHAIN':
    case 'UNABLE_TO_GET_ISSUER_CERT':
    case 'UNABLE_TO_GET_ISSUER_CERT_LOCALLY':
    case 'UNABLE_TO_VERIFY_LEAF_SIGNATURE':
    case 'CERT_SIGNATURE_FAILURE':
      return typeof named === 'string' && named.includes('of mesh')
        ? named
        : 'its certificate comes from another authority than this mesh trusts';
    default:
      return `its certificate is not accepted (${truncate(printable(reason), 80)})`;
  }
}
