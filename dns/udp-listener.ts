import { createSocket, type Socket } from 'node:dgram';
import type { CounterCell } from '../src/base/metrics.ts';
import { type Endpoint, unmapped } from '../src/model/address.ts';
import type { PacketHandler, Via } from './handler.ts';

/** Received packets wait in the kernel up to so many octets, so that a burst is not lost. */
const receiveBufferOctets = 1 << 20;
/** Answers that the kernel does not take at once wait here up to so many octets; beyond it they are dropped. */
const maxSendQueueOctets = 1 << 20;

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
    if (reply instanceof Promise) void reply.then((later) => this.#send(later, port, address));
    else this.#send(reply, port, address);
  }

  #send(reply: Buffer, port: number, address: string): void {
    if (this.#closed || this.#socket.getSendQueueSize() > maxSendQueueOctets) {
      this.#options.dropped.value += 1;
      return;
    }
    this.#socket.send(reply, port, address);
  }
}
