import type { TLSSocket } from 'node:tls';
import type { Clock } from '../../src/base/clock.ts';
import type { LegateError } from '../../src/base/errors.ts';
import { type DeskCaller, deskBusy, type EnrolmentDesk, maxDeskBytes } from '../../src/pki/desk.ts';
import { encodeRefusal } from '../../src/pki/messages.ts';

/** Requests at a time, in all and from one address, and how long one may take from its first byte to its answer. */
export const maxDeskCallers = 64;
export const maxDeskCallersPerAddress = 8;
export const deskMs = 30_000;
/** Callers that are told at a time why they are not served, and how long that may take. */
const maxRefusals = 64;
const refusalMs = 1000;
const prefixBytes = 4;

/** One request and one answer a connection, each its length in four bytes and then as many bytes. */
export class DeskDoor {
  readonly #desk: EnrolmentDesk;
  readonly #clock: Clock;
  readonly #callers = new Map<TLSSocket, string>();
  readonly #refused = new Set<TLSSocket>();

  constructor({ desk, clock }: { readonly desk: EnrolmentDesk; readonly clock: Clock }) {
    this.#desk = desk;
    this.#clock = clock;
  }

  serve(socket: TLSSocket, kind: 'enrol' | 'renew', from: DeskCaller): void {
    let here = 0;
    for (const address of this.#callers.values()) if (address === from.address) here += 1;
    if (this.#callers.size >= maxDeskCallers || here >= maxDeskCallersPerAddress) {
      this.refuse(socket, deskBusy());
      return;
    }
    this.#callers.set(socket, from.address);
    const cancelTimer = this.#clock.after(deskMs, () => socket.destroy());
    socket.once('close', () => {
      cancelTimer();
      this.#callers.delete(socket);
    });
    const chunks: Buffer[] = [];
    let size = 0;
    let asked = false;
    socket.on('data', (chunk: Buffer) => {
      if (asked) return;
      chunks.push(chunk);
      size += chunk.length;
      if (size < prefixBytes) return;
      const request = Buffer.concat(chunks);
      const length = request.readUInt32BE(0);
      if (length > maxDeskBytes || size > prefixBytes + length) socket.destroy();
      else if (size === prefixBytes + length) {
        asked = true;
        void this.#answer(socket, kind, request.subarray(prefixBytes), from);
      } else chunks.splice(0, chunks.length, request);
    });
  }

  /** Says why there is no answer, whatever was asked; beyond a number at a time, nothing. */
  refuse(socket: TLSSocket, why: LegateError): void {
    if (this.#refused.size >= maxRefusals) {
      socket.destroy();
      return;
    }
    this.#refused.add(socket);
    const cancelTimer = this.#clock.after(refusalMs, () => socket.destroy());
    socket.once('close', () => {
      cancelTimer();
      this.#refused.delete(socket);
    });
    // What was asked is read and forgotten: unread bytes would turn the end into a reset, which takes the answer with it.
    socket.resume();
    say(socket, encodeRefusal(why));
  }

  close(): void {
    for (const socket of [...this.#callers.keys(), ...this.#refused]) socket.destroy();
  }

  async #answer(socket: TLSSocket, kind: 'enrol' | 'renew', request: Buffer, from: DeskCaller): Promise<void> {
    try {
      say(socket, await this.#desk.answer(kind, request, from));
    } catch {
      // A desk rejects when it has nothing to say.
      socket.destroy();
    }
  }
}

function say(socket: TLSSocket, answer: Uint8Array): void {
  const prefix = Buffer.alloc(prefixBytes);
  prefix.writeUInt32BE(answer.length);
  socket.end(Buffer.concat([prefix, answer]));
}
