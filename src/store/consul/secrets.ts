import { LegateError } from '../../base/errors.ts';
import type { ConsulStoreConfig } from '../../config/config.ts';
import { readStoreFile } from '../store-files.ts';

/** What the configuration's files hold: the token and the TLS material. */
export interface Secrets {
  readonly token: string | undefined;
  readonly tls: { readonly ca?: string; readonly cert?: string; readonly key?: string };
}

/** Reads the files. E_CONFIG: missing or of another form; E_PERMISSION: not readable, or a secret that others may read. */
export function readSecrets({ credentialsFile, tls }: ConsulStoreConfig): Secrets {
  const token = credentialsFile === undefined ? undefined : readToken(credentialsFile);
  return {
    token,
    tls: {
      ...(tls.ca !== undefined && { ca: text('store.tls.ca', tls.ca) }),
      ...(tls.cert !== undefined && { cert: text('store.tls.cert', tls.cert) }),
      ...(tls.key !== undefined && { key: text('store.tls.key', tls.key, true) }),
    },
  };
}

export function sameSecrets(a: Secrets, b: Secrets): boolean {
  return a.token === b.token && a.tls.ca === b.tls.ca && a.tls.cert === b.tls.cert && a.tls.key === b.tls.key;
}

function readToken(path: string): string {
  const token = text('store.credentials_file', path, true).trim();
  if (/^[\x21-\x7e]{1,512}$/.test(token)) return token;
  throw new LegateError('E_CONFIG', `${path} does not hold a token of Consul (one line of printable characters)`, {
    hint: "write the token's SecretID into it, and nothing else",
  });
}

function text(option: string, path: string, secret = false): string {
  return readStoreFile(option, path, secret).toString('utf8');
}
