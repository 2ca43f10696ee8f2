import type { Socket } from 'node:net';
import { createServer, type Server, type TLSSocket } from 'node:tls';
import { describeError, LegateError, systemCode } from '../../src/base/errors.ts';
import { unmapped } from '../../src/model/address.ts';
import type { Credentials } from '../../src/model/credentials.ts';
import { comeBackHint, joinAgainHint } from '../../src/model/policy.ts';
import { applicationProtocols, type EnrolmentDesk } from '../../src/pki/desk.ts';
import { DeskDoor } from './desk-door.ts';
import { FrameWriter, type GatherBuffers } from './frame-writer.ts';
import { Strangers, type StrangersOptions } from './strangers.ts';
import { tlsOptionsOf } from './tls-contexts.ts';
import { claimOf, type PeerIdentity, peerOf, type TrustContext } from './trust.ts';
import type { TunnelMetrics } from './tunnel-metrics.ts';

/** Connections whose handshake is not done, in all and from one address, and how long one may take. */
export const maxHandshakes = 512;
export const maxHandshakesPerAddress = 64;
export const handshakeMs = 5000;
/** Between two lines in the log about callers that speak no protocol of ours. */
const logStrangersEveryMs = 60_000;
/** How long a refusal may take to be read. */
const farewellMs = 1000;

export interface DoorOptions extends StrangersOptions {
  readonly metrics: TunnelMetrics;
  readonly buffers: GatherBuffers;
  readonly trust: () => TrustContext | undefined;
  readonly desk: EnrolmentDesk | undefined;
  /** A tunnel of an accepted host; false when it is not taken. */
  readonly onTunnel: (socket: TLSSocket, peer: PeerIdentity) => boolean;
}

interface Handshake {
  readonly raw: Socket;
  readonly address: string;
  readonly cancelTimer: () => void;
}

/**
 * What becomes of a connection that somebody accepted: the handshake, bounded in number and time, then whom it is for by
 * its protocol. Who listens does not matter here.
 */
export class TunnelDoor {
  readonly #options: DoorOptions;
  readonly #desk: DeskDoor | undefined;
  readonly #strangers: Strangers;
  /** Those whose handshake is not done, by both ends of the connection. */
  readonly #pending = new Map<string, Handshake>();
  readonly #byAddress = new Map<string, number>();
  readonly #onSettled: (() => void)[] = [];
  #server: Server | undefined;
  #servedFor: Credentials | undefined;
  /** Monotonic, of the last line about one that speaks no protocol of ours. */
  #toldStrangerMs = Number.NEGATIVE_INFINITY;

  constructor(options: DoorOptions) {
    this.#options = options;
    const { desk, clock } = options;
    this.#strangers = new Strangers(options);
    if (desk !== undefined) this.#desk = new DeskDoor({ desk, clock });
  }

  /** Takes over a socket that nothing was read from yet. */
  take(raw: Socket): void {
    const { clock, metrics } = this.#options;
    raw.on('error', () => undefined);
    // Under TLS a connection ends as a whole. One that its client ends in the middle of the handshake would stay for the
    // whole time that a handshake may take, and hold its place among those of its address.
    raw.allowHalfOpen = false;
    const server = this.#serverNow();
    const address = unmapped(raw.remoteAddress ?? '');
    const here = this.#byAddress.get(address) ?? 0;
    const key = keyOf(raw);
    const isFull = this.#pending.size >= maxHandshakes || here >= maxHandshakesPerAddress;
    if (server === undefined || isFull || key === '') {
      metrics.turnedAway('limit');
      raw.destroy();
      if (server !== undefined && key !== '') this.#tellFlood(address, here);
      return;
    }
    this.#byAddress.set(address, here + 1);
    const cancelTimer = clock.after(handshakeMs, () => raw.destroy());
    this.#pending.set(key, { raw, address, cancelTimer });
    raw.once('close', () => {
      if (this.#settle(key)) metrics.turnedAway('handshake');
    });
    server.emit('connection', raw);
  }

  /** Resolves when no handshake is under way any more, or the time is over. */
  async settled(limitMs: number): Promise<void> {
    if (this.#pending.size === 0) return;
    await new Promise<void>((resolve) => {
      const cancel = this.#options.clock.after(limitMs, resolve);
      this.#onSettled.push(() => {
        cancel();
        resolve();
      });
    });
  }

  close(): void {
    for (const { raw } of this.#pending.values()) raw.destroy();
    this.#desk?.close();
    this.#strangers.close();
  }

  /** A server that listens nowhere: it makes TLS of connections with the present certificate. */
  #serverNow(): Server | undefined {
    const credentials = this.#options.trust()?.credentials;
    if (credentials === undefined) return undefined;
    if (credentials === this.#servedFor) return this.#server;
    try {
      if (this.#server === undefined) this.#server = this.#createServer(credentials);
      else this.#server.setSecureContext(tlsOptionsOf(credentials));
      this.#servedFor = credentials;
    } catch (error) {
      this.#options.log.error('the certificate cannot be shown', { error: describeError(error) });
      return undefined;
    }
    return this.#server;
  }

  #createServer(credentials: Credentials): Server {
    const server = createServer({
      ...tlsOptionsOf(credentials),
      requestCert: true,
      // Checked when it is known what is wanted: a new host has none.
      rejectUnauthorized: false,
      ALPNProtocols: Object.values(applicationProtocols),
      handshakeTimeout: 2 * handshakeMs,
    });
    server.on('secureConnection', (socket) => {
      this.#settle(keyOf(socket));
      socket.on('error', () => socket.destroy());
      this.#secured(socket, unmapped(socket.remoteAddress ?? ''));
    });
    server.on('tlsClientError', (error, socket) => {
      if (/NO_APPLICATION_PROTOCOL/.test(systemCode(error) ?? '')) this.#tellStranger(socket);
      socket.destroy();
    });
    return server;
  }

  /** Anybody can bring this about, so that not each is told. */
  #tellStranger(socket: TLSSocket): void {
    const { log, clock } = this.#options;
    const nowMs = clock.monotonicMs();
    if (nowMs - this.#toldStrangerMs < logStrangersEveryMs) return;
    this.#toldStrangerMs = nowMs;
    log.warn('a caller has no protocol in common with this sidecar', {
      'client.address': unmapped(socket.remoteAddress ?? ''),
      'tunnel.protocols': Object.values(applicationProtocols).join(' '),
      hint: 'if it is a host of the mesh, its version is too far from this one: update the older one',
    });
  }

  #tellFlood(address: string, here: number): void {
    const isIts = here >= maxHandshakesPerAddress;
    const limit = isIts ? `${maxHandshakesPerAddress} of this address` : `${maxHandshakes} in all`;
    this.#strangers.flooded(address, `too many handshakes are not done (${limit})`);
  }

  /** A handshake is over; whether it still was not. */
  #settle(key: string): boolean {
    const handshake = this.#pending.get(key);
    if (handshake === undefined) return false;
    this.#pending.delete(key);
    handshake.cancelTimer();
    const left = (this.#byAddress.get(handshake.address) ?? 1) - 1;
    if (left > 0) this.#byAddress.set(handshake.address, left);
    else this.#byAddress.delete(handshake.address);
    if (this.#pending.size === 0) for (const settled of this.#onSettled.splice(0)) settled();
    return true;
  }

  #secured(socket: TLSSocket, address: string): void {
    const { metrics, trust, onTunnel } = this.#options;
    const protocol = socket.alpnProtocol;
    const now = trust();
    if (now === undefined || (protocol !== applicationProtocols.tunnel && this.#desk === undefined) || !protocol) {
      metrics.turnedAway('protocol');
      socket.destroy();
      return;
    }
    if (protocol === applicationProtocols.enrol) {
      this.#desk?.serve(socket, 'enrol', { address });
      return;
    }
    const peer = peerOf(socket, now);
    if (
      typeof peer === 'string' ||
      (peer.hostId === now.credentials.hostId && protocol === applicationProtocols.tunnel)
    ) {
      metrics.turnedAway('certificate');
      const claim = claimOf(socket, now.credentials.mesh);
      const problem = typeof peer === 'string' ? peer : "it shows this host's own certificate";
      if (claim !== undefined) this.#strangers.claimed(address, claim, problem);
      this.#refuse(socket, typeof peer === 'string' ? inOwnWords(peer) : 'it is this host itself');
    } else if (protocol === applicationProtocols.renew) {
      this.#desk?.serve(socket, 'renew', { address, hostId: peer.hostId });
    } else if (!onTunnel(socket, peer)) {
      metrics.turnedAway('limit');
      this.#strangers.flooded(address, `host ${peer.hostId} has too many tunnels already`);
      this.#refuse(socket, 'too many connections of this host');
    }
  }

  /** Tells a tunnel's other side why, since TLS 1.3 has finished its part of the handshake already. */
  #refuse(socket: TLSSocket, detail: string): void {
    if (socket.alpnProtocol !== applicationProtocols.tunnel) {
      const hint = /^host \S+ is revoked$/.test(detail) ? comeBackHint : joinAgainHint;
      this.#desk?.refuse(
        socket,
        new LegateError('E_UNAUTHORIZED', `the authority refuses this host: ${detail}`, { hint }),
      );
      return;
    }
    const { buffers, clock } = this.#options;
    const writer = new FrameWriter(buffers, (bytes) => socket.end(Buffer.from(bytes)));
    writer.goAway({ reason: 'refused', detail });
    writer.flush();
    socket.resume();
    const cancel = clock.after(farewellMs, () => socket.destroy());
    socket.once('close', cancel);
  }
}

/** What this side says of the other's certificate, said to the other. */
function inOwnWords(problem: string): string {
  return problem.replace('it shows no certificate', 'no certificate').replace(/^its certificate/, 'your certificate');
}

/** A connection by its ends; empty when it is gone already. */
function keyOf({ remoteAddress, remotePort, localAddress, localPort }: Socket): string {
  return remoteAddress === undefined ? '' : `${remoteAddress} ${remotePort} ${localAddress} ${localPort}`;
}
