/** Numbers of the DNS registry (RFC 1035 section 3.2, RFC 3596, RFC 2782, RFC 6891, RFC 8482, RFC 8914). */
export const recordType = {
  A: 1,
  NS: 2,
  CNAME: 5,
  SOA: 6,
  PTR: 12,
  HINFO: 13,
  MX: 15,
  TXT: 16,
  AAAA: 28,
  SRV: 33,
  OPT: 41,
  ANY: 255,
} as const;

export const classIn = 1;

export const rcode = {
  NOERROR: 0,
  FORMERR: 1,
  SERVFAIL: 2,
  NXDOMAIN: 3,
  NOTIMP: 4,
  REFUSED: 5,
  BADVERS: 16,
} as const;

/** Extended errors (RFC 8914 section 4). */
export const extendedCode = { OTHER: 0, NOT_READY: 14, NO_REACHABLE_AUTHORITY: 22 } as const;

export const headerLength = 12;

/** The most that a UDP answer may have: what passes every usual path unfragmented (DNS flag day 2020). */
export const maxUdpAnswer = 1232;

/** What an asker without EDNS can take over UDP (RFC 1035 section 4.2.1). */
export const plainUdpAnswer = 512;

/** What the length prefix of TCP can say (RFC 1035 section 4.2.2). */
export const maxMessage = 65_535;

const typeNames = new Map<number, string>(Object.entries(recordType).map(([name, number]) => [number, name]));
const rcodeNames = new Map<number, string>(Object.entries(rcode).map(([name, number]) => [number, name]));

/** `A`, or the form of RFC 3597 section 5 for a type without a name here: `TYPE65`. */
export function typeName(type: number): string {
  return typeNames.get(type) ?? `TYPE${type}`;
}

/** The number of a type's name in any case, `TYPE65` included; undefined when there is none. */
export function typeNumber(name: string): number | undefined {
  const upper = name.toUpperCase();
  for (const [number, known] of typeNames) if (known === upper) return number;
  const number = Number(/^TYPE(\d{1,5})$/.exec(upper)?.[1] ?? Number.NaN);
  return number <= 65_535 ? number : undefined;
}

export function rcodeName(code: number): string {
  return rcodeNames.get(code) ?? `RCODE${code}`;
}

/** Zone transfers, transactions and mail meta types are never answered (RFC 6895 section 3.1: 128 to 254). */
export function isMetaType(type: number): boolean {
  return type === recordType.OPT || (type >= 128 && type < recordType.ANY);
}
