import type { TLSSocket } from 'node:tls';
import type { Clock } from '../../src/base/clock.ts';
import { type DeskCaller, type EnrolmentDesk, maxDeskBytes } from '../../src/pki/desk.ts';

/** Requests at a time, in all and from one address, and how long one may take from its first byte to its answer. */
export const maxDeskCallers = 64;
export const maxDeskCallersPerAddress = 8;
export const deskMs = 30_000;
const prefixBytes = 4;

/** One request and one answer a connection, each its length in four bytes and then as many bytes. */
export class DeskDoor {
  readonly #desk: EnrolmentDesk;
  readonly #clock: Clock;
  readonly #callers = new Map<TLSSocket, string>();

  constructor({ desk, clock }: { readonly desk: EnrolmentDesk; readonly clock: Clock }) {
    this.#desk = desk;
    this.#clock = clock;
  }

  serve(socket: TLSSocket, kind: 'enrol' | 'renew', from: DeskCaller): void {
    let here = 0;
    for (const address of this.#callers.values()) if (address === from.address) here += 1;
    if (this.#callers.size >= maxDeskCallers || here >= maxDeskCallersPerAddress) {
      socket.destroy();
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

  close(): void {
    for (const socket of this.#callers.keys()) socket.destroy();
  }

  async #answer(socket: TLSSocket, kind: 'enrol' | 'renew', request: Buffer, from: DeskCaller): Promise<void> {
    try {
      const answer = await this.#desk.answer(kind, request, from);
      const prefix = Buffer.alloc(prefixBytes);
      prefix.writeUInt32BE(answer.length);
      socket.end(Buffer.concat([prefix, answer]));
    } catch {
      // A desk rejects when it has nothing to say.
      socket.destroy();
    }
  }
}
