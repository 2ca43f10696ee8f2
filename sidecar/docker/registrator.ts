import { type CheckSpec, checkDefaults } from '../../src/model/check.ts';
import { instanceNameFault, normaliseName } from '../../src/model/names.ts';
import type { ContainerPort, Declarations } from './container.ts';
import type { Findings } from './findings.ts';
import {
  type CheckWish,
  checkTimes,
  durationValue,
  labelFault,
  metaValue,
  pathValue,
  quoted,
  tagsValue,
} from './label-values.ts';
import type { Offer } from './labels.ts';

/** registrator asks every 10 s unless told otherwise, and Consul then waits up to 10 s for the answer. */
const defaultIntervalMs = 10_000;
const defaultTimeoutMs = 10_000;
const maxOffers = 256;

/** In registrator's order: the first that is there is the check. */
const checkKeys = [
  'check_http',
  'check_https',
  'check_cmd',
  'check_script',
  'check_ttl',
  'check_tcp',
  'check_grpc',
] as const;
const modifierKeys: ReadonlySet<string> = new Set(['check_interval', 'check_timeout', 'check_http_method']);

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
function keysOfPort(keys: ServiceKeys, port: number): { values: Map<string, string>; namedByPort: boolean } {
  const values = new Map<string, string>();
  const own = new Map<string, string>();
  for (const [key, value] of keys) {
    const match = /^([+-]?\d+)_(.*)$/s.exec(key);
    if (match === null) values.set(key, value);
    else if (match[1] === String(port)) own.set(match[2] ?? '', value);
  }
  for (const [key, value] of own) values.set(key, value);
  return { values, namedByPort: own.has('name') };
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
    const { values, namedByPort } = keysOfPort(keys, from.port);
    if ((values.get('ignore') ?? '') !== '') continue;
    const given = values.get('name') ?? '';
    if (given === '' && explicit) continue;
    const base = given === '' ? imageBaseName(image) : given;
    const written = ports.length > 1 && !(namedByPort && given !== '') ? `${base}-${from.port}` : base;
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
      return offerOf(values, from, service, written, findings);
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

function offerOf(
  values: Map<string, string>,
  from: ContainerPort,
  service: string,
  written: string,
  findings: Findings,
): Offer {
  const tags = tagsValue('SERVICE_TAGS', values.get('tags') ?? '');
  const udp = from.transport === 'udp';
  const name = values.get('id') ?? '';
  const fault = name === '' ? undefined : instanceNameFault(name);
  if (fault !== undefined)
    throw labelFault(`SERVICE_ID: ${quoted(name)} ${fault}`, 'Choose another SERVICE_ID, or none.');
  const meta = [...values].filter(([key]) => !/^(?:name|id|tags|ignore|check_.*)$/s.test(key));
  return {
    service,
    written,
    port: from.port,
    protocol: udp ? 'udp' : 'tcp',
    tags: udp && !tags.includes('udp') ? [...tags, 'udp'] : tags,
    meta: metaValue('SERVICE_', meta),
    weight: 1,
    check: checkOf(values, service, findings),
    name: name === '' ? undefined : name,
  };
}

function checkOf(values: Map<string, string>, service: string, findings: Findings): CheckWish {
  const first = checkKeys.find((key) => (values.get(key) ?? '') !== '');
  for (const [key, value] of values) {
    const works = key === first ? key === 'check_http' || key === 'check_tcp' : modifierKeys.has(key);
    if (!key.startsWith('check_') || value === '' || works || (key !== first && isCheckKey(key))) continue;
    findings.note(
      `SERVICE_${quoted(key.toUpperCase()).slice(1, -1)} does nothing yet`,
      'CHECK_HTTP, CHECK_TCP, CHECK_INTERVAL and CHECK_TIMEOUT work.',
      service,
    );
  }
  if (first !== 'check_http' && first !== 'check_tcp') return { kind: 'own' };
  const key = `SERVICE_${first.toUpperCase()}`;
  const intervalMs = durationValue('SERVICE_CHECK_INTERVAL', values.get('check_interval')) ?? defaultIntervalMs;
  const timeoutMs = durationValue('SERVICE_CHECK_TIMEOUT', values.get('check_timeout')) ?? defaultTimeoutMs;
  const base = { ...checkTimes(key, {}, checkDefaults), intervalMs, timeoutMs };
  if (first === 'check_tcp') return { kind: 'spec', key, spec: { kind: 'tcp', ...base } };
  const path = values.get('check_http') ?? '/';
  const spec: CheckSpec = { kind: 'http', ...base, path: pathValue(key, path.startsWith('/') ? path : `/${path}`) };
  const method = values.get('check_http_method') ?? '';
  if (method === '') return { kind: 'spec', key, spec };
  if (!/^[A-Za-z]{1,16}$/.test(method)) {
    throw labelFault(`SERVICE_CHECK_HTTP_METHOD: ${quoted(method)} is not a method`, 'Use GET or HEAD.');
  }
  return { kind: 'spec', key, spec: { ...spec, method: method.toUpperCase() } };
}

function isCheckKey(key: string): boolean {
  return (checkKeys as readonly string[]).includes(key);
}

/** `registry:5000/team/app:1.2` gives `app`. */
function imageBaseName(image: string): string {
  return (image.split('/').at(-1) ?? '').split(/[:@]/, 1)[0] ?? '';
}
