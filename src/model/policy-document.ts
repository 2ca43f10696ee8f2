import { isIPv6 } from 'node:net';
import { LegateError } from '../base/errors.ts';
import { FieldFault, Fields } from '../base/fields.ts';
import { printable, truncate } from '../base/text.ts';
import { isPort } from './address.ts';
import { nameFault } from './names.ts';
import type { ExternalTargets, Grant, Intent, Policy, RevokedHost } from './policy.ts';

/**
 * The policy as it is signed: JSON in UTF-8. Lists of rules are rows (`["web","db","allow",1700000000000]`), so that
 * thousands fit. What is read is hostile until its signature was checked, and bounded after that too.
 */
const formatVersion = 1;

/** The first of these that a change would exceed refuses the change. */
export const policyLimits = {
  /** Of the signed text: with its envelope it has to fit into the answer that a joining host gets. */
  bytes: 180_000,
  roots: 4,
  rootLength: 8192,
  intents: 4096,
  grants: 4096,
  externalServices: 512,
  externalTargets: 16,
  revoked: 1024,
} as const;

const maxTimeMs = 8.64e15;
const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true });

/** The text that is signed. E_TOO_LARGE or E_INVALID when it is beyond what every host reads back. */
export function formatPolicy(policy: Policy): Uint8Array {
  const { mesh, meshId, version, authority, mode, fromLinks } = policy;
  const document = {
    v: formatVersion,
    mesh,
    meshId,
    version,
    authority,
    roots: policy.roots,
    default: policy.default,
    mode,
    fromLinks,
    intents: policy.intents.map(({ consumer, service, action, setAtMs }) => [consumer, service, action, setAtMs]),
    grants: policy.grants.map(({ hostId, service, setAtMs }) => [hostId, service, setAtMs]),
    external: policy.external.map(({ service, targets }) => [service, targets]),
    revoked: policy.revoked.map(({ hostId, name, setAtMs }) => [hostId, name, setAtMs]),
  };
  const bytes = encoder.encode(JSON.stringify(document));
  const read = parsePolicy(bytes);
  if ('policy' in read) return bytes;
  const tooLarge = bytes.byteLength > policyLimits.bytes || / entries, more than /.test(read.fault);
  throw new LegateError(tooLarge ? 'E_TOO_LARGE' : 'E_INVALID', `the policy cannot be stored: ${read.fault}`, {
    hint: tooLarge ? 'fewer intents with * say the same as many: legate intent list shows them' : 'check the names',
  });
}

/** Reads what `formatPolicy` made, or says for people why it is none. */
export function parsePolicy(bytes: Uint8Array): { readonly policy: Policy } | { readonly fault: string } {
  if (bytes.byteLength > policyLimits.bytes) {
    return { fault: `it has ${bytes.byteLength} bytes, more than ${policyLimits.bytes}` };
  }
  let document: unknown;
  try {
    document = JSON.parse(decoder.decode(bytes));
  } catch {
    return { fault: 'it is not JSON in UTF-8' };
  }
  try {
    return { policy: readPolicy(new Fields(document)) };
  } catch (error) {
    if (error instanceof FieldFault) return { fault: error.message };
    throw error;
  }
}

function readPolicy(fields: Fields): Policy {
  const version = fields.integer('v', 1, Number.MAX_SAFE_INTEGER);
  if (version > formatVersion) throw new FieldFault(`it is of a newer version (${version}) than this Legate reads`);
  return Object.freeze({
    mesh: fields.name('mesh', nameFault),
    meshId: fields.name('meshId', (id) => (/^[0-9a-f]{32}$/.test(id) ? undefined : 'is not 32 hexadecimal digits')),
    version: fields.integer('version', 1, Number.MAX_SAFE_INTEGER),
    authority: fields.name('authority', hostIdFault),
    roots: Object.freeze(fields.list('roots', policyLimits.roots).map(rootOf)),
    default: fields.oneOf('default', ['allow', 'deny']),
    mode: fields.oneOf('mode', ['enforce', 'learn']),
    fromLinks: fields.flag('fromLinks'),
    intents: rows(fields, 'intents', policyLimits.intents, intentOf, intentKey),
    grants: rows(fields, 'grants', policyLimits.grants, grantOf, ({ hostId, service }) => `${hostId} ${service}`),
    external: rows(fields, 'external', policyLimits.externalServices, externalOf, ({ service }) => service),
    revoked: rows(fields, 'revoked', policyLimits.revoked, revokedOf, ({ hostId }) => hostId),
  });
}

/** Whether two policies say the same; signatures over the same text differ. */
export function samePolicy(a: Policy, b: Policy): boolean {
  return a === b || Buffer.compare(formatPolicy(a), formatPolicy(b)) === 0;
}

/** What tells one intent from another. */
export function intentKey({ consumer, service }: Pick<Intent, 'consumer' | 'service'>): string {
  return `${consumer} ${service}`;
}

/** What is wrong with a consumer's name in an intent: besides services there are `*`, `host` and `anonymous`. */
export function consumerFault(name: string): string | undefined {
  return name === '*' || name === 'host' || name === 'anonymous' ? undefined : nameFault(name);
}

/** What is wrong with a service's name in an intent or a grant. */
export function anyServiceFault(name: string): string | undefined {
  return name === '*' ? undefined : nameFault(name);
}

/** What is wrong with a target outside of the mesh: `smtp.example.com:25`, `192.0.2.1:25`, `[2001:db8::1]:25`. */
export function externalTargetFault(target: string): string | undefined {
  const match = /^(?:\[([0-9a-f:.]{2,45})\]|([a-zA-Z0-9](?:[a-zA-Z0-9._-]{0,251}[a-zA-Z0-9])?)):(\d{1,5})$/.exec(
    target,
  );
  if (match === null) return 'is not host:port';
  if (!isPort(Number(match[3]))) return 'has a port that is not one from 1 to 65535';
  return match[1] === undefined || isIPv6(match[1]) ? undefined : 'has an address that is not an IPv6 address';
}

function hostIdFault(id: string): string | undefined {
  return /^[0-9a-f]{16}$/.test(id) ? undefined : 'is not 16 hexadecimal digits';
}

/** The entries of a list of rows, each of them once. */
function rows<T>(
  fields: Fields,
  name: string,
  max: number,
  read: (row: Fields) => T,
  keyOf: (item: T) => string,
): readonly T[] {
  const seen = new Set<string>();
  const items = fields.list(name, max).map((row, index) => {
    if (!Array.isArray(row)) throw new FieldFault(`${name}[${index}] is not a list`);
    const item = read(new Fields({ ...row }, `${name}[${index}]`));
    const key = keyOf(item);
    if (seen.has(key)) throw new FieldFault(`${name}[${index}] says again what to do with ${key}`);
    seen.add(key);
    return item;
  });
  return Object.freeze(items);
}

function intentOf(row: Fields): Intent {
  return Object.freeze({
    consumer: row.name('0', consumerFault),
    service: row.name('1', anyServiceFault),
    action: row.oneOf('2', ['allow', 'deny']),
    setAtMs: row.integer('3', 0, maxTimeMs),
  });
}

function grantOf(row: Fields): Grant {
  return Object.freeze({
    hostId: row.name('0', hostIdFault),
    service: row.name('1', anyServiceFault),
    setAtMs: row.integer('2', 0, maxTimeMs),
  });
}

function externalOf(row: Fields): ExternalTargets {
  const targets = row.texts('1', policyLimits.externalTargets, 300);
  for (const target of targets) {
    const fault = externalTargetFault(target);
    if (fault !== undefined) throw new FieldFault(`external: "${truncate(printable(target), 80)}" ${fault}`);
  }
  return Object.freeze({ service: row.name('0', nameFault), targets });
}

function revokedOf(row: Fields): RevokedHost {
  return Object.freeze({
    hostId: row.name('0', hostIdFault),
    name: row.name('1', nameFault),
    setAtMs: row.integer('2', 0, maxTimeMs),
  });
}

const pem = /^-----BEGIN CERTIFICATE-----\n(?:[A-Za-z0-9+/=]{1,76}\n)+-----END CERTIFICATE-----\n?$/;

function rootOf(value: unknown, index: number): string {
  if (typeof value === 'string' && value.length <= policyLimits.rootLength && pem.test(value)) return value;
  throw new FieldFault(`roots[${index}] is not a certificate in PEM`);
}
