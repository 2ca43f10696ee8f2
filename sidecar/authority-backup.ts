import { createCipheriv, createDecipheriv, createPublicKey, randomBytes, scryptSync } from 'node:crypto';
import { existsSync, readdirSync } from 'node:fs';
import { rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../src/base/clock.ts';
import { isLegateError, LegateError } from '../src/base/errors.ts';
import { FieldFault, Fields } from '../src/base/fields.ts';
import { cannotWrite, makePrivateFolder, readFileIfAny, writeFileAtomically } from '../src/base/files.ts';
import { printable } from '../src/base/text.ts';
import type { Config } from '../src/config/config.ts';
import type { Policy } from '../src/model/policy.ts';
import { Authority, writeClaim } from '../src/pki/authority.ts';
import { certificatesOf, fingerprintOfPem } from '../src/pki/chain.ts';
import { credentialsOf, type HostFiles, hostFiles, readHostCredentials, writeNewHost } from '../src/pki/host-files.ts';
import { newKey, readPassphrase, readPlainFile } from '../src/pki/key-files.ts';
import { openSealedPolicy } from '../src/pki/policy-seal.ts';
import { openDataDir } from './data-dir.ts';
import { ownAddresses } from './init.ts';

const magic = 'legate-authority-backup';
const maxBackupBytes = 64 * 1024 * 1024;
/** RFC 7914: 2^15 × 8 × 128 bytes are 32 MiB. */
const scryptParameters = { N: 2 ** 15, r: 8, p: 1, maxmem: 64 * 1024 * 1024 } as const;
/** Characters of a backup's passphrase at least. */
const leastPassphrase = 12;
const fileName = /^(?:settings\.json|ledger\.json|policy\.key|root-[0-9a-f]{16}\.(?:crt|key))$/;

interface Saved {
  readonly mesh: string;
  readonly meshId: string;
  /** The host that it was saved on. */
  readonly hostId: string;
  readonly host: string;
  /** The files of `authority`, by name. Keys are as encrypted as they were. */
  readonly files: Readonly<Record<string, string>>;
  readonly policy: string;
  readonly policyKey: string;
  /** Missing in backups of the first kind. */
  readonly savedAt?: string;
}

/**
 * Saves the authority of this host: keys, ledger, settings and the policy, encrypted with the passphrase (scrypt,
 * AES-256-GCM). E_NOT_FOUND on another host, E_CONFLICT where the file exists and is not to be overwritten.
 */
export async function backupAuthority(
  config: Config,
  {
    file,
    passphraseFile,
    overwrite,
  }: { readonly file: string; readonly passphraseFile: string; readonly overwrite: boolean },
): Promise<{ readonly mesh: string; readonly hosts: number; readonly file: string }> {
  const passphrase = readPassphrase(passphraseFile);
  checkPassphrase(passphrase, passphraseFile);
  if (!overwrite && existsSync(file)) {
    throw new LegateError('E_CONFLICT', `${printable(file)} is there already`, {
      hint: 'nothing was saved; name another file, or say --overwrite',
    });
  }
  const files = hostFiles(config.dataDir);
  if (!existsSync(files.authority)) {
    throw new LegateError('E_NOT_FOUND', `${config.dataDir} is not that of the authority's host`, {
      hint: 'run it on the host on which legate init was run, with its configuration',
    });
  }
  const names = readdirSync(files.authority).filter((name) => fileName.test(name));
  const texts = Object.fromEntries(names.map((name) => [name, readPlainFile(join(files.authority, name))]));
  const settings = new Fields(JSON.parse(texts['settings.json'] ?? '{}'));
  const ledger = new Fields(JSON.parse(texts['ledger.json'] ?? '{}'));
  const credentials = readHostCredentials(files, config.mesh);
  if (credentials === undefined) throw new LegateError('E_NOT_FOUND', `${files.certificate} does not exist`);
  const saved: Saved = {
    mesh: config.mesh,
    meshId: settings.text('meshId', 32),
    hostId: credentials.hostId,
    host: config.host,
    files: texts,
    policy: readPlainFile(files.policy),
    policyKey: readPlainFile(files.policyKey),
    savedAt: new Date().toISOString(),
  };
  await writeFileAtomically(file, [encrypt(JSON.stringify({ v: 1, ...saved }), passphrase)]).catch((error: unknown) =>
    Promise.reject(cannotWrite(printable(file), error)),
  );
  return { mesh: saved.mesh, hosts: ledger.list('hosts', 100_000).length, file };
}

/**
 * Makes this host the authority again. An empty data_dir of a host of the same name becomes the host that it was; a host
 * of the mesh keeps its own id, and the policy will say that the authority is there. E_CONFLICT where there is one, and
 * for a backup of before a rotation that this host knows of.
 */
export async function restoreAuthority(
  config: Config,
  options: {
    readonly file: string;
    readonly passphraseFile: string;
    readonly clock: Clock;
    readonly signal: AbortSignal;
  },
): Promise<{ readonly mesh: string; readonly hostId: string; readonly savedAt: string }> {
  const { file, passphraseFile, clock, signal } = options;
  const saved = decrypt(readFileIfAny(file, maxBackupBytes), readPassphrase(passphraseFile), file);
  if (saved.mesh !== config.mesh) {
    throw new LegateError(
      'E_CONFLICT',
      `the backup is of mesh ${saved.mesh}, and the configuration says ${config.mesh}`,
      {
        hint: 'nothing was written; set `mesh` in the configuration, or take another backup',
      },
    );
  }
  const files = hostFiles(config.dataDir);
  if (existsSync(files.authority)) {
    throw new LegateError('E_CONFLICT', `${files.authority} is there already`, {
      hint: 'nothing was written; move it away first if the backup shall take its place',
    });
  }
  const isFresh = !existsSync(join(config.dataDir, 'host.json'));
  const dataDir = await openDataDir(config.dataDir, { clock, signal });
  const draft = join(config.dataDir, 'pki.authority');
  try {
    await rm(draft, { recursive: true, force: true });
    makePrivateFolder(draft);
    for (const [name, text] of Object.entries(saved.files)) await writeFileAtomically(join(draft, name), [text]);
    const sealedPolicy = Buffer.from(saved.policy);
    const known = openSealedPolicy(sealedPolicy, saved.policyKey, { mesh: saved.mesh, meshId: saved.meshId });
    const savedAt = saved.savedAt ?? new Date(known.version).toISOString();
    await writeClaim(draft, savedAt);
    const authority = Authority.open(draft, { passphraseFile: config.authority.passphraseFile, clock });
    const present = readHostCredentials(files, config.mesh);
    if (present !== undefined) {
      checkRoot(files, known, authority.roots);
      await rename(draft, files.authority);
      return { mesh: saved.mesh, hostId: present.hostId, savedAt };
    }
    const hostId = isFresh && config.host === saved.host ? saved.hostId : dataDir.identity.hostId;
    const key = newKey();
    const where = { address: config.advertise, port: config.tunnel.listen.port, addresses: ownAddresses(config) };
    const issued = await authority.issue({ hostId, name: config.host, ...where }, createPublicKey(key));
    const roots = authority.roots.flatMap((root) => certificatesOf(root) ?? []);
    const chain = issued.certificate + issued.root;
    const credentials = credentialsOf({ chain, key, roots, mesh: saved.mesh });
    if (credentials instanceof LegateError) throw credentials;
    await dataDir.becomeHost({ hostId, meshId: saved.meshId });
    await writeNewHost(config.dataDir, { credentials, sealedPolicy, policyKey: saved.policyKey }, (next) =>
      rename(draft, next.authority),
    );
    return { mesh: saved.mesh, hostId, savedAt };
  } finally {
    await rm(draft, { recursive: true, force: true });
    dataDir.release();
  }
}

/** A backup lies about for years, and whoever has it can try as many as they like. */
function checkPassphrase(passphrase: string, file: string): void {
  const { length } = [...passphrase];
  if (length >= leastPassphrase) return;
  const message = `the passphrase in ${printable(file)} has ${length} characters, which is soon guessed`;
  throw new LegateError('E_INVALID', message, {
    hint: `nothing was saved; take ${leastPassphrase} or more, such as: (umask 077; openssl rand -base64 24 > backup.pass)`,
  });
}

/** Whether this host's policy, where it can be read, is a later one with another root: nobody would believe the backup's. */
function checkRoot(files: HostFiles, saved: Policy, [root]: readonly string[]): void {
  const [sealed, publicKey] = [files.policy, files.policyKey].map((path) => readFileIfAny(path, maxBackupBytes));
  if (sealed === undefined || publicKey === undefined) return;
  let known: Policy;
  try {
    known = openSealedPolicy(Buffer.from(sealed), publicKey, saved);
  } catch (error) {
    if (isLegateError(error)) return;
    throw error;
  }
  if (known.version <= saved.version || known.roots[0] === root) return;
  const [ours, theirs] = [known.roots[0], root].map((pem = '') => fingerprintOfPem(pem)?.slice(0, 16));
  const message = `the backup is of before a rotation: its root is ${theirs}, and the mesh's is ${ours} by now`;
  throw new LegateError('E_CONFLICT', message, { hint: 'nothing was written; restore a later backup' });
}

function encrypt(text: string, passphrase: string): string {
  const [salt, iv] = [randomBytes(16), randomBytes(12)];
  const cipher = createCipheriv('aes-256-gcm', scryptSync(passphrase, salt, 32, scryptParameters), iv);
  cipher.setAAD(Buffer.from(magic));
  const data = Buffer.concat([cipher.update(text, 'utf8'), cipher.final(), cipher.getAuthTag()]);
  const parts = { salt: salt.toString('base64'), iv: iv.toString('base64'), data: data.toString('base64') };
  return `${JSON.stringify({ [magic]: 1, ...parts })}\n`;
}

const tagBytes = 16;

function decrypt(text: string | undefined, passphrase: string, file: string): Saved {
  const shown = printable(file);
  if (text === undefined) throw new LegateError('E_NOT_FOUND', `${shown} does not exist`);
  const none = (): LegateError =>
    new LegateError('E_INVALID', `${shown} is no backup of an authority`, { hint: 'name what legate ca backup wrote' });
  let plain: string;
  try {
    const fields = new Fields(JSON.parse(text));
    fields.integer(magic, 1, 1);
    const [salt, iv, data] = ['salt', 'iv', 'data'].map((name) => Buffer.from(String(fields.raw(name)), 'base64'));
    if (salt === undefined || iv === undefined || data === undefined || data.length < tagBytes) throw none();
    const cipher = createDecipheriv('aes-256-gcm', scryptSync(passphrase, salt, 32, scryptParameters), iv);
    cipher.setAAD(Buffer.from(magic));
    cipher.setAuthTag(data.subarray(-tagBytes));
    const body = data.subarray(0, -tagBytes);
    try {
      plain = Buffer.concat([cipher.update(body), cipher.final()]).toString('utf8');
    } catch {
      throw new LegateError('E_PERMISSION', `${shown} cannot be opened with this passphrase`, {
        hint: 'take the passphrase that it was saved with; or the file is damaged',
      });
    }
  } catch (error) {
    throw error instanceof LegateError ? error : none();
  }
  return readSaved(plain, none);
}

function readSaved(plain: string, none: () => LegateError): Saved {
  try {
    const fields = new Fields(JSON.parse(plain));
    fields.integer('v', 1, 1);
    const files = fields.raw('files');
    if (typeof files !== 'object' || files === null) throw none();
    const texts = Object.entries(files).filter(
      (entry): entry is [string, string] => fileName.test(entry[0]) && typeof entry[1] === 'string',
    );
    return {
      mesh: fields.text('mesh', 63, 1),
      meshId: fields.text('meshId', 32, 32),
      hostId: fields.text('hostId', 16, 16),
      host: fields.text('host', 63, 1),
      files: Object.fromEntries(texts),
      policy: String(fields.raw('policy')),
      policyKey: String(fields.raw('policyKey')),
      ...(fields.has('savedAt') && { savedAt: fields.text('savedAt', 40, 1) }),
    };
  } catch (error) {
    if (error instanceof FieldFault || error instanceof SyntaxError) throw none();
    throw error;
  }
}
