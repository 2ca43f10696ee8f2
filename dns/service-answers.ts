import { isIPv4 } from 'node:net';
import type { Observable } from '../src/base/feed.ts';
import { printable } from '../src/base/text.ts';
import type { Service } from '../src/catalog/snapshot.ts';
import { type Endpoint, type Ipv4Range, inRange } from '../src/model/address.ts';
import { type Topology, undialable } from '../src/model/topology.ts';
import type { Answer, Basis } from './answer.ts';
import { type Choice, choose, isUnspecified, type Pick, usableWith, type View } from './choose.ts';
import { addressRecord, known, type Place } from './place.ts';
import { shuffled } from './template.ts';
import { instanceTexts } from './texts.ts';
import { extendedCode, recordType } from './wire/constants.ts';
import type { Name } from './wire/name.ts';
import { addressLabel, type Resource } from './wire/resource.ts';

/** Instances in one answer; of more, each encoded answer holds a random choice. */
const maxInstancesPerAnswer = 256;
/** How often such a choice is given before another is made. */
const usesOfChoice = 64;
/** Seconds, while a VIP is not yet claimed: the address will change as soon as it is. */
const unclaimedTtl = 1;

export interface ServiceAnswersOptions {
  readonly topology: Observable<Topology>;
  readonly hostId: string;
  readonly vipsOn: Observable<boolean>;
  readonly vipRange: Ipv4Range;
  readonly clearUnderlay: boolean;
  readonly instanceAddressOf?: ((id: string) => string | undefined) | undefined;
  readonly listenerOf: (service: string) => Endpoint | undefined;
}

/** What the names of one service answer. */
export class ServiceAnswers {
  readonly #options: ServiceAnswersOptions;

  constructor(options: ServiceAnswersOptions) {
    this.#options = options;
  }

  /** The link name: the VIP; without VIPs this host's listener; without that the instances' addresses. */
  link(service: Service, at: Place): Answer {
    const { vipsOn, vipRange, listenerOf } = this.#options;
    const { name: owner } = at.request;
    if (vipsOn.value && service.vip !== undefined && inRange(vipRange, service.vip)) {
      return known(at, [addressRecord(owner, service.vip, at.ttl)], basisOf(service));
    }
    const place = vipsOn.value ? { ...at, ttl: Math.min(unclaimedTtl, at.ttl) } : at;
    const listener = listenerOf(service.name);
    const basis: Basis = { ...basisOf(service), listener: { address: listener?.address } };
    const address = listener === undefined ? undefined : this.#listenerAddress(listener, place);
    if (address !== undefined) return known(place, [addressRecord(owner, address, place.ttl)], basis);
    const answer = this.#addresses(service, undefined, place);
    return { ...answer, basis: { ...basis, uses: answer.basis?.uses ?? basis.uses } };
  }

  /** A, AAAA, SRV and TXT of `db.service` and `tag.db.service`. */
  instances(service: Service, tag: string | undefined, place: Place): Answer {
    const { name: owner, type } = place.request;
    if (type === recordType.SRV) return this.endpoints(service, tag, place);
    if (type !== recordType.TXT) return this.#addresses(service, tag, place);
    const some = someOf(usableWith(service, tag));
    const records = some.items.map((instance): Resource => {
      return { type: 'TXT', owner, ttl: place.ttl, strings: instanceTexts(instance) };
    });
    return known(place, records, { ...basisOf(service), uses: some.uses });
  }

  /** SRV (RFC 2782) with the targets' addresses beside. */
  endpoints(service: Service, tag: string | undefined, place: Place): Answer {
    const { name: owner, type } = place.request;
    if (type !== recordType.SRV) return known(place, [], basisOf(service));
    const choice = choose(service, tag, this.#view(place), true);
    const some = someOf(choice.picks);
    const answers = some.items.map(({ instance: { weight }, address, port }): Resource => {
      return { type: 'SRV', owner, ttl: place.ttl, priority: 1, weight, port, target: targetOf(address, place) };
    });
    const additional = new Map<string, Resource>();
    for (const { address } of some.items) {
      additional.set(address, addressRecord(targetOf(address, place), address, place.ttl));
    }
    const answer = known(place, answers, { ...basisOf(service), uses: some.uses });
    const extended = noneToDial(service, tag, choice);
    return { ...answer, additional: [...additional.values()], leftOut: choice.leftOut, extended };
  }

  #addresses(service: Service, tag: string | undefined, place: Place): Answer {
    const { name: owner, type } = place.request;
    if (type !== recordType.A && type !== recordType.AAAA) return known(place, [], basisOf(service));
    const choice = choose(service, tag, this.#view(place), false);
    const asked = (pick: Pick): boolean => isIPv4(pick.address) === (type === recordType.A);
    const some = someOf([...new Set(choice.picks.filter(asked).map((pick) => pick.address))]);
    const records = some.items.map((address) => addressRecord(owner, address, place.ttl));
    const others = choice.picks.filter((pick) => !asked(pick));
    const leftOut = others.map(({ instance: { id }, address }) => {
      return { id, reason: `its address is ${isIPv4(address) ? 'IPv4' : 'IPv6'}` };
    });
    const answer = known(place, records, { ...basisOf(service), uses: some.uses });
    return { ...answer, leftOut: [...choice.leftOut, ...leftOut], extended: noneToDial(service, tag, choice) };
  }

  /** The listener's address as the asker can dial it; one that listens everywhere is reached where he asked. */
  #listenerAddress({ address }: Endpoint, place: Place): string | undefined {
    const { asker, serverAddress } = place.request;
    const { clearUnderlay } = this.#options;
    const topology = this.#options.topology.value;
    const concrete = isUnspecified(address) ? serverAddress : address;
    if (concrete === undefined) return undefined;
    // A bridge's gateway is an address of the host, which containers of other bridges reach too.
    if (asker.kind === 'container' && topology.bridges.some((bridge) => bridge.gateway === concrete)) return concrete;
    const where = { address: concrete, reach: 'mesh', own: true, clearUnderlay } as const;
    return undialable(asker, topology, where) === undefined ? concrete : undefined;
  }

  #view(place: Place): View {
    const { topology, hostId, clearUnderlay, vipsOn, instanceAddressOf } = this.#options;
    return {
      asker: place.request.asker,
      topology: topology.value,
      hostId,
      clearUnderlay,
      instanceAddressOf: (id) => (vipsOn.value ? instanceAddressOf?.(id) : undefined),
    };
  }
}

function basisOf(service: Service): Basis {
  return { service, listener: undefined, uses: Number.POSITIVE_INFINITY };
}

function targetOf(address: string, place: Place): Name {
  return [addressLabel(address), 'addr', ...place.apex];
}

/** At most as many as one answer takes, in random order. */
function someOf<T>(items: readonly T[]): { readonly items: readonly T[]; readonly uses: number } {
  if (items.length <= maxInstancesPerAnswer) return { items: shuffled(items), uses: Number.POSITIVE_INFINITY };
  return { items: shuffled(items).slice(0, maxInstancesPerAnswer), uses: usesOfChoice };
}

/** Why there is nothing to dial, for askers with EDNS; undefined when there is something. */
function noneToDial(service: Service, tag: string | undefined, choice: Choice): Answer['extended'] {
  if (choice.picks.length > 0) return undefined;
  const tagged = tag === undefined ? '' : ` tagged ${printable(tag)}`;
  const counted = `${service.name}: ${choice.usable} of ${choice.registered} instances${tagged} usable`;
  if (choice.usable === 0) return { code: extendedCode.OTHER, text: counted };
  const usableIds = new Set(service.usable.map((instance) => instance.id));
  const reason = choice.leftOut.findLast(({ id }) => usableIds.has(id))?.reason ?? 'none can be dialled';
  return { code: extendedCode.OTHER, text: `${counted}, none from here: ${reason}` };
}
