import { printable } from '../src/base/text.ts';
import type { Host } from '../src/model/host.ts';
import type { Instance } from '../src/model/instance.ts';
import { cutUtf8 } from './template.ts';

/** Octets that a string of a TXT record can have (RFC 1035 section 3.3). */
const maxString = 255;
const maxStrings = 24;

/** What a TXT answer says of an instance: `id=…`, `tags=…`, then its metadata, each as `key=value` (RFC 1464). */
export function instanceTexts(instance: Instance): Buffer[] {
  const texts = [`id=${instance.id}`];
  if (instance.tags.length > 0) texts.push(`tags=${instance.tags.join(',')}`);
  for (const [key, value] of Object.entries(instance.meta)) texts.push(`${key}=${value}`);
  return texts.slice(0, maxStrings).map(encode);
}

export function hostTexts(host: Host): Buffer[] {
  return [`id=${host.id}`, `address=${host.address}`, `version=${host.version}`, `alive=${host.alive}`].map(encode);
}

function encode(text: string): Buffer {
  return cutUtf8(printable(text), maxString);
}
