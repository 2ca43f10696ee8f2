import { createPublicKey, generateKeyPairSync, type KeyObject, sign, verify } from 'node:crypto';
import { LegateError } from '../base/errors.ts';
import type { Policy } from '../model/policy.ts';
import { formatPolicy, parsePolicy, policyLimits } from '../model/policy-document.ts';

/** What a sealed policy may have: its text in base64, a signature, and what is around them. */
export const maxSealedBytes = Math.ceil(policyLimits.bytes / 3) * 4 + 512;

/** Why a sealed policy is not taken. */
export type PolicyFault = 'unreadable' | 'unsigned' | 'forged' | 'foreign' | 'older';

/** A policy that is refused; what is known stays. */
export class PolicyRefusal extends LegateError {
  readonly fault: PolicyFault;

  constructor(fault: PolicyFault, message: string, hint: string) {
    super(codes[fault], message, { hint });
    this.fault = fault;
  }
}

const codes = {
  unreadable: 'E_INVALID',
  unsigned: 'E_UNAUTHORIZED',
  forged: 'E_UNAUTHORIZED',
  foreign: 'E_STORE_FOREIGN',
  older: 'E_CONFLICT',
} as const;

const rewrite = "the authority's host writes the right one again while its sidecar runs; find out who wrote this one";

/** A new policy key in PEM: PKCS#8, and SPKI for those who check. The first is the root of what the mesh allows. */
export function newPolicyKeys(): { readonly privateKey: string; readonly publicKey: string } {
  return generateKeyPairSync('ec', {
    namedCurve: 'P-256',
    publicKeyEncoding: { type: 'spki', format: 'pem' },
    privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
  });
}

/**
 * The policy and its signature, as they are stored: JSON with the signed bytes and an ECDSA signature over their SHA-256
 * (DER, as `openssl dgst -sha256 -verify` takes it), both in base64. E_TOO_LARGE and E_INVALID as `formatPolicy`.
 */
export function sealPolicy(policy: Policy, privateKeyPem: string): Uint8Array {
  const payload = formatPolicy(policy);
  const signature = sign('sha256', payload, privateKeyPem);
  const envelope = { v: 1, payload: Buffer.from(payload).toString('base64'), signature: signature.toString('base64') };
  return Buffer.from(`${JSON.stringify(envelope)}\n`);
}

/** What a policy has to be besides signed. */
export interface PolicyExpectation {
  readonly mesh: string;
  readonly meshId?: string | undefined;
  /** An older one is refused. */
  readonly knownVersion?: number | undefined;
}

/** The policy in an envelope. PolicyRefusal when there is none in it that this mesh's policy key signed, or an older one. */
export function openSealedPolicy(
  bytes: Uint8Array,
  publicKeyPem: string,
  { mesh, meshId, knownVersion = 0 }: PolicyExpectation,
): Policy {
  const { payload, signature } = readEnvelope(bytes);
  if (signature === undefined) throw new PolicyRefusal('unsigned', 'the policy is not signed', rewrite);
  if (!isSignedBy(publicKeyPem, payload, signature)) {
    throw new PolicyRefusal('forged', "the policy's signature is not that of this mesh's policy key", rewrite);
  }
  const read = parsePolicy(payload);
  if ('fault' in read) {
    const hint = 'install the same version of Legate on all hosts';
    throw new PolicyRefusal('unreadable', `the policy cannot be read: ${read.fault}`, hint);
  }
  const { policy } = read;
  if (policy.mesh !== mesh || (meshId !== undefined && policy.meshId !== meshId)) {
    const whose = policy.mesh === mesh ? `another mesh called ${mesh}` : `mesh ${policy.mesh}, not of ${mesh}`;
    throw new PolicyRefusal('foreign', `the policy is of ${whose}`, rewrite);
  }
  if (policy.version < knownVersion) {
    const ages = `${timeOf(policy.version)}, the known one is of ${timeOf(knownVersion)}`;
    throw new PolicyRefusal('older', `the policy is older than the known one: it is of ${ages}`, rewrite);
  }
  return policy;
}

/** A version, which is a time unless two changes met in one millisecond, for people. */
function timeOf(version: number): string {
  return version > 8.64e15 ? `version ${version}` : new Date(version).toISOString();
}

interface Envelope {
  readonly payload: Uint8Array;
  readonly signature: Uint8Array | undefined;
}

function readEnvelope(bytes: Uint8Array): Envelope {
  const unreadable = (what: string): PolicyRefusal =>
    new PolicyRefusal('unreadable', `the policy cannot be read: ${what}`, rewrite);
  if (bytes.byteLength > maxSealedBytes) throw unreadable(`it has ${bytes.byteLength} bytes`);
  let envelope: unknown;
  try {
    envelope = JSON.parse(Buffer.from(bytes).toString('utf8'));
  } catch {
    throw unreadable('it is not JSON');
  }
  if (typeof envelope !== 'object' || envelope === null || !('v' in envelope) || envelope.v !== 1) {
    throw unreadable('it is no policy of this version of Legate');
  }
  const payload = 'payload' in envelope ? fromBase64(envelope.payload) : undefined;
  if (payload === undefined) throw unreadable('it holds none');
  return { payload, signature: 'signature' in envelope ? fromBase64(envelope.signature) : undefined };
}

function fromBase64(value: unknown): Uint8Array | undefined {
  if (typeof value !== 'string' || value === '' || !/^[A-Za-z0-9+/]+={0,2}$/.test(value)) return undefined;
  return Buffer.from(value, 'base64');
}

function isSignedBy(publicKeyPem: string, payload: Uint8Array, signature: Uint8Array): boolean {
  const key = publicKeyOf(publicKeyPem);
  // Whatever else is in the file, a policy key is of this kind.
  if (key.asymmetricKeyType !== 'ec' || key.asymmetricKeyDetails?.namedCurve !== 'prime256v1') return false;
  return verify('sha256', payload, key, signature);
}

function publicKeyOf(pem: string): KeyObject {
  try {
    return createPublicKey(pem);
  } catch {
    const hint = 'restore policy.pub from a backup, or join again';
    throw new PolicyRefusal('unreadable', 'the key that policies are checked with is not a public key in PEM', hint);
  }
}
