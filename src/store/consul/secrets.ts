import { statSync } from 'node:fs';
import { LegateError, systemCode } from '../../base/errors.ts';
import { readFileIfAny } from '../../base/files.ts';
import type { ConsulStoreConfig } from '../../config/config.ts';

/** What the configuration's files hold: the token and the TLS material. */
export interface Secrets {
  readonly token: string | undefined;
  readonly tls: { readonly ca?: string; readonly cert?: string; readonly key?: string };
}

const maxFileBytes = 1024 * 1024;

/** Reads the files. E_CONFIG: missing or of another form; E_PERMISSION: not readable, or a secret that others may read. */
export function readSecrets({ credentialsFile, tls }: ConsulStoreConfig): Secrets {
  const token = credentialsFile === undefined ? undefined : readToken(credentialsFile);
  return {
    token,
    tls: {
      ...(tls.ca !== undefined && { ca: read(tls.ca, false) }),
      ...(tls.cert !== undefined && { cert: read(tls.cert, false) }),
      ...(tls.key !== undefined && { key: read(tls.key, true) }),
    },
  };
}

export function sameSecrets(a: Secrets, b: Secrets): boolean {
  return a.token === b.token && a.tls.ca === b.tls.ca && a.tls.cert === b.tls.cert && a.tls.key === b.tls.key;
}

function readToken(path: string): string {
  const token = read(path, true).trim();
  if (/^[\x21-\x7e]{1,512}$/.test(token)) return token;
  throw new LegateError('E_CONFIG', `${path} does not hold a token of Consul (one line of printable characters)`, {
    hint: "write the token's SecretID into it, and nothing else",
  });
}

function read(path: string, secret: boolean): string {
  try {
    if (secret && (statSync(path).mode & 0o077) !== 0) {
      throw new LegateError('E_PERMISSION', `${path} holds a secret and can be read by others`, {
        hint: `chmod 600 ${path}`,
      });
    }
    const text = readFileIfAny(path, maxFileBytes);
    if (text !== undefined) return text;
  } catch (error) {
    if (error instanceof LegateError) throw error;
    const code = systemCode(error) ?? 'unknown error';
    if (code !== 'ENOENT') {
      throw new LegateError('E_PERMISSION', `${path} cannot be read (${code})`, {
        hint: 'give the sidecar the right to read it',
        cause: error,
      });
    }
  }
  throw new LegateError('E_CONFIG', `there is no file ${path}`, {
    hint: 'check the paths under store in the configuration',
  });
}
