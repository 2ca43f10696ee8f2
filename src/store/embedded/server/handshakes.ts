import { constants } from 'node:crypto';
import type { Socket } from 'node:net';
import { createServer, type Server, type TLSSocket, type TlsOptions } from 'node:tls';
import { systemCode } from '../../../base/errors.ts';
import { printable, truncate } from '../../../base/text.ts';
import type { Credentials } from '../../../model/credentials.ts';
import { isRevoked, type Policy } from '../../../model/policy.ts';
import { hostIdOfNames } from '../../../model/spiffe.ts';
import { limits, times } from './limits.ts';

/** A host whose certificate was checked. */
export interface Authenticated {
  readonly hostId: string;
  /** Wall clock: from then on its certificate counts no more. */
  readonly notAfterMs: number;
}

/** Why somebody is not let in: a word for the metric, and the end of a sentence for people. */
export interface Rejection {
  readonly reason: string;
  readonly why: string;
  /** The host that it is and that was revoked. */
  readonly revoked?: { readonly hostId: string; readonly name: string };
}

export interface HandshakesOptions {
  readonly policy: () => Policy | undefined;
  /** `peer`: `address:port`, as it was given to `take`. */
  readonly onHost: (socket: TLSSocket, peer: string, host: Authenticated) => void;
  readonly onRejected: (socket: Socket, peer: string, rejection: Rejection) => void;
}

/**
 * Mutual TLS in front of the server: takes connections, and hands on those whose client is a host of the mesh that is not
 * revoked. There is no resumption: every connection proves anew who it is. New credentials are for connections from then
 * on; those that there are stay.
 */
export class Handshakes {
  readonly #options: HandshakesOptions;
  readonly #pending = new Set<string>();
  readonly #perAddress = new Map<string, number>();
  #server: Server | undefined;
  #credentials: Credentials | undefined;

  constructor(options: HandshakesOptions) {
    this.#options = options;
  }

  get pending(): number {
    return this.#pending.size;
  }

  /** Whether there have been credentials: from then on nobody is served in the clear. */
  get ready(): boolean {
    return this.#server !== undefined;
  }

  /** Throws what OpenSSL says when they cannot be used; those of before then stay. */
  use(credentials: Credentials): void {
    const options = tlsOptions(credentials);
    if (this.#server !== undefined) this.#server.setSecureContext(options);
    else {
      const server = createServer({
        ...options,
        requestCert: true,
        // Who is refused is told apart below.
        rejectUnauthorized: false,
        ALPNProtocols: ['h2'],
        handshakeTimeout: times.handshakeMs,
      });
      server.on('secureConnection', (socket) => this.#onSecure(socket));
      server.on('tlsClientError', (error, socket) => this.#onError(error, socket));
      this.#server = server;
    }
    this.#credentials = credentials;
  }

  take(socket: Socket, peer: string): void {
    const address = socket.remoteAddress ?? '';
    const mine = this.#perAddress.get(address) ?? 0;
    if (this.#pending.size >= limits.handshakes || mine >= limits.handshakesPerAddress) {
      this.#options.onRejected(socket, peer, {
        reason: 'too_many_handshakes',
        why: 'too many handshakes are under way',
      });
      return;
    }
    this.#pending.add(peer);
    this.#perAddress.set(address, mine + 1);
    socket.once('close', () => this.#over(peer, address));
    this.#server?.emit('connection', socket);
  }

  #over(peer: string, address: string): void {
    if (!this.#pending.delete(peer)) return;
    const left = (this.#perAddress.get(address) ?? 1) - 1;
    if (left === 0) this.#perAddress.delete(address);
    else this.#perAddress.set(address, left);
  }

  #onSecure(socket: TLSSocket): void {
    socket.on('error', () => undefined);
    const { remoteAddress = '' } = socket;
    const peer = peerOf(socket);
    this.#over(peer, remoteAddress);
    const found = this.#judge(socket);
    if ('reason' in found) this.#options.onRejected(socket, peer, found);
    else this.#options.onHost(socket, peer, found);
  }

  #onError(error: Error, socket: TLSSocket): void {
    this.#options.onRejected(socket, peerOf(socket), failedHandshake(error));
  }

  #judge(socket: TLSSocket): Authenticated | Rejection {
    const certificate = socket.getPeerCertificate(true);
    // Node has an empty object where there is none.
    if (certificate?.raw === undefined) return { reason: 'no_certificate', why: 'it shows no certificate' };
    const { mesh = '' } = this.#credentials ?? {};
    const named = hostIdOfNames(certificate.subjectaltname, mesh);
    if (!socket.authorized) {
      // What the certificate says of its owner is not to be believed here.
      const code = printable(String(socket.authorizationError)).slice(0, 60);
      const why =
        code === 'CERT_HAS_EXPIRED' ? 'its certificate has expired' : `its certificate is not of this mesh (${code})`;
      return { reason: 'certificate', why };
    }
    if (typeof named === 'string') return { reason: 'certificate', why: named };
    const { hostId } = named;
    const policy = this.#options.policy();
    if (isRevoked(policy, hostId)) {
      const name = policy?.revoked.find((each) => each.hostId === hostId)?.name ?? hostId;
      return { reason: 'revoked', why: `host ${hostId} is revoked`, revoked: { hostId, name } };
    }
    if (socket.alpnProtocol !== 'h2') return { reason: 'not_http2', why: 'it does not speak HTTP/2' };
    return { hostId, notAfterMs: Date.parse(certificate.valid_to) };
  }
}

function failedHandshake(error: Error): Rejection {
  const code = systemCode(error) ?? '';
  switch (code) {
    // One that went away by itself is nobody's fault.
    case 'ECONNRESET':
      return { reason: 'handshake_ended', why: 'it went away' };
    case 'ERR_TLS_HANDSHAKE_TIMEOUT':
      return { reason: 'handshake', why: 'it did not finish its handshake in time' };
    case 'ERR_SSL_WRONG_VERSION_NUMBER':
      return { reason: 'clear_text', why: 'it speaks without TLS; its store.endpoints are to begin with https' };
    default: {
      const text = truncate(printable(code.replace(/^ERR_SSL_/, '') || error.message), 80);
      return { reason: 'handshake', why: `its handshake failed (${text})` };
    }
  }
}

export function peerOf({ remoteAddress, remotePort }: Socket): string {
  return `${remoteAddress}:${remotePort}`;
}

function tlsOptions({ chain, key, roots }: Credentials): TlsOptions {
  return {
    minVersion: 'TLSv1.3',
    secureOptions: constants.SSL_OP_NO_TICKET,
    cert: chain,
    key,
    ca: [...roots],
  };
}
