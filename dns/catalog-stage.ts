import { isIP } from 'node:net';
import type { Observable } from '../src/base/feed.ts';
import type { Service, Snapshot } from '../src/catalog/snapshot.ts';
import { inRange } from '../src/model/address.ts';
import { transportOf } from '../src/model/instance.ts';
import type { DeclaredLink } from '../src/model/link.ts';
import { type Answer, answerOf } from './answer.ts';
import { hasTag } from './choose.ts';
import { formInZone, formOfSingleLabel, type NameForm, type Zone, zoneOf } from './name-form.ts';
import { addressRecord, known, noSuchName, type Place, soaOf } from './place.ts';
import { reverseAddress, reverseZone } from './reverse.ts';
import { ServiceAnswers, type ServiceAnswersOptions } from './service-answers.ts';
import type { Request, Stage } from './stage.ts';
import { hostTexts } from './texts.ts';
import { extendedCode, rcode, recordType } from './wire/constants.ts';
import type { Name } from './wire/name.ts';
import { addressOfLabel, type Resource } from './wire/resource.ts';

/** Names in a PTR answer, hosts of one name. */
const maxNames = 32;
/** Seconds, while the snapshot is from disk and not confirmed by the store. */
const unconfirmedTtl = 1;

export interface CatalogStageOptions extends ServiceAnswersOptions {
  readonly snapshots: Observable<Snapshot>;
  /** The first is our own; single labels and reverse names are answered in its terms. */
  readonly zones: readonly [Zone, ...Zone[]];
  readonly ttlMs: number;
}

/** Answers what is in the catalog: all names of our zones, single labels, and the reverse names of known addresses. */
export class CatalogStage implements Stage {
  readonly #options: CatalogStageOptions;
  readonly #services: ServiceAnswers;

  constructor(options: CatalogStageOptions) {
    this.#options = options;
    this.#services = new ServiceAnswers(options);
  }

  answer(request: Request): Answer | undefined {
    const { zones } = this.#options;
    const { name, alias } = request;
    const found = zoneOf(zones, name);
    if (alias !== undefined) return this.#alias(alias, this.#place(request, zones[0].apex, found?.zone.apex ?? []));
    if (found !== undefined) {
      const { apex } = found.zone;
      return this.#answerForm(formInZone(found.zone, found.inner), this.#place(request, apex, apex));
    }
    if (name.at(-1) === 'localhost') return localhost(this.#place(request, zones[0].apex, []));
    if (name.length !== 1) return this.#reverse(request);
    return this.#answerForm(formOfSingleLabel(name[0] ?? ''), this.#place(request, zones[0].apex, []));
  }

  #place(request: Request, apex: Name, soaOwner: Name): Place {
    const snapshot = this.#options.snapshots.value;
    const ttl = Math.round(this.#options.ttlMs / 1000);
    return {
      request,
      snapshot,
      apex,
      soaOwner,
      ttl: snapshot.origin === 'store' ? ttl : Math.min(unconfirmedTtl, ttl),
    };
  }

  #answerForm(form: NameForm, place: Place): Answer {
    const { snapshot, request } = place;
    // Before anything is known of the mesh, what runs on this host is answered all the same.
    const isHere = 'service' in form && form.service !== undefined && snapshot.services.has(form.service);
    if (snapshot.origin === 'none' && !isHere) return notReady();
    switch (form.kind) {
      case 'apex':
        return this.#apex(place);
      case 'name-server':
        return known(place, serverAddresses(place, request.name));
      case 'branch':
        return form.service === undefined || snapshot.services.has(form.service) ? known(place, []) : noSuchName(place);
      case 'address': {
        const address = addressOfLabel(form.label);
        return address === undefined
          ? noSuchName(place)
          : known(place, [addressRecord(request.name, address, place.ttl)]);
      }
      case 'host':
        return this.#host(form.host, place);
      case 'unknown':
        return noSuchName(place);
      default: {
        const service = snapshot.services.get(form.service);
        return service === undefined ? noSuchName(place) : this.#ofService(service, form, place);
      }
    }
  }

  /** An alias means its service, not another alias; it exists also while the service does not. */
  #alias({ service: name }: DeclaredLink, place: Place): Answer {
    const { snapshot } = place;
    const service = snapshot.services.get(name);
    if (snapshot.origin === 'none' && service === undefined) return notReady();
    if (service !== undefined) return this.#services.link(service, place);
    const extended = { code: extendedCode.OTHER, text: `waits for the service ${name}` };
    return { ...known(place, []), extended };
  }

  #ofService(
    service: Service,
    form: Extract<NameForm, { kind: 'link' | 'instances' | 'endpoints' }>,
    place: Place,
  ): Answer {
    if (form.kind === 'link') return this.#services.link(service, place);
    const { tag } = form;
    // A tag that no registered instance bears is a name that does not exist.
    if (tag !== undefined && !service.instances.some((instance) => hasTag(instance, tag))) return noSuchName(place);
    if (form.kind === 'instances') return this.#services.instances(service, tag, place);
    if (form.transport !== undefined && form.transport !== transportOf(service.protocol)) return noSuchName(place);
    return this.#services.endpoints(service, tag, place);
  }

  /** SOA and NS of the zone, with the server's own address beside. */
  #apex(place: Place): Answer {
    const { request, apex, ttl } = place;
    const owner = request.name;
    const server = ['ns', ...apex];
    const soa: Resource = { type: 'SOA', owner, ttl, soa: soaOf(apex) };
    const ns: Resource = { type: 'NS', owner, ttl, target: server };
    const additional = request.type === recordType.NS ? serverAddresses(place, server) : [];
    return { ...known(place, [soa, ns]), additional };
  }

  #host(hostName: string, place: Place): Answer {
    const { request, snapshot, ttl } = place;
    const owner = request.name;
    const hosts = [...snapshot.hosts.values()].filter((host) => host.name === hostName).slice(0, maxNames);
    if (hosts.length === 0) return noSuchName(place);
    const records: Resource[] = hosts.map((host) => ({ type: 'TXT', owner, ttl, strings: hostTexts(host) }));
    for (const { address } of hosts) {
      if (isIP(address) !== 0 && !address.includes('%')) records.push(addressRecord(owner, address, ttl));
    }
    return known(place, records);
  }

  /** PTR of addresses in the catalog and in the VIP range; other reverse names are the upstream's. */
  #reverse(request: Request): Answer | undefined {
    const address = reverseAddress(request.name);
    if (address === undefined) return undefined;
    const { vipRange, zones, snapshots } = this.#options;
    const { apex } = zones[0];
    if (inRange(vipRange, address)) {
      const place = this.#place(request, apex, reverseZone(vipRange, request.name));
      if (place.snapshot.origin === 'none') return notReady();
      const service = place.snapshot.vips.get(address);
      return service === undefined ? noSuchName(place) : known(place, [pointer(place, [service, ...apex])]);
    }
    const names = snapshots.value.addresses.get(address) ?? [];
    if (names.length === 0) return undefined;
    const place = this.#place(request, apex, request.name);
    return known(
      place,
      names.slice(0, maxNames).map((name) => pointer(place, [name, 'service', ...apex])),
    );
  }
}

/** `localhost` is the asker's own machine, whoever asks (RFC 6761 section 6.3). */
function localhost(place: Place): Answer {
  const owner = place.request.name;
  return known(place, [addressRecord(owner, '127.0.0.1', place.ttl), addressRecord(owner, '::1', place.ttl)]);
}

function notReady(): Answer {
  const extended = { code: extendedCode.NOT_READY, text: 'the catalog has not been read yet' };
  return answerOf({ rcode: rcode.SERVFAIL, authoritative: false, extended });
}

function serverAddresses(place: Place, owner: Name): Resource[] {
  const { serverAddress } = place.request;
  return serverAddress === undefined ? [] : [addressRecord(owner, serverAddress, place.ttl)];
}

function pointer(place: Place, target: Name): Resource {
  return { type: 'PTR', owner: place.request.name, ttl: place.ttl, target };
}
