import { isIPv4 } from 'node:net';
import { isDeepStrictEqual } from 'node:util';
import { type Protocol, transportOf } from '../../../model/instance.ts';
import { mayOffer, type Policy } from '../../../model/policy.ts';
import { readWeights, type Weights } from '../../../model/routes.ts';
import { mayTakeBack, withoutSide } from '../../../model/taken-back.ts';
import type { Keys } from '../../keys.ts';
import { isLeaseOf } from './lease-owner.ts';

/**
 * What a host of the mesh may write in the offered store, as its certificate says who it is. The host of the authority
 * (`policy.authority`) may write everything; its own sidecar, where the store is in it, is not asked at all. Every other
 * host `H`, by key below the mesh's root:
 *
 * | key | put | delete |
 * |---|---|---|
 * | `hosts/H`, `instances/H/…`, `learned/H` | yes | yes |
 * | `alive/H` | with a lease of its own only | yes |
 * | `kv/…`, and `leased/…`, which says what of it vanishes | yes | yes |
 * | `services/S`, absent or damaged | when H is granted S; or as one that a container of H waits for (`awaitedBy` H, port derived) | – |
 * | `services/S`, there | nothing chosen changes, but that a guard (`splitGuard`) takes a side of `split` back which another one outweighs or equals: to 0, with `formerSplit` and, naming H, `takenBack`. Besides: a first `vip`; `awaitedBy` taken away (granted, or H waited); a derived port or protocol follows the instances, and datagrams give up the `vip` (granted) | when H waits for it |
 * | `vips/A`, absent or given back | for S when H is granted S, or when `services/S` gets A in the same transaction | never |
 * | `vips/A`, held by S | again for S, as above; given back with the `services/S` that is deleted or leaves A in the same transaction | never |
 * | `policy` | as one that the policy key signed and that is newer than the one there and not older than the one in use | never |
 * | anything else: other hosts' records, `tokens/`, `meta`, `moved`, `copying`, `subnets/`, other prefixes | never | never |
 *
 * A `vip` that a record gets must be claimed for that service by then. Leases hang on `alive/H`, `kv/` and `leased/` only,
 * and only H's own; a lease that a key has already may stay. All writes of a transaction must be allowed, also those of the
 * branch that is run; a range that is deleted counts as each key in it.
 */
export interface Writer {
  readonly hostId: string;
  readonly keys: Keys;
  readonly policy: Policy | undefined;
  /** As `StoreTrust` has it. */
  readonly versionOf: (sealedPolicy: Uint8Array) => number | undefined;
}

export interface Written {
  readonly value: Uint8Array;
  readonly lease: string | undefined;
}

/** A key as it is and as it is to be; undefined where it is absent. */
export interface KeyChange {
  readonly before: Written | undefined;
  readonly after: Written | undefined;
}

export type RefusalKind =
  | 'hosts'
  | 'alive'
  | 'instances'
  | 'learned'
  | 'services'
  | 'vips'
  | 'policy'
  | 'tokens'
  | 'mesh'
  | 'leases'
  | 'other';

/** What a host may not do. */
export interface Refused {
  readonly kind: RefusalKind;
  readonly key: string;
  readonly why: 'not its own' | 'authority only' | 'settings' | 'not granted' | 'lease' | 'form';
}

/** The first write that is not allowed; undefined when all are. `current`: what a key holds that is not changed. */
export function firstRefused(
  writer: Writer,
  changes: ReadonlyMap<string, KeyChange>,
  current: (key: string) => Written | undefined,
): Refused | undefined {
  if (writer.policy?.authority === writer.hostId) return undefined;
  const rules = new Rules(writer, changes, current);
  for (const [key, change] of changes) {
    const found = rules.refused(key, change);
    if (found !== undefined) return found;
  }
  return undefined;
}

/** Further keys that the rules look at when these are put. */
export function keysLookedAt(keys: Keys, puts: Iterable<readonly [key: string, value: Uint8Array]>): string[] {
  const found: string[] = [];
  for (const [key, value] of puts) {
    const vip = key.startsWith(keys.services) ? parse(value)?.vip : undefined;
    if (typeof vip === 'string' && isIPv4(vip)) found.push(keys.vip(vip));
  }
  return found;
}

/** Which part of the store a key belongs to, and what is left of it. */
export function partOf(keys: Keys, key: string): readonly [RefusalKind | 'kv', string] {
  const prefixes: readonly (readonly [string, RefusalKind | 'kv'])[] = [
    [keys.hosts, 'hosts'],
    [keys.alive, 'alive'],
    [keys.instances, 'instances'],
    [keys.learned, 'learned'],
    [keys.services, 'services'],
    [keys.vips, 'vips'],
    [keys.tokens, 'tokens'],
    [keys.kv, 'kv'],
    [keys.leased, 'kv'],
  ];
  for (const [prefix, part] of prefixes) if (key.startsWith(prefix)) return [part, key.slice(prefix.length)];
  if (key === keys.policy) return ['policy', ''];
  return [key === keys.meta || key === keys.moved || key === keys.copying ? 'mesh' : 'other', key];
}

type Document = Readonly<Record<string, unknown>>;

class Rules {
  readonly #writer: Writer;
  readonly #changes: ReadonlyMap<string, KeyChange>;
  readonly #current: (key: string) => Written | undefined;

  constructor(writer: Writer, changes: ReadonlyMap<string, KeyChange>, current: (key: string) => Written | undefined) {
    this.#writer = writer;
    this.#changes = changes;
    this.#current = current;
  }

  refused(key: string, change: KeyChange): Refused | undefined {
    const { hostId, keys } = this.#writer;
    const [part, rest] = partOf(keys, key);
    const because = (why: Refused['why']): Refused => ({ kind: part === 'kv' ? 'other' : part, key, why });
    const lease = change.after?.lease;
    if (lease !== undefined && lease !== change.before?.lease) {
      const mayLapse = part === 'kv' || (part === 'alive' && rest === hostId);
      if (!mayLapse || !isLeaseOf(lease, hostId)) return { kind: 'leases', key, why: 'lease' };
    }
    switch (part) {
      case 'kv':
        return undefined;
      case 'hosts':
      case 'learned':
        return rest === hostId ? undefined : because('not its own');
      case 'alive':
        if (rest !== hostId) return because('not its own');
        return change.after !== undefined && lease === undefined ? because('lease') : undefined;
      case 'instances':
        return rest.startsWith(`${hostId}/`) ? undefined : because('not its own');
      case 'services': {
        const why = this.#service(rest, change);
        return why && because(why);
      }
      case 'vips': {
        const why = this.#claim(rest, change);
        return why && because(why);
      }
      case 'policy':
        return this.#isNewPolicy(change) ? undefined : because('authority only');
      default:
        return because('authority only');
    }
  }

  /** It is the signature that makes a policy, not who brings it: the authority may have moved to the host that writes. */
  #isNewPolicy({ before, after }: KeyChange): boolean {
    const { versionOf } = this.#writer;
    const version = after && versionOf(after.value);
    const present = before && versionOf(before.value);
    return version !== undefined && (present === undefined || version > present);
  }

  #isGranted(service: string): boolean {
    return mayOffer(this.#writer.policy, this.#writer.hostId, service);
  }

  #service(name: string, { before, after }: KeyChange): Refused['why'] | undefined {
    const { hostId } = this.#writer;
    const was = before && parse(before.value);
    if (after === undefined) return was?.awaitedBy === hostId ? undefined : 'settings';
    const is = parse(after.value);
    if (is?.name !== name || !isPort(is.port)) return 'form';
    if (is.vip !== undefined && is.vip !== was?.vip && !this.#isClaimed(is.vip, name)) return 'form';
    if (was !== undefined) return this.#changedService(name, was, is);
    const awaited = is.awaitedBy === hostId && has(is.derived, 'port');
    return this.#isGranted(name) || awaited ? undefined : 'not granted';
  }

  #changedService(name: string, was: Document, is: Document): Refused['why'] | undefined {
    const isGranted = this.#isGranted(name);
    const fields = new Set([...Object.keys(was), ...Object.keys(is)]);
    const takesBack = isTakingBack(was, is, this.#writer.hostId);
    for (const field of fields) {
      if (isDeepStrictEqual(was[field], is[field])) continue;
      if (takesBack && takenBackFields.has(field)) continue;
      if (field === 'vip') {
        const isFirst = was.vip === undefined;
        const isGivenUp = is.vip === undefined && isDatagram(is.protocol);
        if (isFirst || (isGivenUp && isGranted)) continue;
      } else if (field === 'awaitedBy') {
        if (is.awaitedBy === undefined && (isGranted || was.awaitedBy === this.#writer.hostId)) continue;
      } else if (field === 'port' || field === 'protocol') {
        if (isGranted && has(was.derived, field)) continue;
      }
      return 'settings';
    }
    return undefined;
  }

  #claim(address: string, { before, after }: KeyChange): Refused['why'] | undefined {
    if (after === undefined) return 'authority only';
    const is = parse(after.value);
    if (is === undefined || typeof is.service !== 'string' || !isIPv4(address)) return 'form';
    const was = before && parse(before.value);
    if (before !== undefined && was === undefined) return 'authority only';
    const isHeld = was !== undefined && was.releasedAtMs === undefined;
    if (isHeld && was.service !== is.service) return 'authority only';
    if (isHeld && is.releasedAtMs !== undefined)
      return this.#leaves(is.service, address) ? undefined : 'authority only';
    // What was given back stays so, unless it is claimed anew.
    if (was !== undefined && is.releasedAtMs !== undefined) return 'authority only';
    return this.#isGranted(is.service) || this.#gets(is.service, address) ? undefined : 'not granted';
  }

  /** Whether the address is claimed for the service, after these changes. */
  #isClaimed(address: unknown, service: string): boolean {
    if (typeof address !== 'string' || !isIPv4(address)) return false;
    const key = this.#writer.keys.vip(address);
    const change = this.#changes.get(key);
    const written = change === undefined ? this.#current(key) : change.after;
    const claim = written && parse(written.value);
    return claim?.service === service && claim.releasedAtMs === undefined;
  }

  /** Whether these changes give the service's record this address. */
  #gets(service: string, address: string): boolean {
    const after = this.#changes.get(this.#writer.keys.service(service))?.after;
    return after !== undefined && parse(after.value)?.vip === address;
  }

  /** Whether these changes take the address away from the service's record, or the record with it. */
  #leaves(service: string, address: string): boolean {
    const change = this.#changes.get(this.#writer.keys.service(service));
    if (change === undefined) return false;
    return change.after === undefined || parse(change.after.value)?.vip !== address;
  }
}

/** A stored document; undefined when it is none. Its fields are the codec's business: here they are only compared. */
function parse(value: Uint8Array): Document | undefined {
  if (value.byteLength > maxDocumentBytes) return undefined;
  try {
    const parsed: unknown = JSON.parse(Buffer.from(value).toString('utf8'));
    return isObject(parsed) ? parsed : undefined;
  } catch {
    return undefined;
  }
}

const maxDocumentBytes = 128 * 1024;

const takenBackFields = new Set(['split', 'formerSplit', 'takenBack']);

/** Whether a guard of the host takes one side of the split back, and does nothing else to it. */
function isTakingBack(was: Document, is: Document, hostId: string): boolean {
  const { takenBack, formerSplit } = is;
  if (typeof was.splitGuard !== 'number' || was.splitGuard <= 0 || !isObject(was.split) || !isObject(takenBack)) {
    return false;
  }
  const { tag, weight } = takenBack;
  const split = readWeights(was.split, '', () => undefined);
  if (split === undefined || typeof tag !== 'string' || !mayTakeBack(split, tag)) return false;
  return (
    takenBack.hostId === hostId &&
    weight === split[tag] &&
    isDeepStrictEqual(formerSplit, was.split) &&
    isDeepStrictEqual(is.split, withoutSide(was.split as Weights, tag))
  );
}

function isObject(value: unknown): value is Document {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isPort(value: unknown): boolean {
  return typeof value === 'number' && Number.isInteger(value) && value > 0 && value < 65_536;
}

function has(list: unknown, word: string): boolean {
  return Array.isArray(list) && list.includes(word);
}

function isDatagram(protocol: unknown): boolean {
  return typeof protocol === 'string' && transportOf(protocol as Protocol) === 'udp';
}
