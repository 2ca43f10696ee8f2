import { LegateError } from '../../src/base/errors.ts';
import { printable, truncate } from '../../src/base/text.ts';
import { isPort } from '../../src/model/address.ts';
import { type Protocol, protocols } from '../../src/model/instance.ts';
import { nameFault, normaliseName } from '../../src/model/names.ts';

const maxTags = 64;
const maxTagLength = 128;
const maxMetaEntries = 64;
const maxMetaKeyLength = 128;
/** As it is shown: what cannot be printed takes several characters. */
const maxMetaValueLength = 1024;
const maxMetaBytes = 32 * 1024;

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
  let bytes = 0;
  for (const [key, value] of entries) {
    const [name, text] = [printable(key), printable(value)];
    if (name === '' || name.length > maxMetaKeyLength || text.length > maxMetaValueLength) {
      const bounds = `keys up to ${maxMetaKeyLength} and values up to ${maxMetaValueLength} characters`;
      throw labelFault(`${prefix}${quoted(name).slice(1, -1)}: too long or without a key`, `Metadata takes ${bounds}.`);
    }
    bytes += Buffer.byteLength(name) + Buffer.byteLength(text);
    meta.set(name, text);
  }
  if (meta.size > maxMetaEntries) {
    throw labelFault(`${prefix}…: ${meta.size} entries of metadata are more than ${maxMetaEntries}`, 'Use fewer.');
  }
  if (bytes > maxMetaBytes) {
    throw labelFault(`${prefix}…: the metadata is larger than ${maxMetaBytes / 1024} KiB`, 'Use less.');
  }
  return Object.fromEntries(meta);
}
