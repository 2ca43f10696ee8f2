import type { DeclaredLink } from '../src/model/link.ts';
import { headerLength } from './wire/constants.ts';
import type { QueryScan } from './wire/query.ts';

/** The aliases of one asker. They are compared with the packet in place, because most of its questions are for others. */
export class AliasSet {
  /** The class under which its answers are kept: nobody else's questions find them. */
  readonly class: number;
  readonly #aliases: readonly { readonly label: Buffer; readonly link: DeclaredLink }[];

  /** Of links with one alias the first counts. */
  constructor(links: readonly DeclaredLink[], ownClass: number) {
    this.class = ownClass;
    this.#aliases = links.map((link) => ({ label: Buffer.from(link.alias, 'latin1'), link }));
  }

  /** The link whose alias is the first label of the question. */
  find(packet: Buffer): DeclaredLink | undefined {
    for (const { label, link } of this.#aliases) {
      if (packet[headerLength] === label.length && isSame(packet, headerLength + 1, label)) return link;
    }
    return undefined;
  }
}

/**
 * Whether a scanned question is for a single label, alone or in the zone: the only form that an alias has. `apex` is the
 * zone's name in wire form and lower case, with the root.
 */
export function isOneLabel(packet: Buffer, scan: QueryScan, apex: Buffer): boolean {
  const labelEnd = headerLength + 1 + (packet[headerLength] ?? 0);
  // Behind the name there are type and class.
  const nameEnd = scan.questionEnd - 4;
  if (labelEnd + 1 === nameEnd) return true;
  return labelEnd + apex.length === nameEnd && isSame(packet, labelEnd, apex);
}

/** Whether the octets of the packet are those, letters in either case. Lengths of labels are never letters. */
function isSame(packet: Buffer, offset: number, expected: Buffer): boolean {
  for (let index = 0; index < expected.length; index += 1) {
    const octet = packet[offset + index] ?? 0;
    if ((octet >= 65 && octet <= 90 ? octet + 32 : octet) !== expected[index]) return false;
  }
  return true;
}
