import { Latest } from '../../src/base/feed.ts';
import type { Credentials } from '../../src/model/credentials.ts';
import type { Policy } from '../../src/model/policy.ts';
import type { StoreTrust } from '../../src/store/trust.ts';
import { policyOf } from './policies.ts';

/** What a host shows and believes, which a test changes at will. */
export interface TestTrust extends StoreTrust {
  readonly credentials: Latest<Credentials | undefined>;
  readonly policy: Latest<Policy | undefined>;
}

export function testTrust(
  credentials: Credentials | undefined,
  policy: Latest<Policy | undefined> = new Latest<Policy | undefined>(undefined),
  names: Readonly<Record<string, string>> = {},
): TestTrust {
  return {
    credentials: new Latest(credentials),
    policy,
    versionOf: () => undefined,
    livingHost: () => undefined,
    clearUnderlay: false,
    nameOf: (id) => names[id],
  };
}

/** A policy that allows everything; what is given replaces that. */
export function testPolicy(authority: string, changes: Partial<Policy> = {}): Policy {
  return policyOf({ mesh: 'legate', version: 1, authority, ...changes });
}
