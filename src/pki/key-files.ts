import { createPrivateKey, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs';
import { LegateError, systemCode } from '../base/errors.ts';
import { printable } from '../base/text.ts';

const maxFileBytes = 1024 * 1024;
const maxPassphraseBytes = 1024;

/**
 * The text of a file that only its owner may read. Errors: E_NOT_FOUND when there is none, E_PERMISSION when it cannot be
 * read or is open to others, E_TOO_LARGE.
 */
export function readSecretFile(path: string): string {
  return readFile(path, true);
}

/** The text of a file of the host's credentials that is no secret. Errors as `readSecretFile`. */
export function readPlainFile(path: string): string {
  return readFile(path, false);
}

function readFile(path: string, secret: boolean): string {
  const shown = printable(path);
  try {
    const file = openSync(path, 'r');
    try {
      const { mode, size } = fstatSync(file);
      if (secret && (mode & 0o077) !== 0) {
        throw new LegateError('E_PERMISSION', `${shown} can be read by others than its owner`, {
          hint: `chmod 600 ${shown}, and consider who may have read it`,
        });
      }
      if (size > maxFileBytes) throw new LegateError('E_TOO_LARGE', `${shown} is larger than ${maxFileBytes} bytes`);
      return readFileSync(file, 'utf8');
    } finally {
      closeSync(file);
    }
  } catch (error) {
    if (error instanceof LegateError) throw error;
    const code = systemCode(error) ?? 'unknown error';
    if (code === 'ENOENT') throw new LegateError('E_NOT_FOUND', `${shown} does not exist`, { cause: error });
    throw new LegateError('E_PERMISSION', `${shown} cannot be read (${code})`, {
      hint: 'check the permissions of the file and of its folder',
      cause: error,
    });
  }
}

/** The passphrase in a file: its first line. Errors as `readSecretFile`, E_INVALID when it is empty. */
export function readPassphrase(path: string): string {
  const [line = ''] = readSecretFile(path).split(/\r?\n/, 1);
  if (line !== '' && Buffer.byteLength(line) <= maxPassphraseBytes) return line;
  throw new LegateError(
    'E_INVALID',
    `${printable(path)} does not begin with a line of 1 to ${maxPassphraseBytes} bytes`,
    {
      hint: 'write the passphrase into its first line',
    },
  );
}

/** A new ECDSA key on P-256. */
export function newKey(): KeyObject {
  return generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey;
}

/** PEM of PKCS#8; with a passphrase encrypted (PBES2, AES-256-CBC). */
export function keyToPem(key: KeyObject, passphrase?: string): string {
  const encryption = passphrase === undefined ? {} : { cipher: 'aes-256-cbc', passphrase };
  return key.export({ type: 'pkcs8', format: 'pem', ...encryption }).toString();
}

/** The private key of a file's text. E_PERMISSION when it takes another passphrase, E_INVALID when it is none of ours. */
export function keyOfPem(pem: string, what: string, passphrase?: string): KeyObject {
  const encrypted = pem.includes('ENCRYPTED PRIVATE KEY');
  if (encrypted && passphrase === undefined) {
    throw new LegateError('E_PERMISSION', `${what} is encrypted, and there is no passphrase for it`, {
      hint: 'name the file with the passphrase as authority.passphrase_file in the configuration',
    });
  }
  let key: KeyObject;
  try {
    key = createPrivateKey({ key: pem, ...(encrypted && passphrase !== undefined && { passphrase }) });
  } catch {
    if (encrypted) {
      throw new LegateError('E_PERMISSION', `${what} cannot be opened with the passphrase`, {
        hint: 'check the file that authority.passphrase_file names',
      });
    }
    throw new LegateError('E_INVALID', `${what} holds no private key in PEM`, { hint: 'restore it from a backup' });
  }
  if (key.asymmetricKeyType === 'ec' && key.asymmetricKeyDetails?.namedCurve === 'prime256v1') return key;
  throw new LegateError('E_INVALID', `${what} is no ECDSA key on P-256`, { hint: 'restore it from a backup' });
}
