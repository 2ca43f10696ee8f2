import { isLegateError } from '../../src/base/errors.ts';
import type { Ipv4Range } from '../../src/model/address.ts';
import { runCommand } from './command.ts';

/** Where flows to a UDP port must not lead any more: a private port of before, or the port itself. */
export interface StaleMapping {
  readonly address: string;
  readonly port: string;
  readonly privatePort: number;
}

/** Each one is a process; beyond this many the flows of the whole range are forgotten with one. */
const maxSingly = 8;

/**
 * Makes the kernel forget UDP flows that were translated to a private port where nobody listens any more. Without it a
 * client that goes on asking from one port (a resolver) would talk into a black hole until it pauses for 30 s. Needs the
 * command `conntrack`; where it is not installed, flows simply end by that pause.
 */
export class UdpFlows {
  readonly #range: Ipv4Range;
  #queue: readonly StaleMapping[] = [];
  #whole = false;
  #running: Promise<void> | undefined;
  #missing = false;

  constructor(range: Ipv4Range) {
    this.#range = range;
  }

  /** Forgets the flows of these mappings, soon; resolves when done, never rejects. */
  forget(stale: readonly StaleMapping[]): Promise<void> {
    if (this.#missing || stale.length === 0) return Promise.resolve();
    if (this.#queue.length + stale.length > maxSingly) this.#whole = true;
    else this.#queue = [...this.#queue, ...stale];
    return this.#work();
  }

  /** Forgets every UDP flow to the range. */
  forgetAll(): Promise<void> {
    if (this.#missing) return Promise.resolve();
    this.#whole = true;
    return this.#work();
  }

  #work(): Promise<void> {
    this.#running ??= this.#drain().finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  async #drain(): Promise<void> {
    while (!this.#missing && (this.#whole || this.#queue.length > 0)) {
      const stale = this.#queue;
      this.#queue = [];
      if (this.#whole) {
        this.#whole = false;
        await this.#delete('--orig-dst', this.#range.text);
        continue;
      }
      for (const { address, port, privatePort } of stale) {
        const ports = ['--orig-port-dst', port, '--reply-port-src', String(privatePort)];
        await this.#delete('--orig-dst', address, ...ports);
      }
    }
  }

  async #delete(...filter: string[]): Promise<void> {
    try {
      await runCommand('conntrack', ['-D', '-f', 'ipv4', '-p', 'udp', ...filter]);
    } catch (error) {
      // It also fails when there was nothing to delete.
      if (isLegateError(error, 'E_NOT_FOUND')) this.#missing = true;
    }
  }
}
