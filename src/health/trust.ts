import { readFile, stat } from 'node:fs/promises';
import type { SecureContext } from 'node:tls';
import { systemCode } from '../base/errors.ts';
import { type Endpoint, formatEndpoint } from '../model/address.ts';
import type { CheckSpec } from '../model/check.ts';
import { connectFailure } from './tcp.ts';

/** Where systems keep the authorities that they trust: Debian and Alpine, Red Hat, SUSE. */
const systemFiles = [
  '/etc/ssl/certs/ca-certificates.crt',
  '/etc/pki/tls/certs/ca-bundle.crt',
  '/etc/ssl/ca-bundle.pem',
] as const;
const maxFileBytes = 8 * 1024 * 1024;

export interface TlsOptions {
  readonly rejectUnauthorized: boolean;
  readonly secureContext: SecureContext;
}

/**
 * Which certificates a check over TLS accepts: those that this machine's own authorities have signed (OpenSSL's
 * SSL_CERT_FILE names another file), or any. Where the machine has no such file, those that Node brings count.
 */
export class Trust {
  readonly #files: readonly string[];
  #known: { readonly text: string; readonly context: Promise<SecureContext> } | undefined;
  #any: Promise<SecureContext> | undefined;

  constructor(files: readonly string[] = [...[process.env.SSL_CERT_FILE ?? ''].filter(Boolean), ...systemFiles]) {
    this.#files = files;
  }

  async optionsFor(mode: NonNullable<CheckSpec['tls']>): Promise<TlsOptions> {
    if (mode === 'any-certificate') {
      this.#any ??= makeContext(undefined);
      return { rejectUnauthorized: false, secureContext: await this.#any };
    }
    return { rejectUnauthorized: true, secureContext: await this.#verifying() };
  }

  /** Reading a hundred authorities takes milliseconds, so that it is done again only when the file is another one. */
  async #verifying(): Promise<SecureContext> {
    const file = await this.#file();
    const text = file === undefined ? '' : `${file.path} ${file.changedMs}`;
    if (this.#known?.text !== text) {
      const context = file === undefined ? makeContext(undefined) : readFile(file.path).then(makeContext);
      this.#known = { text, context };
      context.catch(() => {
        this.#known = undefined;
      });
    }
    return this.#known.context;
  }

  async #file(): Promise<{ path: string; changedMs: number } | undefined> {
    for (const path of this.#files) {
      const found = await stat(path).catch(() => undefined);
      if (found?.isFile() && found.size <= maxFileBytes) return { path, changedMs: found.mtimeMs };
    }
    return undefined;
  }
}

async function makeContext(authorities: Buffer | undefined): Promise<SecureContext> {
  const { createSecureContext } = await import('node:tls');
  return createSecureContext(authorities === undefined ? {} : { ca: authorities });
}

/** A failed connection over TLS in words; what is wrong with a certificate comes with the way to accept it. */
export function tlsFailure(error: unknown, endpoint: Endpoint): string {
  const code = systemCode(error) ?? '';
  const where = formatEndpoint(endpoint);
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') {
    return `the certificate of ${where} is not for ${endpoint.address}; tls_skip_verify accepts it`;
  }
  // Node gives the names of X509_V_ERR_… of OpenSSL's x509_vfy.h without that prefix.
  if (/CERT|SIGNATURE|^CRL_|^INVALID_(CA|PURPOSE)|^HOSTNAME_MISMATCH/.test(code)) {
    return `the certificate of ${where} is not accepted (${reasonOf(code)}); tls_skip_verify accepts it`;
  }
  if (code === 'EPROTO' || code.startsWith('ERR_SSL_') || code.startsWith('ERR_OSSL_')) {
    const word = reasonOf(code.replace(/^ERR_(SSL|OSSL)_/, ''));
    return `no TLS connection to ${where}${word === 'eproto' ? '' : ` (${word})`}; does it speak TLS there?`;
  }
  return connectFailure(error, endpoint);
}

function reasonOf(code: string): string {
  return code.toLowerCase().replaceAll('_', ' ');
}
