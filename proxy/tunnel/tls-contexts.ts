import { constants } from 'node:crypto';
import { createSecureContext, type SecureContext, type SecureContextOptions } from 'node:tls';
import type { Credentials } from '../../src/model/credentials.ts';

/** What both ends of a tunnel use of TLS. */
export function tlsOptionsOf({ chain, key, roots }: Credentials): SecureContextOptions {
  return {
    cert: chain,
    key,
    ca: [...roots],
    minVersion: 'TLSv1.3',
    maxVersion: 'TLSv1.3',
    // Every connection is a full handshake: who resumed one would not be checked again.
    secureOptions: constants.SSL_OP_NO_TICKET,
  };
}

/** The TLS context of the present credentials, made once for each. */
export class TlsContexts {
  #of: Credentials | undefined;
  #context: SecureContext | undefined;

  /** Throws what OpenSSL says when key and certificate do not belong together. */
  for(credentials: Credentials): SecureContext {
    if (this.#context === undefined || this.#of !== credentials) {
      this.#context = createSecureContext(tlsOptionsOf(credentials));
      this.#of = credentials;
    }
    return this.#context;
  }
}
