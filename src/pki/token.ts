import { createHash, randomBytes } from 'node:crypto';
import { LegateError } from '../base/errors.ts';

const prefix = 'lgt1_';
const secretBytes = 32;
const fingerprintBytes = 32;
const hostIdBytes = 8;
const checksumBytes = 4;
const totalBytes = secretBytes + fingerprintBytes + hostIdBytes + checksumBytes;

/**
 * What a new host joins with: a secret, and whom it may show that to. As text: `lgt1_` and base64url of the secret (32
 * bytes), SHA-256 of the root's certificate (32), the id of the authority's host (8), and a checksum of these against
 * misspelling (4: the beginning of their SHA-256 behind the prefix).
 */
export interface JoinToken {
  readonly secret: Buffer;
  /** 64 lower-case hexadecimal digits. */
  readonly fingerprint: string;
  readonly authority: string;
}

export function newToken(fingerprint: string, authority: string): JoinToken {
  return { secret: randomBytes(secretBytes), fingerprint, authority };
}

export function formatToken({ secret, fingerprint, authority }: JoinToken): string {
  const body = Buffer.concat([secret, Buffer.from(fingerprint, 'hex'), Buffer.from(authority, 'hex')]);
  return prefix + Buffer.concat([body, checksum(body)]).toString('base64url');
}

/** E_INVALID when it is no token, or a misspelt one. Its text is in no message. */
export function parseToken(text: string): JoinToken {
  const trimmed = text.trim();
  const fault = (what: string): LegateError =>
    new LegateError('E_INVALID', what, {
      hint: 'copy it whole, as legate init or legate token printed it; it begins with lgt1_',
    });
  if (!trimmed.startsWith(prefix)) throw fault('that is not a token: it begins with lgt1_');
  const encoded = trimmed.slice(prefix.length);
  const bytes = Buffer.from(encoded, 'base64url');
  if (bytes.length !== totalBytes || bytes.toString('base64url') !== encoded)
    throw fault('the token is not complete or misspelt');
  const body = bytes.subarray(0, totalBytes - checksumBytes);
  if (!checksum(body).equals(bytes.subarray(body.length))) throw fault('the token is misspelt: its checksum is wrong');
  return {
    secret: body.subarray(0, secretBytes),
    fingerprint: body.subarray(secretBytes, secretBytes + fingerprintBytes).toString('hex'),
    authority: body.subarray(secretBytes + fingerprintBytes).toString('hex'),
  };
}

/** Under what a token is stored: nobody who reads the store can join with it. */
export function hashOfSecret(secret: Uint8Array): string {
  return createHash('sha256').update(secret).digest('hex');
}

function checksum(body: Uint8Array): Buffer {
  return createHash('sha256').update(prefix).update(body).digest().subarray(0, checksumBytes);
}
