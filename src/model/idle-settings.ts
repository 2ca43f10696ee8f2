import { printable } from '../base/text.ts';
import type { Protocol } from './instance.ts';
import { furtherFields, furtherKinds } from './service-settings.ts';

/** The words of settings that only requests have: what they do is done for each of them. */
const requestWords: ReadonlySet<string> = new Set(
  furtherFields
    .filter((field) => !['prefer', 'parkMs', 'proxyProtocol', 'hashOn'].includes(field))
    .map((field) => furtherKinds[field].word),
);

export function isHttp(protocol: Protocol): boolean {
  return protocol === 'http' || protocol === 'http2' || protocol === 'grpc';
}

/** Says which of the settings just given have no effect, since the service is not one of HTTP; undefined: all have one. */
export function idleSettings(name: string, protocol: Protocol, words: readonly string[]): string | undefined {
  const idle = isHttp(protocol) ? [] : words.filter((word) => requestWords.has(word));
  if (idle.length === 0) return undefined;
  const concern = idle.length === 1 ? 'concerns' : 'concern';
  return `${printable(name)} is of protocol ${protocol}: ${idle.join(', ')} only ${concern} HTTP services`;
}
