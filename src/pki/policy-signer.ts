import type { Policy } from '../model/policy.ts';
import { keyOfPem, keyToPem, readPassphrase, readSecretFile } from './key-files.ts';
import { sealPolicy } from './policy-seal.ts';

/** What seals policies with the policy key. */
export interface PolicySigner {
  /** Errors: E_NOT_FOUND, E_PERMISSION and E_INVALID where the key cannot be read; as `sealPolicy`. */
  seal(policy: Policy): Promise<Uint8Array>;
}

/** Seals with the policy key in a file, which is read anew each time and is not kept in memory. */
export function policySigner(path: string, passphraseFile: string | undefined): PolicySigner {
  return {
    async seal(policy: Policy) {
      const passphrase = passphraseFile === undefined ? undefined : readPassphrase(passphraseFile);
      return sealPolicy(policy, keyToPem(keyOfPem(readSecretFile(path), path, passphrase)));
    },
  };
}
