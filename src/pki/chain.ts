import { createHash, type KeyObject, X509Certificate } from 'node:crypto';

const maxCertificates = 16;
const block = /-----BEGIN CERTIFICATE-----\r?\n[A-Za-z0-9+/=\r\n]+-----END CERTIFICATE-----/g;

/** The certificates of a text in PEM, in its order; undefined when there is none, too many, or one that cannot be read. */
export function certificatesOf(pem: string): readonly X509Certificate[] | undefined {
  const blocks = pem.match(block) ?? [];
  if (blocks.length === 0 || blocks.length > maxCertificates) return undefined;
  try {
    return blocks.map((each) => new X509Certificate(each));
  } catch {
    return undefined;
  }
}

/** SHA-256 of the certificate: 64 lower-case hexadecimal digits. */
export function fingerprintOf(certificate: X509Certificate): string {
  return createHash('sha256').update(certificate.raw).digest('hex');
}

/** As `fingerprintOf`, of PEM; undefined when it is no certificate. */
export function fingerprintOfPem(pem: string): string | undefined {
  const [certificate] = certificatesOf(pem) ?? [];
  return certificate === undefined ? undefined : fingerprintOf(certificate);
}

/** SHA-256 of a public key (SPKI): 64 lower-case hexadecimal digits. */
export function keyFingerprint(publicKey: KeyObject): string {
  return createHash('sha256')
    .update(publicKey.export({ type: 'spki', format: 'der' }))
    .digest('hex');
}

/** PEM with its lines and a line end at the end, the same for equal certificates. */
export function toPem(certificate: X509Certificate): string {
  return `${certificate.toString().trim()}\n`;
}

export function serialOf(certificate: X509Certificate): string {
  return certificate.serialNumber.toLowerCase().replace(/^0+(?=.)/, '');
}

export function lifeOf(certificate: X509Certificate): { readonly notBeforeMs: number; readonly notAfterMs: number } {
  return { notBeforeMs: Date.parse(certificate.validFrom), notAfterMs: Date.parse(certificate.validTo) };
}

/** Why a chain, its host's certificate first, does not lead to one of the roots; else that root. Times are not looked at. */
export function rootOfChain(
  chain: readonly X509Certificate[],
  roots: readonly X509Certificate[],
): { readonly root: X509Certificate } | { readonly problem: string } {
  let current = chain[0];
  if (current === undefined) return { problem: 'it shows no certificate' };
  const between = new Set(chain.slice(1));
  for (let depth = 0; depth <= maxCertificates; depth += 1) {
    const subject: X509Certificate = current;
    const root = roots.find((each) => isIssuedBy(subject, each));
    if (root !== undefined) return { root };
    const issuer = [...between].find((each) => isIssuedBy(subject, each));
    if (issuer === undefined) return { problem: 'its certificate was not issued by a root that is believed' };
    between.delete(issuer);
    current = issuer;
  }
  return { problem: 'its chain of certificates is too long' };
}

function isIssuedBy(certificate: X509Certificate, issuer: X509Certificate): boolean {
  try {
    return issuer.ca && certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey);
  } catch {
    return false;
  }
}

/** Why a certificate does not hold now; says when it is more likely that a clock is wrong. */
export function timeProblem(certificate: X509Certificate, nowMs: number, whose: string): string | undefined {
  const { notBeforeMs, notAfterMs } = lifeOf(certificate);
  if (nowMs < notBeforeMs) {
    return `${whose} certificate holds only from ${certificate.validFrom}, and this host's clock says ${at(nowMs)}: one of the two clocks is wrong`;
  }
  if (nowMs <= notAfterMs) return undefined;
  return `${whose} certificate ended at ${at(notAfterMs)}, and this host's clock says ${at(nowMs)}`;
}

function at(ms: number): string {
  return new Date(ms).toISOString();
}
