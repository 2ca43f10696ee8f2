import type { KeyObject, X509Certificate } from 'node:crypto';
import { existsSync, readdirSync, renameSync } from 'node:fs';
import { rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { LegateError } from '../base/errors.ts';
import { makePrivateFolder, writeFileAtomically } from '../base/files.ts';
import type { Credentials } from '../model/credentials.ts';
import { hostIdOfNames } from '../model/spiffe.ts';
import { certificatesOf, lifeOf, serialOf, toPem } from './chain.ts';
import { keyOfPem, keyToPem, readPlainFile, readSecretFile } from './key-files.ts';

/** What a host of a mesh keeps in `pki` of its data directory; the policy's files are the policy's. */
export interface HostFiles {
  readonly folder: string;
  readonly certificate: string;
  readonly key: string;
  /** The key of a certificate that is being put in place. */
  readonly nextKey: string;
  readonly roots: string;
  readonly policy: string;
  readonly policyKey: string;
  /** Of the authority's host. */
  readonly authority: string;
}

export function hostFiles(dataDir: string, folder = join(dataDir, 'pki')): HostFiles {
  return {
    folder,
    certificate: join(folder, 'host.crt'),
    key: join(folder, 'host.key'),
    nextKey: join(folder, 'host.key.next'),
    roots: join(folder, 'roots.pem'),
    policy: join(folder, 'policy.json'),
    policyKey: join(folder, 'policy.pub'),
    authority: join(folder, 'authority'),
  };
}

/** Whether the data directory is that of a host of a mesh with an authority. */
export function isEnrolled(dataDir: string): boolean {
  const files = hostFiles(dataDir);
  return existsSync(files.certificate) || existsSync(files.authority);
}

/**
 * What this host shows, as it is on disk; undefined on a host that never was in a mesh with an authority. LegateErrors say
 * what is wrong with the files: E_PERMISSION for a key that others can read.
 */
export function readHostCredentials(files: HostFiles, mesh: string): Credentials | undefined {
  if (!existsSync(files.certificate)) return undefined;
  const chain = readPlainFile(files.certificate);
  const roots = certificatesOf(readPlainFile(files.roots)) ?? [];
  const keys = [files.key, files.nextKey].filter((path) => existsSync(path));
  if (keys.length === 0) throw new LegateError('E_NOT_FOUND', `${files.key} does not exist`, { hint: restore });
  let fault: LegateError | undefined;
  for (const path of keys) {
    const read = credentialsOf({ chain, key: keyOfPem(readSecretFile(path), path), roots, mesh });
    if (read instanceof LegateError) {
      fault ??= read;
      continue;
    }
    // The sidecar ended between the two steps of a renewal.
    if (path === files.nextKey) renameSync(files.nextKey, files.key);
    return read;
  }
  throw new LegateError('E_INVALID', `${files.folder}: ${fault?.message ?? 'the files do not fit together'}`, {
    hint: restore,
  });
}

const restore = 'restore the folder from a backup, or move data_dir away and join anew';

/** Credentials of their parts; the reason in words when these do not make any. Times are not looked at. */
export function credentialsOf(parts: {
  readonly chain: string;
  readonly key: KeyObject;
  readonly roots: readonly X509Certificate[];
  readonly mesh: string;
}): Credentials | LegateError {
  const { key, roots, mesh } = parts;
  const chain = certificatesOf(parts.chain);
  const [certificate] = chain ?? [];
  const fault = (what: string): LegateError => new LegateError('E_INVALID', what);
  if (chain === undefined || certificate === undefined) return fault('it holds no certificate in PEM');
  if (!certificate.checkPrivateKey(key)) return fault('the key is not that of the certificate');
  const named = hostIdOfNames(certificate.subjectAltName, mesh);
  if (typeof named === 'string') return fault(named);
  return {
    mesh,
    hostId: named.hostId,
    chain: chain.map(toPem).join(''),
    key: keyToPem(key),
    roots: roots.map(toPem),
    serial: serialOf(certificate),
    ...lifeOf(certificate),
  };
}

/** Puts a renewed certificate and its key in the place of the present ones; a crash leaves either the old or the new. */
export async function replaceHostCertificate(
  files: HostFiles,
  { chain, key }: Pick<Credentials, 'chain' | 'key'>,
): Promise<void> {
  await writeFileAtomically(files.nextKey, [key]);
  await writeFileAtomically(files.certificate, [chain]);
  await rename(files.nextKey, files.key);
}

export async function replaceRoots(files: HostFiles, roots: readonly string[]): Promise<void> {
  await writeFileAtomically(files.roots, [roots.join('')]);
}

/** What a host that is let in keeps. */
export interface HostBundle {
  readonly credentials: Credentials;
  readonly sealedPolicy: Uint8Array;
  readonly policyKey: string;
}

/**
 * Writes all files of a new host of a mesh, and what `more` puts beside them, as one step: `pki` is there whole or not at
 * all. E_CONFLICT when there is one already.
 */
export async function writeNewHost(
  dataDir: string,
  { credentials, sealedPolicy, policyKey }: HostBundle,
  more: (folder: HostFiles) => Promise<void> = () => Promise.resolve(),
): Promise<void> {
  const final = hostFiles(dataDir);
  if (isEnrolled(dataDir)) throw alreadyEnrolled(dataDir);
  const next = hostFiles(dataDir, join(dataDir, 'pki.next'));
  await rm(next.folder, { recursive: true, force: true });
  makePrivateFolder(next.folder);
  try {
    await replaceHostCertificate(next, credentials);
    await replaceRoots(next, credentials.roots);
    await writeFileAtomically(next.policy, [sealedPolicyText(sealedPolicy)]);
    await writeFileAtomically(next.policyKey, [policyKey]);
    await more(next);
    if (existsSync(final.folder) && readdirSync(final.folder).length === 0) await rm(final.folder, { recursive: true });
    await rename(next.folder, final.folder);
  } catch (error) {
    await rm(next.folder, { recursive: true, force: true }).catch(() => undefined);
    throw error;
  }
}

/**
 * Writes the files of a host that joined its mesh again over those that it has. The certificate comes last, and its key
 * may be the one that is there: after a crash the host can join again once more.
 */
export async function replaceHost(dataDir: string, bundle: HostBundle): Promise<void> {
  const files = hostFiles(dataDir);
  await replaceRoots(files, bundle.credentials.roots);
  await writeFileAtomically(files.policy, [sealedPolicyText(bundle.sealedPolicy)]);
  await writeFileAtomically(files.policyKey, [bundle.policyKey]);
  await replaceHostCertificate(files, bundle.credentials);
}

function sealedPolicyText(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('utf8');
}

export function alreadyEnrolled(dataDir: string): LegateError {
  return new LegateError('E_CONFLICT', `data_dir ${dataDir} belongs to a host of a mesh already`, {
    hint: 'nothing was changed; a host that is refused by the others joins again with legate join --again; to make another host of it, stop its sidecar and give it an empty data_dir',
  });
}
