import { nearest } from '../../src/base/text.ts';
import type { Protocol } from '../../src/model/instance.ts';
import type { DeclaredLink } from '../../src/model/link.ts';
import { nameFault } from '../../src/model/names.ts';
import { checkLabels, checkModifiers, type FindLabel } from './check-labels.ts';
import type { CheckWish } from './check-values.ts';
import type { Findings } from './findings.ts';
import {
  labelFault,
  metaValue,
  portValue,
  protocolValue,
  quoted,
  serviceValue,
  tagsValue,
  weightValue,
} from './label-values.ts';

/** One service that a container asks to offer. */
export interface Offer {
  readonly service: string;
  /** The name as it was written, before it was made to fit the grammar. */
  readonly written: string;
  /** Inside the container; undefined: its only port. */
  readonly port: number | undefined;
  readonly protocol: Protocol | undefined;
  readonly tags: readonly string[];
  readonly meta: Readonly<Record<string, string>>;
  readonly weight: number;
  readonly check: CheckWish;
  /** The instance's name, where it was chosen. */
  readonly name: string | undefined;
}

export interface LegateLabels {
  readonly offers: readonly Offer[];
  /** Whether a service was asked for, even when the request has faults. */
  readonly asked: boolean;
  readonly network: string | undefined;
  readonly consumer: string | undefined;
  readonly links: readonly DeclaredLink[];
}

const maxOffers = 64;
const maxLinks = 64;
const containerFields = ['port', 'network', 'links', 'consumer'] as const;
const serviceFields = [
  'service',
  'protocol',
  'tags',
  'weight',
  'check',
  ...checkModifiers.map((modifier) => `check.${modifier}`),
];

/** The labels of one service: those of the container (`port` undefined) or of one port. */
interface Scope {
  readonly prefix: string;
  readonly portText: string | undefined;
  readonly fields: Map<string, string>;
  readonly meta: Map<string, string>;
}

/** Reads all `legate.*` labels of a container. Never throws: faults are found in `findings`. */
export function parseLegateLabels(labels: ReadonlyMap<string, string>, findings: Findings): LegateLabels {
  const general: Scope = { prefix: 'legate.', portText: undefined, fields: new Map(), meta: new Map() };
  const byPort = new Map<string, Scope>();
  for (const [key, value] of labels) {
    if (key.startsWith('legate.')) sortIn(key, value, general, byPort, findings);
  }
  const scopes = [...byPort.values()].sort((a, b) => Number(a.portText) - Number(b.portText));
  const asking = scopes.filter((scope) => scope.fields.has('service'));
  const asked = general.fields.has('service') || asking.length > 0;
  const offers: Offer[] = [];
  if (general.fields.has('service')) pushOffer(offers, findings, general, scopes, general);
  for (const scope of asking.slice(0, maxOffers)) pushOffer(offers, findings, scope, scopes, general);
  if (asking.length > maxOffers) {
    findings.refuse(`legate.<port>.service: ${asking.length} services are more than ${maxOffers}`, 'Use fewer.');
  }
  const linksText = general.fields.get('links');
  return {
    offers,
    asked,
    network: general.fields.get('network')?.trim(),
    consumer: consumerOf(general, findings),
    links: linksText === undefined ? [] : (findings.attempt(undefined, () => linksValue(linksText)) ?? []),
  };
}

/** Labels that would have described a service, had one been named. Their keys, for a message. */
export function withoutService(labels: ReadonlyMap<string, string>): readonly string[] {
  const keys = [...labels.keys()].filter((key) => key.startsWith('legate.'));
  return keys.filter((key) => !/^legate\.(links|consumer|network|service|\d+\.service)(\.|$)/.test(key)).sort();
}

function sortIn(key: string, value: string, general: Scope, byPort: Map<string, Scope>, findings: Findings): void {
  const [, portText, field = ''] = /^legate\.(?:(\d{1,9})\.)?(.+)$/s.exec(key) ?? [];
  let scope = general;
  if (portText !== undefined) {
    scope = byPort.get(portText) ?? { prefix: `legate.${portText}.`, portText, fields: new Map(), meta: new Map() };
    if (byPort.size < 4 * maxOffers) byPort.set(portText, scope);
  }
  const known: readonly string[] = portText === undefined ? [...containerFields, ...serviceFields] : serviceFields;
  if (field.startsWith('meta.')) scope.meta.set(field.slice('meta.'.length), value);
  else if (known.includes(field)) scope.fields.set(field, value);
  else {
    const near = nearest(field, known);
    const hint = near === undefined ? 'The README lists all labels.' : `Did you mean ${scope.prefix}${near}?`;
    findings.note(`unknown label ${quoted(key)}`, hint);
  }
}

function pushOffer(offers: Offer[], findings: Findings, scope: Scope, scopes: readonly Scope[], general: Scope): void {
  const written = scope.fields.get('service') ?? '';
  const service = nameFault(written) === undefined ? written : undefined;
  const offer = findings.attempt(service, () => offerOf(scope, scopes, general, written));
  if (offer !== undefined) offers.push(offer);
}

function offerOf(scope: Scope, scopes: readonly Scope[], general: Scope, written: string): Offer {
  const service = serviceValue(`${scope.prefix}service`, written);
  const portText = scope.portText ?? general.fields.get('port');
  const port =
    portText === undefined
      ? undefined
      : portValue(scope === general ? 'legate.port' : scope.prefix.slice(0, -1), portText);
  // A port's own labels beat the container's, also for the port that legate.port names.
  const own =
    scope === general ? scopes.find((other) => other.portText === portText && !other.fields.has('service')) : scope;
  const find: FindLabel = (field) => {
    for (const place of own === undefined ? [general] : [own, general]) {
      const text = place.fields.get(field);
      if (text !== undefined) return { key: `${place.prefix}${field}`, text, ofPort: place !== general };
    }
    return undefined;
  };
  const value = <T>(field: string, read: (key: string, text: string) => T): T | undefined => {
    const label = find(field);
    return label === undefined ? undefined : read(label.key, label.text);
  };
  return {
    service,
    written,
    port,
    protocol: value('protocol', protocolValue),
    tags: value('tags', tagsValue) ?? [],
    meta: metaValue('legate.meta.', new Map([...general.meta, ...(own?.meta ?? [])])),
    weight: value('weight', weightValue) ?? 1,
    check: checkLabels(
      find,
      scopes.some(({ fields }) => fields.has('check')),
    ),
    name: undefined,
  };
}

function consumerOf(general: Scope, findings: Findings): string | undefined {
  const text = general.fields.get('consumer');
  return text === undefined ? undefined : findings.attempt(undefined, () => serviceValue('legate.consumer', text));
}

/** Parses `db,cache=redis@6379`: alias=service@port, of which only the service is needed. */
function linksValue(text: string): readonly DeclaredLink[] {
  const links: DeclaredLink[] = [];
  for (const part of text.split(',')) {
    const entry = part.trim();
    if (entry === '') continue;
    const [, aliasText, service = '', portText] = /^(?:([^=@]*)=)?([^=@]*)(?:@(.*))?$/s.exec(entry) ?? [];
    const alias = serviceValue('legate.links', aliasText?.trim() ?? service.trim());
    const port = portText === undefined ? undefined : portValue('legate.links', portText);
    links.push({ alias, service: serviceValue('legate.links', service.trim()), port });
  }
  const twice = links.find((link, index) => links.findIndex((other) => other.alias === link.alias) !== index);
  if (twice !== undefined)
    throw labelFault(`legate.links: the alias ${twice.alias} is there twice`, 'Use each alias once.');
  if (links.length > maxLinks)
    throw labelFault(`legate.links: ${links.length} links are more than ${maxLinks}`, 'Use fewer.');
  return links;
}
