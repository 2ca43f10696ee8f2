import { parseDuration } from '../../src/base/duration.ts';
import { LegateError } from '../../src/base/errors.ts';
import { nearest, printable, truncate } from '../../src/base/text.ts';
import { isPort } from '../../src/model/address.ts';
import { type CheckSpec, checkDefaults, checkKinds, supportedCheckKinds } from '../../src/model/check.ts';
import { type Protocol, protocols } from '../../src/model/instance.ts';
import { nameFault, normaliseName } from '../../src/model/names.ts';

const maxTags = 64;
const maxTagLength = 128;
const maxMetaEntries = 64;
const maxMetaKeyLength = 128;
const maxMetaValueLength = 1024;
const minIntervalMs = 100;
const maxDurationMs = 24 * 3_600_000;
const maxStreak = 100;
const pathPattern = /^\/[\x21-\x7e]{0,1023}$/;

/** What to ask of an instance: `own` is the container's HEALTHCHECK if it has one, else nothing. */
export type CheckWish =
  | { readonly kind: 'own' }
  | { readonly kind: 'none' }
  | { readonly kind: 'spec'; readonly spec: CheckSpec; readonly key: string };

export interface CheckModifiers {
  readonly interval?: string | undefined;
  readonly timeout?: string | undefined;
  readonly rise?: string | undefined;
  readonly fall?: string | undefined;
}

/** A fault in what a container declares; becomes a refusal of the service it was for. */
export function labelFault(reason: string, hint: string): LegateError {
  return new LegateError('E_INVALID', reason, { hint });
}

/** Text from a stranger in double quotes, safe to print and short. */
export function quoted(text: string): string {
  return `"${printable(truncate(text, 80))}"`;
}

export function portValue(key: string, text: string): number {
  const port = /^\d{1,5}$/.test(text.trim()) ? Number(text) : Number.NaN;
  if (!isPort(port)) {
    throw labelFault(
      `${key}: ${quoted(text)} is not a port (1 to 65535)`,
      'Give the port inside the container, as a number.',
    );
  }
  return port;
}

export function serviceValue(key: string, text: string): string {
  const fault = nameFault(text);
  if (fault === undefined) return text;
  const near = normaliseName(text);
  const hint = near === undefined ? 'Choose another name.' : `Use ${near}.`;
  throw labelFault(`${key}: ${quoted(text)} ${fault}`, hint);
}

export function protocolValue(key: string, text: string): Protocol {
  const word = text.trim().toLowerCase();
  const protocol = protocols.find((candidate) => candidate === word);
  if (protocol !== undefined) return protocol;
  throw labelFault(`${key}: ${quoted(text)} is not a protocol`, `Use one of ${protocols.join(', ')}.`);
}

export function weightValue(key: string, text: string): number {
  const weight = /^\d{1,5}$/.test(text.trim()) ? Number(text) : Number.NaN;
  if (weight >= 0 && weight <= 65535) return weight;
  throw labelFault(`${key}: ${quoted(text)} is not a weight (0 to 65535)`, 'Give a whole number; 1 is the default.');
}

/** A comma list in which `\,` stands for a comma; without empty and repeated entries. */
export function tagsValue(key: string, text: string): readonly string[] {
  const tags = new Set<string>();
  for (const part of text.match(/(?:\\,|[^,])+/g) ?? []) {
    const tag = printable(part.replaceAll('\\,', ',').trim());
    if (tag === '') continue;
    if (tag.length > maxTagLength) {
      throw labelFault(`${key}: the tag ${quoted(tag)} is longer than ${maxTagLength} characters`, 'Use shorter tags.');
    }
    tags.add(tag);
  }
  if (tags.size > maxTags) throw labelFault(`${key}: ${tags.size} tags are more than ${maxTags}`, 'Use fewer tags.');
  return [...tags];
}

/** Bounded, printable metadata. */
export function metaValue(
  prefix: string,
  entries: Iterable<readonly [string, string]>,
): Readonly<Record<string, string>> {
  const meta = new Map<string, string>();
  for (const [key, value] of entries) {
    const name = printable(key);
    if (name === '' || name.length > maxMetaKeyLength || value.length > maxMetaValueLength) {
      const bounds = `keys up to ${maxMetaKeyLength} and values up to ${maxMetaValueLength} characters`;
      throw labelFault(`${prefix}${quoted(name).slice(1, -1)}: too long or without a key`, `Metadata takes ${bounds}.`);
    }
    meta.set(name, printable(value));
  }
  if (meta.size > maxMetaEntries) {
    throw labelFault(`${prefix}…: ${meta.size} entries of metadata are more than ${maxMetaEntries}`, 'Use fewer.');
  }
  return Object.fromEntries(meta);
}

/** Parses `http:/health`, `http:8081/health`, `http`, `tcp`, `tcp:9000`, `docker`, `none`. */
export function checkValue(key: string, text: string, modifiers: CheckModifiers): CheckWish {
  const [, word = '', rest = ''] = /^([a-z0-9]*)(?::(.*))?$/s.exec(text.trim()) ?? [];
  if (word === 'none') return { kind: 'none' };
  const kind = checkKinds.find((candidate) => candidate === word);
  if (kind === undefined) {
    const near = nearest(word, ['none', ...checkKinds]);
    const hint = near === undefined ? '' : ` Did you mean ${near}?`;
    throw labelFault(`${key}: ${quoted(text)} is not a check`, `Use http:/path, tcp, docker or none.${hint}`);
  }
  if (!supportedCheckKinds.includes(kind)) {
    throw labelFault(
      `${key}: checks of kind ${kind} are not yet there`,
      'Use http:/path, tcp, docker or none meanwhile.',
    );
  }
  const base = { kind, ...checkTimes(key, modifiers, kind === 'docker' ? dockerDefaults : checkDefaults) };
  if (rest === '') return { kind: 'spec', key, spec: kind === 'http' ? { ...base, path: '/' } : base };
  const [, portText, path = ''] = /^(\d+)?(\/.*)?$/s.exec(rest) ?? [];
  if (kind === 'docker' || (portText === undefined && path === '') || (kind === 'tcp' && path !== '')) {
    throw labelFault(
      `${key}: ${quoted(text)} is not a check`,
      'Use http:/path, http:PORT/path, tcp, tcp:PORT, docker or none.',
    );
  }
  const port = portText === undefined ? {} : { port: portValue(key, portText) };
  return {
    kind: 'spec',
    key,
    spec: kind === 'http' ? { ...base, ...port, path: pathValue(key, path || '/') } : { ...base, ...port },
  };
}

/** Docker applies its own retries before it says unhealthy, so its first word counts. */
const dockerDefaults = { ...checkDefaults, rise: 1, fall: 1 };

/** The check that stands for a container's own HEALTHCHECK. */
export const ownCheck: CheckSpec = { kind: 'docker', ...dockerDefaults };

export function pathValue(key: string, text: string): string {
  if (pathPattern.test(text)) return text;
  throw labelFault(
    `${key}: ${quoted(text)} is not a path`,
    'Give a path with a leading slash and no blanks, up to 1024 characters.',
  );
}

export function checkTimes(
  key: string,
  modifiers: CheckModifiers,
  defaults: Pick<CheckSpec, 'intervalMs' | 'timeoutMs' | 'rise' | 'fall'>,
): Pick<CheckSpec, 'intervalMs' | 'timeoutMs' | 'rise' | 'fall'> {
  const intervalMs = durationValue(`${key}.interval`, modifiers.interval) ?? defaults.intervalMs;
  return {
    intervalMs,
    timeoutMs: durationValue(`${key}.timeout`, modifiers.timeout) ?? defaults.timeoutMs,
    rise: streakValue(`${key}.rise`, modifiers.rise) ?? defaults.rise,
    fall: streakValue(`${key}.fall`, modifiers.fall) ?? defaults.fall,
  };
}

export function durationValue(key: string, text: string | undefined): number | undefined {
  if (text === undefined || text === '') return undefined;
  const durationMs = parseDuration(text);
  if (durationMs !== undefined && durationMs >= minIntervalMs && durationMs <= maxDurationMs) return durationMs;
  throw labelFault(`${key}: ${quoted(text)} is not a duration of 100ms to 24h`, 'Write it as 250ms, 5s or 2m.');
}

function streakValue(key: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const count = /^\d{1,3}$/.test(text.trim()) ? Number(text) : Number.NaN;
  if (count >= 1 && count <= maxStreak) return count;
  throw labelFault(`${key}: ${quoted(text)} is not a count of 1 to ${maxStreak}`, 'Give a whole number.');
}
