import { isIPv4 } from 'node:net';
import type { Snapshot } from '../src/catalog/snapshot.ts';
import { type Answer, answerOf, type Basis } from './answer.ts';
import type { Request } from './stage.ts';
import { rcode, recordType } from './wire/constants.ts';
import type { Name } from './wire/name.ts';
import type { Resource, Soa } from './wire/resource.ts';

/** RFC 2308: how long "no such name" holds, in seconds. Names come into being at any moment. */
const negativeTtl = 1;

/** Where a question stands: the snapshot that it is asked of, our zone, and who is named in the SOA of a "no". */
export interface Place {
  readonly request: Request;
  readonly snapshot: Snapshot;
  readonly apex: Name;
  readonly soaOwner: Name;
  /** Of positive answers, in seconds. */
  readonly ttl: number;
}

/** Those of a known name's records that have the asked type; NODATA with SOA when none has (RFC 2308 section 2.2). */
export function known(place: Place, records: readonly Resource[], basis?: Basis): Answer {
  const { type, name } = place.request;
  if (type === recordType.ANY) {
    // RFC 8482 section 4.2: a synthesised HINFO instead of everything.
    const hinfo: Resource = { type: 'HINFO', owner: name, ttl: place.ttl, cpu: 'RFC8482', os: '' };
    return answerOf({ answers: [hinfo], basis });
  }
  const answers = records.filter((record) => recordType[record.type] === type);
  return answerOf(answers.length > 0 ? { answers, basis } : { authority: [negativeSoa(place)], basis });
}

export function noSuchName(place: Place): Answer {
  return answerOf({ rcode: rcode.NXDOMAIN, authority: [negativeSoa(place)] });
}

export function addressRecord(owner: Name, address: string, ttl: number): Resource {
  return { type: isIPv4(address) ? 'A' : 'AAAA', owner, ttl, address };
}

/** Nobody transfers the zone, so its serial stands still. */
export function soaOf(apex: Name): Soa {
  const primary = ['ns', ...apex];
  const mailbox = ['hostmaster', ...apex];
  return { primary, mailbox, serial: 1, refresh: 3600, retry: 600, expire: 86_400, minimum: negativeTtl };
}

function negativeSoa(place: Place): Resource {
  return { type: 'SOA', owner: place.soaOwner, ttl: negativeTtl, soa: soaOf(place.apex) };
}
