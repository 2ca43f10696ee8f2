import { constants, type X509Certificate } from 'node:crypto';
import { createSecureContext, type SecureContext, type SecureContextOptions } from 'node:tls';
import { describeError, LegateError } from '../../src/base/errors.ts';
import { printable } from '../../src/base/text.ts';
import type { CertificateFiles } from '../../src/model/link.ts';
import { certificatesOf, lifeOf } from '../../src/pki/chain.ts';
import { readPlainFile, readSecretFile } from '../../src/pki/key-files.ts';

/** Names of one certificate that are served by it; authorities issue none with more than 100. */
const maxNames = 1000;
const nameForm = /^(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*$/;

/** What a door shows to clients that ask for one of its names. */
export interface Certificate {
  /** Lower case; `*.example.com` stands for every name with one label more. */
  readonly names: readonly string[];
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  readonly options: SecureContextOptions;
  readonly context: SecureContext;
}

/**
 * Reads a certificate with those between it and a root, and its key. LegateErrors say what is wrong: a key that others can
 * read, a file that is missing or of another form, a key that is another certificate's.
 */
export function readCertificate({ cert, key }: CertificateFiles): Certificate {
  const chain = readPlainFile(cert);
  const secret = readSecretFile(key);
  const [own] = certificatesOf(chain) ?? [];
  if (own === undefined) {
    throw new LegateError('E_INVALID', `${printable(cert)} does not begin with a certificate in PEM`, {
      hint: 'write the certificate and those between it and a root into it, one behind the other',
    });
  }
  if (/^(?:-----BEGIN ENCRYPTED|Proc-Type:.*ENCRYPTED)/m.test(secret)) {
    throw new LegateError('E_INVALID', `${printable(key)} is encrypted`, {
      hint: `openssl pkey -in ${printable(key)} writes it without a passphrase; chmod 600 the new file`,
    });
  }
  const options: SecureContextOptions = {
    cert: chain,
    key: secret,
    minVersion: 'TLSv1.2',
    // A client of TLS 1.2 that negotiates again and again costs a server more than itself.
    secureOptions: constants.SSL_OP_NO_RENEGOTIATION,
  };
  try {
    return { names: namesOf(own), ...lifeOf(own), options, context: createSecureContext(options) };
  } catch (error) {
    const what = `${printable(key)} is no key of the certificate in ${printable(cert)}`;
    throw new LegateError('E_INVALID', `${what}: ${describeError(error)}`, {
      hint: 'put certificate and key of one pair there',
      cause: error,
    });
  }
}

/** The DNS names of a certificate (RFC 6125: those of the subject alone do not count). */
function namesOf({ subjectAltName }: X509Certificate): readonly string[] {
  const names = new Set<string>();
  for (const part of (subjectAltName ?? '').split(', ')) {
    const name = part.startsWith('DNS:') ? part.slice(4).toLowerCase() : '';
    if (name.length <= 255 && nameForm.test(name) && names.size < maxNames) names.add(name);
  }
  return [...names];
}
