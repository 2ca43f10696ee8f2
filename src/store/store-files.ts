import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs';
import { LegateError, systemCode } from '../base/errors.ts';

const maxFileBytes = 1024 * 1024;

/**
 * Reads a file that an option of `store` names. A `secret` one must be closed to group and others. Errors: E_CONFIG when
 * it is missing or too large, E_PERMISSION when it cannot be read or is open to others.
 */
export function readStoreFile(option: string, path: string, secret = false): Buffer {
  try {
    const file = openSync(path, 'r');
    try {
      const { mode, size } = fstatSync(file);
      if (secret && (mode & 0o077) !== 0) {
        throw new LegateError('E_PERMISSION', `${option}: ${path} can be read by others than its owner`, {
          hint: `chmod 600 ${path}`,
        });
      }
      if (size > maxFileBytes)
        throw new LegateError('E_CONFIG', `${option}: ${path} is larger than ${maxFileBytes} bytes`);
      return readFileSync(file);
    } finally {
      closeSync(file);
    }
  } catch (error) {
    if (error instanceof LegateError) throw error;
    const code = systemCode(error) ?? 'unknown error';
    const kind = code === 'ENOENT' ? 'E_CONFIG' : 'E_PERMISSION';
    const what = code === 'ENOENT' ? 'does not exist' : `cannot be read (${code})`;
    throw new LegateError(kind, `${option}: ${path} ${what}`, {
      hint: 'check the path and the permissions of the file',
      cause: error,
    });
  }
}
