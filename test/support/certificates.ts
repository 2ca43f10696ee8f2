import 'reflect-metadata';
import { randomBytes, webcrypto } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as x509 from '@peculiar/x509';
import type { Credentials } from '../../src/model/credentials.ts';
import type { CertificateFiles } from '../../src/model/link.ts';
import { spiffeIdOf } from '../../src/model/spiffe.ts';

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
const hourMs = 3_600_000;

export interface IssueOptions {
  /** The SPIFFE name's trust domain, by default the authority's mesh. */
  readonly mesh?: string;
  readonly notBeforeMs?: number;
  readonly notAfterMs?: number;
  /** Names instead of the SPIFFE one. */
  readonly uris?: readonly string[];
  readonly addresses?: readonly string[];
  /** DNS names. */
  readonly names?: readonly string[];
}

/** An authority for tests that need certificates and nothing else of a mesh. */
export interface TestAuthority {
  /** PEM. */
  readonly root: string;
  issue(hostId: string, options?: IssueOptions): Promise<Credentials>;
}

export async function makeTestAuthority(mesh = 'legate'): Promise<TestAuthority> {
  const provider = webcrypto;
  x509.cryptoProvider.set(provider as never);
  const keys = await provider.subtle.generateKey(algorithm, true, ['sign', 'verify']);
  const root = await x509.X509CertificateGenerator.createSelfSigned({
    name: `CN=${mesh} test authority ${randomBytes(4).toString('hex')}`,
    keys,
    notBefore: new Date(Date.now() - hourMs),
    notAfter: new Date(Date.now() + 24 * hourMs),
    signingAlgorithm: algorithm,
    serialNumber: serial(),
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return {
    root: root.toString('pem'),
    async issue(hostId, options = {}) {
      const pair = await provider.subtle.generateKey(algorithm, true, ['sign', 'verify']);
      // A certificate knows whole seconds only: what is said of it has to be what it says.
      const notBeforeMs = wholeSeconds(options.notBeforeMs ?? Date.now() - hourMs);
      const notAfterMs = wholeSeconds(options.notAfterMs ?? Date.now() + hourMs);
      const uris = options.uris ?? [spiffeIdOf(options.mesh ?? mesh, hostId)];
      const certificate = await x509.X509CertificateGenerator.create({
        subject: `CN=${hostId}`,
        issuer: root.subject,
        publicKey: pair.publicKey,
        signingKey: keys.privateKey,
        notBefore: new Date(notBeforeMs),
        notAfter: new Date(notAfterMs),
        signingAlgorithm: algorithm,
        serialNumber: serial(),
        extensions: [
          new x509.BasicConstraintsExtension(false, undefined, true),
          new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
          new x509.ExtendedKeyUsageExtension(['1.3.6.1.5.5.7.3.1', '1.3.6.1.5.5.7.3.2']),
          new x509.SubjectAlternativeNameExtension([
            ...uris.map((value) => ({ type: 'url' as const, value })),
            ...(options.names ?? []).map((value) => ({ type: 'dns' as const, value })),
            ...(options.addresses ?? ['127.0.0.1']).map((value) => ({ type: 'ip' as const, value })),
          ]),
          await x509.AuthorityKeyIdentifierExtension.create(root, false),
        ],
      });
      const der = await provider.subtle.exportKey('pkcs8', pair.privateKey);
      return {
        mesh,
        hostId,
        chain: certificate.toString('pem'),
        key: x509.PemConverter.encode(der, 'PRIVATE KEY'),
        roots: [root.toString('pem')],
        serial: certificate.serialNumber,
        notBeforeMs,
        notAfterMs,
      };
    },
  };
}

function wholeSeconds(ms: number): number {
  return Math.floor(ms / 1000) * 1000;
}

/** Writes a certificate and its key as files of a door; names of hosts, and not of the mesh, are in it. */
export async function writeDoorFiles(
  authority: TestAuthority,
  folder: string,
  name: string,
  options: Omit<IssueOptions, 'uris' | 'mesh'>,
): Promise<CertificateFiles> {
  const { chain, key } = await authority.issue(name, { ...options, uris: [] });
  const files = { cert: join(folder, `${name}.crt`), key: join(folder, `${name}.key`) };
  writeFileSync(files.cert, chain);
  writeFileSync(files.key, key, { mode: 0o600 });
  return files;
}

/** Positive, as RFC 5280 section 4.1.2.2 asks. */
function serial(): string {
  return `01${randomBytes(15).toString('hex')}`;
}
