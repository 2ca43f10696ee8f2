import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
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

/** The files of a host that has joined: `policy.pub` and `policy.json` in `pki` of its data directory. */
export function writePolicyFiles(dataDir: string, publicKey: string, sealed: Uint8Array | undefined): string {
  const folder = join(dataDir, 'pki');
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  writeFileSync(join(folder, 'policy.pub'), publicKey);
  if (sealed !== undefined) writeFileSync(join(folder, 'policy.json'), sealed, { mode: 0o600 });
  return folder;
}
