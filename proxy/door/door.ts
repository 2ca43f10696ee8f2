import type { Socket } from 'node:net';
import { createServer, type Server, type TLSSocket } from 'node:tls';
import type { Clock } from '../../src/base/clock.ts';
import type { Conditions } from '../../src/base/conditions.ts';
import { systemCode } from '../../src/base/errors.ts';
import type { CertificateFiles } from '../../src/model/link.ts';
import { writeHighWaterMark } from '../tcp/relay-bounds.ts';
import type { Certificate } from './certificate.ts';
import { Certificates } from './certificates.ts';
import { type HandshakeFailure, Handshakes } from './handshakes.ts';

/** What is spoken over TLS (RFC 7301). */
export type DoorProtocol = 'http/1.1' | 'h2';

/** How long somebody who speaks HTTP in the clear may take to read that this is wrong. */
const farewellMs = 1000;
const clearText = 'this port speaks HTTPS\n';
const toClearText = [
  'HTTP/1.1 400 Bad Request',
  'Content-Type: text/plain',
  `Content-Length: ${clearText.length}`,
  'Connection: close',
  '',
  clearText,
].join('\r\n');

export interface DoorOptions {
  readonly certificates: readonly CertificateFiles[];
  /** The beginning of the ids of its conditions, and how people know it: `web at 0.0.0.0:443`. */
  readonly condition: string;
  readonly what: string;
  /** What is spoken now; undefined: the service is not one of HTTP. */
  readonly protocol: () => DoorProtocol | undefined;
  /** The service's protocol; undefined while there is no such service. */
  readonly service: () => string | undefined;
  readonly clock: Clock;
  readonly conditions: Conditions;
  readonly handshakes: Handshakes;
}

/** Makes TLS of the connections that a link's listener accepts. */
export class Door {
  readonly #options: DoorOptions;
  readonly #server: Server;
  readonly #certificates: Certificates;
  #problem: string | undefined;

  constructor(options: DoorOptions) {
    this.#options = options;
    this.#server = this.#createServer();
    const { certificates: files, condition, what, clock, conditions } = options;
    this.#certificates = new Certificates({
      files,
      condition: `${condition}.certificate`,
      what,
      clock,
      conditions,
      firstChanged: (certificate: Certificate) => this.#server.setSecureContext(certificate.options),
    });
  }

  /** Why nobody gets in, for people. */
  get problem(): string | undefined {
    if (this.#problem !== undefined || this.#certificates.first !== undefined) return this.#problem;
    return 'no certificate can be used';
  }

  /** To be called when the service may have changed: it has to speak HTTP. */
  review(): void {
    const { condition, what, service, protocol, conditions } = this.#options;
    const spoken = service();
    const before = this.#problem;
    this.#problem =
      spoken === undefined || protocol() !== undefined
        ? undefined
        : `TLS leads to HTTP only, and the service is ${spoken}`;
    if (this.#problem === before) return;
    if (this.#problem === undefined) conditions.clear(`${condition}.protocol`);
    else {
      const hint = 'give the service protocol http, http2 or grpc, or take `tls` from the link';
      conditions.raise(`${condition}.protocol`, 'error', `nobody gets in to ${what}: ${this.#problem}`, hint);
    }
  }

  get document(): Certificates['document'] {
    return this.#certificates.document;
  }

  /** Takes over a paused socket; hands on a paused one, with `allowHalfOpen`, or says why not when it is closed. */
  take(raw: Socket, secured: (socket: TLSSocket) => void, failed: (why: HandshakeFailure) => void): void {
    const { handshakes, protocol } = this.#options;
    raw.on('error', () => undefined);
    if (this.#certificates.first === undefined || protocol() === undefined) {
      handshakes.refused(raw, 'unready', failed);
      return;
    }
    // A client that ends its side in the middle of the handshake is gone; else it would keep its place for all of the time.
    raw.allowHalfOpen = false;
    if (handshakes.begin(raw, { secured, failed })) this.#server.emit('connection', raw);
  }

  close(): void {
    this.#certificates.close();
    this.#options.conditions.clear(`${this.#options.condition}.protocol`);
  }

  /** A server that listens nowhere. */
  #createServer(): Server {
    const { protocol } = this.#options;
    const server = createServer({
      SNICallback: (servername, give) => give(null, this.#certificates.for(servername)?.context),
      ALPNCallback: ({ protocols }) => {
        const spoken = protocol();
        return spoken !== undefined && protocols.includes(spoken) ? spoken : undefined;
      },
      // Ours is the one that counts; this one only has to be later.
      handshakeTimeout: 2 * Handshakes.limitMs,
    });
    server.on('secureConnection', (socket) => this.#secured(socket));
    server.on('tlsClientError', (error, socket) => this.#failed(error, socket));
    return server;
  }

  #secured(socket: TLSSocket): void {
    const { handshakes, protocol } = this.#options;
    socket.on('error', () => undefined);
    // HTTP/2 is spoken only with those who asked for it (RFC 9113 section 3.2), HTTP/1.1 also with those who know no ALPN.
    const asked = socket.alpnProtocol || 'http/1.1';
    if (asked !== protocol()) {
      handshakes.failing(socket, 'protocol');
      socket.destroy();
      return;
    }
    socket.pause();
    socket.allowHalfOpen = true;
    // What carries requests relies on `drain` after each write that waits, and servers of TLS cannot be given that option.
    Reflect.set(Object(Reflect.get(socket, '_writableState')), 'highWaterMark', writeHighWaterMark);
    if (!handshakes.secured(socket)) socket.destroy();
  }

  #failed(error: Error, socket: TLSSocket): void {
    const why = failureOf(systemCode(error) ?? '');
    const raw = this.#options.handshakes.failing(socket, why);
    if (why !== 'clear' || raw === undefined) {
      socket.destroy();
      return;
    }
    raw.end(toClearText);
    const cancel = this.#options.clock.after(farewellMs, () => socket.destroy());
    raw.once('finish', () => socket.destroy());
    raw.once('close', cancel);
  }
}

/** By the names that OpenSSL has for what went wrong. */
function failureOf(code: string): HandshakeFailure {
  if (/^ERR_SSL_HTTPS?(?:_PROXY)?_REQUEST$/.test(code)) return 'clear';
  if (/UNSUPPORTED_PROTOCOL|VERSION_TOO_LOW|PROTOCOL_VERSION|NO_SHARED_CIPHER/.test(code)) return 'version';
  if (/NO_APPLICATION_PROTOCOL/.test(code)) return 'protocol';
  if (/ALERT/.test(code)) return 'refused';
  return code.startsWith('ERR_SSL') ? 'garbage' : 'gone';
}
