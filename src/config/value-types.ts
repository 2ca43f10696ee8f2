import { isIP } from 'node:net';
import { availableParallelism } from 'node:os';
import { resolve } from 'node:path';
import { formatDuration, parseDuration } from '../base/duration.ts';
import { nearest, printable } from '../base/text.ts';
import { type Endpoint, type Ipv4Range, parseEndpoint, parseIpv4Range } from '../model/address.ts';
import { nameFault, normaliseName } from '../model/names.ts';
import type { StoreUrl } from './config.ts';
import { type Faults, type Place, quoted } from './fault.ts';
import type { Tree } from './tree.ts';

/** How a value is written and read. `parse` gives undefined after it has added a fault. */
export interface ValueType<T> {
  /** For the option table: `port`, `list of address:port`. */
  readonly label: string;
  /** The units in which it is written, for the option table. */
  readonly unit?: string;
  /** How a flag or variable holds it: `text`, or YAML for maps and lists of maps. */
  readonly form: 'text' | 'yaml';
  parse(tree: Tree, path: string, faults: Faults): T | undefined;
}

/** A parsed value with the place at which it was written, for faults found later. */
export interface Located<T> {
  readonly value: T;
  readonly at: Place;
}

/** `hide`: the text may hold a secret and is not repeated. */
type TextResult<T> = { readonly value: T } | { readonly fault: string; readonly hide?: boolean };

/** A type that is one scalar. `read` gives the value or what is wrong, as the end of a sentence that begins with it. */
export function textType<T>(label: string, read: (text: string) => TextResult<T>, unit?: string): ValueType<T> {
  return {
    label,
    form: 'text',
    ...(unit === undefined ? {} : { unit }),
    parse(tree, path, faults) {
      if (tree.kind !== 'scalar') {
        faults.add(tree.at, path, `${kindText(tree)} is not ${article(label)}`);
        return undefined;
      }
      const result = read(tree.text);
      if ('value' in result) return result.value;
      faults.add(
        tree.at,
        path,
        `${result.hide === true ? 'what is written there' : quoted(tree.text)} ${result.fault}`,
      );
      return undefined;
    },
  };
}

export function kindText(tree: Tree): string {
  if (tree.kind === 'list') return 'a list';
  if (tree.kind === 'map') return 'a map';
  return tree.kind === 'null' ? 'an empty value' : quoted(tree.text);
}

function article(label: string): string {
  return /^[aeiou]/.test(label) ? `an ${label}` : `a ${label}`;
}

export const nameType: ValueType<string> = textType('name', (text) => {
  const fault = nameFault(text);
  if (fault === undefined) return { value: text };
  const better = normaliseName(text);
  return { fault: `${fault}${better === undefined || better === text ? '' : `; \`${better}\` would do`}` };
});

/** A name, or nothing. */
export const optionalNameType: ValueType<string> = textType('name', (text) => {
  const fault = text === '' ? undefined : nameFault(text);
  return fault === undefined ? { value: text } : { fault };
});

/** Text of at most 512 characters without control characters. */
export const textOption: ValueType<string> = textType('text', (text) => {
  if (text.length > 512) return { fault: 'is longer than 512 characters' };
  return printable(text) === text ? { value: text } : { fault: 'has control characters' };
});

/** A file system path; relative ones are below the working directory. Empty stays empty where that is allowed. */
export function pathType(emptyAllowed: boolean): ValueType<string> {
  return textType('path', (text) => {
    if (text === '') return emptyAllowed ? { value: '' } : { fault: 'is not a path' };
    if (printable(text) !== text || text.length > 4000) return { fault: 'is not a usable path' };
    return { value: resolve(text.replace(/^unix:(\/\/)?/, '')) };
  });
}

export function durationType(minimumMs: number, maximumMs: number): ValueType<number> {
  const range = `${formatDuration(minimumMs)} to ${formatDuration(maximumMs)}`;
  return textType(
    'duration',
    (text) => {
      const durationMs = parseDuration(text);
      if (durationMs === undefined) return { fault: 'is not a duration (such as 250ms, 5s, 2m, 24h)' };
      return durationMs >= minimumMs && durationMs <= maximumMs
        ? { value: durationMs }
        : { fault: `is out of range (${range})` };
    },
    'ms, s, m, h, d',
  );
}

const maxWorkers = 16;

/** `values`: what it may be, for people, where that is more than a range. */
export function integerType(
  label: string,
  minimum: number,
  maximum: number,
  values = `${minimum} to ${maximum}`,
): ValueType<number> {
  return textType(label, (text) => {
    const number = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
    if (number >= minimum && number <= maximum) return { value: number };
    return { fault: `is not ${article(label)} (${values})` };
  });
}

/** How many processes; `auto` is one for each core of this machine, at most 16. */
export const workersType: ValueType<number> = textType('auto or number', (text) => {
  if (text === 'auto') return { value: Math.min(availableParallelism(), maxWorkers) };
  const number = /^\d{1,3}$/.test(text) ? Number(text) : Number.NaN;
  return number <= maxWorkers ? { value: number } : { fault: `is neither auto nor 0 to ${maxWorkers}` };
});

export const portType = integerType('port', 1, 65535);

/** One of `words`; those that are not in `supported` exist, but not in this version. */
export function choiceType<const T extends string>(words: readonly T[]): ValueType<T> {
  return textType(words.join(', '), (text) => {
    const word = words.find((candidate) => candidate === text);
    if (word !== undefined) return { value: word };
    const near = nearest(text.toLowerCase(), words);
    const hint = near === undefined ? '' : `; did you mean \`${near}\`?`;
    return { fault: `is not one of ${words.join(', ')}${hint}` };
  });
}

export const booleanType: ValueType<boolean> = textType('true or false', (text) => {
  if (/^(true|yes|on|1)$/i.test(text)) return { value: true };
  return /^(false|no|off|0)$/i.test(text) ? { value: false } : { fault: 'is not true or false' };
});

export interface EndpointRules {
  /** Whether port 0, any free one, is allowed: for listeners. */
  readonly zero: boolean;
  readonly defaultPort?: number;
  /** Why 0.0.0.0 and :: are refused, and what to write instead; without it they are allowed. */
  readonly noWildcard?: string;
}

/** `address:port`. */
export function endpointType(options: EndpointRules): ValueType<Endpoint> {
  const form = options.defaultPort === undefined ? 'address:port' : 'address[:port]';
  return textType(form, (text) => {
    const plain = options.defaultPort !== undefined && isIP(text) !== 0;
    const endpoint = plain ? { address: text, port: options.defaultPort ?? 0 } : parseEndpoint(text);
    if (endpoint !== undefined && (options.zero || endpoint.port > 0)) {
      const refused = options.noWildcard !== undefined && isWildcard(endpoint.address);
      return refused ? { fault: `is a wildcard address: ${options.noWildcard}` } : { value: endpoint };
    }
    const port = /^(?:\[[^\]]*\]|[^:]*):(.*)$/.exec(text)?.[1];
    const badPort = port !== undefined && !(/^\d{1,5}$/.test(port) && Number(port) <= 65535 && Number(port) > 0);
    if (badPort) return { fault: `is not ${article(form)}: ${quoted(port)} is not a port (1 to 65535)` };
    return { fault: `is not ${article(form)} (such as 127.0.0.1:7753 or [::1]:7753; an address, not a name)` };
  });
}

/** `address:port`, or nothing. */
export const optionalEndpointType: ValueType<Endpoint | ''> = {
  label: 'address:port',
  form: 'text',
  parse(tree, path, faults) {
    if (tree.kind === 'scalar' && tree.text === '') return '';
    return endpointType({ zero: true }).parse(tree, path, faults);
  },
};

/** `http://host:port` or `https://host:port`, without anything behind. */
export const storeUrlType: ValueType<StoreUrl> = textType('http(s)://host:port', (text) => {
  const [, scheme = '', bracketed, plain = '', digits = ''] =
    /^(https?):\/\/(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]{1,253})):(\d{1,5})\/?$/.exec(text) ?? [];
  const port = Number(digits);
  const known = bracketed === undefined ? plain !== '' : isIP(bracketed) === 6;
  if (!known || port < 1 || port > 65535) {
    const secret = /^[a-z]*:?\/?\/?[^/]*@/.test(text);
    const more = secret ? ': user and password belong into store.credentials_file' : '';
    return { fault: `is not of the form http://host:port or https://host:port${more}`, hide: secret };
  }
  return { value: { secure: scheme === 'https', host: bracketed ?? plain, port, text: text.replace(/\/$/, '') } };
});

/** The beginning of keys: `/legate`, `infra/legate`. */
export const keyPrefixType: ValueType<string> = textType('prefix of keys', (text) => {
  if (/^\/?[A-Za-z0-9._-]+(\/[A-Za-z0-9._-]+)*$/.test(text) && text.length <= 128) return { value: text };
  return { fault: 'is not a prefix of keys (letters, digits, . _ - in parts between slashes, no slash at the end)' };
});

/** Whether it stands for all addresses of the host. */
function isWildcard(address: string): boolean {
  return address === '0.0.0.0' || /^(?:[0:]+|[0:]*:0\.0\.0\.0)$/.test(address);
}

/** An address that can be dialled: not 0.0.0.0, ::, broadcast or multicast. */
export const addressType: ValueType<string> = textType('IP address', (text) => {
  if (isIP(text) === 0 || text.includes('%')) return { fault: 'is not an IP address' };
  if (/^0\.|^(22[4-9]|23\d)\.|^255\.255\.255\.255$|^ff|^[0:]+$/i.test(text)) {
    return { fault: 'is not an address that can be dialled' };
  }
  return { value: text };
});

export const rangeType: ValueType<Ipv4Range> = textType('IPv4 range', (text) => {
  const range = parseIpv4Range(text);
  if (range === undefined) return { fault: 'is not an IPv4 range (such as 240.77.0.0/16, its host bits zero)' };
  // The name server answers at .0.53 of the range, and below /8 other people's addresses begin.
  if (range.prefixLength < 8 || range.prefixLength > 24) return { fault: 'is not a range of /8 to /24' };
  return { value: range };
});

/** A DNS zone (RFC 1035 section 2.3.1): lower-cased, without the final dot. */
export const domainType: ValueType<string> = textType('domain', (text) => {
  const domain = text.toLowerCase().replace(/\.$/, '');
  const labels = domain.split('.');
  const good = domain.length <= 120 && labels.every((label) => /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/.test(label));
  return good ? { value: domain } : { fault: 'is not a domain (such as mesh.internal)' };
});

/** A list; one that is written as text has commas between its items. */
export function listType<T>(item: ValueType<T>, maximum = 256): ValueType<readonly Located<T>[]> {
  return {
    label: `list of ${item.label}`,
    form: 'text',
    parse(tree, path, faults) {
      const items = listItems(tree);
      if (items === undefined) {
        faults.add(tree.at, path, `${kindText(tree)} is not a list`);
        return undefined;
      }
      if (items.length > maximum) {
        faults.add(tree.at, path, `${items.length} items are more than the ${maximum} allowed`);
        return undefined;
      }
      const before = faults.count;
      const values: Located<T>[] = [];
      for (const [index, part] of items.entries()) {
        // One that is written as plain text, without commas, does not look like a list.
        const alone = tree.kind === 'scalar' && items.length === 1;
        const value = item.parse(part, alone ? path : `${path}[${index}]`, faults);
        if (value !== undefined) values.push({ value, at: part.at });
      }
      return faults.count === before ? values : undefined;
    },
  };
}

function listItems(tree: Tree): readonly Tree[] | undefined {
  if (tree.kind === 'list') return tree.items;
  if (tree.kind !== 'scalar') return undefined;
  if (tree.text.trim() === '') return [];
  return tree.text.split(',').map((text) => ({ kind: 'scalar', text: text.trim(), at: tree.at }));
}

/** One of `words`, else a list. */
export function wordOrListType<const W extends string, T>(
  words: readonly W[],
  list: ValueType<readonly Located<T>[]>,
): ValueType<W | readonly Located<T>[]> {
  return {
    label: `${words.join(', ')} or ${list.label}`,
    form: 'text',
    parse(tree, path, faults) {
      const word = tree.kind === 'scalar' ? words.find((candidate) => candidate === tree.text) : undefined;
      return word ?? list.parse(tree, path, faults);
    },
  };
}
