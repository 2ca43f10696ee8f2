/** Names of services, hosts, aliases, tags in DNS: one label of the grammar below, not a reserved word. */
const namePattern = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;

export const reservedNames: ReadonlySet<string> = new Set([
  'service',
  'host',
  'node',
  'addr',
  'ns',
  'anonymous',
  'localhost',
  'tcp',
  'udp',
]);

/** What is wrong with `name` as the name of a service, host or alias, or undefined when nothing is. */
export function nameFault(name: string): string | undefined {
  if (name === '') return 'is empty';
  if (name.length > 63) return 'is longer than 63 characters';
  if (!namePattern.test(name)) return 'has characters other than a-z, 0-9 and inner hyphens';
  if (reservedNames.has(name)) return 'is a reserved word';
  return undefined;
}

/**
 * Makes a name of foreign text (registrator's metadata, image names): lower case, other characters become `-`, no
 * hyphen at either end, at most 63 characters. Undefined when nothing is left or the result is reserved.
 */
export function normaliseName(text: string): string | undefined {
  const name = text
    .toLowerCase()
    .replace(/[^a-z0-9-]/g, '-')
    .slice(0, 63)
    .replace(/^-+|-+$/g, '');
  return nameFault(name) === undefined ? name : undefined;
}

/** The host's name of a machine's hostname: cut at the first dot, then normalised. */
export function hostNameOf(hostname: string): string | undefined {
  return normaliseName(hostname.split('.', 1)[0] ?? '');
}

/** Names of instances (`<service>-<port>[-udp]`, `<container id, 12>-<port>[-udp]`, or chosen): one path segment. */
const instanceNamePattern = /^[a-zA-Z0-9][a-zA-Z0-9._:-]{0,127}$/;

export function instanceNameFault(name: string): string | undefined {
  if (instanceNamePattern.test(name)) return undefined;
  return 'is not 1 to 128 letters, digits, dots, colons, underscores and hyphens, beginning with a letter or digit';
}
