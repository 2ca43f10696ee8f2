/**
 * A domain name as its labels from the left, without the root: lower-cased (ASCII only, RFC 4343), one character an
 * octet (latin1). `[]` is the root.
 */
export type Name = readonly string[];

/** Parses text without escapes (`db.mesh.internal`, final dot or not). Undefined when it breaks a limit of RFC 1035. */
export function parseName(text: string): Name | undefined {
  const trimmed = text.endsWith('.') ? text.slice(0, -1) : text;
  if (trimmed === '') return [];
  const labels = trimmed.split('.').map((label) => lowerCase(Buffer.from(label, 'utf8').toString('latin1')));
  if (labels.some((label) => label.length === 0 || label.length > 63)) return undefined;
  return wireLength(labels) <= 255 ? labels : undefined;
}

/** Octets of the name on the wire, uncompressed. */
export function wireLength(name: Name): number {
  let length = 1;
  for (const label of name) length += label.length + 1;
  return length;
}

/** The name's octets on the wire, uncompressed, with the root. */
export function nameBytes(name: Name): Buffer {
  const labels = name.map((label) => Buffer.concat([Buffer.from([label.length]), Buffer.from(label, 'latin1')]));
  return Buffer.concat([...labels, Buffer.alloc(1)]);
}

/** The labels of the uncompressed name at `offset`; the caller has scanned it. */
export function readLabels(packet: Buffer, offset: number): string[] {
  const labels: string[] = [];
  let at = offset;
  for (let length = packet[at] ?? 0; length > 0; length = packet[at] ?? 0) {
    labels.push(lowerCase(packet.toString('latin1', at + 1, at + 1 + length)));
    at += 1 + length;
  }
  return labels;
}

/** The text form with a final dot; octets that would be ambiguous are escaped (RFC 1035 section 5.1). */
export function formatName(name: Name): string {
  if (name.length === 0) return '.';
  return `${name.map((label) => label.replace(/[^\x21-\x7e]|[\\."();@$]/g, escapeOctet)).join('.')}.`;
}

/** Whether `name` ends in `suffix`, and what comes before it. */
export function stripSuffix(name: Name, suffix: Name): Name | undefined {
  const cut = name.length - suffix.length;
  if (cut < 0) return undefined;
  for (let index = 0; index < suffix.length; index += 1) if (name[cut + index] !== suffix[index]) return undefined;
  return name.slice(0, cut);
}

function lowerCase(label: string): string {
  return /[A-Z]/.test(label) ? label.replace(/[A-Z]/g, (letter) => letter.toLowerCase()) : label;
}

function escapeOctet(character: string): string {
  const code = character.charCodeAt(0);
  return code > 0x20 && code < 0x7f ? `\\${character}` : `\\${String(code).padStart(3, '0')}`;
}
