import type { Intent, Policy } from '../../src/model/policy.ts';

export const policyMeshId = '0123456789abcdef0123456789abcdef';

/** A policy that allows everything, but for `fields`. */
export function policyOf(fields: Partial<Policy> = {}): Policy {
  return {
    mesh: 'home',
    meshId: policyMeshId,
    version: 1_700_000_000_000,
    authority: '00112233445566ff',
    roots: [],
    default: 'allow',
    mode: 'enforce',
    fromLinks: true,
    intents: [],
    grants: [],
    external: [],
    revoked: [],
    ...fields,
  };
}

/** `allow web db`, `deny * db`. */
export function intents(...lines: readonly string[]): Intent[] {
  return lines.map((line, index) => {
    const [action = '', consumer = '', service = ''] = line.split(' ');
    return { consumer, service, action: action === 'allow' ? 'allow' : 'deny', setAtMs: 1_700_000_000_000 + index };
  });
}
