import { existsSync } from 'node:fs';
import { createSecureContext, type SecureContext } from 'node:tls';
import { LegateError, systemCode } from '../../base/errors.ts';
import type { EtcdStoreConfig } from '../../config/config.ts';
import { readStoreFile } from '../store-files.ts';
import { isStoreOfMesh, type StoreTrust } from '../trust.ts';
import { MeshIdentity } from './mesh-identity.ts';

/** What a connection needs beside an address, read anew for each. */
export interface Secrets {
  readonly context: SecureContext | undefined;
  /** How the server is known, when that is not by its name or address. */
  readonly identity: MeshIdentity | undefined;
  readonly credentials: Login | undefined;
}

export interface Login {
  readonly user: string;
  readonly password: string;
}

/** Where distributions keep the machine's own authorities. */
const systemAuthorities = [
  '/etc/ssl/certs/ca-certificates.crt',
  '/etc/pki/tls/certs/ca-bundle.crt',
  '/etc/ssl/cert.pem',
];

/** Errors: E_CONFIG for files that cannot be read or used, E_PERMISSION for secrets that others can read. */
export function readSecrets(config: EtcdStoreConfig, trust?: StoreTrust): Secrets {
  const { endpoints, tls, credentialsFile } = config;
  const secure = endpoints.some((endpoint) => endpoint.secure);
  const credentials = credentialsFile === undefined ? undefined : readCredentials(credentialsFile);
  const own = trust?.credentials.value;
  if (trust !== undefined && own !== undefined && isStoreOfMesh(config, trust)) {
    const identity = new MeshIdentity(own, trust);
    return { context: identity.context(), identity, credentials };
  }
  return { context: secure ? secureContext(tls) : undefined, identity: undefined, credentials };
}

function secureContext(tls: EtcdStoreConfig['tls']): SecureContext {
  const ca = tls.ca === undefined ? machineAuthorities() : readStoreFile('store.tls.ca', tls.ca);
  const cert = tls.cert === undefined ? undefined : readStoreFile('store.tls.cert', tls.cert);
  const key = tls.key === undefined ? undefined : readStoreFile('store.tls.key', tls.key, true);
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

function machineAuthorities(): Buffer | undefined {
  for (const path of systemAuthorities) {
    if (existsSync(path)) return readStoreFile('the authorities of this machine', path);
  }
  return undefined;
}

function readCredentials(path: string): Login {
  const text = readStoreFile('store.credentials_file', path, true)
    .toString('utf8')
    .replace(/\r?\n$/, '');
  const [, user, password] = /^([^:\r\n\0]{1,256}):([^\r\n\0]{1,4096})$/.exec(text) ?? [];
  if (user !== undefined && password !== undefined) return { user, password };
  throw new LegateError('E_CONFIG', `store.credentials_file: ${path} is not one line of the form user:password`, {
    hint: 'write the name of the etcd user, a colon and its password into it',
  });
}
