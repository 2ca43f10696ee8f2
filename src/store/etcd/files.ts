import { open } from 'node:fs/promises';
import { createSecureContext, type SecureContext } from 'node:tls';
import { LegateError, systemCode } from '../../base/errors.ts';
import type { EtcdStoreConfig } from '../../config/config.ts';

/** What a connection needs of files, read anew for each. */
export interface Secrets {
  readonly context: SecureContext | undefined;
  readonly credentials: Credentials | undefined;
}

export interface Credentials {
  readonly user: string;
  readonly password: string;
}

const maxFileBytes = 1024 * 1024;

/** Where distributions keep the machine's own authorities. */
const systemAuthorities = [
  '/etc/ssl/certs/ca-certificates.crt',
  '/etc/pki/tls/certs/ca-bundle.crt',
  '/etc/ssl/cert.pem',
];

/** Errors: E_CONFIG for files that cannot be read or used, E_PERMISSION for secrets that others can read. */
export async function readSecrets({ endpoints, tls, credentialsFile }: EtcdStoreConfig): Promise<Secrets> {
  const secure = endpoints.some((endpoint) => endpoint.secure);
  return {
    context: secure ? await secureContext(tls) : undefined,
    credentials: credentialsFile === undefined ? undefined : await readCredentials(credentialsFile),
  };
}

async function secureContext(tls: EtcdStoreConfig['tls']): Promise<SecureContext> {
  const ca = tls.ca === undefined ? await machineAuthorities() : await read('store.tls.ca', tls.ca);
  const cert = tls.cert === undefined ? undefined : await read('store.tls.cert', tls.cert);
  const key = tls.key === undefined ? undefined : await read('store.tls.key', tls.key, true);
  try {
    return createSecureContext({
      minVersion: 'TLSv1.2',
      ...(ca === undefined ? {} : { ca }),
      ...(cert === undefined ? {} : { cert }),
      ...(key === undefined ? {} : { key }),
    });
  } catch (error) {
    // The reason is OpenSSL's word for what is wrong with the form; it never quotes the key.
    throw new LegateError('E_CONFIG', `the files of store.tls cannot be used: ${systemCode(error) ?? 'no PEM'}`, {
      hint: 'store.tls.ca, cert and key must be PEM, and the key must be that of the certificate',
    });
  }
}

async function machineAuthorities(): Promise<Buffer | undefined> {
  for (const path of systemAuthorities) {
    const found = await read('authorities', path).catch(() => undefined);
    if (found !== undefined) return found;
  }
  return undefined;
}

async function readCredentials(path: string): Promise<Credentials> {
  const text = (await read('store.credentials_file', path, true)).toString('utf8').replace(/\r?\n$/, '');
  const [, user, password] = /^([^:\r\n\0]{1,256}):([^\r\n\0]{1,4096})$/.exec(text) ?? [];
  if (user !== undefined && password !== undefined) return { user, password };
  throw new LegateError('E_CONFIG', `store.credentials_file: ${path} is not one line of the form user:password`, {
    hint: 'write the name of the etcd user, a colon and its password into it',
  });
}

async function read(option: string, path: string, secret = false): Promise<Buffer> {
  try {
    const file = await open(path, 'r');
    try {
      const { mode, size } = await file.stat();
      if (secret && (mode & 0o077) !== 0) throw readableByOthers(option, path);
      if (size > maxFileBytes)
        throw new LegateError('E_CONFIG', `${option}: ${path} is larger than ${maxFileBytes} bytes`);
      return await file.readFile();
    } finally {
      await file.close();
    }
  } catch (error) {
    if (error instanceof LegateError) throw error;
    throw new LegateError('E_CONFIG', `${option}: ${path} cannot be read (${systemCode(error) ?? 'unknown error'})`, {
      hint: 'check the path and the permissions of the file',
    });
  }
}

function readableByOthers(option: string, path: string): LegateError {
  return new LegateError('E_PERMISSION', `${option}: ${path} can be read by others than its owner`, {
    hint: `chmod 600 ${path}`,
  });
}
