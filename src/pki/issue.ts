import { createPublicKey, type KeyObject, randomBytes, webcrypto } from 'node:crypto';
import { LegateError } from '../base/errors.ts';
import { printable, truncate } from '../base/text.ts';
import { spiffeIdOf } from '../model/spiffe.ts';
import { newKey } from './key-files.ts';
import { loadX509, type X509 } from './x509.ts';

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
const rootLifeMs = 10 * 365.25 * 24 * 3_600_000;
/** Clocks of hosts differ: a certificate holds from a little before it was made. */
export const backdatedMs = 5 * 60_000;
const maxRequestBytes = 16 * 1024;
const [serverAuth, clientAuth] = ['1.3.6.1.5.5.7.3.1', '1.3.6.1.5.5.7.3.2'] as const;

/** A root: what it signs with, and its certificate in PEM. */
export interface Root {
  readonly key: KeyObject;
  readonly certificate: string;
}

/** Makes a root for hosts' certificates and nothing else: no authority may stand below it (RFC 5280, section 4.2.1.9). */
export async function makeRoot(mesh: string, nowMs: number): Promise<Root> {
  const x509 = await loadX509();
  const key = newKey();
  const keys = { privateKey: await toCryptoKey(key, 'private'), publicKey: await toCryptoKey(key, 'public') };
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    name: `CN=${mesh} authority ${randomBytes(4).toString('hex')}`,
    keys: keys,
    notBefore: wholeSeconds(nowMs - backdatedMs),
    notAfter: wholeSeconds(nowMs + rootLifeMs),
    signingAlgorithm: algorithm,
    serialNumber: randomSerial(),
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
      await x509.AuthorityKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return { key, certificate: `${certificate.toString('pem').trim()}\n` };
}

/** Whom a certificate is for. */
export interface Subject {
  readonly mesh: string;
  readonly hostId: string;
  readonly name: string;
  readonly domain: string;
  /** Where it is reached; loopback comes by itself. */
  readonly addresses: readonly string[];
}

/** A host's certificate in PEM. It never outlives its root. */
export async function issueHost(
  root: Root,
  subject: Subject,
  { publicKey, lifeMs, nowMs }: { readonly publicKey: KeyObject; readonly lifeMs: number; readonly nowMs: number },
): Promise<string> {
  const x509 = await loadX509();
  const issuer = new x509.X509Certificate(root.certificate);
  const { mesh, hostId, name, domain, addresses } = subject;
  const subjectKey = await toCryptoKey(publicKey, 'public');
  const certificate = await x509.X509CertificateGenerator.create({
    subject: `CN=${name}`,
    issuer: issuer.subject,
    publicKey: subjectKey,
    signingKey: await toCryptoKey(root.key, 'private'),
    notBefore: wholeSeconds(nowMs - backdatedMs),
    notAfter: wholeSeconds(Math.min(nowMs + lifeMs, issuer.notAfter.getTime())),
    signingAlgorithm: algorithm,
    serialNumber: randomSerial(),
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([serverAuth, clientAuth]),
      new x509.SubjectAlternativeNameExtension([
        { type: 'url', value: spiffeIdOf(mesh, hostId) },
        ...[name, `${name}.host.${domain}`].map((value) => ({ type: 'dns' as const, value })),
        ...[...new Set([...addresses, '127.0.0.1'])].map((value) => ({ type: 'ip' as const, value })),
      ]),
      await x509.SubjectKeyIdentifierExtension.create(subjectKey),
      await x509.AuthorityKeyIdentifierExtension.create(issuer.publicKey),
    ],
  });
  return `${certificate.toString('pem').trim()}\n`;
}

/** A request for a certificate, in PEM, by the key that it is to be for. Its names are only for people. */
export async function makeRequest(key: KeyObject, name: string, uri?: string): Promise<string> {
  const x509 = await loadX509();
  const keys = { privateKey: await toCryptoKey(key, 'private'), publicKey: await toCryptoKey(key, 'public') };
  const names = uri === undefined ? [] : [{ type: 'url' as const, value: uri }];
  const request = await x509.Pkcs10CertificateRequestGenerator.create({
    name: `CN=${name}`,
    keys: keys,
    signingAlgorithm: algorithm,
    extensions: names.length === 0 ? [] : [new x509.SubjectAlternativeNameExtension(names)],
  });
  return `${request.toString('pem').trim()}\n`;
}

/** What a request may ask for at most: everything else in it is another identity. */
export interface RequestLimits {
  readonly mesh: string;
  readonly name: string;
  /** Undefined for a host that has no id yet: its request may name none. */
  readonly hostId?: string;
}

/**
 * The key of a request; nothing else of it is used. E_INVALID when it is none, is not signed by its own key, or its key is
 * no ECDSA key on P-256; E_UNAUTHORIZED when it asks for another identity, or to be an authority.
 */
export async function keyOfRequest(pem: string, limits: RequestLimits): Promise<KeyObject> {
  const x509 = await loadX509();
  const fault = (what: string): LegateError => new LegateError('E_INVALID', `the request for a certificate ${what}`);
  if (pem.length > maxRequestBytes) throw fault(`is longer than ${maxRequestBytes} bytes`);
  let request: InstanceType<X509['Pkcs10CertificateRequest']>;
  let key: KeyObject;
  try {
    request = new x509.Pkcs10CertificateRequest(pem);
    key = createPublicKey({ key: Buffer.from(request.publicKey.rawData), type: 'spki', format: 'der' });
  } catch {
    throw fault('cannot be read');
  }
  if (key.asymmetricKeyType !== 'ec' || key.asymmetricKeyDetails?.namedCurve !== 'prime256v1') {
    throw fault('is not for an ECDSA key on P-256');
  }
  if (!(await request.verify().catch(() => false))) throw fault('is not signed by its own key');
  const other = otherIdentity(x509, request, limits);
  if (other === undefined) return key;
  throw new LegateError('E_UNAUTHORIZED', `the request asks for ${other}, which is not this host's to be`, {
    hint: 'the authority chooses who a host is; ask with the name of the host only',
  });
}

function otherIdentity(
  x509: X509,
  request: InstanceType<X509['Pkcs10CertificateRequest']>,
  { mesh, name, hostId }: RequestLimits,
): string | undefined {
  const shown = (text: string): string => truncate(printable(text), 120);
  let names: string[];
  try {
    names = request.subjectName.getField('CN');
    const asksForAuthority = request.extensions.some(
      (each) => each instanceof x509.BasicConstraintsExtension && each.ca,
    );
    if (asksForAuthority) return 'the right to issue certificates';
    const alternatives = request.extensions.flatMap((each) =>
      each instanceof x509.SubjectAlternativeNameExtension ? each.names.items : [],
    );
    const mine = hostId === undefined ? undefined : spiffeIdOf(mesh, hostId);
    const other = alternatives.find(({ type, value }) => (type === 'url' ? value !== mine : value !== name));
    if (other !== undefined) return `the name ${shown(other.value)}`;
  } catch {
    return 'something that cannot be read';
  }
  const another = names.find((each) => each !== name);
  return another === undefined ? undefined : `the name ${shown(another)}`;
}

/** X.509's times have no parts of seconds. */
function wholeSeconds(ms: number): Date {
  return new Date(Math.floor(ms / 1000) * 1000);
}

/** 128 random bits; positive, and without leading zeros, so that all tools write it alike (RFC 5280, section 4.1.2.2). */
function randomSerial(): string {
  const bytes = randomBytes(16);
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40;
  return bytes.toString('hex');
}

async function toCryptoKey(key: KeyObject, half: 'private' | 'public'): Promise<webcrypto.CryptoKey> {
  if (half === 'private') {
    const der = key.export({ type: 'pkcs8', format: 'der' });
    return await webcrypto.subtle.importKey('pkcs8', der, algorithm, false, ['sign']);
  }
  const der = (key.type === 'public' ? key : createPublicKey(key)).export({ type: 'spki', format: 'der' });
  return await webcrypto.subtle.importKey('spki', der, algorithm, true, ['verify']);
}
