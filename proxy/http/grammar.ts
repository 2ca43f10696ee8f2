/** Which bytes may stand where: RFC 9110 section 5.5 and 5.6.2, RFC 9112 section 3. Indexed by the byte. */
export const isToken: Uint8Array = table((byte) => /[!#$%&'*+\-.^_`|~0-9A-Za-z]/.test(String.fromCharCode(byte)));

/**
 * Bytes of a request target: visible ASCII. A fragment never belongs to one, and what is not ASCII has to be
 * percent-encoded: receivers disagree on both.
 */
export const isTarget: Uint8Array = table((byte) => byte > 0x20 && byte < 0x7f && byte !== 0x23);

/** Bytes of a field's value: visible ASCII, space, tab, and what is above ASCII (obs-text). */
export const isValue: Uint8Array = table((byte) => (byte >= 0x20 && byte !== 0x7f) || byte === 0x09);

/** Bytes of a host with its port: RFC 3986 section 3.2.2, without user information. */
export const isAuthority: Uint8Array = table((byte) =>
  /[A-Za-z0-9\-._~%!$&'()*+,;=:[\]]/.test(String.fromCharCode(byte)),
);

/** What a hexadecimal digit counts; 255 for what is none. */
export const hexValues: Uint8Array = Uint8Array.from({ length: 256 }, (_, byte) => {
  const text = String.fromCharCode(byte);
  return /[0-9A-Fa-f]/.test(text) ? Number.parseInt(text, 16) : 255;
});

export const bytes = {
  tab: 0x09,
  lf: 0x0a,
  cr: 0x0d,
  space: 0x20,
  comma: 0x2c,
  slash: 0x2f,
  colon: 0x3a,
  semicolon: 0x3b,
} as const;

function table(holds: (byte: number) => boolean): Uint8Array {
  return Uint8Array.from({ length: 256 }, (_, byte) => (holds(byte) ? 1 : 0));
}
