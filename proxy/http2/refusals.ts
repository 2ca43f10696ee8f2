import type { HttpFault, HttpFaultKind } from '../http/fault.ts';
import { noUpgrades, tooLarge } from '../http/refusals.ts';
import type { HttpSettings } from '../http/settings.ts';
import type { Failure } from './failures.ts';
import type { RequestHead } from './heads.ts';

/** A request that is not passed on at all. */
export interface Refusal {
  readonly kind: HttpFaultKind;
  readonly failure: Failure;
}

const notPassedOn: Refusal = { kind: 'method', failure: { kind: 'method', reason: 'this method is not passed on' } };
const notUpgraded: Refusal = { kind: 'upgrade', failure: { kind: 'denied', reason: noUpgrades } };

/** The answer to a head that is not passed on. */
export function failureOf({ kind: fault, status, message }: HttpFault): Failure {
  const size = status === 414 ? 'long target' : status === 431 ? 'large head' : 'malformed';
  return { kind: fault === 'loop' ? 'loop' : size, reason: message };
}

/** Why a request goes nowhere, as far as its head tells; undefined: it is passed on. */
export function refusalOf(request: RequestHead, settings: HttpSettings): Refusal | undefined {
  const { method, protocol, declaredBytes } = request;
  if (method === 'TRACE') return notPassedOn;
  if (method === 'CONNECT') {
    // With a protocol it is what an upgrade is in HTTP/1.1 (RFC 8441 section 5).
    if (protocol !== undefined) return settings.upgrade ? undefined : notUpgraded;
    return settings.connect ? undefined : notPassedOn;
  }
  const { maxBodyBytes } = settings;
  if (maxBodyBytes === 0 || declaredBytes === undefined || declaredBytes <= maxBodyBytes) return undefined;
  return bodyTooLarge(maxBodyBytes);
}

export function bodyTooLarge(maxBodyBytes: number): Refusal {
  return { kind: 'body-too-large', failure: { kind: 'too large', reason: tooLarge(maxBodyBytes) } };
}
