import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import { statSync } from 'node:fs';
import { isIP } from 'node:net';
import { LegateError } from '../../src/base/errors.ts';
import { cannotWrite, readFileIfAny, writeFileAtomically } from '../../src/base/files.ts';
import { type Endpoint, formatEndpoint, isLoopback } from '../../src/model/address.ts';

/**
 * The admin token of this host: read from its file, made there (32 random bytes, 0600) when the file does not exist.
 * A file that others may read is refused.
 */
export async function loadAdminToken(path: string): Promise<string> {
  const text = readFileIfAny(path, 4096);
  if (text === undefined) {
    const token = randomBytes(32).toString('base64url');
    await writeFileAtomically(path, [`${token}\n`]).catch((error: unknown) => Promise.reject(cannotWrite(path, error)));
    return token;
  }
  if ((statSync(path).mode & 0o077) !== 0) {
    throw new LegateError('E_PERMISSION', `the admin token's file ${path} can be read by others`, {
      hint: `chmod 600 ${path}`,
    });
  }
  const token = text.trim();
  if (!/^[\x21-\x7e]{16,512}$/.test(token)) {
    throw new LegateError('E_INVALID', `${path} does not hold a token of 16 to 512 printable characters`, {
      hint: 'remove the file: the sidecar then makes a new token',
    });
  }
  return token;
}

/** Whether an Authorization header carries the token; takes the same time however much of it is right. */
export function bearerMatches(header: string | undefined, token: string): boolean {
  const match = /^Bearer (\S+)$/i.exec(header ?? '');
  if (match === null) return false;
  const digest = (text: string): Buffer => createHash('sha256').update(text).digest();
  return timingSafeEqual(digest(match[1] ?? ''), digest(token));
}

/**
 * Whether a Host header names this listener: by its address, or, with `names`, by one of these. A page of another site
 * that was made to resolve to this address (DNS rebinding) says another host, and is refused; an address is nobody's site.
 */
export function hostHeaderMatches(
  header: string | undefined,
  listen: Endpoint,
  names: readonly string[] = [],
): boolean {
  if (header === undefined) return false;
  const port = /:(\d+)$/.exec(header)?.[1] ?? '80';
  const name = header
    .replace(/:\d+$/, '')
    .replace(/^\[|\]$/g, '')
    .toLowerCase();
  if (Number(port) !== listen.port) return false;
  if (formatEndpoint(listen) === header || name === listen.address) return true;
  if (names.includes(name)) return true;
  if (listen.address === '0.0.0.0' || listen.address === '::') return isIP(name) !== 0;
  return isLoopback(listen.address) && isLoopback(name);
}
