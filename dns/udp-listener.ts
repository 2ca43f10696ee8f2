import { createSocket, type Socket } from 'node:dgram';
import type { CounterCell } from '../src/base/metrics.ts';
import { type Endpoint, unmapped } from '../src/model/address.ts';
import type { PacketHandler, Via } from './handler.ts';

/** Received packets wait in the kernel up to so many octets, so that a burst is not lost. */
const receiveBufferOctets = 1 << 20;
/** Answers that the kernel does not take at once wait here up to so many octets; beyond it they are dropped. */
const maxSendQueueOctets = 1 << 20;
/** Answers that are sent together, at the end of the event loop's turn in which their questions were read. */
const maxBatch = 64;

export interface UdpListenerOptions {
  readonly handler: PacketHandler;
  readonly queries: CounterCell;
  readonly dropped: CounterCell;
}

/** One UDP socket on a concrete address, so that answers leave from the address that was asked. */
export class UdpListener {
  readonly #socket: Socket;
  readonly #options: UdpListenerOptions;
  #via: Via = { transport: 'udp', serverAddress: undefined };
  readonly #isIpv6: boolean;
  #closed = false;
  #batch: { readonly reply: Buffer; readonly port: number; readonly address: string }[] = [];

  constructor(address: string, options: UdpListenerOptions) {
    this.#options = options;
    this.#isIpv6 = address.includes(':');
    // Peers are addresses already; looking them up would cost a turn of the event loop for each answer.
    this.#socket = createSocket({
      type: this.#isIpv6 ? 'udp6' : 'udp4',
      lookup: (host, _options, done) => done(null, host, 0),
    });
    this.#socket.on('message', (packet, peer) => this.#receive(packet, peer.address, peer.port));
  }

  /** Binds; rejects with the system's error. Resolves with the port. */
  bind({ address, port }: Endpoint): Promise<number> {
    this.#via = { transport: 'udp', serverAddress: address };
    return new Promise((resolve, reject) => {
      this.#socket.once('error', reject);
      this.#socket.bind({ address, port, exclusive: true }, () => {
        this.#socket.off('error', reject);
        // Errors of single packets: there is nobody to tell, the asker will ask again.
        this.#socket.on('error', () => {
          this.#options.dropped.value += 1;
        });
        this.#socket.setRecvBufferSize(receiveBufferOctets);
        resolve(this.#socket.address().port);
      });
    });
  }

  close(): Promise<void> {
    if (this.#closed) return Promise.resolve();
    this.#closed = true;
    return new Promise((resolve) => this.#socket.close(resolve));
  }

  #receive(packet: Buffer, address: string, port: number): void {
    // Nobody can receive at port 0: such a source is forged.
    if (port === 0) {
      this.#options.dropped.value += 1;
      return;
    }
    this.#options.queries.value += 1;
    const reply = this.#options.handler.handle(packet, this.#isIpv6 ? unmapped(address) : address, this.#via);
    if (reply === undefined) return;
    if (reply instanceof Promise) void reply.then((later) => this.#queue(later, port, address));
    else this.#queue(reply, port, address);
  }

  /**
   * Answers wait until all questions that the kernel had have been read: sent one after another they cost a fifth less,
   * because askers are woken once and not for each.
   */
  #queue(reply: Buffer, port: number, address: string): void {
    if (this.#batch.length === 0) setImmediate(this.#flush);
    this.#batch.push({ reply, port, address });
    if (this.#batch.length >= maxBatch) this.#flush();
  }

  readonly #flush = (): void => {
    const batch = this.#batch;
    if (batch.length === 0) return;
    this.#batch = [];
    if (this.#closed || this.#socket.getSendQueueSize() > maxSendQueueOctets) {
      this.#options.dropped.value += batch.length;
      return;
    }
    for (const { reply, port, address } of batch) this.#socket.send(reply, port, address);
  };
}
