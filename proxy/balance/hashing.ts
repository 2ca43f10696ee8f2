/** Hashes are the same on every host and in every version, without a secret: signed 32-bit numbers. */

/** FNV-1a. */
const offsetBasis = 0x811c_9dc5 | 0;
const prime = 0x0100_0193;

/** Of bytes, or of what follows those whose hash is `before`. */
export function hashOfBytes(bytes: Uint8Array, start: number, end: number, before = offsetBasis): number {
  let hash = before;
  for (let index = start; index < end; index += 1) hash = Math.imul(hash ^ (bytes[index] as number), prime);
  return hash;
}

/** Of ASCII text; equal to that of its bytes. */
export function hashOfText(text: string): number {
  let hash = offsetBasis;
  for (let index = 0; index < text.length; index += 1) hash = Math.imul(hash ^ text.charCodeAt(index), prime);
  return hash;
}

/** The finaliser of MurmurHash3: each bit of the argument decides about every bit of the result. */
export function mixed(hash: number): number {
  let bits = hash;
  bits = Math.imul(bits ^ (bits >>> 16), 0x85eb_ca6b);
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2_ae35);
  return bits ^ (bits >>> 16);
}
