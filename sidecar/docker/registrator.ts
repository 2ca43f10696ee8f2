import { instanceNameFault, normaliseName } from '../../src/model/names.ts';
import type { ContainerPort, Declarations } from './container.ts';
import type { Findings } from './findings.ts';
import { labelFault, metaValue, quoted, tagsValue } from './label-values.ts';
import type { Offer } from './labels.ts';
import { isCheckKey, noteNo, type PortKeys, registratorCheck } from './registrator-checks.ts';

const maxOffers = 256;

/** `SERVICE_*` of environment and labels, keys lower-cased without the prefix; a label wins over the environment. */
export type ServiceKeys = ReadonlyMap<string, string>;

export function serviceKeys({ environment, labels }: Declarations): ServiceKeys {
  const keys = new Map<string, string>();
  for (const source of [environment, labels]) {
    for (const [key, value] of source) {
      if (key.startsWith('SERVICE_')) keys.set(key.slice('SERVICE_'.length).toLowerCase(), value);
    }
  }
  return keys;
}

/** What applies to one port: `<port>_x` beats `x`. */
function keysOfPort(keys: ServiceKeys, { port, transport }: ContainerPort, ports: readonly ContainerPort[]): PortKeys {
  const values = new Map<string, string>();
  const own = new Map<string, string>();
  for (const [key, value] of keys) {
    const match = /^([+-]?\d+)_(.*)$/s.exec(key);
    if (match === null) values.set(key, value);
    else if (match[1] === String(port)) own.set(match[2] ?? '', value);
  }
  for (const [key, value] of own) values.set(key, value);
  const hasTwin = transport === 'udp' && ports.some((other) => other.port === port && other.transport === 'tcp');
  return {
    values,
    written: (key) => `SERVICE_${own.has(key) ? `${port}_` : ''}${key.toUpperCase()}`,
    ofPort: (key) => own.has(key),
    twin: hasTwin ? port : undefined,
    checksAnywhere: [...keys].some(([key, value]) => value !== '' && isCheckKey(key.replace(/^\d+_/, ''))),
  };
}

/** Whether any key names the service, for all ports or for one. */
export function namesService(keys: ServiceKeys): boolean {
  for (const [key, value] of keys) if (value !== '' && /^(?:\d+_)?name$/.test(key)) return true;
  return false;
}

/** Whether any key says something of a service other than that it is to be ignored. */
export function speaksOfService(keys: ServiceKeys): boolean {
  for (const [key, value] of keys) if (value !== '' && !/^(?:\d+_)?ignore$/.test(key)) return true;
  return false;
}

/** The ports that have a name or an ID of their own and are not among `ports`, each with its service, by port. */
export function unservedPorts(
  keys: ServiceKeys,
  ports: readonly ContainerPort[],
): readonly { readonly port: string; readonly service: string | undefined }[] {
  const set = (key: string): boolean => (keys.get(key) ?? '') !== '';
  const unserved = new Set<string>();
  for (const key of keys.keys()) {
    const port = /^(\d{1,9})_(?:name|id)$/.exec(key)?.[1];
    if (port === undefined || !set(key) || set('ignore') || set(`${port}_ignore`)) continue;
    if (!ports.some((other) => String(other.port) === port)) unserved.add(port);
  }
  return [...unserved]
    .sort((a, b) => Number(a) - Number(b))
    .map((port) => ({ port, service: normaliseName(keys.get(`${port}_name`) ?? '') }));
}

/**
 * What registrator would register: one service for each published port. `explicit`: ports without a name are left out;
 * otherwise the image's base name is the default.
 */
export function registratorOffers(
  keys: ServiceKeys,
  ports: readonly ContainerPort[],
  { image, explicit, findings }: { image: string; explicit: boolean; findings: Findings },
): readonly (Offer & { readonly from: ContainerPort })[] {
  const offers: (Offer & { readonly from: ContainerPort })[] = [];
  const writtenNames = new Map<string, string>();
  for (const from of ports.slice(0, maxOffers)) {
    const own = keysOfPort(keys, from, ports);
    const { values } = own;
    const ignore = values.get('ignore') ?? '';
    if (ignore !== '') {
      noteNo(own.written('ignore'), ignore, (reason, hint) => findings.note(reason, hint));
      continue;
    }
    const given = values.get('name') ?? '';
    if (given === '' && explicit) continue;
    const base = given === '' ? imageBaseName(image) : given;
    const written = ports.length > 1 && !own.ofPort('name') ? `${base}-${from.port}` : base;
    const service = normaliseName(written);
    const offer = findings.attempt(service, () => {
      if (service === undefined)
        throw labelFault(`SERVICE_NAME: ${quoted(written)} gives no usable name`, 'Set SERVICE_NAME.');
      const other = writtenNames.get(service);
      if (other !== undefined && other !== written) {
        throw labelFault(
          `SERVICE_NAME: ${quoted(written)} and ${quoted(other)} both become ${service}`,
          'Rename one of them.',
        );
      }
      writtenNames.set(service, written);
      return offerOf(own, from, service, written, findings);
    });
    if (offer !== undefined) offers.push({ ...offer, from });
  }
  if (ports.length > maxOffers) {
    findings.refuse(
      `${ports.length} published ports are more than ${maxOffers}`,
      'Name the ports that matter with legate.<port>.service.',
    );
  }
  return offers;
}

function offerOf(keys: PortKeys, from: ContainerPort, service: string, written: string, findings: Findings): Offer {
  const { values, written: keyOf } = keys;
  const tags = tagsValue(keyOf('tags'), values.get('tags') ?? '');
  const udp = from.transport === 'udp';
  const name = values.get('id') ?? '';
  const fault = name === '' ? undefined : instanceNameFault(name);
  if (fault !== undefined)
    throw labelFault(`${keyOf('id')}: ${quoted(name)} ${fault}`, 'Choose another SERVICE_ID, or none.');
  const meta = [...values].filter(([key]) => !/^(?:name|id|tags|ignore|check_.*)$/s.test(key));
  return {
    service,
    written,
    port: from.port,
    protocol: udp ? 'udp' : 'tcp',
    tags: udp && !tags.includes('udp') ? [...tags, 'udp'] : tags,
    meta: metaValue('SERVICE_', meta),
    weight: 1,
    check: registratorCheck(keys, (reason, hint) => findings.note(reason, hint, service)),
    name: name === '' ? undefined : name,
  };
}

/** `registry:5000/team/app:1.2` gives `app`. */
function imageBaseName(image: string): string {
  return (image.split('/').at(-1) ?? '').split(/[:@]/, 1)[0] ?? '';
}
