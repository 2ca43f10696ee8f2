/** What of a request decides where it goes, for the balance `hash`: the client's address, or what it says in a header or a cookie. */
export type HashOn =
  | { readonly kind: 'source' }
  | { readonly kind: 'header'; readonly name: string }
  | { readonly kind: 'cookie'; readonly name: string };

/** What is hashed where nobody chose. */
export const defaultHashOn: HashOn = { kind: 'source' };

/** In characters; longer names are a mistake, and are compared for every request. */
const maxNameLength = 64;

/** RFC 9110 section 5.6.2, for the names of headers, and RFC 6265 section 4.1.1, for those of cookies. */
const token = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;

/** Undefined for a text that means nothing; `hashOnFault` says why. Names of headers are small, as on the wire of HTTP/2. */
export function parseHashOn(text: string): HashOn | undefined {
  if (hashOnFault(text) !== undefined) return undefined;
  if (text === 'source') return defaultHashOn;
  const colon = text.indexOf(':');
  const name = text.slice(colon + 1);
  return text.startsWith('header:') ? { kind: 'header', name: name.toLowerCase() } : { kind: 'cookie', name };
}

/** What is wrong with it, as the end of a sentence; undefined when nothing is. */
export function hashOnFault(text: string): string | undefined {
  if (text === 'source') return undefined;
  const [, kind, name] = /^(header|cookie):(.*)$/s.exec(text) ?? [];
  if (kind === undefined || name === undefined) return 'must be "source", "header:NAME" or "cookie:NAME"';
  if (name === '') return `must name a ${kind}, as in "${kind}:${kind === 'header' ? 'x-user-id' : 'session'}"`;
  if (name.length > maxNameLength) return `must name a ${kind} of at most ${maxNameLength} characters`;
  if (!token.test(name)) return `must name a ${kind} with letters, digits and !#$%&'*+-.^_\`|~ only`;
  return undefined;
}
