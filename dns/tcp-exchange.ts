import { randomInt } from 'node:crypto';
import { connect } from 'node:net';
import type { Clock } from '../src/base/clock.ts';
import type { Endpoint } from '../src/model/address.ts';
import type { NoAnswer } from './udp-exchange.ts';
import { addressedTo, isAnswerTo } from './wire/exchange.ts';

/** Asks servers over TCP, a connection for each question. The caller bounds what is in flight. */
export class TcpExchange {
  readonly #clock: Clock;
  readonly #open = new Set<() => void>();
  #closed = false;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Connections that are open. */
  get size(): number {
    return this.#open.size;
  }

  ask(server: Endpoint, packet: Buffer, questionEnd: number, timeoutMs: number): Promise<Buffer | NoAnswer> {
    if (this.#closed) return Promise.resolve('closed');
    return new Promise((resolve) => {
      const id = randomInt(65_536);
      const socket = connect({ host: server.address, port: server.port, noDelay: true });
      let received = Buffer.alloc(0);
      const settle = (result: Buffer | NoAnswer): void => {
        cancel();
        this.#open.delete(abandon);
        socket.destroy();
        resolve(typeof result === 'string' ? result : addressedTo(packet, questionEnd, result));
      };
      const abandon = (): void => settle('closed');
      const cancel = this.#clock.after(timeoutMs, () => settle('timeout'));
      this.#open.add(abandon);
      socket.on('connect', () => {
        const outgoing = Buffer.alloc(2 + packet.length);
        outgoing.writeUInt16BE(packet.length, 0);
        packet.copy(outgoing, 2);
        outgoing.writeUInt16BE(id, 2);
        socket.write(outgoing);
      });
      socket.on('data', (chunk: Buffer) => {
        received = Buffer.concat([received, chunk]);
        const expected = received.length < 2 ? Number.POSITIVE_INFINITY : 2 + received.readUInt16BE(0);
        if (received.length < expected) return;
        const answer = received.subarray(2, expected);
        const right = answer.length >= 12 && answer.readUInt16BE(0) === id && isAnswerTo(answer, packet, questionEnd);
        settle(right ? answer : 'unreachable');
      });
      socket.on('error', () => settle('unreachable'));
      socket.on('close', () => settle('unreachable'));
    });
  }

  close(): void {
    this.#closed = true;
    for (const abandon of [...this.#open]) abandon();
  }
}
