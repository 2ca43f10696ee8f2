import { formatSize } from '../../src/base/size.ts';
import type { OwnAnswer } from './answers.ts';
import { HttpFault, type HttpFaultKind } from './fault.ts';
import { fields } from './fields.ts';
import { type Head, methods } from './head.ts';
import type { HttpSettings } from './settings.ts';

/** A request that is not passed on at all. */
export interface Refusal {
  readonly kind: HttpFaultKind;
  readonly answer: OwnAnswer;
}

/** RFC 9110 section 7.6.3. Whom a request goes through may pass on what it came with; so often only circles do. */
export const maxTimesThrough = 16;
export const loops = `the request has come through a sidecar ${maxTimesThrough} times: its service leads back to itself`;
const notPassedOn: Refusal = {
  kind: 'method',
  answer: {
    status: 405,
    reason: 'this method is not passed on',
    allow: 'GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH',
  },
};
/** RFC 9110 section 9.3.6. */
const connectWithBody: Refusal = { kind: 'framing', answer: { status: 400, reason: 'a CONNECT with a body' } };
/** A server may ignore it, but who wants a WebSocket is better told than given a page. */
export const noUpgrades = 'connections to this service may not change to another protocol (upgrade: off)';
const notUpgraded: Refusal = { kind: 'upgrade', answer: { status: 403, reason: noUpgrades } };

/** Why a request goes nowhere, as far as its head tells; undefined: it is passed on. */
export function refusalOf(head: Head, settings: HttpSettings): Refusal | undefined {
  const { method } = head;
  if (head.viaCount >= maxTimesThrough) return { kind: 'loop', answer: { status: 508, reason: loops } };
  if (method === methods.trace || (method === methods.connect && !settings.connect)) return notPassedOn;
  if (method === methods.connect && (head.chunked || (head.contentLength ?? 0) > 0)) return connectWithBody;
  if (head.upgrades && !settings.upgrade && !asksForHttp2(head)) return notUpgraded;
  const { maxBodyBytes } = settings;
  if (maxBodyBytes === 0 || head.contentLength === undefined || head.contentLength <= maxBodyBytes) return undefined;
  return { kind: 'body-too-large', answer: { status: 413, reason: tooLarge(maxBodyBytes) } };
}

export function tooLarge(maxBodyBytes: number): string {
  return `the body of the request is larger than ${formatSize(maxBodyBytes)}`;
}

export function bodyTooLarge(maxBodyBytes: number): HttpFault {
  return new HttpFault('body-too-large', tooLarge(maxBodyBytes), 413);
}

/** Upgrades to HTTP/2 over clear text: nobody uses them, and what comes behind would not be looked at (RFC 9113 section 3.1). */
export function asksForHttp2(head: Head): boolean {
  for (let index = 0; index < head.count; index += 1) {
    if (head.known[index] === fields.upgrade && head.value(index).toLowerCase().includes('h2c')) return true;
  }
  return false;
}
