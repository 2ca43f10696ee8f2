import { type Endpoint, isLoopback } from '../../src/model/address.ts';
import { type DesiredInstance, type Protocol, type Refusal, transportOf } from '../../src/model/instance.ts';
import type { DeclaredLink } from '../../src/model/link.ts';
import {
  type Container,
  type ContainerPort,
  type Declarations,
  maxLabelUnits,
  shortId,
  type Transport,
} from './container.ts';
import { Findings } from './findings.ts';
import { health } from './health.ts';
import { type OwnDeclarations, ownDeclarations } from './identity.ts';
import { labelFault, quoted } from './label-values.ts';
import { type LegateLabels, type Offer, parseLegateLabels, withoutService } from './labels.ts';
import { type Place, placeOf, type Surroundings, sharedNetworkOf } from './place.ts';
import { namesService, registratorOffers, serviceKeys, speaksOfService, unservedPorts } from './registrator.ts';

export interface DesiredContext extends Surroundings {
  readonly expose: 'labelled' | 'published';
  /** The address under which other hosts know this one. */
  readonly advertise: string;
  /** What the container's image declares; undefined when it may name services, or is not known. */
  readonly image: Declarations | undefined;
  /** For `--net container:x`: x, when it runs. */
  readonly networkOwner: Container | undefined;
}

/** Who a container is when it calls, and what it says it depends on. */
export interface Consumer {
  /** Undefined: anonymous. */
  readonly name: string | undefined;
  readonly links: readonly DeclaredLink[];
}

export interface Desired {
  readonly instances: readonly DesiredInstance[];
  readonly refusals: readonly Refusal[];
  /** What is accepted and not done, or probably meant otherwise. */
  readonly notes: readonly Refusal[];
  readonly consumer: Consumer;
  /** The names of its services, each with how it was written. */
  readonly written: readonly (readonly [service: string, written: string])[];
}

/** Where the services of one container can be dialled, and on which ports. */
interface Situation {
  readonly container: Container;
  readonly context: DesiredContext;
  readonly source: string;
  readonly place: Place;
  /** Its own address where the place does not tell it. */
  readonly inside: string | undefined;
  /** The ports of the container that has the network. */
  readonly bindings: readonly ContainerPort[];
  /** All that the image or the command line names: exposed and published. */
  readonly known: readonly ContainerPort[];
}

/**
 * What one container wants registered: a pure function of its inspect data and its surroundings. A container that does
 * not run wants nothing. Never throws: what cannot be registered is among the refusals, and everything else goes on.
 */
export function desiredOf(container: Container, context: DesiredContext): Desired {
  const source = `docker:${container.name}`;
  const findings = new Findings(source);
  if (!container.running) return finish(findings, [], undefined, []);
  const own = ownDeclarations(container.declarations, context.image);
  if (own.oversized) {
    findings.refuse(
      `its labels are larger than ${maxLabelUnits / 1024} KiB`,
      'Use shorter legate.* and SERVICE_* values.',
    );
    return finish(findings, [], undefined, []);
  }
  const labels = parseLegateLabels(own.labels, findings);
  const situation = situationOf(container, context, source, labels);
  const offers = labels.asked
    ? withPorts(labels.offers, situation, findings)
    : foreignOffers(own, situation, context.expose, findings);
  const instances: DesiredInstance[] = [];
  for (const offer of offers) {
    const instance = findings.attempt(offer.service, () => instanceOf(offer, situation, instances, findings));
    if (instance !== undefined) instances.push(instance);
  }
  reportDropped(own, instances, findings);
  reportForgotten(own, labels, instances, findings);
  return finish(findings, instances, labels, offers);
}

type PortedOffer = Offer & { readonly from: ContainerPort };

function situationOf(container: Container, context: DesiredContext, source: string, labels: LegateLabels): Situation {
  const shared = sharedNetworkOf(container);
  const owner = shared === undefined ? container : context.networkOwner;
  const place: Place =
    owner === undefined
      ? {
          kind: 'unreachable',
          reason: `the container whose network it shares (${quoted(shared ?? '').slice(1, 13)}) is not running`,
          hint: 'Start that one, then this one again.',
          final: true,
        }
      : placeOf(owner, labels.network, context);
  const known = new Map<string, ContainerPort>();
  for (const port of [...container.exposed, ...container.ports]) known.set(`${port.port}/${port.transport}`, port);
  return {
    container,
    context,
    source,
    known: [...known.values()],
    bindings: owner?.ports ?? [],
    inside: place.kind === 'unreachable' ? owner?.attachments.find(({ ipv4 }) => ipv4 !== undefined)?.ipv4 : undefined,
    place,
  };
}

/** Gives each offer its port: the one it names, else the only one that the container has. */
function withPorts(offers: readonly Offer[], situation: Situation, findings: Findings): readonly PortedOffer[] {
  const ported: PortedOffer[] = [];
  const taken = new Set(offers.map((offer) => offer.port));
  for (const offer of offers) {
    const from = findings.attempt(offer.service, () => portOf(offer, situation, taken));
    if (from !== undefined) ported.push({ ...offer, from });
  }
  return ported;
}

function portOf(offer: Offer, { known }: Situation, taken: ReadonlySet<number | undefined>): ContainerPort {
  const wanted = offer.protocol === undefined ? undefined : transportOf(offer.protocol);
  const fitting = known.filter(({ transport }) => wanted === undefined || transport === wanted);
  if (offer.port !== undefined) {
    const exact = fitting.filter(({ port }) => port === offer.port);
    // Of 53/tcp and 53/udp without a word on the protocol, TCP is meant.
    return (
      exact.find(({ transport }) => transport === 'tcp') ??
      exact[0] ?? { port: offer.port, transport: wanted ?? 'tcp', binding: undefined }
    );
  }
  const free = fitting.filter(({ port }) => !taken.has(port));
  const [only] = free;
  if (only !== undefined && free.length === 1) return only;
  const list = free
    .slice(0, 8)
    .map(({ port, transport }) => `${port}/${transport}`)
    .join(', ');
  const reason =
    free.length === 0 ? 'it exposes no port' : `it has several ports (${list}${free.length > 8 ? ', …' : ''})`;
  throw labelFault(`${offer.service}: ${reason}`, 'Say which one serves it: legate.port=PORT.');
}

/** What registrator would register: published ports, named by `SERVICE_*` or after the image. */
function foreignOffers(
  own: OwnDeclarations,
  { container, known }: Situation,
  expose: DesiredContext['expose'],
  findings: Findings,
): readonly PortedOffer[] {
  const keys = serviceKeys(own);
  const marked = own.operatorSpeaks && speaksOfService(keys);
  if (expose === 'labelled' && !marked) return [];
  // Without a network of its own, registrator takes what the image exposes as published under the same number.
  const isBorrowed = container.networkMode === 'host' || sharedNetworkOf(container) !== undefined;
  const published = isBorrowed ? known : known.filter(({ binding }) => binding !== undefined);
  const unserved = marked ? unservedPorts(keys, published) : [];
  for (const { port, service } of unserved) {
    const [are, option] = isBorrowed ? ['exposed', '--expose'] : ['published', '-p'];
    const hint = `Say so (docker run ${option} ${port}), or use the label legate.${port}.service, which needs none.`;
    findings.refuse(`port ${port} is not ${are}`, hint, service);
  }
  if (published.length === 0 && unserved.length === 0 && marked && (keys.get('ignore') ?? '') === '') {
    findings.refuse(
      'it has SERVICE_ keys and publishes no port',
      'Publish one (docker run -p), or use the label legate.service, which needs none.',
    );
  }
  // Somebody who names one port of several means that one; without any name, all go by the image's.
  const explicit = expose === 'labelled' && namesService(keys);
  return registratorOffers(keys, published, { image: container.image, explicit, findings });
}

function instanceOf(
  offer: PortedOffer,
  situation: Situation,
  before: readonly DesiredInstance[],
  findings: Findings,
): DesiredInstance {
  const { container } = situation;
  const { port, transport } = offer.from;
  const protocol: Protocol = offer.protocol ?? (transport === 'udp' ? 'udp' : 'tcp');
  const name = offer.name ?? `${shortId(container.id)}-${port}${transport === 'udp' ? '-udp' : ''}`;
  const twin = before.find((other) => other.name === name);
  if (twin !== undefined) {
    if (offer.name === undefined) {
      throw labelFault(
        `${offer.service}: port ${port} is already that of ${twin.service}`,
        'Give each service of a container its own port.',
      );
    }
    throw labelFault(
      `SERVICE_ID: ${name} is there twice, for ${twin.service} and ${offer.service}`,
      'Set SERVICE_<port>_ID for each port.',
    );
  }
  const where = whereabouts(port, transport, situation);
  const inside = { address: situation.inside ?? where.address, port };
  const note = (reason: string, hint: string): void => findings.note(reason, hint, offer.service);
  return {
    name,
    service: offer.service,
    ...where,
    protocol,
    tags: offer.tags,
    meta: offer.meta,
    weight: offer.weight,
    draining: false,
    source: situation.source,
    incarnation: `${container.startedAt} ${shortId(container.id)}`,
    container: container.id,
    ...health(offer.check, { container, transport, inside, note }),
  };
}

function whereabouts(
  port: number,
  transport: Transport,
  { place, bindings, context }: Situation,
): Pick<DesiredInstance, 'address' | 'port' | 'reach' | 'published'> {
  if (place.kind === 'host') return { address: context.advertise, port, reach: 'mesh' };
  const binding = bindings.find((other) => other.port === port && other.transport === transport)?.binding;
  const published =
    binding === undefined || isLoopback(binding.address) ? undefined : publishedAt(binding, context.advertise);
  if (place.kind === 'bridge') {
    const own = { address: place.address, port };
    return published === undefined ? { ...own, reach: 'host' } : { ...own, reach: 'mesh', published };
  }
  if (place.final || binding === undefined) throw labelFault(place.reason, place.hint);
  // Docker's own proxy leads to it where we cannot go ourselves.
  return published === undefined ? { ...binding, reach: 'host' } : { ...published, reach: 'mesh' };
}

function publishedAt(binding: Endpoint, advertise: string): Endpoint {
  const everywhere = binding.address === '0.0.0.0' || binding.address === '::';
  return { address: everywhere ? advertise : binding.address, port: binding.port };
}

function reportDropped(own: OwnDeclarations, instances: readonly DesiredInstance[], findings: Findings): void {
  for (const { key, value } of own.dropped) {
    const name = quoted(key).slice(1, -1);
    const reason = `${name}=${quoted(value).slice(1, -1)} comes from the image and is ignored`;
    const hint = `Say it to docker run, or set docker.image_labels: true.`;
    if (instances.length > 0 || /consumer$/.test(key)) findings.note(reason, hint);
    else findings.refuse(reason, hint);
  }
}

/** Labels that describe a service, on a container that names none, are usually a slip. */
function reportForgotten(
  own: OwnDeclarations,
  labels: LegateLabels,
  instances: readonly DesiredInstance[],
  findings: Findings,
): void {
  if (labels.asked || instances.length > 0 || own.dropped.length > 0) return;
  const [key] = withoutService(own.labels);
  if (key !== undefined)
    findings.refuse(`${quoted(key).slice(1, -1)} without legate.service`, 'Add the label legate.service=NAME.');
}

function finish(
  findings: Findings,
  instances: readonly DesiredInstance[],
  labels: LegateLabels | undefined,
  offers: readonly Offer[],
): Desired {
  const services = new Set(instances.map(({ service }) => service));
  const [only] = services;
  return {
    instances,
    refusals: findings.refusals,
    notes: findings.notes,
    consumer: { name: labels?.consumer ?? (services.size === 1 ? only : undefined), links: labels?.links ?? [] },
    written: offers.map(({ service, written }) => [service, written]),
  };
}
