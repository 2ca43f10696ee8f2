import type { Socket } from 'node:net';
import type { Clock } from '../../src/base/clock.ts';
import type { CounterCell, Metrics } from '../../src/base/metrics.ts';
import { type Endpoint, type Ipv4Range, inRange, unmapped } from '../../src/model/address.ts';
import { type Callers, callerWaitMs, type Identity, identityAt } from '../../src/model/caller.ts';
import type { Topology } from '../../src/model/topology.ts';
import { peerOf } from './socket-ends.ts';

export interface CallerGateOptions {
  readonly callers: Callers;
  readonly topology: () => Topology;
  readonly vipRange: Ipv4Range | undefined;
  /** Of the addresses of single instances, from which the host connects to them, too. */
  readonly localRange?: Ipv4Range | undefined;
  readonly clock: Clock;
  readonly metrics: Metrics;
}

/** Whoever has gone already. */
const nobody: Identity = { kind: 'anonymous' };

interface Held {
  readonly source: Endpoint;
  readonly destination: Endpoint;
  readonly decide: (identity: Identity | undefined) => void;
  readonly cancelTimeout: () => void;
  confirming: boolean;
}

/**
 * Finds out who is at the other end of a connection before it is carried: at once for those that are known, and else
 * the socket is held, unread, until the container behind its address is known, or no longer.
 */
export class CallerGate {
  /** Connections held at a time; further ones are refused. */
  static readonly maxHeld = 1024;
  /** Addresses whose identity is remembered until somebody comes or goes. */
  static readonly maxRemembered = 4096;
  readonly #options: CallerGateOptions;
  readonly #held = new Set<Held>();
  readonly #refused: CounterCell;
  readonly #unsubscribe: () => void;
  /** Who is at an address, as of this table and topology. */
  #known = new Map<string, Identity>();
  #knownOf: { table: unknown; topology: unknown } = { table: undefined, topology: undefined };

  constructor(options: CallerGateOptions) {
    const { callers, metrics } = options;
    this.#options = options;
    this.#refused = metrics.counter(
      'legate_callers_refused_total',
      'Connections that were reset because nobody is known at their address, or it is another one than it says.',
    );
    metrics.gauge('legate_callers_held_count', 'Connections that wait until it is known who calls.', [], () => [
      [[], this.#held.size],
    ]);
    this.#unsubscribe = callers.table.subscribe(() => {
      for (const held of this.#held) this.#reconsider(held);
    });
  }

  /**
   * Calls `decide` once, at once or later: with the caller's identity, or with undefined when the connection is to be
   * refused. Until then the socket stays as it is.
   */
  identify(socket: Socket, decide: (identity: Identity | undefined) => void): void {
    const source = peerOf(socket);
    const identity = source === undefined ? nobody : this.#identityAt(source.address);
    if (source === undefined || (identity !== undefined && !this.#options.callers.isFresh(source.address))) {
      decide(identity);
    } else this.#hold(socket, source, decide);
  }

  /** Refuses all that are held. */
  close(): void {
    this.#unsubscribe();
    for (const held of [...this.#held]) this.#end(held, undefined);
  }

  #identityAt(address: string): Identity | undefined {
    const { callers, topology, vipRange, localRange } = this.#options;
    const table = callers.table.value;
    const around = topology();
    if (this.#knownOf.table !== table || this.#knownOf.topology !== around) {
      this.#known.clear();
      this.#knownOf = { table, topology: around };
    }
    const known = this.#known.get(address);
    if (known !== undefined) return known;
    const range = localRange !== undefined && inRange(localRange, address) ? localRange : vipRange;
    const identity = identityAt(table, around, address, range);
    if (identity !== undefined && this.#known.size < CallerGate.maxRemembered) this.#known.set(address, identity);
    return identity;
  }

  #hold(socket: Socket, source: Endpoint, decide: (identity: Identity | undefined) => void): void {
    if (this.#held.size >= CallerGate.maxHeld) {
      this.#refused.value += 1;
      decide(undefined);
      return;
    }
    const cancelTimeout = this.#options.clock.after(callerWaitMs, () => this.#end(held, undefined));
    const destination = { address: unmapped(socket.localAddress ?? ''), port: socket.localPort ?? 0 };
    const held: Held = { source, destination, decide, cancelTimeout, confirming: false };
    // An error is followed by the end, which whoever decides about it sees.
    socket.on('error', () => undefined);
    this.#held.add(held);
    this.#reconsider(held);
  }

  /** Lets it in when it is known who it is, and that it is that one. */
  #reconsider(held: Held): void {
    const identity = this.#identityAt(held.source.address);
    if (identity === undefined || held.confirming) return;
    if (identity.kind !== 'container') {
      this.#end(held, identity);
      return;
    }
    held.confirming = true;
    void this.#options.callers.confirm(held).then((confirmed) => {
      held.confirming = false;
      const now = this.#identityAt(held.source.address);
      if (!confirmed) this.#end(held, undefined);
      else if (now?.kind === 'container' && now.caller === identity.caller) this.#end(held, now);
      // Somebody else came to the address meanwhile, or nobody has it now.
      else this.#reconsider(held);
    });
  }

  #end(held: Held, identity: Identity | undefined): void {
    if (!this.#held.delete(held)) return;
    held.cancelTimeout();
    if (identity === undefined) this.#refused.value += 1;
    held.decide(identity);
  }
}
