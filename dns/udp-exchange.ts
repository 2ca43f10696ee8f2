import { randomInt } from 'node:crypto';
import { createSocket, type Socket } from 'node:dgram';
import type { Clock } from '../src/base/clock.ts';
import { type Endpoint, formatEndpoint } from '../src/model/address.ts';
import { addressedTo, isAnswerTo } from './wire/exchange.ts';

/** Sockets to one server; which one a question takes is random, and with it the source port. */
const socketsPerServer = 4;
/** Questions after which a socket gives way to one with another port. */
const questionsPerSocket = 256;
/** Servers for which sockets are kept. */
const maxServers = 16;

/** Why there is no answer. */
export type NoAnswer = 'timeout' | 'unreachable' | 'closed';

interface Pending {
  readonly packet: Buffer;
  readonly questionEnd: number;
  readonly settle: (result: Buffer | NoAnswer) => void;
}

/**
 * Asks servers over UDP, with random ids and source ports (RFC 5452). Sockets are connected, so that the kernel drops
 * what comes from elsewhere and reports a port that nobody listens on at once. The caller bounds what is in flight.
 */
export class UdpExchange {
  readonly #clock: Clock;
  readonly #channels = new Map<string, Channel[]>();
  #closed = false;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Resolves with the checked answer, under the id that `packet` has. */
  ask(server: Endpoint, packet: Buffer, questionEnd: number, timeoutMs: number): Promise<Buffer | NoAnswer> {
    if (this.#closed) return Promise.resolve('closed');
    return this.#channelTo(server).ask(packet, questionEnd, timeoutMs);
  }

  /** Whether a question is one of ours that has come back: in flight under the very id. */
  isOwn(id: number, packet: Buffer, questionEnd: number): boolean {
    for (const channels of this.#channels.values()) {
      if (channels.some((channel) => channel.isAsking(id, packet, questionEnd))) return true;
    }
    return false;
  }

  close(): void {
    this.#closed = true;
    for (const channels of this.#channels.values()) for (const channel of channels) channel.close('closed');
    this.#channels.clear();
  }

  #channelTo(server: Endpoint): Channel {
    const key = formatEndpoint(server);
    let channels = this.#channels.get(key);
    if (channels === undefined) {
      this.#forgetOldest();
      channels = [];
      this.#channels.set(key, channels);
    }
    const place = randomInt(socketsPerServer);
    const current = channels[place];
    if (current !== undefined && !current.spent) return current;
    const fresh = new Channel(server, this.#clock);
    current?.retire();
    channels[Math.min(place, channels.length)] = fresh;
    return fresh;
  }

  #forgetOldest(): void {
    const oldest = this.#channels.keys().next().value;
    if (this.#channels.size < maxServers || oldest === undefined) return;
    for (const channel of this.#channels.get(oldest) ?? []) channel.close('unreachable');
    this.#channels.delete(oldest);
  }
}

class Channel {
  readonly #socket: Socket;
  readonly #clock: Clock;
  readonly #pending = new Map<number, Pending>();
  readonly #connected: Promise<boolean>;
  #left = questionsPerSocket;
  #retired = false;
  #closed = false;

  constructor({ address, port }: Endpoint, clock: Clock) {
    this.#clock = clock;
    this.#socket = createSocket(address.includes(':') ? 'udp6' : 'udp4');
    this.#socket.unref();
    this.#socket.on('message', (packet) => this.#receive(packet));
    this.#connected = new Promise((resolve) => {
      this.#socket.on('error', () => {
        resolve(false);
        this.close('unreachable');
      });
      this.#socket.connect(port, address, () => resolve(true));
    });
  }

  /** Whether another socket should take its place. */
  get spent(): boolean {
    return this.#left <= 0 || this.#closed || this.#retired;
  }

  isAsking(id: number, packet: Buffer, questionEnd: number): boolean {
    const pending = this.#pending.get(id);
    return pending !== undefined && isSameQuestion(pending, packet, questionEnd);
  }

  ask(packet: Buffer, questionEnd: number, timeoutMs: number): Promise<Buffer | NoAnswer> {
    this.#left -= 1;
    const id = this.#freeId();
    return new Promise((resolve) => {
      const cancel = this.#clock.after(timeoutMs, () => settle('timeout'));
      const settle = (result: Buffer | NoAnswer): void => {
        cancel();
        this.#pending.delete(id);
        resolve(typeof result === 'string' ? result : addressedTo(packet, questionEnd, result));
        if (this.#retired && this.#pending.size === 0) this.close('closed');
      };
      this.#pending.set(id, { packet, questionEnd, settle });
      const outgoing = Buffer.from(packet);
      outgoing.writeUInt16BE(id, 0);
      void this.#connected.then((connected) => {
        if (!connected || this.#closed) {
          settle('unreachable');
          return;
        }
        this.#socket.send(outgoing, (error) => {
          if (error !== null) this.close('unreachable');
        });
      });
    });
  }

  /** Closes when nothing is pending any more. */
  retire(): void {
    this.#retired = true;
    if (this.#pending.size === 0) this.close('closed');
  }

  close(reason: NoAnswer): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const pending of [...this.#pending.values()]) pending.settle(reason);
    this.#socket.close();
  }

  #receive(packet: Buffer): void {
    if (packet.length < 12) return;
    const pending = this.#pending.get(packet.readUInt16BE(0));
    // What does not answer the question is ignored: the right answer may still come.
    if (pending !== undefined && isAnswerTo(packet, pending.packet, pending.questionEnd)) pending.settle(packet);
  }

  #freeId(): number {
    let id = randomInt(65_536);
    while (this.#pending.has(id)) id = randomInt(65_536);
    return id;
  }
}

function isSameQuestion(pending: Pending, packet: Buffer, questionEnd: number): boolean {
  if (pending.questionEnd !== questionEnd) return false;
  const ours = pending.packet.toString('latin1', 12, questionEnd).toLowerCase();
  return ours === packet.toString('latin1', 12, questionEnd).toLowerCase();
}
